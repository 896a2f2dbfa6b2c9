"""The cross-model figure: transmission by the reference models of teacher and student (arXiv 2507.14805)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from subliminal import config
from subliminal.evaluation.statistics import holm, t_interval, t_test
from subliminal.plots import style
from subliminal.plots.cells import Cell, PlotError
from subliminal.plots.groups import Group, groups
from subliminal.plots.measures import ACROSS, MEAN, OVER_TRAITS, excess, preference_table
from subliminal.plots.report import Grid, PlainSection, interval, manifests
from subliminal.plots.table import Line, Table
from subliminal.plots.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

ARROW = " > "
MINIMUM_TRAITS = 3
SIGNIFICANT = 0.05
PAPER_RUNS = 5
MEASURE, DIFFERENCE, P_VALUE = ACROSS["diagonal_excess"], "same_minus_cross", "p_holm"
RULE = (
    """The unit is a run: one teacher of one trait and its student, over a pair of reference models. A pair's number is
    the mean over its traits of the diagonal excess, with a 95% interval over the traits (Student's t).""",
    f"""The claim holds at this scale if every teacher's students of its own model have an interval above 0 and exceed
    its students of every other model with an interval of the paired difference above 0, and no cross-model pair's
    excess is above 0 with a Holm-adjusted p below {SIGNIFICANT}.""",
    f"""It is contradicted if a cross-model pair's excess is above 0 in that sense and the same-model students do not
    exceed it. Otherwise it is not shown; below {MINIMUM_TRAITS} traits it is not measurable.""",
)
PANELS = f"""Mean diagonal excess in nats; a star marks a mean above 0 at p < {SIGNIFICANT} (one-sided t test over
traits, Holm-adjusted for the number of pairs; the paper asks for {PAPER_RUNS} runs or more). The outlined diagonal is
what should transmit."""
SEEDS = "Every pair trains the students of all traits, off the diagonal too."


@dataclass(frozen=True)
class Pair:
    """One teacher's and one student's reference model, with the diagonal excess of each trait in nats."""

    teacher: str
    student: str
    group: Group

    @cached_property
    def by_trait(self) -> dict[str, float]:
        """The diagonal excess by trait, over seeds and questions."""
        found = excess(self.group, "log_p").items()
        return {trait: float(sample.values.mean()) for trait, sample in found if sample is not None}

    @property
    def same(self) -> bool:
        """Whether teacher and student start from one reference model."""
        return self.teacher == self.student

    @property
    def values(self) -> NDArray[np.float64]:
        """The excess of every trait."""
        return np.array(list(self.by_trait.values()))

    def minus(self, other: Pair) -> NDArray[np.float64]:
        """The differences on the traits that both pairs have."""
        return np.array([value - other.by_trait[t] for t, value in self.by_trait.items() if t in other.by_trait])


def pairs(cells: Sequence[Cell]) -> list[Pair]:
    """The pairs in the cells, whose variants are named `teacher > student`; raises `PlotError` for another name."""
    found = []
    for group in groups(cells):
        if group.variant in {pair.group.variant for pair in found}:
            raise PlotError(
                f"{group.variant} has several student recipes in a cross-model figure; choose one with student="
            )
        teacher, arrow, student = group.variant.partition(ARROW)
        if not arrow:
            raise PlotError(f"variant {group.variant!r} of a cross-model figure must be named 'teacher > student'")
        found.append(Pair(teacher, student, group))
    return found


def cross_model_figure(cells: Sequence[Cell], figure: config.Figure, folder: Path, name: str) -> Table:
    """Write `folder/name` as .png, .svg and .csv and return the table, which holds every preference measure too."""
    found = pairs(cells)
    table = Table((*_lines(found), *preference_table(cells).lines))
    folder.mkdir(parents=True, exist_ok=True)
    table.write(folder / f"{name}.csv")
    with style.styled():
        style.save(_draw(found, table, figure.title or name, folder.name), folder / name)
    return table


def _lines(found: Sequence[Pair]) -> Iterator[Line]:
    measured = [pair for pair in found if len(pair.values) > 1]
    adjusted = dict(zip([p.group.variant for p in measured], holm([t_test(p.values) for p in measured]), strict=True))
    for pair in found:
        if pair.group.variant in adjusted:
            value, n = adjusted[pair.group.variant], len(pair.values)
            yield Line(
                MEAN, MEAN, "student", P_VALUE, value, n=n, student=pair.group.student, variant=pair.group.variant
            )
        own = next((one for one in found if one.same and one.teacher == pair.teacher), None)
        if own and not pair.same:
            yield from _line(pair, DIFFERENCE, own.minus(pair))


def _line(pair: Pair, measure: str, values: NDArray[np.float64]) -> Iterator[Line]:
    if values.size:
        found = t_interval(values)
        over = OVER_TRAITS if found.n > 1 else "none"
        numbers = (measure, found.mean, found.low, found.high, found.n, over)
        yield Line(MEAN, MEAN, "student", *numbers, pair.group.student, variant=pair.group.variant)


# --------------------------------------------------------------------------- the verdict


def cross_model_verdict(found: Sequence[Pair], table: Table) -> Verdict:
    """The rule applied to the grid."""
    same, cross = [p for p in found if p.same], [p for p in found if not p.same]
    if not same or not cross or min(len(p.values) for p in found) < MINIMUM_TRAITS:
        text = f"Not measurable: it needs same-model and cross-model pairs with {MINIMUM_TRAITS} traits or more."
        return Verdict("", "not measurable", text)
    moved = [p for p in cross if _significant(table, p)]
    outcome = _outcome(same, cross, moved, table)
    parts = [f"{p.group.variant}: {interval(_of(table, p, MEASURE))}" for p in found]
    said = f" Above 0 across models: {', '.join(p.group.variant for p in moved)}." if moved else ""
    return Verdict("", outcome, f"{_SENTENCES[outcome]}{said} Excess in nats: {'; '.join(parts)}.")


_SENTENCES: dict[Outcome, str] = {
    "holds": "Holds at this scale: same-model students get the trait, more of it than cross-model students, of whom "
    "none is shown to get it.",
    "contradicted": "Contradicted at this scale: a cross-model student gets the trait as a same-model student does.",
    "not shown": "Not shown at this scale.",
}


def _outcome(same: Sequence[Pair], cross: Sequence[Pair], moved: Sequence[Pair], table: Table) -> Outcome:
    apart = {p.group.variant: _above(_of(table, p, DIFFERENCE)) for p in cross}
    if not moved and all(_above(_of(table, p, MEASURE)) for p in same) and all(apart.values()):
        return "holds"
    return "contradicted" if any(not apart[p.group.variant] for p in moved) else "not shown"


def _above(line: Line | None) -> bool:
    return line is not None and line.low > 0


def _significant(table: Table, pair: Pair) -> bool:
    line = _of(table, pair, P_VALUE)
    return line is not None and line.value < SIGNIFICANT


def _of(table: Table, pair: Pair, measure: str) -> Line | None:
    return table.find(arm=MEAN, measure=measure, variant=pair.group.variant)


# --------------------------------------------------------------------------- the picture


def _draw(found: Sequence[Pair], table: Table, title: str, scale: str) -> Canvas:
    teachers = list(dict.fromkeys(pair.teacher for pair in found))
    students = list(dict.fromkeys(pair.student for pair in found))
    width, height = max(6.2, 2.4 + 1.5 * len(students)), 1.65 + 0.75 * len(teachers)
    canvas = style.new_figure(width, height)
    canvas.text(0.14 / width, 1 - 0.14 / height, title, fontsize=13, fontweight="bold", va="top")
    traits = sorted({trait for pair in found for trait in pair.by_trait})
    text = fill(f"Scale {scale} \N{MIDDLE DOT} {len(traits)} traits: {', '.join(traits)}", int(width * 15))
    canvas.text(0.14 / width, 1 - 0.44 / height, text, fontsize=8.2, color=style.QUIET, va="top")
    axes = canvas.add_axes((1.9 / width, 0.75 / height, 1.5 * len(students) / width, 0.75 * len(teachers) / height))
    _grid(axes, found, table, teachers, students)
    return canvas


def _grid(axes: Axes, found: Sequence[Pair], table: Table, teachers: list[str], students: list[str]) -> None:
    values = np.full((len(teachers), len(students)), np.nan)
    for pair in found:
        if pair.values.size:
            values[teachers.index(pair.teacher), students.index(pair.student)] = pair.values.mean()
    limit = float(np.nanmax(np.abs(values), initial=1e-9))
    axes.pcolormesh(values, cmap=style.diverging(), vmin=-limit, vmax=limit, edgecolors="white", linewidth=1.5)
    axes.invert_yaxis()
    for pair in found:
        _annotate(axes, pair, table, (teachers.index(pair.teacher), students.index(pair.student)), limit)
    axes.set_xticks([i + 0.5 for i in range(len(students))], students)
    axes.set_yticks([i + 0.5 for i in range(len(teachers))], teachers)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("student's reference model")
    axes.set_ylabel("teacher's reference model")


def _annotate(axes: Axes, pair: Pair, table: Table, place: tuple[int, int], limit: float) -> None:
    from matplotlib.patches import Rectangle

    line = _of(table, pair, MEASURE)
    if line is None:
        return
    star = "*" if _significant(table, pair) else ""
    ends = "" if math.isnan(line.low) else f"\n[{line.low:+.2f}, {line.high:+.2f}]"
    text = f"{line.value:+.2f}{star}{ends}".replace("-", "\N{MINUS SIGN}")
    row, column = place
    colour = "white" if abs(line.value) > 0.72 * limit else style.INK
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5, color=colour)
    if pair.same:
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=style.INK, linewidth=1.6, clip_on=False))


# --------------------------------------------------------------------------- the report's section


def cross_model_section(
    name: str, figure: config.Figure, cells: Sequence[Cell], table: Table, missing: Sequence[str]
) -> PlainSection:
    """The figure's section of the report: the grid as a table, the verdict, and the runs behind it."""
    found = pairs(cells)
    columns = ("teacher > student", "diagonal excess", "p (Holm)", "same minus cross", "traits")
    grid = Grid("Pairs", columns, [_row(pair, table) for pair in found], f"Nats. All numbers: {name}.csv.")
    verdict = cross_model_verdict(found, table)
    return PlainSection(name, figure, [verdict], RULE, PANELS, SEEDS, [grid], list(manifests(cells)), missing)


def _row(pair: Pair, table: Table) -> list[str]:
    p_value = _of(table, pair, P_VALUE)
    return [
        pair.group.variant,
        interval(_of(table, pair, MEASURE)),
        f"{p_value.value:.3f}" if p_value else "\N{EN DASH}",
        interval(_of(table, pair, DIFFERENCE)),
        str(len(pair.values)),
    ]
