"""What the pictures are put together from, each part once: heading, interval, percent axis, heat map, legend."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

from subliminal.plots import style

if TYPE_CHECKING:
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
