"""The picture of the preference figure: its panels below each other, group by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

import subliminal.plots.preference.panels as panels
from subliminal.plots import parts, style
from subliminal.plots.effects import ALIGNMENT, LOG_ODDS, REPEATS
from subliminal.plots.parts import LINE, MARGIN, Heading
from subliminal.plots.preference.data import Group, Preferences
from subliminal.plots.preference.measures import base_of, lines_of, matrix
from subliminal.plots.table import Line, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH, HEADER, HEADING = 9.0, 0.98, 0.32
PLOT, ABOVE, BELOW, GAP = 2.15, 0.38, 0.62, 0.3
GUTTER = {"rate": 0.55, "bars": 0.55, "matrix": 0.62, "excess": 1.0, "cosines": 1.3, "aligned": 0.78}
SUMMARY_ROW, SUMMARY_GUTTER = 0.42, 3.1


def picture(data: Preferences, table: Table, heading: Heading) -> Canvas:
    """Panels A to E of every group, below each other; of several groups the mean excess of each first."""
    groups, strips = data.groups, _strips(table, data.groups)
    top = HEADER + LINE * heading.wrapped(WIDTH).count("\n")
    height = top + sum(strip.height for strip in strips) + _summary_height(groups)
    canvas = parts.canvas(WIDTH, height, heading)
    _legend(canvas, height, top, table)
    scales = _scales(table, groups)
    if len(groups) > 1:
        _summary(canvas, height, top, table, groups)
        top += _summary_height(groups)
    for strip in strips:
        _strip(canvas, height, top, strip, table, scales)
        top += strip.height
    return canvas


# --------------------------------------------------------------------------- layout, in inches


@dataclass(frozen=True)
class _Strip:
    """One horizontal strip of panels of a group: which panels, and how wide each is."""

    group: Group
    shown: tuple[tuple[str, float], ...]
    heading: str

    @property
    def height(self) -> float:
        """The strip with heading, panel titles and axis labels."""
        return PLOT + ABOVE + BELOW + (HEADING if self.heading else 0)


@dataclass(frozen=True)
class _Scales:
    """Limits shared by all groups, so that recipes can be compared by eye."""

    share: float
    matrix: float
    excess: tuple[float, float]
    aligned: tuple[float, float]


def _strips(table: Table, groups: Sequence[Group]) -> list[_Strip]:
    strips, shown = [], []
    for group in groups:
        wide = len(group.traits) > panels.NARROW
        heads = iter([group.label] if len(groups) > 1 else [])
        if lines_of(table, group, "rate"):
            strips.append(_Strip(group, (("rate", 8.15),), next(heads, "")))
        if wide:
            strips.append(_Strip(group, (("bars", 8.15),), next(heads, "")))
            strips.append(_Strip(group, (("matrix", 4.3), ("excess", 2.5)), next(heads, "")))
        else:
            strips.append(_Strip(group, (("bars", 2.6), ("matrix", 1.8), ("excess", 1.57)), next(heads, "")))
        aligned = [line.value for line in lines_of(table, group, ALIGNMENT)]
        if aligned and aligned not in shown:  # the same students asked in another way are as parallel as before
            shown.append(aligned)
            strips.append(_Strip(group, (("cosines", 3.6), ("aligned", 2.5)), ""))
    return strips


def _summary_height(groups: Sequence[Group]) -> float:
    """Inches of the strip that sets the groups beside each other; none for a single group."""
    return ABOVE + SUMMARY_ROW * len(groups) + BELOW if len(groups) > 1 else 0.0


def _summary(canvas: Canvas, height: float, top: float, table: Table, groups: Sequence[Group]) -> None:
    """The mean excess of every group on one axis: what a figure of several groups is about."""
    tall = SUMMARY_ROW * len(groups)
    box = (SUMMARY_GUTTER / WIDTH, 1 - (top + ABOVE + tall) / height)
    axes = canvas.add_axes((*box, (WIDTH - SUMMARY_GUTTER - GAP) / WIDTH, tall / height))
    for place, group in enumerate(groups):
        panels.mean_point(axes, place, table, group, LOG_ODDS)
    axes.axvline(0, color=style.INK, linewidth=0.9)
    parts.named_rows(axes, _short(groups), above=0.5, below=0.36)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Mean excess", pad=9)
    axes.set_xlabel("own minus others, log-odds in nats")


def _short(groups: Sequence[Group]) -> list[str]:
    """What tells the groups apart: the variant where it does, else the whole label over two lines."""
    variants = [group.variant for group in groups]
    if all(variants) and len(set(variants)) == len(variants):
        return variants
    return [fill(group.label, 34) for group in groups]


def _legend(canvas: Canvas, height: float, below: float, table: Table) -> None:
    from matplotlib.patches import Patch

    have = {line.arm for line in table.lines} | {""}
    shown = [bar for bar in panels.BARS if bar.arm in have]
    parts.legend(
        canvas,
        "lower left",
        size=8.5,
        handles=[Patch(color=bar.colour, label=bar.name) for bar in shown],
        bbox_to_anchor=((MARGIN - 0.025) / WIDTH, 1 - below / height),
        ncols=len(shown),
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.6,
        borderpad=0.3,
        borderaxespad=0.0,
    )


def _strip(canvas: Canvas, height: float, top: float, strip: _Strip, table: Table, scales: _Scales) -> None:
    if strip.heading:
        canvas.text(MARGIN / WIDTH, 1 - (top + 0.12) / height, strip.heading, fontsize=11, fontweight="bold", va="top")
        top += HEADING
    left = MARGIN
    for name, width in strip.shown:
        left += GUTTER[name]
        bottom = 1 - (top + ABOVE + PLOT) / height
        axes = canvas.add_axes((left / WIDTH, bottom, width / WIDTH, PLOT / height))
        _panel(axes, name, table, strip.group, scales)
        left += width + GAP


def _panel(axes: Axes, name: str, table: Table, group: Group, scales: _Scales) -> None:
    if name in {"rate", "bars"}:
        panels.bars(axes, table, group, "rate" if name == "rate" else "probability", scales.share)
    elif name == "matrix":
        panels.matrix_of_lifts(axes, table, group, scales.matrix)
    elif name == "cosines":
        panels.matrix_of_cosines(axes, table, group)
    elif name == "aligned":
        panels.excess(axes, table, group, scales.aligned, panels.ALIGNED)
    else:
        panels.excess(axes, table, group, scales.excess, panels.EXCESS)


def _scales(table: Table, groups: Sequence[Group]) -> _Scales:
    heights = [line for group in groups for line in panels.shares(table, group)]
    excesses, alignments = _span(table, groups, panels.EXCESS), _span(table, groups, panels.ALIGNED)
    based = [(group, base) for group in groups if (base := base_of(table, group))]
    limit = parts.largest([row for group, base in based for row in matrix(table, group, base)[1]])
    return _Scales(_room(heights)[1], limit, excesses, alignments)


def _room(lines: Sequence[Line]) -> tuple[float, float]:
    """A little more than the lines, their intervals, their seeds and zero need."""
    seeds = [value for line in lines for _, value in line.by_seed]
    ends = [end for line in lines for end in (line.value, line.low, line.high) if not math.isnan(end)]
    low, high = min([0.0, *ends, *seeds]), max([0.0, *ends, *seeds])
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _span(table: Table, groups: Sequence[Group], panel: panels.ExcessPanel) -> tuple[float, float]:
    """What the panel of an excess needs for every group."""
    names = (panel.measure, panel.measure + REPEATS)
    return _room([line for group in groups for name in names for line in lines_of(table, group, name)])
