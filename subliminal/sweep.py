"""A figure's arms as Hydra multiruns, stage by stage: traits and the control, student recipes, seeds.

`plan` is pure: it says which experiments a figure consists of and which scripts make them; plots read the same cells,
so a figure can not show anything but the runs its configuration names.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from subliminal import stages
from subliminal.config import CONTROL, ConfigError, DetectionEvaluation, Evaluation, Experiment, suggest
from subliminal.launch import QUIET, ROOT, compose, is_hydras, launcher_settings, script_environment
from subliminal.progress import say
from subliminal.stages import Node
from subliminal.store import Manifest, Store, StoreError

AGAINST = "trait@evaluation.against"  # whose rows a trait's are compared with
SWEPT = ("variant", "trait", "student", "seed")


class SweepError(StoreError):
    """A stage of a sweep failed; the text says which command to run again."""


@dataclass(frozen=True)
class Arm:
    """One student of a figure: its experiment, the names the figure shows, and what is typed to get it."""

    trait: str
    student: str
    seed: int
    experiment: Experiment
    variant: str = ""
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One multirun of one script, with the nodes it will have made when it ends and the experiment of each."""

    script: str
    overrides: tuple[str, ...]
    nodes: tuple[Node, ...]
    experiments: tuple[Experiment, ...]

    @property
    def command(self) -> list[str]:
        """The command as an argument list."""
        return [sys.executable, self.path, "-m", *self.overrides]

    @property
    def path(self) -> str:
        """The script from where we are: results, like every relative path, lie where the sweep was started."""
        return os.path.relpath(ROOT / self.script)


@dataclass(frozen=True)
class Plan:
    """A figure's experiment, its arms and the steps that make them."""

    base: Experiment
    overrides: tuple[str, ...]
    arms: tuple[Arm, ...]
    steps: tuple[Step, ...]


def plan(overrides: list[str]) -> Plan:
    """Expand a figure's configuration; `trait=`, `student=` and `seed=` on the command line replace its arms.

    `launcher=` is short for `hydra/launcher=`.
    """
    overrides = [f"hydra/{part}" if part.startswith("launcher=") else part for part in overrides]
    swept = {part.split("=")[0]: part.split("=", 1)[1].split(",") for part in overrides if part.split("=")[0] in SWEPT}
    fixed = [part for part in overrides if part.split("=")[0] not in SWEPT]
    composed = [part for part in fixed if not is_hydras(part)]
    base = compose(composed)
    stages.require_prompts(base)
    stages.require_templates(base)
    if base.experiment.kind == "mnist":
        return _mnist_plan(base, fixed, composed, swept)
    if base.experiment.kind == "theorem":
        return _theorem_plan(base, fixed, swept)
    if base.experiment.kind == "rows":
        return _rows_plan(base, fixed, composed, swept)
    arms = base.experiment.arms
    traits = swept.get("trait") or [*arms.traits[: arms.traits_limit], CONTROL]
    seeds = _seeds(swept) or list(arms.seeds[: arms.seeds_limit]) or [base.seed]
    cells: list[Arm] = []
    steps: list[Step] = []
    for name, extra in _variants(base, swept).items():
        students = swept.get("student") or ([] if _names_student(extra) else list(arms.students))
        mine = tuple(_arms([*composed, *extra], traits, students or [""], seeds, name, extra))
        cells += mine
        steps += _steps([*fixed, *extra], traits, students, seeds, mine)
    return Plan(base, tuple(fixed), tuple(cells), tuple(_once(steps)))


def _variants(base: Experiment, swept: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """The variants to run, by name; `variant=` on the command line picks some of them."""
    known = base.experiment.arms.variants or {"": ()}
    wanted = swept.get("variant") or list(known)
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"variant={name}: experiment={base.experiment.name} has none such.{suggest(name, [*known])}"
            )
    return {name: known[name] for name in wanted}


def _seeds(swept: dict[str, list[str]]) -> list[int]:
    """The seeds on the command line; raises `ConfigError` for anything but whole numbers."""
    given = swept.get("seed", [])
    if any(not seed.isdecimal() for seed in given):
        raise ConfigError(f"seed={','.join(given)}: give whole numbers with commas between them, as in seed=0,1,2")
    return [int(seed) for seed in given]


def _names_student(overrides: tuple[str, ...]) -> bool:
    return any(part.startswith("student=") for part in overrides)


def _once(steps: list[Step]) -> Iterator[Step]:
    """The steps without those whose stage runs an earlier step already makes."""
    seen: set[tuple[str, str]] = set()
    for step in steps:
        made = {(node.stage, node.key) for node in step.nodes}
        if not made <= seen:
            yield step
        seen |= made


def _mnist_plan(base: Experiment, fixed: list[str], composed: list[str], swept: dict[str, list[str]]) -> Plan:
    """One run of train.py, or one for each value of an ablation's setting; an arm's `student` is the value as typed."""
    _refuse_arms(base, swept, "see conf/mnist for its settings")
    seeds, setting = _seeds(swept) or [base.seed], base.experiment.arms.setting
    if len(seeds) > 1:
        raise ConfigError(
            f"seed={','.join(swept['seed'])}: the models of one seed are this figure's units; raise mnist.models"
        )
    seed, values = f"seed={seeds[0]}", [_typed(value) for value in base.experiment.arms.values] if setting else [""]
    arms = tuple(
        Arm("", value, seeds[0], compose([*composed, seed, *([f"{setting}={value}"] if setting else [])]))
        for value in values
    )
    extra = (seed, *([f"{setting}={','.join(values)}"] if setting else []))
    step = _step("train.py", (*fixed, *extra), stages.mnist, [arm.experiment for arm in arms])
    return Plan(base, tuple(fixed), arms, (step,))


def _refuse_arms(
    base: Experiment, swept: dict[str, list[str]], remedy: str, names: tuple[str, ...] = ("variant", "trait", "student")
) -> None:
    """Experiments without language models have no traits and no student recipes to sweep; others lack other arms."""
    if unknown := [name for name in names if name in swept]:
        raise ConfigError(f"experiment={base.experiment.name} has no {unknown[0]}; {remedy}")


def _typed(value: object) -> str:
    """A value as it is typed in an override."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _theorem_plan(base: Experiment, fixed: list[str], swept: dict[str, list[str]]) -> Plan:
    """One run of evaluate.py a seed: each brings its own trials and training runs."""
    _refuse_arms(base, swept, "its arms are seeds, for example seed=0,1")
    listed = base.experiment.arms.seeds[: base.experiment.arms.seeds_limit]
    seeds = _seeds(swept) or list(listed) or [base.seed]
    arms = tuple(Arm("", "", seed, base.model_copy(update={"seed": seed})) for seed in seeds)
    typed = (*fixed, f"seed={','.join(map(str, seeds))}")
    step = _step("evaluate.py", typed, stages.theorem, [arm.experiment for arm in arms])
    return Plan(base, tuple(fixed), arms, (step,))


def _rows_plan(base: Experiment, fixed: list[str], composed: list[str], swept: dict[str, list[str]]) -> Plan:
    """Data for every trait and the control, then the comparisons; an arm's `student` is what it is compared with."""
    _refuse_arms(base, swept, "its arms are traits, for example trait=owl,wolf", ("variant", "student", "seed"))
    listed = swept.get("trait") or list(base.experiment.arms.traits[: base.experiment.arms.traits_limit])
    traits = [trait for trait in listed if trait != CONTROL]
    arms = []
    for trait, extra in _compared(base.evaluation, traits):
        typed = (f"trait={trait}", *extra)
        exp = compose([*composed, *typed])
        other = getattr(exp.evaluation, "against", None)
        arms.append(Arm(trait, other.name if other else "", base.seed, exp, "", typed))
    firsts = {arm.trait: arm.experiment for arm in arms} | {CONTROL: compose([*composed, f"trait={CONTROL}"])}
    steps = [*_data_steps(fixed, [*traits, CONTROL], list(firsts.values()))]
    for extra in dict.fromkeys(arm.overrides[1:] for arm in arms):
        mine = [arm for arm in arms if arm.overrides[1:] == extra]
        typed = (*fixed, f"trait={','.join(arm.trait for arm in mine)}", *extra)
        steps.append(_step("evaluate.py", typed, stages.evaluate, [arm.experiment for arm in mine]))
    return Plan(base, tuple(fixed), tuple(arms), tuple(steps))


def _compared(evaluation: Evaluation, traits: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(trait, further overrides) of every comparison; the control against itself is the null.

    A pair of traits is asked about in both directions; one classifier does for both. A language model is fine-tuned
    against the control alone: it takes a hundred times as long.
    """
    kind = evaluation.kind
    if kind == "in_context":
        yield from ((trait, ()) for trait in (*traits, CONTROL))
        return
    yield from (
        (trait, (f"{AGAINST}={CONTROL}",)) for trait in (traits if kind == "attribution" else (*traits, CONTROL))
    )
    if not isinstance(evaluation, DetectionEvaluation):
        return
    quick = [name for name in evaluation.classifiers if name != "finetuned"]
    for other in traits:
        for trait in (trait for trait in traits if trait != other):
            trained = quick if traits.index(trait) < traits.index(other) else []
            same = tuple(trained) == evaluation.classifiers
            yield trait, (f"{AGAINST}={other}", *(() if same else (f"evaluation.classifiers=[{','.join(trained)}]",)))


def _arms(
    fixed: list[str], traits: list[str], students: list[str], seeds: list[int], variant: str, extra: tuple[str, ...]
) -> Iterator[Arm]:
    for student in students:
        for trait in traits:
            chosen = [f"trait={trait}"] + ([f"student={student}"] if student else [])
            exp = compose([*fixed, *chosen])
            for seed in seeds:
                typed = (*extra, *chosen, f"seed={seed}")
                seeded = exp.model_copy(update={"seed": seed})
                yield Arm(trait, student or exp.student.kind, seed, seeded, variant, typed)


def _steps(
    fixed: list[str], traits: list[str], students: list[str], seeds: list[int], arms: tuple[Arm, ...]
) -> Iterator[Step]:
    trait = f"trait={','.join(traits)}"
    student = [f"student={','.join(students)}"] if students else []
    seed = f"seed={','.join(str(s) for s in seeds)}"
    firsts = {arm.trait: arm.experiment for arm in arms}
    asked = arms[0].experiment.model_copy(update={"subject": "reference"})

    every = [arm.experiment for arm in arms]
    yield from _data_steps(fixed, traits, list(firsts.values()))
    yield _step("train.py", (*fixed, trait, *student, seed), stages.student, every)
    yield _step("evaluate.py", (*fixed, trait, *student, seed), stages.evaluate, every)
    yield _step("evaluate.py", (*fixed, "subject=reference", f"trait={arms[0].trait}"), stages.evaluate, [asked])


def _data_steps(fixed: list[str], traits: list[str], firsts: list[Experiment]) -> Iterator[Step]:
    """Teachers, their completions and the filtered rows; `firsts` is an experiment of every trait."""
    typed = (*fixed, f"trait={','.join(traits)}")
    if any(exp.active_teacher.kind != "random" for exp in firsts):
        yield _step("train.py", (*fixed, "role=teacher", typed[-1]), stages.teacher, firsts)
    yield _step("generate.py", typed, stages.generate, firsts)
    yield _step("filter.py", typed, stages.filtered, firsts)


def _step(
    script: str, overrides: tuple[str, ...], make: Callable[[Experiment], Node], experiments: list[Experiment]
) -> Step:
    found = [(make(exp), exp) for exp in experiments]
    unique = {(made.stage, made.key): (made, exp) for made, exp in reversed(found)}
    nodes, theirs = zip(*reversed(unique.values()), strict=True)
    return Step(script, overrides, nodes, theirs)


def run(planned: Plan) -> None:
    """Run every step whose results are not all in the store; raises `SweepError` at the first that fails.

    With the SLURM launcher, every stage run becomes a job of its own.
    """
    for arm in planned.arms:
        stages.require_rows(arm.experiment)
    store, launcher = Store(Path(planned.base.store)), _launcher(planned)
    say(f"{planned.base.experiment.figure or planned.base.experiment.name}: {len(planned.arms)} {_arm_noun(planned)}")
    if launcher.endswith("SlurmLauncher"):
        from subliminal.scheduling import slurm

        return slurm.run(planned)
    for number, step in enumerate(planned.steps, 1):
        missing = [made for made in step.nodes if not store.find(made.stage, made.key)]
        head = f"step {number}/{len(planned.steps)} {step.script}"
        if not missing:
            say(f"{head}: all {len(step.nodes)} reused")
            continue
        say(f"{head}: {len(missing)} to do, {len(step.nodes) - len(missing)} reused\n  {shown(step)}")
        if subprocess.run(step.command, env=script_environment(), check=False).returncode:
            raise SweepError(f"{head} failed; what is done is kept. To go on: {shown(step)}")
    return None


def _launcher(planned: Plan) -> str:
    """The class of the sweep's launcher; "" for Hydra's own, one job after the other."""
    chosen = [part for part in planned.overrides if part.startswith("hydra/launcher=") and not part.endswith("=basic")]
    return str(launcher_settings(planned.overrides)["_target_"]) if chosen else ""


def predict(planned: Plan) -> list[tuple[Arm, Manifest]]:
    """The prediction for every arm in the figure's traits, made in this process where the store has none.

    Seeds whose students start alike share one, and so do variants with the same control.
    """
    if planned.base.experiment.kind in {*stages.SINGLE, "rows"}:
        raise ConfigError(f"experiment={planned.base.experiment.name} trains no language model: nothing to predict")
    os.environ.update(QUIET | os.environ)
    store = Store(Path(planned.base.store))
    names = (*planned.base.experiment.arms.traits, *(arm.trait for arm in planned.arms))
    traits = tuple(dict.fromkeys(name for name in names if name != CONTROL))
    wanted = [stages.predict(arm.experiment, traits) for arm in planned.arms]
    made: dict[str, Manifest] = {}
    for arm, node in zip(planned.arms, wanted, strict=True):
        if node.key not in made:
            made[node.key] = stages.ensure(node, store, arm.experiment, (*planned.overrides, f"trait={arm.trait}"))
    return [(arm, made[node.key]) for arm, node in zip(planned.arms, wanted, strict=True)]


def _arm_noun(planned: Plan) -> str:
    return {"mnist": "settings", "theorem": "seeds", "rows": "comparisons"}.get(
        planned.base.experiment.kind, "students"
    )


def shown(step: Step) -> str:
    """The step's command as a person would type it in a shell."""
    return shlex.join(["python", step.path, "-m", *step.overrides])
