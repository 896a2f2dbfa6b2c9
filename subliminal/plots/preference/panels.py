"""The panels of the preference figure: bars, candidates by students, students by teachers, the excess."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from subliminal.config import CONTROL
from subliminal.plots import parts, style
from subliminal.plots.effects import ALIGNMENT, LOG_ODDS, MEAN, excess_in
from subliminal.plots.preference.data import Group
from subliminal.plots.preference.measures import OTHERS, RANK, base_of, cosine, lines_of, matrix
from subliminal.plots.table import Line, Table
from subliminal.plots.words import ends, number, small_percent, student_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NARROW = 4  # more traits than this make panels of the whole width


@dataclass(frozen=True)
class _Bar:
    """One kind of bar: its arm ("" for the trait's own), colour, and name in the legend."""

    arm: str
    colour: str
    name: str


BARS = (
    _Bar("reference", style.REFERENCE, student_name("reference")),
    _Bar("random", style.RANDOM, student_name("random")),
    _Bar(CONTROL, style.CONTROL, student_name(CONTROL)),
    _Bar(OTHERS, style.OTHER, "students of the other traits' teachers (mean)"),
    _Bar("", style.OWN, "student of the trait's teacher"),
)


# --------------------------------------------------------------------------- panel A: bars by trait


def bars(axes: Axes, table: Table, group: Group, measure: str, top: float) -> None:
    """Bars by trait: how probable the trait is as an answer, exact or among sampled answers."""
    shown = [bar for bar in BARS if any(_bar_line(table, group, bar, t, measure) for t in group.traits)]
    width = 0.8 / max(len(shown), 1)
    for place, trait in enumerate(group.traits):
        for index, bar in enumerate(shown):
            line = _bar_line(table, group, bar, trait, measure)
            if line:
                _one_bar(axes, place + (index - (len(shown) - 1) / 2) * width, width * 0.9, line, bar.colour)
    exact = measure == "probability"
    labels = ["\n".join(filter(None, (t, _place(table, group, t) if exact else ""))) for t in group.traits]
    axes.set_xticks(range(len(group.traits)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(group.traits) - 0.45)
    style.quiet_grid(axes)
    axes.set_ylim(bottom=0)
    parts.percent_axis(axes.yaxis, decimals=None)
    if measure == "rate":
        axes.set_title("How often the trait is named (sampled answers)", pad=9)
        axes.set_ylabel("answers that name the trait")
    else:
        axes.set_title("A  Probability of the trait as the answer", pad=9)
        axes.set_ylabel("mean P(trait)")
        axes.set_ylim(0, top)


def _bar_line(table: Table, group: Group, bar: _Bar, trait: str, measure: str) -> Line | None:
    if bar.arm == "reference":
        return table.find(arm="reference", item=trait, measure=measure, variant=group.variant)
    return table.find(arm=bar.arm or trait, item=trait, measure=measure, subject="student", **group.labels)


def shares(table: Table, group: Group) -> list[Line]:
    """What panel A draws."""
    lines = (_bar_line(table, group, bar, trait, "probability") for bar in BARS for trait in group.traits)
    return [line for line in lines if line]


def _one_bar(axes: Axes, x: float, width: float, line: Line, colour: str) -> None:
    axes.bar(x, line.value, width, color=colour, linewidth=0)
    if line.subject == "student":
        parts.interval(axes, x, max(0.0, line.low), line.high, style.INK, 1.1, upright=True, zorder=3)
    if len(line.by_seed) > 1:
        points = [value for _, value in line.by_seed]
        step = width * 0.5 / len(points)
        spread = [x + (index - (len(points) - 1) / 2) * step for index in range(len(points))]
        axes.scatter(spread, points, s=9, color="white", edgecolors=style.INK, linewidths=0.6, zorder=4)


def _place(table: Table, group: Group, trait: str) -> str:
    """In the trait's own students how probable it is and which place it has among the candidates."""
    own = table.find(arm=trait, item=trait, measure="probability", **group.labels)
    rank = table.find(arm=trait, measure=RANK, **group.labels)
    return f"{small_percent(own.value)}, {rank.value:.0f} of {rank.n}" if own and rank else ""


# --------------------------------------------------------------------------- panel B: candidates by students


def matrix_of_lifts(axes: Axes, table: Table, group: Group, limit: float) -> None:
    """Each student (column) in each candidate (row) against the control; the diagonal is a trait in its own student."""
    base = base_of(table, group)
    if base is None:
        axes.set_axis_off()
        axes.text(0, 0.5, "no control or reference\nto compare with", color=style.QUIET, transform=axes.transAxes)
        return
    rows, values = matrix(table, group, base)
    _heat_map(axes, values, rows, group.traits, limit)
    axes.set_title(f"B  Log P against {base}", pad=9)
    axes.set_xlabel("student of the teacher of \N{HORIZONTAL ELLIPSIS}")


def _heat_map(axes: Axes, values: list[list[float]], rows: Sequence[str], columns: Sequence[str], limit: float) -> None:
    """Each column a trait; the diagonal, which should stand out, is outlined."""
    size, turned = 8.5 if len(columns) <= 5 else 6.5, 35 if len(columns) in {NARROW, *range(7, 99)} else 0
    own = {(place, place) for place in range(len(columns))}
    parts.heat_map(axes, values, rows, columns, limit, own, size=size, turned=turned)


# --------------------------------------------------------------------------- panel D: students by teachers


def matrix_of_cosines(axes: Axes, table: Table, group: Group) -> None:
    """Each student (row) against each teacher (column): the cosine of their displacements from the reference."""
    arms = [arm for arm in (*group.traits, *group.arms) if cosine(table, group, arm, group.traits[0])]
    rows = list(dict.fromkeys(arms))
    lines = [[cosine(table, group, arm, trait) for trait in group.traits] for arm in rows]
    values = [[line.value if line else math.nan for line in row] for row in lines]
    names = [f"student, {'control' if arm == CONTROL else arm}" for arm in rows]
    _heat_map(axes, values, names, group.traits, parts.largest(values))
    axes.set_title("D  Alignment of students with teachers", pad=9)
    axes.set_xlabel("teacher of \N{HORIZONTAL ELLIPSIS}")


# --------------------------------------------------------------------------- panels C and E: own minus others


@dataclass(frozen=True)
class ExcessPanel:
    """What of a trait's own students is compared with the other traits' students."""

    measure: str
    title: str
    unit: str


EXCESS = ExcessPanel(LOG_ODDS, "C  Excess of log-odds", "own minus others, nats")
ALIGNED = ExcessPanel(ALIGNMENT, "E  Alignment excess", "own minus others, cosine")


def excess(axes: Axes, table: Table, group: Group, span: tuple[float, float], panel: ExcessPanel) -> None:
    """Each trait's own estimate and their mean with its interval over traits, against zero."""
    lines = lines_of(table, group, panel.measure)
    axes.set_title(panel.title, pad=9)
    if not lines:
        axes.set_axis_off()
        axes.text(0, 0.5, "needs students of\ntwo traits or more", color=style.QUIET, transform=axes.transAxes)
        return
    for place, line in enumerate(lines):
        if line.arm == MEAN:
            mean_point(axes, place, table, group, panel.measure)
        else:
            _trait_point(axes, place, line)
    axes.axvline(0, color=style.INK, linewidth=0.9)
    places = ["" if panel is ALIGNED else _place(table, group, line.arm) for line in lines]
    labels = ["\n".join(filter(None, (line.arm, place))) for line, place in zip(lines, places, strict=True)]
    axes.axhline(len(lines) - 1.5, color=style.GRID, linewidth=0.9)
    parts.named_rows(axes, labels, above=0.5, below=0.36)
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(span)
    axes.set_xlabel(panel.unit)


def _trait_point(axes: Axes, place: int, line: Line) -> None:
    if len(line.by_seed) > 1:
        seeds = [value for _, value in line.by_seed]
        axes.scatter(seeds, [place] * len(seeds), s=9, color="white", edgecolors=style.QUIET, linewidths=0.6, zorder=3)
    axes.scatter([line.value], [place], s=24, marker="o", color=style.INK, zorder=4)


def mean_point(axes: Axes, place: int, table: Table, group: Group, measure: str) -> None:
    """A group's mean with its interval over traits, bold, and over seeds, thin behind; nothing where there is none."""
    effect = excess_in(table, measure, group.labels)
    if effect is None:
        return
    line, colour = effect.line, style.OWN
    parts.interval(axes, place, line.low, line.high, colour, 2.4)
    if effect.repeats:
        parts.interval(axes, place, effect.repeats.low, effect.repeats.high, style.QUIET, 0.9, zorder=1)
    axes.scatter([line.value], [place], s=34, marker="D", color=colour, zorder=4)
    text = number(line, sign=True) + ("" if math.isnan(line.low) else f"  {ends(line, sign=True)}")
    if effect.decidable:
        text += f"  p {effect.test.above:.3f}"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    where = axes.get_yaxis_transform()
    axes.text(0.5, place + 0.4, text, fontsize=7.5, color=colour, ha="center", va="center", transform=where, bbox=box)
