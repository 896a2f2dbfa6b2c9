"""A figure's arms as Hydra multiruns, stage by stage: traits and the control, student recipes, seeds.

`plan` is pure: it says which experiments a figure consists of and which scripts make them; plots read the same cells,
so a figure can not show anything but the runs its configuration names.
"""

from __future__ import annotations

import os
from pathlib import Path

from subliminal import checks, machine, stages
from subliminal.arms import Request
from subliminal.composition import compose, config_folders, is_hydras, launcher_settings
from subliminal.config import CONTROL, ConfigError, Experiment
from subliminal.errors import require_writable
from subliminal.launch import QUIET
from subliminal.outputs import require_rows
from subliminal.plan import Arm, Plan
from subliminal.plots.figure import figure_of
from subliminal.progress import say
from subliminal.store import Manifest, Store


def plan(overrides: list[str]) -> Plan:
    """Expand a figure's configuration; `trait=`, `student=` and `seed=` on the command line replace its arms.

    `launcher=` is short for `hydra/launcher=`.
    """
    overrides = [f"hydra/{part}" if part.startswith("launcher=") else part for part in overrides]
    request = Request.of(overrides)
    if problems := list(checks.arms_problems(request.base, config_folders(overrides))):
        raise ConfigError("\n".join(problems))
    return figure_of(request.base.experiment).plan(request)


def run(planned: Plan) -> None:
    """Make what is missing; raises `SweepError` that names every stage run that failed.

    With the SLURM launcher every stage run becomes a job of its own, else steps are multiruns on this machine. Raises
    `ConfigError` before any work for what can be known by then.
    """
    for arm in planned.arms:
        require_rows(arm.experiment)
    _require_places(planned)
    launcher = _launcher(planned)
    say(f"{planned.base.experiment.figure or planned.base.experiment.name}: {len(planned.arms)} {planned.noun}")
    here = not launcher or launcher.endswith("JoblibLauncher")  # jobs run on this machine
    if not here:
        _require_room(planned)
    if launcher.endswith("SlurmLauncher"):
        from subliminal.scheduling import slurm

        return slurm.run(planned)
    if here:
        checks.check_all(_experiments(planned), stages.last_script(planned.base), here=True)
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
    if not planned.trains_students:
        raise ConfigError(f"experiment={planned.base.experiment.name} trains no language model: nothing to predict")
    os.environ.update(QUIET | os.environ)
    for arm in planned.arms:
        require_rows(arm.experiment)
    store = Store(Path(planned.base.store))
    traits = {arm.variant: _predicted_traits(planned, arm) for arm in planned.arms}
    checks.check_all(_experiments(planned), "predict", here=True)
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


def _experiments(planned: Plan) -> list[Experiment]:
    return [arm.experiment for arm in planned.arms]
