"""The in-context figure: the diagonal excess of a model that has the rows in its prompt, by count of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from subliminal.config import CONTROL
from subliminal.evaluation.statistics import diagonal_excess, t_interval
from subliminal.plots import style
from subliminal.plots.cells import read_lines
from subliminal.plots.report import Grid
from subliminal.plots.rows import TOP, WIDTH, Compared, ranged, rows_name
from subliminal.plots.table import Line, Table
from subliminal.plots.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

MARGIN, MINIMUM_RESAMPLES, MEAN, OVER = 0.1, 3, "mean", "resamples"
RULE = (
    f"""In context: judged at the largest count of rows, by the mean diagonal excess (each trait's log-probability
    behind its own teacher's rows minus that behind the other traits' rows). The rows do nothing (the claim holds) if
    its whole 95% interval over resampled contexts is within {MARGIN} nats of 0; they do something (contradicted) if it
    lies above 0 and not within; else nothing is shown. It takes rows of two traits and {MINIMUM_RESAMPLES}
    resamples.""",
)
PANELS = """The reference answers favourite questions behind n rows as earlier turns of the chat. Left: each trait
behind its own teacher's rows minus the same behind the control's. Right: minus the mean behind the other traits'
rows; this decides. Means and 95% intervals over resampled contexts, in nats (+0.69 doubles a probability)."""

Scores = dict[int, "dict[str, NDArray[np.float64]]"]  # by count of rows and candidate: (resamples,)


def table(runs: Sequence[Compared]) -> Table:
    """Log-probabilities, lifts over the control's rows and the diagonal excess at every count of rows."""
    traits = [run.trait for run in runs if run.trait != CONTROL]
    scores = {run.trait: _scores(run) for run in runs}
    counts = sorted(set.intersection(*({*found} for found in scores.values())))
    return Table(tuple(line for count in counts for line in _lines(scores, traits, count)))


def _lines(scores: dict[str, Scores], traits: list[str], count: int) -> Iterator[Line]:
    for arm, found in scores.items():
        for trait in traits:
            yield _line(arm, trait, "log_p", count, found[count][trait])
    if CONTROL in scores:
        for trait in traits:
            lift = scores[trait][count][trait] - scores[CONTROL][count][trait]
            yield _line(trait, trait, "lift_over_control", count, lift)
    if len(traits) > 1:
        matrix = np.array([[scores[row][count][column] for column in traits] for row in traits])
        excess = np.array([diagonal_excess(matrix[:, :, resample]) for resample in range(matrix.shape[2])])
        for place, trait in enumerate(traits):
            yield _line(trait, trait, "diagonal_excess", count, excess[:, place])
        yield _line(MEAN, MEAN, "diagonal_excess", count, excess.mean(axis=1))


def _line(arm: str, trait: str, measure: str, count: int, values: NDArray[np.float64]) -> Line:
    found = t_interval(values)
    by_resample = tuple(enumerate(values.tolist()))
    return Line(
        arm, trait, "context", measure, found.mean, found.low, found.high, found.n, OVER,
        variant=_named(count), by_seed=by_resample,
    )  # fmt: skip


def _named(count: int) -> str:
    return f"{count} rows"


def _scores(run: Compared) -> Scores:
    found: dict[int, dict[str, list[float]]] = {}
    for line in read_lines(run.manifest.folder / "scores.jsonl"):  # resamples come in order
        found.setdefault(line["count"], {}).setdefault(line["candidate"], []).append(line["log_p"])
    return {count: {name: np.array(values) for name, values in one.items()} for count, one in found.items()}


def _counts(table: Table) -> list[int]:
    return [int(name.split()[0]) for name in dict.fromkeys(line.variant for line in table.lines)]


def verdicts(runs: Sequence[Compared], table: Table) -> list[Verdict]:
    """The rule at the largest count of rows."""
    count = max(_counts(table), default=0)  # of the control's rows alone there is nothing in the table
    line = table.find(arm=MEAN, measure="diagonal_excess", variant=_named(count))
    label = f"{count} rows in the prompt" if count else "rows in the prompt"
    if line is None or line.n < MINIMUM_RESAMPLES:
        needs = f"it needs rows of two traits and {MINIMUM_RESAMPLES} resamples"
        return [Verdict(label, "not measurable", f"Not measurable: {needs}.")]
    outcome: Outcome = "not shown"
    if line.low > -MARGIN and line.high < MARGIN:
        outcome = "holds"
    elif line.low > 0:
        outcome = "contradicted"
    said = (
        f"{_SAID[outcome]} Mean diagonal excess {ranged(line, sign='+')} nats over {line.n} contexts of {count} rows."
    )
    return [Verdict(label, outcome, said, line)]


_SAID: dict[Outcome, str] = {
    "holds": "The rows do nothing in context.",
    "contradicted": "The rows shift the preference in context.",
    "not shown": "Neither a shift nor its absence is shown.",
}


# --------------------------------------------------------------------------- the picture


def picture(runs: Sequence[Compared], table: Table) -> Canvas:
    """Panel A: lifts over the control's rows. Panel B: the diagonal excess, its mean in bold."""
    height = TOP + 3.4
    canvas = style.new_figure(WIDTH, height)
    left, right = canvas.subplots(1, 2, sharey=True)
    canvas.subplots_adjust(left=0.08, right=0.985, wspace=0.1, top=1 - (TOP + 0.4) / height, bottom=0.5 / height)
    _curves(left, table, "lift_over_control", "A  Against the control's rows")
    _curves(right, table, "diagonal_excess", "B  Diagonal excess")
    left.set_ylabel("nats")
    return canvas


def _curves(axes: Axes, table: Table, measure: str, title: str) -> None:
    counts, found = _counts(table), list(table.select(measure=measure))
    for step, arm in enumerate(dict.fromkeys(line.arm for line in found)):
        lines, mean = [line for line in found if line.arm == arm], arm == MEAN
        colour = style.INK if mean else style.CYCLE[step % len(style.CYCLE)]
        places = [counts.index(int(line.variant.split()[0])) + 0.07 * (step - 1) for line in lines]
        width = 2.2 if mean else 1.1
        axes.plot(
            places, [line.value for line in lines], color=colour, linewidth=width, marker="o", markersize=4, label=arm
        )
        for place, line in zip(places, lines, strict=True):
            axes.plot([place, place], [line.low, line.high], color=colour, linewidth=width, solid_capstyle="butt")
    axes.axhspan(-MARGIN, MARGIN, color=style.GRID, linewidth=0, zorder=0)
    axes.axhline(0, color=style.INK, linewidth=0.9)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("rows in the prompt")
    axes.set_title(title, pad=9)
    style.quiet_grid(axes)
    if found:
        axes.legend(loc="upper left", frameon=False, fontsize=7.5, ncols=3)


def grids(runs: Sequence[Compared], table: Table, name: str) -> list[Grid]:
    """Lift and excess of every trait at every count."""
    columns = ("rows in the prompt", "trait", "log P behind own rows", "minus the control's", "diagonal excess")
    caption = f"Means with 95% intervals over resampled contexts, in nats. All numbers: {name}.csv."
    arms = dict.fromkeys(line.arm for line in table.lines if line.arm == line.trait)
    rows = [[str(count), *_row(table, arm, _named(count))] for count in _counts(table) for arm in arms]
    return [Grid("Preference with rows in the prompt", columns, rows, caption)]


def _row(table: Table, arm: str, variant: str) -> list[str]:
    measures = ("log_p", "lift_over_control", "diagonal_excess")
    found = [table.find(arm=arm, trait=arm, measure=measure, variant=variant) for measure in measures]
    return [rows_name(arm), *(ranged(line, sign="+") for line in found)]
