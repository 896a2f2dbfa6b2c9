"""The table of number frequencies: the numbers that tell each teacher's rows from the control's most strongly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from subliminal.evaluation.statistics import holm
from subliminal.plots import parts, style
from subliminal.plots.cells import read_lines
from subliminal.plots.figure import Grid, Verdict
from subliminal.plots.parts import Heading
from subliminal.plots.rows import TOP, WIDTH, Compared, rows_name
from subliminal.plots.table import Line, Table
from subliminal.plots.words import ranged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LEVEL = 0.05
RULE = (
    f"""Number frequencies: a trait shows in its numbers if its smallest p is below {LEVEL}. The p of a number holds the
    family-wise error over all numbers tested (labels dealt anew within prompts), and the smallest of each teacher is
    adjusted for the number of teachers (Holm 1979); otherwise nothing is shown. All teachers are compared with the same
    rows of the control, so that a number that is rare there can stand out for several of them. The control against
    itself must show nothing but in one case of twenty.""",
)
PANELS = """The numbers that differ most between a teacher's rows and the control's: log-odds ratio with a Dirichlet
prior and its 95% interval over prompts (not adjusted); right of zero: more frequent in the teacher's rows. Coloured:
beyond chance after adjustment for all numbers tested."""


def table(runs: Sequence[Compared]) -> Table:
    """Every tested number's log-odds ratio and adjusted p, and how many differ, by comparison."""
    return Table((*(line for run in runs for line in _lines(run)), *_corrected(runs)))


def _corrected(runs: Sequence[Compared]) -> Iterator[Line]:
    """The smallest p of every teacher, adjusted for all teachers; the null is none of them."""
    mine = [run for run in runs if not run.null and run.manifest.summary["tested"]]
    for run, p in zip(mine, holm([run.manifest.summary["smallest_p"] for run in mine]), strict=True):
        yield Line(run.trait, "all", run.against, "p_adjusted", p, n=len(mine))


def _lines(run: Compared) -> Iterator[Line]:
    summary = run.manifest.summary
    tested = summary["tested"]
    yield Line(run.trait, "all", run.against, "differing_numbers", summary["differing"], n=tested)
    if tested:
        yield Line(run.trait, "all", run.against, "smallest_p", summary["smallest_p"], n=summary["permutations"])
    for use in _uses(run):
        where = (run.trait, str(use["number"]), run.against)
        yield Line(*where, "log_odds", use["log_odds"], use["low"], use["high"], run.prompts, "prompts")
        yield Line(*where, "p", use["p"], n=summary["permutations"])


def _uses(run: Compared) -> list[dict[str, Any]]:
    """The tested numbers, strongest first."""
    return list(read_lines(run.manifest.folder / "numbers.jsonl"))


def _top(run: Compared) -> list[dict[str, Any]]:
    return _uses(run)[: run.manifest.recipe["settings"]["evaluation"]["top"]]


def verdicts(runs: Sequence[Compared], table: Table) -> list[Verdict]:
    """Whether any number differs, for every comparison."""
    return [_verdict(run, table) for run in runs]


def _verdict(run: Compared, table: Table) -> Verdict:
    summary = run.manifest.summary
    if not summary["tested"]:
        return Verdict(run.label, "not measurable", "Not measurable: no number is in enough rows.")
    adjusted = table.find(arm=run.trait, subject=run.against, measure="p_adjusted")
    p = adjusted.value if adjusted else summary["smallest_p"]
    teachers = f", over {adjusted.n} teachers {p:.3f}" if adjusted else ""
    numbers = f"{_counted(run)}, smallest adjusted p {summary['smallest_p']:.3f}{teachers}."
    if p < LEVEL:
        return Verdict(run.label, "holds", f"Holds at this scale: {numbers}")
    return Verdict(run.label, "not shown", f"Not shown at this scale: {numbers}")


def picture(runs: Sequence[Compared], table: Table, heading: Heading) -> Canvas:
    """A panel for each comparison, its strongest numbers from top to bottom."""
    height = TOP + 2.7 * -(-len(runs) // 3)
    canvas = parts.canvas(WIDTH, height, heading)
    place = {"left": 0.07, "right": 0.98, "top": 1 - (TOP + 0.35) / height, "bottom": 0.42 / height}
    for axes, run in zip(parts.panels(canvas, len(runs), 3, **place, wspace=0.28, hspace=0.42), runs, strict=True):
        _panel(axes, run)
    return canvas


def _panel(axes: Axes, run: Compared) -> None:
    uses = _top(run)
    for place, use in enumerate(uses):
        colour = style.OWN if use["p"] < LEVEL else style.REFERENCE
        parts.interval(axes, place, use["low"], use["high"], colour, 1.4)
        axes.scatter([use["log_odds"]], [place], s=22, color=colour, zorder=3)
    axes.axvline(0, color=style.INK, linewidth=0.9)
    parts.named_rows(axes, [str(use["number"]) for use in uses])
    axes.set_title(run.label, pad=7)
    axes.set_xlabel("log-odds ratio")


def grids(runs: Sequence[Compared], table: Table, name: str) -> list[Grid]:
    """One table a comparison: the strongest numbers."""
    columns = ("number", "rows with it", "of the other rows", "log-odds ratio", "adjusted p")
    caption = f"""Rows that hold the number on either side, log-odds ratio with its 95% interval over prompts, p
    adjusted for all numbers tested. All numbers: {name}.csv."""
    return [
        Grid(f"{run.label}: {_counted(run)}", columns, [_row(run, use, table) for use in _top(run)], caption)
        for run in runs
    ]


def _counted(run: Compared) -> str:
    summary = run.manifest.summary
    return f"{summary['differing']} of {summary['tested']} numbers differ"


def _row(run: Compared, use: dict[str, Any], table: Table) -> list[str]:
    rows = run.manifest.summary["rows"]
    number = str(use["number"])
    ratio = table.find(arm=run.trait, item=number, subject=run.against, measure="log_odds")
    own, other = f"{use['own']} of {rows['own']}", f"{use['against']} of {rows['against']}"
    return [number, own, f"{other} ({rows_name(run.against)})", ranged(ratio, sign=True), f"{use['p']:.3f}"]
