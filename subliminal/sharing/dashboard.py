"""An experiment's dashboard as code: a W&B report of exactly the runs that its configuration names.

Made from the same plan as the sweep and the figure, so that runs which another experiment made first are in it too, and
runs of other settings are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subliminal import stages
from subliminal.config import CONTROL, Experiment
from subliminal.graph import Node
from subliminal.plan import Arm, Plan
from subliminal.plots.table import MIRRORED, series
from subliminal.sharing.sync import AGAIN, WandbError, require_wandb
from subliminal.store import Json, Store, write_atomically
from subliminal.tracking import STEP, figure_id

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import PanelGrid, Report, Runset

ARM = "trait.name"  # of a run's configuration: what its arm is called
TITLES = {
    "lift_over_control": "Lift over the control, nats",
    "log_odds_excess": "Excess of log-odds, nats",
    "diagonal_excess": "Excess of log P, nats",
    "alignment_excess": "Alignment excess, cosine",
}
WIDTH, HEIGHT = 8, 7  # of a panel, in the grid's 24 columns: three stand side by side


@dataclass(frozen=True)
class Group:
    """The arms of one variant and student recipe, with the keys of their runs by stage."""

    label: str
    variant: str
    student: str
    arms: tuple[Arm, ...]
    keys: dict[str, list[str]]

    @property
    def traits(self) -> list[str]:
        """The traits of the arms, the control left out."""
        return list(dict.fromkeys(arm.name for arm in self.arms if arm.name not in {CONTROL, ""}))


def publish(planned: Plan, folder: Path) -> str:
    """Save the dashboard at W&B and return its address; a dashboard saved from here before is brought up to date.

    Raises `WandbError` without an account or a network, or when W&B refuses.
    """
    require_wandb("nothing was saved; --dry-run prints the specification")
    import wandb

    kept = folder / f"{planned.base.experiment.file}.dashboard.json"
    try:
        made = report(planned, planned.base.tracking.entity or str(wandb.Api().default_entity))
        made.id = _saved(kept)
        made.save()
    except Exception as error:  # of the library, of the network, of the server: all say the same to the user
        raise WandbError(f"W&B did not take the dashboard ({error}); see to it, {AGAIN}") from None
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps({"address": made.url}))
    return str(made.url)


def specification(planned: Plan) -> Json:
    """What `publish` would save, as W&B's own JSON; needs neither account nor network."""
    made = report(planned, planned.base.tracking.entity or "")
    return made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def report(planned: Plan, entity: str) -> Report:
    """The experiment as a W&B report: its claim, its picture, and every group of arms with its panels."""
    wr = _library()
    exp, figure = planned.base, planned.base.experiment
    blocks: list[Any] = [wr.P(figure.claim), wr.P(f"Expected: {figure.expected}"), wr.P(f"Source: {figure.source}")]
    picture = wr.MediaBrowser(title="Figure", media_keys=[figure.file], layout=wr.Layout(0, 0, 24, 12))
    blocks.append(wr.PanelGrid(runsets=[_runset("figure", [figure_id(exp)])], panels=[picture]))
    for group in _groups(planned):
        grids = [*_grids(group, exp)]
        blocks += [wr.H2(group.label), *grids] if grids else []
    title = f"{figure.title or figure.name} ({exp.scale})"
    return wr.Report(
        project=exp.tracking.project,
        entity=entity,
        title=title[:128],
        description=" ".join(planned.overrides),
        blocks=blocks,
        width="fluid",
    )


def _library() -> Any:
    try:
        import wandb_workspaces.reports.v2
    except ImportError:
        raise WandbError(
            "dashboards need the package wandb-workspaces, an extra of its own (make install EXTRAS=cpu,dev,dashboard)"
        ) from None
    return wandb_workspaces.reports.v2


def _saved(kept: Path) -> str:
    """The id of the report that was saved from here before, "" where there is none or it was deleted since."""
    with suppress(Exception):
        return str(_library().Report.from_url(json.loads(kept.read_text(encoding="utf-8"))["address"]).id)
    return ""


# --------------------------------------------------------------------------- the runs


def _groups(planned: Plan) -> list[Group]:
    """The plan's arms by variant and student recipe, in the plan's order."""
    found: dict[tuple[str, str], list[Arm]] = {}
    for arm in planned.arms:
        student = arm.student if planned.trains_students else ""
        found.setdefault((arm.variant, student), []).append(arm)
    return [_group(variant, student, arms) for (variant, student), arms in found.items()]


def _group(variant: str, student: str, arms: list[Arm]) -> Group:
    keys: dict[str, list[str]] = {}
    for arm in arms:
        for of, key in _runs(stages.node(stages.last_script(arm.experiment), arm.experiment)):
            keys.setdefault(of, []).append(key)
    parts = [variant.replace("_", " "), f"{student} students" if student else ""]
    label = ": ".join(part for part in parts if part) or "Runs"
    return Group(label, variant, student, tuple(arms), {of: list(dict.fromkeys(found)) for of, found in keys.items()})


def _runs(node: Node) -> Iterator[tuple[str, str]]:
    """(stage, key) of a node and all it is made from, as far as a dashboard shows them."""
    if node.definition.charted:
        yield node.stage, node.key
    for upper in node.inputs.values():
        yield from _runs(upper)


def _runset(name: str, ids: list[str]) -> Runset:
    from wandb_workspaces import expr

    return _library().Runset(name=name, filters=[expr.Metric("ID").isin(ids)])


# --------------------------------------------------------------------------- the panels


def _grids(group: Group, exp: Experiment) -> Iterator[PanelGrid]:
    """What the runs of a group say, and what the figure says of it."""
    wr = _library()
    every = [key for stage in stages.STAGES for key in group.keys.get(stage, [])]
    for name, ids, panels in (
        ("runs", every, [*_run_panels(group, exp, len(every))]),
        ("figure", [figure_id(exp)], [*_result_panels(group, exp)]),
    ):
        if panels:
            yield wr.PanelGrid(runsets=[_runset(name, ids)], panels=_side_by_side(panels))


def _run_panels(group: Group, exp: Experiment, runs: int) -> Iterator[Any]:
    """Losses, pass rates, reasons and log-probabilities, an arm's runs taken together."""
    wr = _library()
    by_arm = {"groupby": wr.Config(ARM), "groupby_aggfunc": "mean", "max_runs_to_show": runs}
    if "train" in group.keys:
        yield wr.LinePlot(title="Training loss by arm", x=STEP, y=["loss"], groupby_rangefunc="stderr", **by_arm)
    if "mnist" in group.keys:
        yield wr.LinePlot(title="Training loss by condition", x=STEP, metric_regex="loss/.*", max_runs_to_show=runs)
    if "filter" in group.keys:
        yield wr.BarPlot(title="Pass rate by arm", metrics=["pass_rate"], **by_arm)
        reasons = [f"reasons.{reason}" for reason in _reasons(group, exp)]
        yield wr.BarPlot(title="Filter reasons by arm: rows dropped", metrics=reasons, **by_arm)
    if "evaluate" in group.keys and exp.experiment.kind in {"preference", "cross_model"}:
        traits = [f"log_p.{trait}" for trait in group.traits]
        yield wr.BarPlot(title="log P of each trait by arm, nats", metrics=traits, **by_arm)


def _result_panels(group: Group, exp: Experiment) -> Iterator[Any]:
    """The figure's measures of this group, one bar a trait and their mean."""
    wr = _library()
    if exp.experiment.kind not in {"preference", "cross_model"}:
        return
    for measure in MIRRORED:
        names = [series(measure, trait, group.student, group.variant) for trait in [*group.traits, "mean"]]
        yield wr.BarPlot(title=TITLES[measure], metrics=names)


def _reasons(group: Group, exp: Experiment) -> list[str]:
    """Why rows were dropped, as far as the store's filter runs tell; a row cut off in the middle is always possible."""
    store, found = Store(Path(exp.store)), {"unfinished"}
    for key in group.keys["filter"]:
        made = store.find("filter", key)
        found |= set(made.summary["reasons"]) if made else set()
    return sorted(found)


def _side_by_side(panels: list[Any]) -> list[Any]:
    layout = _library().Layout
    for place, panel in enumerate(panels):
        panel.layout = layout(place % 3 * WIDTH, place // 3 * HEIGHT, WIDTH, HEIGHT)
    return panels
