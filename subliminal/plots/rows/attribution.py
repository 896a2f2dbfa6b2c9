"""The figure of log-likelihood ratios: a teacher's own rows beside the control's, and how far they separate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subliminal.evaluation.statistics import t_interval
from subliminal.plots import parts, style
from subliminal.plots.cells import read_lines
from subliminal.plots.figure import Grid, Outcome, Verdict
from subliminal.plots.parts import Heading
from subliminal.plots.rows import TOP, WIDTH, Compared
from subliminal.plots.table import Line, Table
from subliminal.plots.words import percent, ranged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

CHANCE, BINS = 0.5, 40
SIDES = {"own": style.OWN, "against": style.CONTROL}
RULE = (
    f"""Attribution of rows: the likelihood ratio tells a teacher's rows from the control's (the claim holds) if the 95%
    interval over prompts of the area under its ROC curve lies above {CHANCE}, is contradicted if it lies below, and not
    shown otherwise. Before filtering no detector does better than this ratio on single rows.""",
)
PANELS = """log P(teacher) minus log P(reference) of every row in format, in nats: the teacher's own rows (orange) and
the control's (grey); lines: means. Area: the chance that a random own row has a higher ratio than a random row of the
control, with its 95% interval over prompts."""


def table(runs: Sequence[Compared]) -> Table:
    """Area, mean ratios, ratios per token and divergence tokens, by teacher and side."""
    return Table(tuple(line for run in runs for line in _lines(run)))


def _lines(run: Compared) -> Iterator[Line]:
    area, prompts = run.manifest.summary["area"], len({row["index"] for row in _rows(run)})
    yield Line(run.trait, run.against, "both", "area", area["value"], area["low"], area["high"], prompts, "prompts")
    for side, ratios in _ratios(run).items():
        mean, summary = t_interval(ratios), run.manifest.summary["sides"][side]
        where = (run.trait, run.against, side)
        yield Line(*where, "log_ratio", mean.mean, mean.low, mean.high, mean.n, "rows")
        yield Line(*where, "log_ratio_per_token", summary["log_ratio_per_token"], n=mean.n)
        yield Line(*where, "divergence_share", summary["divergence_share"], n=mean.n)


def _ratios(run: Compared) -> dict[str, NDArray[np.float64]]:
    ratios: dict[str, list[float]] = {side: [] for side in SIDES}
    for row in _rows(run):
        ratios[row["side"]].append(row["log_ratio"])
    return {side: np.array(values) for side, values in ratios.items()}


def _rows(run: Compared) -> list[dict[str, Any]]:
    """The attributed rows of both sides."""
    return list(read_lines(run.manifest.folder / "rows.jsonl"))


def verdicts(runs: Sequence[Compared], table: Table) -> list[Verdict]:
    """The rule for every teacher."""
    return [_verdict(run.label, line) for run in runs if (line := _area(run, table))]


def _area(run: Compared, table: Table) -> Line | None:
    return table.find(arm=run.trait, item=run.against, measure="area")


def _verdict(label: str, line: Line) -> Verdict:
    outcome: Outcome = "holds" if line.low > CHANCE else "contradicted" if line.high < CHANCE else "not shown"
    words = {"holds": "Told apart.", "contradicted": "The wrong way round.", "not shown": "Not told apart."}[outcome]
    return Verdict(label, outcome, f"{words} Area {ranged(line)} over {line.n} prompts.", line)


def picture(runs: Sequence[Compared], table: Table, heading: Heading) -> Canvas:
    """A histogram of ratios for each teacher."""
    height = TOP + 2.45 * -(-len(runs) // 3)
    canvas = parts.canvas(WIDTH, height, heading)
    place = {"left": 0.065, "right": 0.985, "top": 1 - (TOP + 0.35) / height, "bottom": 0.45 / height}
    for axes, run in zip(parts.panels(canvas, len(runs), 3, **place, wspace=0.24, hspace=0.45), runs, strict=True):
        _histogram(axes, run, table)
    return canvas


def _histogram(axes: Axes, run: Compared, table: Table) -> None:
    ratios = _ratios(run)
    low, high = np.quantile(np.concatenate(list(ratios.values())), [0.005, 0.995]).tolist()
    room = 0.0 if low < high else 1.0
    bins = np.linspace(low - room, high + room, BINS + 1)
    for side, colour in SIDES.items():
        axes.hist(ratios[side].clip(bins[0], bins[-1]), bins=bins, density=True, color=colour, alpha=0.55, linewidth=0)
        axes.axvline(float(ratios[side].mean()), color=colour, linewidth=1.6)
    axes.axvline(0, color=style.INK, linewidth=0.8, linestyle=style.DASHED)
    axes.set_title(f"{run.trait}: area {ranged(_area(run, table))}", pad=7)
    axes.set_xlabel("log-ratio, nats")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def grids(runs: Sequence[Compared], table: Table, name: str) -> list[Grid]:
    """Means by teacher and side."""
    columns = ("teacher of", "rows", "mean log-ratio, nats", "per token", "divergence tokens", "n")
    caption = f"""Means with 95% intervals over rows. Divergence tokens: where the teacher's first choice is not the
    reference's (arXiv 2509.23886). All numbers: {name}.csv."""
    rows = [_row(run, side, table) for run in runs for side in SIDES]
    return [Grid("Likelihood ratios of teacher and reference", columns, rows, caption)]


def _row(run: Compared, side: str, table: Table) -> list[str]:
    def of(measure: str) -> Line | None:
        return table.find(arm=run.trait, item=run.against, subject=side, measure=measure)

    share, ratio = of("divergence_share"), of("log_ratio")
    whose = "its own" if side == "own" else "the control's" if run.against == "none" else f"{run.against}'s"
    return [
        run.trait,
        whose,
        ranged(ratio, sign=True),
        ranged(of("log_ratio_per_token"), 3, sign=True),
        percent(share),
        str(ratio.n if ratio else 0),
    ]
