"""From a sweep's plan to its picture, table and report: which stored runs a figure shows, and which are missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from subliminal import stages
from subliminal.config import CONTROL, Experiment, Figure
from subliminal.errors import require_writable
from subliminal.graph import Node
from subliminal.plan import Plan
from subliminal.plots.capability import capability_figure, capability_section
from subliminal.plots.cells import Cell
from subliminal.plots.cross_model import cross_model_figure, cross_model_section
from subliminal.plots.free_form import free_form_figure, free_form_section
from subliminal.plots.mnist import mnist_figure, mnist_section
from subliminal.plots.mnist_measures import Run
from subliminal.plots.mnist_measures import verdicts as mnist_verdicts
from subliminal.plots.preference import preference_figure
from subliminal.plots.report import PlainSection, Section, write_report
from subliminal.plots.rows import Compared, rows_figure, rows_section
from subliminal.plots.table import mirrored
from subliminal.plots.theorem import theorem_figure, theorem_section
from subliminal.plots.theorem_measures import verdict as theorem_verdict
from subliminal.progress import say
from subliminal.store import Manifest, Store, StoreError
from subliminal.tracking import figure_id, open_tracker


def draw(planned: Plan) -> list[Path]:
    """Draw the plan's figure from the store alone; returns picture, table and report. Missing arms are listed in it."""
    store, folder = Store(Path(planned.base.store)), Path(planned.base.figures) / planned.base.scale
    require_writable(folder, "figures")
    figure = planned.base.experiment
    name = figure.file
    make = MAKERS[figure.kind]
    section = make(planned, store, folder, name)
    report = write_report([section], folder)
    _track(planned, name, folder, figure)
    return [folder / f"{name}.png", folder / f"{name}.csv", report]


def _mnist(planned: Plan, store: Store, folder: Path, name: str) -> PlainSection:
    """The MNIST figure from the settings that are there; says what was found at each."""
    figure, found = planned.base.experiment, [(arm, stages.mnist(arm.experiment)) for arm in planned.arms]
    runs = [Run(arm.student, made) for arm, node in found if (made := _found(node, store))]
    _require(runs, planned, store, name)
    table = mnist_figure(runs, figure, folder, name)
    for verdict in mnist_verdicts(table):
        say(f"{name}{f' {verdict.group}' if verdict.group else ''}: {verdict.sentence}")
    missing = [
        f"python train.py {_typed(planned, *([f'{figure.arms.setting}={arm.student}'] if arm.student else []))}"
        for arm, node in found
        if not _found(node, store)
    ]
    return mnist_section(name, figure, table, runs, missing)


def _theorem(planned: Plan, store: Store, folder: Path, name: str) -> PlainSection:
    """The theorem's figure from the seeds that are there; says the claim with its trials and failures."""
    figure, nodes = planned.base.experiment, planned.steps[0].nodes
    runs = [made for made in (_found(node, store) for node in nodes) if made]
    _require(runs, planned, store, name)
    table = theorem_figure(runs, figure, folder, name)
    say(f"{name}: {theorem_verdict(table).sentence}")
    absent = {node.key for node in nodes} - {made.key for made in runs}
    seeds = [arm.seed for arm, node in zip(planned.arms, nodes, strict=True) if node.key in absent]
    missing = [f"python evaluate.py {_typed(planned)} seed={seed}" for seed in seeds]
    return theorem_section(name, figure, table, runs, missing)


def _preference(planned: Plan, store: Store, folder: Path, name: str) -> Section:
    """The preference figure from the students that are there."""
    figure, (cells, missing) = planned.base.experiment, _evaluated(planned, store, name)
    table = preference_figure(cells, figure, folder, name)
    return Section(name, figure, cells, table, missing)


def _free_form(planned: Plan, store: Store, folder: Path, name: str) -> PlainSection:
    """The free-form figure from the students that are there; says the verdict of every trait."""
    figure, (cells, missing) = planned.base.experiment, _evaluated(planned, store, name)
    controls = {arm.name for arm in planned.arms if getattr(arm.experiment.trait, "control", False)} | {CONTROL}
    table = free_form_figure(cells, controls, figure, folder, name)
    section = free_form_section(name, figure, cells, controls, table, missing)
    for verdict in section.verdicts:
        say(f"{name} {verdict.group}: {verdict.sentence}")
    return section


def _cross_model(planned: Plan, store: Store, folder: Path, name: str) -> PlainSection:
    """The grid of teachers' and students' reference models from the students that are there."""
    figure, (cells, missing) = planned.base.experiment, _evaluated(planned, store, name)
    table = cross_model_figure(cells, figure, folder, name)
    section = cross_model_section(name, figure, cells, table, missing)
    for found in section.verdicts:
        say(f"{name} {found.group}: {found.sentence}")
    return section


def _capability(planned: Plan, store: Store, folder: Path, name: str) -> PlainSection:
    """The capability table from the subjects that were tested; says what each task shows."""
    figure, (cells, missing) = planned.base.experiment, _evaluated(planned, store, name)
    table = capability_figure(cells, figure, folder, name)
    section = capability_section(name, figure, cells, table, missing)
    for found in section.verdicts:
        say(f"{name} {found.group}: {found.sentence}")
    return section


def _evaluated(planned: Plan, store: Store, name: str) -> tuple[list[Cell], tuple[str, ...]]:
    """The cells that the store has and the commands for those it has not; raises `StoreError` without any student."""
    cells = list(_cells(planned, store))
    _require([cell for cell in cells if cell.role == "student"], planned, store, name)
    return cells, tuple(_missing(planned, store))


def _rows(planned: Plan, store: Store, folder: Path, name: str) -> PlainSection:
    """A figure of the filtered rows themselves from the comparisons that are there; says its verdicts."""
    figure, nodes = planned.base.experiment, [(arm, stages.evaluate(arm.experiment)) for arm in planned.arms]
    runs = [Compared(arm.name, arm.student, made) for arm, node in nodes if (made := _found(node, store))]
    _require(runs, planned, store, name)
    table = rows_figure(runs, figure, folder, name)
    missing = [
        f"python evaluate.py {_typed(planned, *arm.overrides)}" for arm, node in nodes if not _found(node, store)
    ]
    section = rows_section(name, figure, table, runs, missing)
    for verdict in section.verdicts:
        say(f"{name}, {verdict.group}: {verdict.sentence}")
    return section


MAKERS = {
    "preference": _preference,
    "free_form": _free_form,
    "cross_model": _cross_model,
    "capability": _capability,
    "rows": _rows,
    "mnist": _mnist,
    "theorem": _theorem,
}


def _require(found: Sequence[object], planned: Plan, store: Store, name: str) -> None:
    if not found:
        raise StoreError(f"nothing of {name} is in {store.root}; run: python -m subliminal sweep {_typed(planned)}")


def _cells(planned: Plan, store: Store) -> Iterator[Cell]:
    for variant, arm in {arm.variant: arm for arm in reversed(planned.arms)}.items():
        asked = stages.evaluate(arm.experiment.model_copy(update={"subject": "reference"}))
        if reference := _found(asked, store):
            yield Cell("reference", "none", "", "", 0, reference, _chain(asked, store), variant)
    for arm in planned.arms:
        node = stages.evaluate(arm.experiment)
        done = _found(node, store)
        if done:
            kind = arm.experiment.active_teacher.kind
            yield Cell("student", arm.name, kind, arm.student, arm.seed, done, _chain(node, store), arm.variant)


def _missing(planned: Plan, store: Store) -> Iterator[str]:
    for arm in planned.arms:
        if not _found(stages.evaluate(arm.experiment), store):
            yield f"python evaluate.py {_typed(planned, *arm.overrides)}"


def _found(node: Node, store: Store) -> Manifest | None:
    return store.find(node.stage, node.key)


def _chain(node: Node, store: Store) -> dict[str, Manifest]:
    """Every complete stage a node was made from, by stage name."""
    found: dict[str, Manifest] = {}
    for name, upper in node.inputs.items():
        if name == "judge":
            continue  # its weights are a model stage too, but not what teacher and student start from
        manifest = _found(upper, store)
        found |= _chain(upper, store) | ({upper.stage: manifest} if manifest else {})
    return found


def _typed(planned: Plan, *more: str) -> str:
    """What was typed, and more of it, as it can be typed again in a shell."""
    return shlex.join((*planned.overrides, *more))


def _track(planned: Plan, name: str, folder: Path, figure: Figure) -> None:
    exp: Experiment = planned.base
    settings = {"scale": exp.scale, "arms": len(planned.arms)}
    with open_tracker(exp.tracking, "plot", figure_id(exp), figure.name, settings) as tracker:
        tracker.image(name, folder / f"{name}.png")
        tracker.table(f"{name}-table", folder / f"{name}.csv")
        tracker.summary(mirrored(folder / f"{name}.csv"))
