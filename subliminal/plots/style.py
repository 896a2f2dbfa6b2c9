"""The look of the figures: colours that colour-blind readers can tell apart, quiet axes, reproducible files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

DPI = 150
INK = "#1f2328"
QUIET = "#6a737d"
GRID = "#e3e6ea"
OWN = "#D55E00"
OTHER = "#56A8DC"
CONTROL = "#A3A9B0"
REFERENCE = "#4A5058"
RANDOM = "#C98BB0"
# one colour an arm where many are drawn together (curves)
CYCLE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31", "#3B7A57", "#A34A5E")

DASHED = (0, (4, 3))  # of lines that mark chance

SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 8.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollar signs; what is mathematics says so itself
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "subliminal",
}


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's settings for our figures, restored afterwards."""
    import logging

    import matplotlib

    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    fonts.setLevel(logging.ERROR)  # the list of fonts is a wish list: a missing one is not worth a warning
    try:
        with matplotlib.rc_context(SETTINGS):
            yield
    finally:
        fonts.setLevel(level)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches that is drawn without any display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write `path` with the suffixes .png and .svg; the same figure gives the same bytes."""
    figure.savefig(path.with_suffix(".png"), dpi=DPI, metadata={"Software": ""})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": "subliminal"})


def svg(figure: Figure) -> str:
    """The figure as SVG text."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "subliminal"})
    return text.getvalue()


def diverging() -> Colormap:
    """Blue below zero, near white at zero, vermilion above, like the bars."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shift", ["#2F6CA8", "#A9CBE6", "#F8F8F6", "#F3B58B", OWN])


def quiet_grid(axes: Axes, axis: str = "y") -> None:
    """Thin lines behind the data, no tick marks on that axis."""
    axes.grid(axis=axis, color=GRID, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(axis=axis, length=0)  # type: ignore[arg-type]
