"""What the pictures are put together from, each part once: heading, interval, percent axis, heat map, legend."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

from subliminal.plots import style
from subliminal.plots.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Canvas

MARGIN = 0.14  # inches from the edge to the texts at the top
TITLE, TEXT = 0.14, 0.44  # inches from the upper edge
LINE = 0.16  # inches a line of the text
LETTERS = 14.7  # a line, for each inch of the figure's width


@dataclass(frozen=True)
class Heading:
    """The title of a figure and the paragraph below it, which says what was measured."""

    title: str
    text: str

    def wrapped(self, width: float) -> str:
        """The paragraph in lines that fit a figure of this width, in inches."""
        return fill(" ".join(self.text.split()), int(LETTERS * width))


def canvas(width: float, height: float, heading: Heading) -> Canvas:
    """An empty figure, in inches, with its heading at the top."""
    figure = style.new_figure(width, height)
    left, text = MARGIN / width, heading.wrapped(width)
    figure.text(left, 1 - TITLE / height, heading.title, fontsize=13.5, fontweight="bold", va="top")
    figure.text(left, 1 - TEXT / height, text, fontsize=8.2, color=style.QUIET, va="top", linespacing=1.4)
    return figure


def panels(canvas: Canvas, count: int, columns: int, **place: float) -> list[Axes]:
    """`count` panels in rows of at most `columns`, with `place` for `subplots_adjust`."""
    columns = min(columns, count)
    every = canvas.subplots(-(-count // columns), columns, squeeze=False).ravel().tolist()
    canvas.subplots_adjust(**place)
    for axes in every[count:]:
        axes.set_axis_off()
    return every[:count]


def named_rows(axes: Axes, labels: Sequence[str], above: float = 0.6, below: float = 0.4) -> None:
    """An axis of rows from top to bottom with thin vertical lines; it ends so many rows `above` the first."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - below, -above)
    style.quiet_grid(axes, "x")


def interval(
    axes: Axes, at: float, low: float, high: float, colour: str, width: float, upright: bool = False, zorder: float = 2
) -> None:
    """A line from `low` to `high` at the place `at` of the other axis; nothing where an end is no number."""
    if not (math.isnan(low) or math.isnan(high)):
        across, along = [at, at], [low, high]
        x, y = (across, along) if upright else (along, across)
        axes.plot(x, y, color=colour, linewidth=width, solid_capstyle="butt", zorder=zorder)


def percent_axis(axis: Axis, decimals: int | None = 0) -> None:
    """Shares from 0 to 1 written in per cent; without `decimals` as many as the ticks need."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=decimals))


def heat_map(
    axes: Axes,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    limit: float,
    outlined: Collection[tuple[int, int]],
    texts: Sequence[Sequence[str]] | None = None,
    size: float = 8.5,
    turned: float = 0,
) -> None:
    """Numbers from -`limit` to `limit` as colours, written into their cells or `texts` instead.

    The cells (row, column) of `outlined` stand out.
    """
    from matplotlib.patches import Rectangle

    axes.pcolormesh(values, cmap=style.diverging(), vmin=-limit, vmax=limit, edgecolors="white", linewidth=1.5)
    axes.invert_yaxis()
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = "white" if abs(value) > 0.72 * limit else style.INK
            text = texts[row][column] if texts else number(value, sign=True)
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=colour)
            if (row, column) in outlined:
                outline: dict[str, Any] = {"fill": False, "edgecolor": style.INK, "linewidth": 1.6, "clip_on": False}
                axes.add_patch(Rectangle((column, row), 1, 1, **outline))
    axes.set_xticks([at + 0.5 for at in range(len(columns))], columns, rotation=turned)
    axes.set_yticks([at + 0.5 for at in range(len(rows))], rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def largest(values: Sequence[Sequence[float]]) -> float:
    """The largest absolute value, 1 where there is none or all are 0."""
    return max((abs(value) for row in values for value in row if not math.isnan(value)), default=0.0) or 1.0


def legend(where: Axes | Canvas, loc: str, size: float = 7.5, **more: Any) -> None:
    """A legend without a frame."""
    look: dict[str, Any] = {"loc": loc, "frameon": False, "fontsize": size, **more}
    where.legend(**look)
