"""The cross-model figure: transmission by the reference models of teacher and student (arXiv 2507.14805)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from subliminal import config
from subliminal.plots import parts, style
from subliminal.plots.cells import Cell, PlotError
from subliminal.plots.effects import LOG_ODDS, Found, difference, effect_lines, found_in, scored
from subliminal.plots.groups import Group, groups
from subliminal.plots.measures import preference_table
from subliminal.plots.parts import Heading
from subliminal.plots.report import Grid, PlainSection, interval, manifests
from subliminal.plots.table import Labels, Line, Table
from subliminal.plots.verdict import RULE as PREFERENCE_RULE
from subliminal.plots.verdict import Outcome, Verdict, numbers
from subliminal.transmission import MARGIN, SIGNIFICANT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

ARROW = " > "
DIFFERENCE = "same_minus_cross"
RULE = (
    *PREFERENCE_RULE,
    """Cross-model figures: that transmission needs a common starting point holds at this scale if every teacher's
    students of its own model have an excess and exceed its students of every other model, each by the relabelling rule.
    It is contradicted if a cross-model pair has an excess by that rule and does not have less than the same-model pair;
    else it is not shown.""",
    f"""Each cross-model pair has a verdict of its own on whether its students get nothing: it holds if the whole 95%
    interval of their excess lies within {MARGIN} nats of 0, and is contradicted if they have an excess by the
    relabelling rule.""",
)
PANELS = f"""Mean excess in log-odds, nats, with its 95% interval over traits; a star marks a relabelling p of at most
{SIGNIFICANT} (one-sided, not adjusted for the number of pairs). The outlined diagonal is what should transmit."""
SEEDS = "Every pair trains the students of all traits, off the diagonal too."


@dataclass(frozen=True)
class Pair:
    """One teacher's and one student's reference model, with the students of all traits."""

    teacher: str
    student: str
    group: Group

    @property
    def same(self) -> bool:
        """Whether teacher and student start from one reference model."""
        return self.teacher == self.student

    @property
    def apart(self) -> Labels:
        """What tells its line of the difference to the same-model pair from others."""
        return {"student": self.group.student, "teacher": self.group.teacher, "variant": self.group.variant}


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
    """What every teacher's students of its own model have more of than its students of another."""
    for pair in found:
        own = next((one for one in found if one.same and one.teacher == pair.teacher), None)
        if own and not pair.same:
            lost = difference(scored(own.group, "log_odds"), scored(pair.group, "log_odds"))
            yield from effect_lines(lost, DIFFERENCE, pair.apart)


# --------------------------------------------------------------------------- the verdict


def cross_model_verdicts(found: Sequence[Pair], table: Table) -> list[Verdict]:
    """The rule applied to the grid, then to every cross-model pair by itself."""
    same, cross = [p for p in found if p.same], [p for p in found if not p.same]
    excess = {p.group.variant: _excess(table, p) for p in found}
    if not same or not cross or None in excess.values():
        text = "Not measurable: it needs same-model and cross-model pairs with students of two traits or more."
        return [Verdict("", "not measurable", text)]
    return [_grid_verdict(same, cross, table), *(_pair_verdict(pair, table) for pair in cross)]


def _grid_verdict(same: Sequence[Pair], cross: Sequence[Pair], table: Table) -> Verdict:
    own = [one for pair in same if (one := _excess(table, pair))]
    apart = [(pair, _excess(table, pair), _apart(table, pair)) for pair in cross]
    judged = [*own, *(difference for _, _, difference in apart if difference)]
    outcome: Outcome = "not shown"
    if not all(one.decidable for one in judged):
        outcome = "undecided"
    elif all(one.outcome == "holds" for one in judged) and all(difference for _, _, difference in apart):
        outcome = "holds"
    elif any(e and e.outcome == "holds" and not (d and d.outcome == "holds") for _, e, d in apart):
        outcome = "contradicted"
    sizes = [f"{p.group.variant} {numbers(one, ' nats')}" for p in same if (one := _excess(table, p))]
    sizes += [f"same minus {pair.group.variant} {numbers(d, ' nats')}" for pair, _, d in apart if d]
    p = max((one.test.above for one in judged), default=None) if outcome != "undecided" else None
    line = next((d.line for _, _, d in apart if d), None)
    return Verdict("same minus cross", outcome, f"{_SENTENCES[outcome]} {'; '.join(sizes)}.", line, p)


_SENTENCES: dict[Outcome, str] = {
    "holds": "Holds at this scale: same-model students get the trait, and more of it than cross-model students.",
    "contradicted": "Contradicted at this scale: a cross-model student gets the trait, not shown to get less of it.",
    "not shown": "Not shown at this scale.",
    "undecided": "Undecided: too few traits.",
}


def _pair_verdict(pair: Pair, table: Table) -> Verdict:
    """Whether a cross-model pair's students get nothing."""
    found, name = _excess(table, pair), f"{pair.group.variant} gets nothing"
    assert found is not None, "the grid was measured"
    if not found.decidable:
        return Verdict(name, "undecided", f"Undecided: too few traits. Excess {numbers(found, ' nats')}.", found.line)
    if found.outcome == "holds":
        text = f"Contradicted: it gets some. Excess {numbers(found, ' nats')}."
        return Verdict(name, "contradicted", text, found.line)
    if found.absent:
        return Verdict(name, "holds", f"Holds within {MARGIN} nats. Excess {numbers(found, ' nats')}.", found.line)
    text = f"Neither an excess nor its absence is shown. Excess {numbers(found, ' nats')}."
    return Verdict(name, "not shown", text, found.line)


def _excess(table: Table, pair: Pair) -> Found | None:
    return found_in(table, LOG_ODDS, pair.group.labels)


def _apart(table: Table, pair: Pair) -> Found | None:
    return found_in(table, DIFFERENCE, pair.apart)


# --------------------------------------------------------------------------- the picture


def _draw(found: Sequence[Pair], table: Table, title: str, scale: str) -> Canvas:
    teachers = list(dict.fromkeys(pair.teacher for pair in found))
    students = list(dict.fromkeys(pair.student for pair in found))
    width, height = max(6.2, 2.4 + 1.5 * len(students)), 1.65 + 0.75 * len(teachers)
    traits = sorted({trait for pair in found for trait in pair.group.traits})
    text = f"Scale {scale} \N{MIDDLE DOT} {len(traits)} traits: {', '.join(traits)}"
    canvas = parts.canvas(width, height, Heading(title, text))
    axes = canvas.add_axes((1.9 / width, 0.75 / height, 1.5 * len(students) / width, 0.75 * len(teachers) / height))
    _grid(axes, found, table, teachers, students)
    return canvas


def _grid(axes: Axes, found: Sequence[Pair], table: Table, teachers: list[str], students: list[str]) -> None:
    values = np.full((len(teachers), len(students)), np.nan)
    for pair in found:
        if measured := _excess(table, pair):
            values[teachers.index(pair.teacher), students.index(pair.student)] = measured.line.value
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

    found = _excess(table, pair)
    if found is None:
        return
    line = found.line
    star = "*" if found.decidable and found.test.above <= SIGNIFICANT else ""
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
    columns = ("teacher > student", "mean excess", "p", "same minus cross", "p", "traits")
    grid = Grid("Pairs", columns, [_row(pair, table) for pair in found], f"Nats of log-odds. All numbers: {name}.csv.")
    told = cross_model_verdicts(found, table)
    return PlainSection(name, figure, told, RULE, PANELS, SEEDS, [grid], list(manifests(cells)), missing)


def _row(pair: Pair, table: Table) -> list[str]:
    return [
        pair.group.variant,
        *_measured(_excess(table, pair)),
        *_measured(_apart(table, pair)),
        str(len(pair.group.traits)),
    ]


def _measured(found: Found | None) -> tuple[str, str]:
    """An effect with its interval, and its p where there are traits enough."""
    dash = "\N{EN DASH}"
    return (interval(found.line), f"{found.test.above:.4f}" if found.decidable else dash) if found else (dash, dash)
