"""The theorem's figure: the prediction in the limit, the signs, and alignment along whole training runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subliminal import stages
from subliminal.arms import Request, check, step
from subliminal.plan import Arm, Plan
from subliminal.plots import parts, style
from subliminal.plots.collect import stored, typed
from subliminal.plots.figure import Collected, Grid, Section, Verdict
from subliminal.plots.parts import Heading, interval
from subliminal.plots.table import Line, Table
from subliminal.plots.theorem_measures import ALL, RULE, Checks, Trials, claim, table, verdict
from subliminal.plots.words import percent_ranged, ranged
from subliminal.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["collect", "picture", "plan", "section", "subtitle", "table", "verdicts"]

WIDTH, HEIGHT = 9.0, 7.3
NAMES = {"mlp": "MLP", "squared_error": "squared error", "cross_entropy": "cross-entropy", "all": "all logits"}
NAMES |= {"auxiliary": "auxiliary only", "sgd": "SGD", "adam": "Adam", ALL: "all trials"}
SAME_NAME, DIFFERENT_NAME = "shared initialisation", "different initialisations"


def plan(request: Request) -> Plan:
    """One run of evaluate.py a seed: each brings its own trials and training runs."""
    request.refuse("its arms are seeds, for example seed=0,1")
    base = request.base
    listed = base.experiment.arms.seeds[: base.experiment.arms.seeds_limit]
    seeds = request.seeds or list(listed) or [base.seed]
    arms = tuple(Arm("", "", seed, base.model_copy(update={"seed": seed})) for seed in seeds)
    check(arms)
    made = step("evaluate.py", stages.theorem, [((*request.fixed, f"seed={arm.seed}"), arm.experiment) for arm in arms])
    return Plan(base, request.fixed, arms, (made,), "seeds")


def collect(planned: Plan, store: Store) -> Collected:
    """The seeds that the store has."""
    runs, missing = [], []
    for arm, node in zip(planned.arms, planned.steps[0].nodes, strict=True):
        if manifest := stored(node, store):
            runs.append(manifest)
        else:
            missing.append(f"python evaluate.py {typed(planned)} seed={arm.seed}")
    return Collected(Checks(runs) if runs else None, missing)


def verdicts(data: Checks, table: Table) -> list[Verdict]:
    """The rule applied to all trials."""
    return [verdict(table)]


def subtitle(data: Checks, table: Table, scale: str) -> str:
    """Trials, failures, the limit and the control."""
    return claim(table)


def picture(data: Checks, table: Table, heading: Heading) -> Canvas:
    """Panels A and B: the limit. Panel C: signs. Panel D: training runs."""
    canvas = parts.canvas(WIDTH, HEIGHT, heading)
    panels = canvas.subplots(2, 2)
    canvas.subplots_adjust(left=0.115, right=0.985, top=0.83, bottom=0.075, wspace=0.25, hspace=0.42)
    _limit(panels[0][0], data.trials)
    _error(panels[0][1], data.trials, table)
    _signs(panels[1][0], table)
    _runs(panels[1][1], table, data.points)
    return canvas


# --------------------------------------------------------------------------- panels A and B: the limit


def _limit(axes: Axes, trials: Trials) -> None:
    """Measured against predicted products, one dot a trial and step, with the line on which both are equal."""
    same = trials.where(initialisation="same")
    for colour, (name, part) in zip(style.CYCLE, _by(same, "architecture"), strict=False):
        shown = part["measured"] > 0
        axes.plot(
            part["predicted"][shown],
            part["measured"][shown],
            linestyle="none",
            marker="o",
            markersize=2.2,
            markeredgewidth=0,
            alpha=0.35,
            color=colour,
            label=_name(name),
            rasterized=True,
        )
    ends = [same["predicted"].min(), same["predicted"].max()]
    axes.plot(ends, ends, color=style.INK, linewidth=0.9, label="equal")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("A  The product of the two directions", pad=9)
    axes.set_xlabel(r"predicted: $\varepsilon\, E[(J d_T)^{\top} H (J d_T)]$", parse_math=True)
    axes.set_ylabel(r"measured: $d_S \cdot d_T$", parse_math=True)
    _legend(axes, markerscale=2.5)


def _error(axes: Axes, trials: Trials, table: Table) -> None:
    """How far measured over predicted is from 1, by the size of the teacher's step: medians and a central 95% band."""
    same = trials.where(initialisation="same")
    sizes = np.array(sorted(set(same["step"].tolist())))
    band = [table.find(arm=f"step {size:g}", measure="ratio_error") for size in sizes]
    shown = [line for line in band if line]
    axes.fill_between(sizes, [b.low for b in shown], [b.high for b in shown], color=style.GRID, linewidth=0)
    for colour, (name, part) in zip(style.CYCLE, _by(same, "architecture"), strict=False):
        middle = [np.median(part.where(step=size).ratio_error) for size in sizes]
        axes.plot(sizes, middle, color=colour, marker="o", markersize=3, linewidth=1.2, label=_name(name))
    guide = shown[0].value * sizes / sizes[0]
    axes.plot(sizes, guide, color=style.INK, linewidth=0.9, linestyle=style.DASHED, label="slope 1")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("B  The prediction is exact in the limit", pad=9)
    axes.set_xlabel("length of the teacher's step, share of the length of its weights")
    axes.set_ylabel("|measured / predicted \N{MINUS SIGN} 1|")
    _legend(axes)


def _by(trials: Trials, column: str) -> list[tuple[str, Trials]]:
    return [(value, trials.where(**{column: value})) for value in dict.fromkeys(trials[column].tolist())]


# --------------------------------------------------------------------------- panel C: signs


def _signs(axes: Axes, table: Table) -> None:
    """The share of positive products, with a shared initialisation and with different ones."""
    arms = [(ALL, "")] + [
        (line.arm, line.item)
        for split in ("architecture", "loss", "matched")
        for line in table.select(item=split, measure="positive", subject="same")
    ]
    for subject, colour, label in (("same", style.OWN, SAME_NAME), ("different", style.OTHER, DIFFERENT_NAME)):
        lines = [table.find(arm=a, item=t, measure="positive", subject=subject) for a, t in arms]
        for place, line in enumerate(lines):
            if line:
                interval(axes, place, line.low, line.high, colour, 2)
                axes.scatter([line.value], [place], s=26, color=colour, label=None if place else label, zorder=3)
    axes.axvline(0.5, color=style.INK, linewidth=0.9)
    parts.named_rows(axes, [_name(arm) for arm, _ in arms])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_xlim(0, 1.04)
    axes.set_title("C  Which way the student's step points", pad=9)
    axes.set_xlabel(r"share of trials with $d_S \cdot d_T > 0$", parse_math=True)
    _legend(axes, handlelength=0.8, handletextpad=0.4)


# --------------------------------------------------------------------------- panel D: training runs


def _runs(axes: Axes, table: Table, points: Sequence[dict[str, Any]]) -> None:
    """The cosine of the displacements along the student's training, mean and 95% interval over seeds."""
    for colour, optimiser in zip(style.CYCLE, dict.fromkeys(point["optimiser"] for point in points), strict=False):
        for initialisation, dashes in (("same", "solid"), ("different", (0, (4, 2)))):
            lines = list(table.select(arm=optimiser, subject=initialisation, measure="cosine"))
            steps = [int(line.item.removeprefix("step ")) for line in lines]
            label = _name(optimiser) if initialisation == "same" else None
            axes.plot(steps, [line.value for line in lines], color=colour, linestyle=dashes, linewidth=1.4, label=label)
            axes.fill_between(
                steps, [b.low for b in lines], [b.high for b in lines], color=colour, alpha=0.15, linewidth=0
            )
    axes.plot([], [], color=style.QUIET, linestyle=(0, (4, 2)), label=DIFFERENT_NAME)
    axes.axhline(0, color=style.INK, linewidth=0.9)
    axes.set_xscale("log")
    style.quiet_grid(axes)
    axes.set_title("D  Beyond one step: whole training runs", pad=9)
    axes.set_xlabel("student's optimiser step")
    axes.set_ylabel("cosine of the two displacements")
    _legend(axes)


def _legend(axes: Axes, handlelength: float = 1.6, **more: Any) -> None:
    parts.legend(axes, "upper left", handlelength=handlelength, borderaxespad=0.2, **more)


def _name(value: str) -> str:
    return NAMES.get(value, value.replace("_", " "))


# --------------------------------------------------------------------------- the report's section

PANELS = """A: the product of the student's and the teacher's direction, measured and predicted; a dot for each
trial and size of the teacher's step. B: how far their ratio is from 1 (medians by network; grey: the central 95% of
trials). C: the share of trials in which the student's step does not point away from the teacher's (Wilson intervals).
D: cosine of the displacements of student and teacher in training runs; the student sees noise and matches auxiliary
logits."""
SEEDS = "Each seed has its own trials and its own training runs."
SPLIT_NAMES = {"": "", "architecture": "network", "loss": "student's loss", "matched": "logits matched"}
SPLIT_NAMES |= {"teacher_loss": "teacher's loss", "inputs": "student's inputs", "activation": "activation"}


def section(data: Checks, table: Table, name: str) -> Section:
    """Trials by what they drew, and the ends of the training runs."""
    arms = [(run, f"seed {run.recipe['settings']['seed']}") for run in data.runs]
    return Section(RULE, PANELS, SEEDS, [_trial_grid(table, name), _run_grid(table)], arms)


def _trial_grid(table: Table, name: str) -> Grid:
    columns = ("trials with", "", "trials", "negative products", "loss risen", "largest |ratio \N{MINUS SIGN} 1|")
    columns = (*columns, "slope", "positive, different", "the same, loss descended")
    caption = f"""Shared initialisation, small steps of the teacher; the two columns on the right: share of positive
    products with different initialisations, over all trials and over those whose teacher descends the named loss (the
    others ascend it). All numbers: {name}.csv."""
    rows = [_trial_row(table, line) for line in table.select(measure="negative", subject="same")]
    return Grid("Trials by what was drawn", columns, rows, caption)


def _trial_row(table: Table, negative: Line) -> list[str]:
    def of(measure: str, subject: str) -> Line | None:
        return table.find(arm=negative.arm, item=negative.item, measure=measure, subject=subject)

    ratio, slope, risen = (of(name, "same") for name in ("largest_ratio_error", "slope", "loss_risen"))
    return [
        SPLIT_NAMES[negative.item],
        _name(negative.arm),
        f"{negative.n:,}",
        str(round(negative.value * negative.n)),
        str(round(risen.value * risen.n)) if risen else "",
        f"{ratio.value:.1e}" if ratio else "",
        f"{slope.value:.6f}" if slope else "",
        percent_ranged(of("positive", "different"), digits=0),
        percent_ranged(of("positive_plain_sign", "different"), digits=0),
    ]


def _run_grid(table: Table) -> Grid:
    """The last measurement of every training run, mean over seeds."""
    columns = ("optimiser", "initialisation", "steps", "cosine", "student's length / teacher's", "accuracy", "L_T")
    last = {(line.arm, line.subject): line.item for line in table.select(measure="cosine")}
    chance = table.find(measure="cosine_spread")
    spread = f"; a random direction has standard deviation {chance.value:.4f}" if chance else ""
    rows = [_run_row(table, *arm, step) for arm, step in last.items()]
    return Grid("Ends of the training runs", columns, rows, f"Means over seeds with 95% intervals{spread}.")


def _run_row(table: Table, optimiser: str, initialisation: str, step: str) -> list[str]:
    measures = ("cosine", "length_share", "accuracy", "teacher_loss")
    lines = [table.find(arm=optimiser, subject=initialisation, item=step, measure=m) for m in measures]
    return [_name(optimiser), initialisation, step.removeprefix("step "), *map(ranged, lines)]
