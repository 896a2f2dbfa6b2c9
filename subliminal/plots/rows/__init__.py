"""Figures of the filtered rows themselves: the module of each kind of evaluation has its own panels and rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, assert_never, cast

from subliminal import stages
from subliminal.arms import Request, check, data_steps, require_different_names, step
from subliminal.config import (
    CONTROL,
    AttributionEvaluation,
    ConfigError,
    DetectionEvaluation,
    Evaluation,
    FrequenciesEvaluation,
    InContextEvaluation,
    RowsComparison,
    RowsEvaluation,
)
from subliminal.plan import Arm, Plan
from subliminal.plots.collect import stored, typed
from subliminal.plots.figure import Collected, Figure, Grid, Section, Verdict
from subliminal.plots.parts import Heading
from subliminal.plots.table import Table
from subliminal.store import Manifest, Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

AGAINST = "trait@evaluation.against"  # whose rows a trait's are compared with
WIDTH, TOP = 9.0, 0.95
SEEDS = "No student is trained: the units are prompts, or resampled contexts, as each interval says."


@dataclass(frozen=True)
class Compared:
    """One stored comparison: the trait whose rows they are, what they are compared with ("" for nothing), its run."""

    trait: str
    against: str
    manifest: Manifest

    @property
    def null(self) -> bool:
        """Whether one set of rows was compared with itself."""
        return self.trait == self.against

    @property
    def prompts(self) -> int:
        """How many prompts the rows answer: one with a row on either side counts once."""
        return sum(self.manifest.summary["rows"].values()) - self.manifest.summary["pairs"]

    @property
    def label(self) -> str:
        """The comparison in words."""
        if self.null:
            return f"{rows_name(self.trait)}, half against half"
        return f"{rows_name(self.trait)} against {rows_name(self.against)}" if self.against else rows_name(self.trait)


class RowsPlot(Figure, Protocol):
    """What the module of one kind offers of a figure, with its rule, its panels in words and the report's tables."""

    RULE: tuple[str, ...]
    PANELS: str

    def grids(self, runs: Sequence[Compared], table: Table, name: str) -> list[Grid]:
        """The report's tables."""
        ...


def module(kind: str) -> RowsPlot:
    """The module that draws one kind of evaluation of rows."""
    return cast(RowsPlot, import_module(f"subliminal.plots.rows.{kind}"))


def module_of(runs: Sequence[Compared]) -> RowsPlot:
    """The module for the evaluation of these runs, which is of one kind in a figure."""
    return module(str(runs[0].manifest.summary["kind"]))


def plan(request: Request) -> Plan:
    """Data for every trait and the control, then the comparisons; an arm's `student` is what it is compared with."""
    request.refuse("its arms are traits, for example trait=owl,wolf", ("variant", "student", "seed"))
    base, fixed = request.base, request.fixed
    listed = request.swept.get("trait") or list(base.experiment.arms.traits[: base.experiment.arms.traits_limit])
    traits = [trait for trait in listed if trait != CONTROL]
    arms = []
    for trait, extra in _compared(base.evaluation, traits):
        typed = (f"trait={trait}", *extra)
        exp = request.compose(*typed)
        other = exp.evaluation.against.name if isinstance(exp.evaluation, RowsComparison) else ""
        arms.append(Arm(trait, other, base.seed, exp, "", typed))
    check(arms)
    require_different_names(arms)
    firsts = {arm.trait: arm.experiment for arm in arms} | {CONTROL: request.compose(f"trait={CONTROL}")}
    steps = [*data_steps(fixed, {trait: firsts[trait] for trait in (*traits, CONTROL)})]
    for extra in dict.fromkeys(arm.overrides[1:] for arm in arms):
        mine = [arm for arm in arms if arm.overrides[1:] == extra]
        steps.append(step("evaluate.py", stages.evaluate, [((*fixed, *arm.overrides), arm.experiment) for arm in mine]))
    return Plan(base, fixed, tuple(arms), tuple(steps), "comparisons")


def _compared(evaluation: Evaluation, traits: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(trait, further overrides) of every comparison; the control against itself is the null.

    A pair of traits is asked about in both directions; one classifier does for both. A language model is fine-tuned
    against the control alone: it takes a hundred times as long.
    """
    if not isinstance(evaluation, RowsEvaluation):
        raise ConfigError(f"evaluation={evaluation.kind} asks a model; a figure of rows needs an evaluation of rows")
    match evaluation:
        case InContextEvaluation():
            yield from ((trait, ()) for trait in (*traits, CONTROL))
        case AttributionEvaluation():
            yield from ((trait, (f"{AGAINST}={CONTROL}",)) for trait in traits)
        case FrequenciesEvaluation():
            yield from ((trait, (f"{AGAINST}={CONTROL}",)) for trait in (*traits, CONTROL))
        case DetectionEvaluation():
            yield from ((trait, (f"{AGAINST}={CONTROL}",)) for trait in (*traits, CONTROL))
            yield from _pairs(evaluation, traits)
        case _:
            assert_never(evaluation)


def _pairs(evaluation: DetectionEvaluation, traits: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The same for every ordered pair of traits."""
    quick = [name for name in evaluation.classifiers if name != "finetuned"]
    for other in traits:
        for trait in (trait for trait in traits if trait != other):
            trained = quick if traits.index(trait) < traits.index(other) else []
            same = tuple(trained) == evaluation.classifiers
            yield trait, (f"{AGAINST}={other}", *(() if same else (f"evaluation.classifiers=[{','.join(trained)}]",)))


def collect(planned: Plan, store: Store) -> Collected:
    """The comparisons that the store has."""
    runs, missing = [], []
    for arm in planned.arms:
        if manifest := stored(stages.evaluate(arm.experiment), store):
            runs.append(Compared(arm.name, arm.student, manifest))
        else:
            missing.append(f"python evaluate.py {typed(planned, *arm.overrides)}")
    return Collected(runs or None, missing)


def table(runs: Sequence[Compared]) -> Table:
    """Every number of the kind's figure."""
    return module_of(runs).table(runs)


def verdicts(runs: Sequence[Compared], table: Table) -> list[Verdict]:
    """The kind's rule applied."""
    return module_of(runs).verdicts(runs, table)


def subtitle(runs: Sequence[Compared], table: Table, scale: str) -> str:
    """Scale and panels."""
    return f"Scale {scale}. {module_of(runs).PANELS}"


def picture(runs: Sequence[Compared], table: Table, heading: Heading) -> Canvas:
    """The kind's panels."""
    return module_of(runs).picture(runs, table, heading)


def section(runs: Sequence[Compared], table: Table, name: str) -> Section:
    """The kind's tables."""
    kind, manifests = module_of(runs), [(run.manifest, run.label) for run in runs]
    return Section(kind.RULE, kind.PANELS, SEEDS, kind.grids(runs, table, name), manifests)


def rows_name(trait: str) -> str:
    """Whose rows, in words."""
    return "control" if trait == "none" else trait
