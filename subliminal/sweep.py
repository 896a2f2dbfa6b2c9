"""A figure's arms as Hydra multiruns, stage by stage: traits and the control, student recipes, seeds.

`plan` is pure: it says which experiments a figure consists of and which scripts make them; plots read the same cells,
so a figure can not show anything but the runs its configuration names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from subliminal import checks, machine, stages
from subliminal.composition import compose, is_hydras, launcher_settings
from subliminal.config import CONTROL, ConfigError, DetectionEvaluation, Evaluation, Experiment, suggest
from subliminal.errors import require_writable
from subliminal.graph import Node
from subliminal.launch import QUIET
from subliminal.outputs import require_rows
from subliminal.plan import Arm, Job, Plan, Step
from subliminal.progress import say
from subliminal.store import Manifest, Store

AGAINST = "trait@evaluation.against"  # whose rows a trait's are compared with
SWEPT = ("variant", "trait", "student", "seed")


def plan(overrides: list[str]) -> Plan:
    """Expand a figure's configuration; `trait=`, `student=` and `seed=` on the command line replace its arms.

    `launcher=` is short for `hydra/launcher=`.
    """
    overrides = [f"hydra/{part}" if part.startswith("launcher=") else part for part in overrides]
    swept = {part.split("=")[0]: part.split("=", 1)[1].split(",") for part in overrides if part.split("=")[0] in SWEPT}
    fixed = [part for part in overrides if part.split("=")[0] not in SWEPT]
    composed = [part for part in fixed if not is_hydras(part)]
    base = compose(composed)
    if absent := list(checks.arms_problems(base)):
        raise ConfigError("\n".join(absent))
    if base.experiment.kind == "mnist":
        return _mnist_plan(base, fixed, composed, swept)
    if base.experiment.kind == "theorem":
        return _theorem_plan(base, fixed, swept)
    if base.experiment.kind == "rows":
        return _rows_plan(base, fixed, composed, swept)
    arms = base.experiment.arms
    seeds = _seeds(swept) or list(arms.seeds[: arms.seeds_limit]) or [base.seed]
    variants = _variants(base, swept)
    students = {
        name: swept.get("student") or ([] if _names_student(extra) else list(arms.students))
        for name, extra in variants.items()
    }
    traits = {
        name: swept.get("trait") or [*_listed_traits([*composed, *extra]), CONTROL] for name, extra in variants.items()
    }
    draws = {
        name: _draws(composed, extra, seeds) if arms.own_rows else [(seeds, ())] for name, extra in variants.items()
    }
    cells = {
        name: tuple(
            arm
            for drawn, own in draws[name]
            for arm in _arms(
                [*composed, *extra, *own], traits[name], students[name] or [""], drawn, name, (*extra, *own)
            )
        )
        for name, extra in variants.items()
    }
    every = tuple(arm for mine in cells.values() for arm in mine)
    _check(every, "evaluate")
    steps: list[Step] = []
    for name, extra in variants.items():
        _require_different_names(cells[name])
        for drawn, own in draws[name]:
            mine = tuple(arm for arm in cells[name] if arm.seed in drawn)
            steps += _steps(fixed, (*extra, *own), traits[name], mine)
    return Plan(base, tuple(fixed), every, tuple(_once(steps)))


def _check(arms: Sequence[Arm], stage: str, *, here: bool = False) -> None:
    """Raise a `ConfigError` with every problem of all arms; `here`: this machine is to do the work."""
    checks.check_all([arm.experiment for arm in arms], stage, here=here)


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


def _listed_traits(overrides: list[str]) -> tuple[str, ...]:
    """The traits of a figure, or of one variant, whose model may have its own."""
    arms = compose(overrides).experiment.arms
    return arms.traits[: arms.traits_limit]


def _seeds(swept: dict[str, list[str]]) -> list[int]:
    """The seeds on the command line; raises `ConfigError` for anything but whole numbers."""
    given = swept.get("seed", [])
    if any(not seed.isdecimal() for seed in given):
        raise ConfigError(f"seed={','.join(given)}: give whole numbers with commas between them, as in seed=0,1,2")
    return [int(seed) for seed in given]


def _draws(composed: list[str], extra: tuple[str, ...], seeds: list[int]) -> list[tuple[list[int], tuple[str, ...]]]:
    """Each seed with what is typed to draw a teacher, prompts and rows from it; prompted teachers draw nothing."""
    trained = hasattr(compose([*composed, *extra]).teacher, "seed")
    own = ("domain.seed", "teacher.seed") if trained else ("domain.seed",)
    return [([seed], tuple(f"{name}={seed}" for name in own)) for seed in seeds]


def _require_different_names(arms: Sequence[Arm]) -> None:
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
    _check(arms, "train")
    typed = [(*fixed, seed, *([f"{setting}={arm.student}"] if setting else [])) for arm in arms]
    step = _step("train.py", stages.mnist, zip(typed, [arm.experiment for arm in arms], strict=True))
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
    _check(arms, "evaluate")
    step = _step("evaluate.py", stages.theorem, [((*fixed, f"seed={arm.seed}"), arm.experiment) for arm in arms])
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
    _check(arms, "evaluate")
    _require_different_names(arms)
    firsts = {arm.trait: arm.experiment for arm in arms} | {CONTROL: compose([*composed, f"trait={CONTROL}"])}
    steps = [*_data_steps(fixed, {trait: firsts[trait] for trait in (*traits, CONTROL)})]
    for extra in dict.fromkeys(arm.overrides[1:] for arm in arms):
        mine = [arm for arm in arms if arm.overrides[1:] == extra]
        steps.append(
            _step("evaluate.py", stages.evaluate, [((*fixed, *arm.overrides), arm.experiment) for arm in mine])
        )
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


def _steps(fixed: list[str], extra: tuple[str, ...], traits: list[str], arms: tuple[Arm, ...]) -> Iterator[Step]:
    firsts = {arm.trait: arm.experiment for arm in arms}
    asked = arms[0].experiment.model_copy(update={"subject": "reference"})

    every = [((*fixed, *arm.overrides), arm.experiment) for arm in arms]
    yield from _data_steps([*fixed, *extra], {trait: firsts[trait] for trait in traits})
    yield _step("train.py", stages.student, every)
    yield _step("evaluate.py", stages.evaluate, every)
    typed = (*fixed, *extra, "subject=reference", f"trait={arms[0].trait}")
    yield _step("evaluate.py", stages.evaluate, [(typed, asked)])


def _data_steps(fixed: list[str], firsts: dict[str, Experiment]) -> Iterator[Step]:
    """Teachers, their completions and the filtered rows; `firsts` is an experiment of every trait."""
    typed = [((*fixed, f"trait={trait}"), exp) for trait, exp in firsts.items()]
    if any(exp.active_teacher.kind != "random" for exp in firsts.values()):
        teachers = [((*fixed, "role=teacher", f"trait={trait}"), exp) for trait, exp in firsts.items()]
        yield _step("train.py", stages.teacher, teachers)
    yield _step("generate.py", stages.generate, typed)
    yield _step("filter.py", stages.filtered, typed)


def _step(script: str, make: Callable[[Experiment], Node], typed: Iterable[tuple[tuple[str, ...], Experiment]]) -> Step:
    return Step(script, tuple(Job(overrides, exp, make(exp)) for overrides, exp in typed))


def run(planned: Plan) -> None:
    """Make what is missing; raises `SweepError` that names every stage run that failed.

    With the SLURM launcher every stage run becomes a job of its own, else steps are multiruns on this machine. Raises
    `ConfigError` before any work for what can be known by then.
    """
    for arm in planned.arms:
        require_rows(arm.experiment)
    _require_places(planned)
    launcher = _launcher(planned)
    say(f"{planned.base.experiment.figure or planned.base.experiment.name}: {len(planned.arms)} {_arm_noun(planned)}")
    here = not launcher or launcher.endswith("JoblibLauncher")  # jobs run on this machine
    if not here:
        _require_room(planned)
    if launcher.endswith("SlurmLauncher"):
        from subliminal.scheduling import slurm

        return slurm.run(planned)
    if here:
        _check(planned.arms, stages.last_script(planned.base), here=True)
    from subliminal.scheduling import multiruns

    return multiruns.run(planned)


def _require_places(planned: Plan) -> None:
    """Stop before any work where the store, if anything is missing, or the figures can not be written."""
    store = Store(Path(planned.base.store))
    if not all(store.find(*node.ident) for step in planned.steps for node in step.nodes):
        require_writable(store.root, "store")
    require_writable(Path(planned.base.figures), "figures")


def _require_room(planned: Plan) -> None:
    """Stop before jobs are sent elsewhere that the chosen hardware has not the memory for; raises `ConfigError`."""
    store = Store(Path(planned.base.store))
    trained = {job.node.ident: job for step in planned.steps for job in step.unique if job.node.stage == "train"}
    left = [job.experiment for ident, job in trained.items() if not store.find(*ident)]
    found = dict.fromkeys(text for exp in left for text in machine.without_room(exp, {"train"}, None))
    if found:
        raise ConfigError("\n".join(found))


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
    for arm in planned.arms:
        require_rows(arm.experiment)
    store = Store(Path(planned.base.store))
    traits = {arm.variant: _predicted_traits(planned, arm) for arm in planned.arms}
    _check(planned.arms, "predict", here=True)
    wanted = [stages.predict(arm.experiment, traits[arm.variant]) for arm in planned.arms]
    made: dict[str, Manifest] = {}
    for arm, node in zip(planned.arms, wanted, strict=True):
        if node.key not in made:
            made[node.key] = stages.ensure(node, store, arm.experiment, (*planned.overrides, f"trait={arm.trait}"))
    return [(arm, made[node.key]) for arm, node in zip(planned.arms, wanted, strict=True)]


def _predicted_traits(planned: Plan, arm: Arm) -> tuple[str, ...]:
    """The names of all traits in an arm's variant: those that the figure lists and those that were typed."""
    listed = (_named(planned, option) for option in arm.experiment.experiment.arms.traits)
    typed = (other.name for other in planned.arms if other.variant == arm.variant)
    return tuple(dict.fromkeys(name for name in (*listed, *typed) if name != CONTROL))


def _named(planned: Plan, option: str) -> str:
    """The name of the trait that an option of `trait=` stands for."""
    mine = next((arm.name for arm in planned.arms if arm.trait == option), None)
    composed = [part for part in planned.overrides if not is_hydras(part)]
    return mine or compose([*composed, f"trait={option}"]).trait.name


def _arm_noun(planned: Plan) -> str:
    return {"mnist": "settings", "theorem": "seeds", "rows": "comparisons"}.get(
        planned.base.experiment.kind, "students"
    )
