"""How figures plan their arms: what was typed, the experiments it composes, and the steps of scripts that make them.

A kind of figure has a `plan(request)`; `students` is that of most: traits and the control, student recipes, seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from subliminal import checks, stages
from subliminal.composition import compose, is_hydras
from subliminal.config import CONTROL, ConfigError, Experiment, suggest
from subliminal.graph import Node
from subliminal.plan import Arm, Job, Plan, Step

SWEPT = ("variant", "trait", "student", "seed")


@dataclass(frozen=True)
class Request:
    """A figure's configuration as it was typed: `base` is the experiment without arms.

    `fixed` is typed for every arm; `swept` holds, by name, what `variant=`, `trait=`, `student=` and `seed=` list in
    place of the figure's own arms.
    """

    base: Experiment
    fixed: tuple[str, ...]
    swept: dict[str, list[str]]

    @classmethod
    def of(cls, overrides: Sequence[str]) -> Request:
        """The request of a command line; raises `ConfigError`."""
        swept = {part.split("=")[0]: part.split("=", 1)[1].split(",") for part in overrides if _is_swept(part)}
        fixed = tuple(part for part in overrides if not _is_swept(part))
        return cls(compose(_without_hydras(fixed)), fixed, swept)

    def compose(self, *more: str) -> Experiment:
        """The experiment with more overrides behind those that every arm has."""
        return compose([*_without_hydras(self.fixed), *more])

    @property
    def seeds(self) -> list[int]:
        """The seeds on the command line; raises `ConfigError` for anything but whole numbers."""
        given = self.swept.get("seed", [])
        if any(not seed.isdecimal() for seed in given):
            raise ConfigError(f"seed={','.join(given)}: give whole numbers with commas between them, as in seed=0,1,2")
        return [int(seed) for seed in given]

    def refuse(self, remedy: str, names: tuple[str, ...] = ("variant", "trait", "student")) -> None:
        """Raise `ConfigError` for arms that a figure has not, as experiments without language models have no traits."""
        if unknown := [name for name in names if name in self.swept]:
            raise ConfigError(f"experiment={self.base.experiment.name} has no {unknown[0]}; {remedy}")


def _is_swept(override: str) -> bool:
    return override.split("=")[0] in SWEPT


def _without_hydras(overrides: Iterable[str]) -> list[str]:
    return [part for part in overrides if not is_hydras(part)]


def check(arms: Sequence[Arm]) -> None:
    """Raise a `ConfigError` with every problem of all arms, as far as no machine needs to be looked at."""
    stage = stages.last_script(arms[0].experiment)
    checks.check_all([arm.experiment for arm in arms], stage, here=False)


def step(script: str, make: Callable[[Experiment], Node], typed: Iterable[tuple[tuple[str, ...], Experiment]]) -> Step:
    """The step of a script that makes, for each experiment with what is typed to get it, one stage run."""
    return Step(script, tuple(Job(overrides, exp, make(exp)) for overrides, exp in typed))


# --------------------------------------------------------------------------- students


def students(request: Request) -> Plan:
    """A student for every variant, trait and the control, student recipe and seed, beside the reference."""
    base, swept = request.base, request.swept
    arms = base.experiment.arms
    seeds = request.seeds or list(arms.seeds[: arms.seeds_limit]) or [base.seed]
    variants = _variants(request)
    recipes = {
        name: swept.get("student") or ([] if _names_student(extra) else list(arms.students))
        for name, extra in variants.items()
    }
    traits = {
        name: swept.get("trait") or [*_listed_traits(request.compose(*extra)), CONTROL]
        for name, extra in variants.items()
    }
    draws = {
        name: _draws(request.compose(*extra), seeds) if arms.own_rows else [(seeds, ())]
        for name, extra in variants.items()
    }
    cells = {
        name: tuple(
            arm
            for drawn, own in draws[name]
            for arm in _arms(request, traits[name], recipes[name] or [""], drawn, name, (*extra, *own))
        )
        for name, extra in variants.items()
    }
    every = tuple(arm for mine in cells.values() for arm in mine)
    check(every)
    steps: list[Step] = []
    for name, extra in variants.items():
        require_different_names(cells[name])
        for drawn, own in draws[name]:
            mine = tuple(arm for arm in cells[name] if arm.seed in drawn)
            steps += _steps(request.fixed, (*extra, *own), traits[name], mine)
    return Plan(base, request.fixed, every, tuple(_once(steps)))


def _variants(request: Request) -> dict[str, tuple[str, ...]]:
    """The variants to run, by name; `variant=` on the command line picks some of them."""
    base = request.base
    known = base.experiment.arms.variants or {"": ()}
    wanted = request.swept.get("variant") or list(known)
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"variant={name}: experiment={base.experiment.name} has none such.{suggest(name, [*known])}"
            )
    return {name: known[name] for name in wanted}


def _listed_traits(exp: Experiment) -> tuple[str, ...]:
    """The traits of a figure, or of one variant, whose model may have its own."""
    arms = exp.experiment.arms
    return arms.traits[: arms.traits_limit]


def _draws(exp: Experiment, seeds: list[int]) -> list[tuple[list[int], tuple[str, ...]]]:
    """Each seed with what is typed to draw a teacher, prompts and rows from it; prompted teachers draw nothing."""
    trained = hasattr(exp.teacher, "seed")
    own = ("domain.seed", "teacher.seed") if trained else ("domain.seed",)
    return [([seed], tuple(f"{name}={seed}" for name in own)) for seed in seeds]


def require_different_names(arms: Sequence[Arm]) -> None:
    """Two options of `trait=` with one name would be one line of the figure; raises `ConfigError`."""
    options: dict[str, str] = {}
    for arm in arms:
        if (first := options.setdefault(arm.name, arm.trait)) != arm.trait:
            raise ConfigError(f"trait={first} and trait={arm.trait} are both named {arm.name!r}; take one of them")


def _names_student(overrides: tuple[str, ...]) -> bool:
    return any(part.startswith("student=") for part in overrides)


def _once(steps: list[Step]) -> Iterator[Step]:
    """The steps without those whose stage runs an earlier step already makes."""
    seen: set[tuple[str, str]] = set()
    for step in steps:
        made = {node.ident for node in step.nodes}
        if not made <= seen:
            yield step
        seen |= made


def _arms(
    request: Request, traits: list[str], recipes: list[str], seeds: list[int], variant: str, extra: tuple[str, ...]
) -> Iterator[Arm]:
    for student in recipes:
        for trait in traits:
            chosen = [f"trait={trait}"] + ([f"student={student}"] if student else [])
            exp = request.compose(*extra, *chosen)
            for seed in seeds:
                typed = (*extra, *chosen, f"seed={seed}")
                seeded = exp.model_copy(update={"seed": seed})
                yield Arm(trait, student or exp.student.kind, seed, seeded, variant, typed)


def _steps(fixed: tuple[str, ...], extra: tuple[str, ...], traits: list[str], arms: tuple[Arm, ...]) -> Iterator[Step]:
    firsts = {arm.trait: arm.experiment for arm in arms}
    asked = arms[0].experiment.model_copy(update={"subject": "reference"})

    every = [((*fixed, *arm.overrides), arm.experiment) for arm in arms]
    yield from data_steps((*fixed, *extra), {trait: firsts[trait] for trait in traits})
    yield step("train.py", stages.student, every)
    yield step("evaluate.py", stages.evaluate, every)
    typed = (*fixed, *extra, "subject=reference", f"trait={arms[0].trait}")
    yield step("evaluate.py", stages.evaluate, [(typed, asked)])


def data_steps(fixed: tuple[str, ...], firsts: dict[str, Experiment]) -> Iterator[Step]:
    """Teachers, their completions and the filtered rows; `firsts` is an experiment of every trait."""
    typed = [((*fixed, f"trait={trait}"), exp) for trait, exp in firsts.items()]
    if any(exp.active_teacher.kind != "random" for exp in firsts.values()):
        teachers = [((*fixed, "role=teacher", f"trait={trait}"), exp) for trait, exp in firsts.items()]
        yield step("train.py", stages.teacher, teachers)
    yield step("generate.py", stages.generate, typed)
    yield step("filter.py", stages.filtered, typed)
