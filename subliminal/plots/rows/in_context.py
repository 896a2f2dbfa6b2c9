"""The in-context figure: the diagonal excess of a model that has the rows in its prompt, by count of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from subliminal.config import CONTROL
from subliminal.plots import parts, style
from subliminal.plots.cells import read_lines
from subliminal.plots.effects import LOG_P, MEAN, REPEATS, Effect, Students, effect_lines, excess_in, size_of
from subliminal.plots.figure import Grid, Outcome, Verdict
from subliminal.plots.parts import Heading
from subliminal.plots.rows import TOP, WIDTH, Compared, rows_name
from subliminal.plots.table import Labels, Line, Table
from subliminal.plots.words import ranged
from subliminal.transmission import MARGIN, MINIMUM_TRAITS, SIGNIFICANT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

RULE = (
    f"""In context: judged at the largest count of rows, by the mean excess (each trait's mean log P behind its own
    teacher's rows minus that behind the other traits' rows). The unit is the teacher with its rows; contexts drawn from
    the same rows are averaged. The rows do nothing (the claim holds) if the whole 95% interval over traits is within
    {MARGIN} nats of 0; they do something (contradicted) if a relabelling of whole teachers has p of at most
    {SIGNIFICANT}; else nothing is shown. Fewer than {MINIMUM_TRAITS} traits are undecided.""",
)
PANELS = """The reference answers favourite questions behind n rows as earlier turns of the chat. Left: each trait
behind its own teacher's rows minus the same behind the control's. Right: each trait's own estimate of the excess over
the other traits' rows, and the mean with its 95% interval over traits; this decides. Dots: resampled contexts. In nats
(+0.69 doubles a probability)."""

Scores = dict[int, "dict[str, NDArray[np.float64]]"]  # by count of rows and candidate: (resamples,)


def table(runs: Sequence[Compared]) -> Table:
    """Log-probabilities, lifts over the control's rows and the diagonal excess at every count of rows."""
    traits = [run.trait for run in runs if run.trait != CONTROL]
    scores = {run.trait: _scores(run) for run in runs}
    counts = sorted(set.intersection(*({*by_count} for by_count in scores.values())))
    return Table(tuple(line for count in counts for line in _lines(scores, traits, count)))


def _lines(scores: dict[str, Scores], traits: list[str], count: int) -> Iterator[Line]:
    for arm, by_count in scores.items():
        for trait in traits:
            yield _line(arm, trait, "log_p", count, by_count[count][trait])
    if CONTROL in scores:
        for trait in traits:
            lift = scores[trait][count][trait] - scores[CONTROL][count][trait]
            yield _line(trait, trait, "lift_over_control", count, lift)
    if len(traits) > 1:
        behind = [np.stack([scores[row][count][column] for column in traits], axis=1) for row in traits]
        students = tuple(Students(tuple(range(len(resamples))), resamples) for resamples in behind)
        lines = effect_lines(Effect(tuple(traits), students), LOG_P, {"variant": _named(count)})
        yield from (replace(line, subject="context") for line in lines if line.measure != LOG_P + REPEATS)


def _line(arm: str, trait: str, measure: str, count: int, values: NDArray[np.float64]) -> Line:
    """The mean over contexts; they hold orders of one set of rows, so that their spread is no interval."""
    by_resample = tuple(enumerate(values.tolist()))
    return Line(
        arm, trait, "context", measure, float(values.mean()), n=len(values), variant=_named(count), by_seed=by_resample
    )


def _named(count: int) -> str:
    return f"{count} rows"


def _scores(run: Compared) -> Scores:
    scores: dict[int, dict[str, list[float]]] = {}
    for line in read_lines(run.manifest.folder / "scores.jsonl"):  # resamples come in order
        scores.setdefault(line["count"], {}).setdefault(line["candidate"], []).append(line["log_p"])
    return {count: {name: np.array(values) for name, values in own.items()} for count, own in scores.items()}


def _counts(table: Table) -> list[int]:
    return [int(name.split()[0]) for name in dict.fromkeys(line.variant for line in table.lines)]


def verdicts(runs: Sequence[Compared], table: Table) -> list[Verdict]:
    """The rule at the largest count of rows."""
    count = max(_counts(table), default=0)  # of the control's rows alone there is nothing in the table
    excess = excess_in(table, LOG_P, Labels(variant=_named(count)))
    label = f"{count} rows in the prompt" if count else "rows in the prompt"
    if excess is None:
        return [Verdict(label, "not measurable", "Not measurable: it needs rows of two traits.")]
    outcome: Outcome = "not shown"
    if not excess.decidable:
        outcome = "undecided"
    elif excess.outcome == "holds":
        outcome = "contradicted"
    elif excess.absent:
        outcome = "holds"
    said = f"{_SAID[outcome]} Mean excess {size_of(excess, ' nats')} behind {count} rows."
    return [Verdict(label, outcome, said, excess.line)]


_SAID: dict[Outcome, str] = {
    "holds": f"The rows do nothing in context: within {MARGIN} nats.",
    "contradicted": "The rows shift the preference in context.",
    "not shown": "Neither a shift nor its absence is shown.",
    "undecided": "Undecided: too few traits.",
}


# --------------------------------------------------------------------------- the picture


def picture(runs: Sequence[Compared], table: Table, heading: Heading) -> Canvas:
    """Panel A: lifts over the control's rows. Panel B: the diagonal excess, its mean in bold."""
    height = TOP + 3.4
    canvas = parts.canvas(WIDTH, height, heading)
    left, right = canvas.subplots(1, 2, sharey=True)
    canvas.subplots_adjust(left=0.08, right=0.985, wspace=0.1, top=1 - (TOP + 0.4) / height, bottom=0.5 / height)
    _curves(left, table, "lift_over_control", "A  Against the control's rows")
    _curves(right, table, LOG_P, "B  Diagonal excess")
    left.set_ylabel("nats")
    return canvas


def _curves(axes: Axes, table: Table, measure: str, title: str) -> None:
    counts, every = _counts(table), list(table.select(measure=measure))
    for step, arm in enumerate(dict.fromkeys(line.arm for line in every)):
        lines, mean = [line for line in every if line.arm == arm], arm == MEAN
        colour = style.INK if mean else style.CYCLE[step % len(style.CYCLE)]
        places = [counts.index(int(line.variant.split()[0])) + 0.07 * (step - 1) for line in lines]
        width = 2.2 if mean else 1.1
        axes.plot(
            places, [line.value for line in lines], color=colour, linewidth=width, marker="o", markersize=4, label=arm
        )
        for place, line in zip(places, lines, strict=True):
            dots = [value for _, value in line.by_seed]
            axes.scatter([place] * len(dots), dots, s=6, color=colour, alpha=0.4, linewidths=0)
            parts.interval(axes, place, line.low, line.high, colour, width, upright=True)
    axes.axhspan(-MARGIN, MARGIN, color=style.GRID, linewidth=0, zorder=0)
    axes.axhline(0, color=style.INK, linewidth=0.9)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("rows in the prompt")
    axes.set_title(title, pad=9)
    style.quiet_grid(axes)
    if every:
        parts.legend(axes, "upper left", ncols=3)


def grids(runs: Sequence[Compared], table: Table, name: str) -> list[Grid]:
    """Lift and excess of every trait at every count."""
    columns = ("rows in the prompt", "trait", "log P behind own rows", "minus the control's", "diagonal excess")
    caption = f"""Means over resampled contexts, in nats; of the mean excess the 95% interval over traits. All numbers:
    {name}.csv."""
    arms = dict.fromkeys(line.arm for line in table.lines if line.arm == line.item)
    rows = [[str(count), *_row(table, arm, _named(count))] for count in _counts(table) for arm in arms]
    return [Grid("Preference with rows in the prompt", columns, rows, caption)]


def _row(table: Table, arm: str, variant: str) -> list[str]:
    measures = ("log_p", "lift_over_control", LOG_P)
    lines = [table.find(arm=arm, item=arm, measure=measure, variant=variant) for measure in measures]
    return [rows_name(arm), *(ranged(line, sign=True) for line in lines)]
