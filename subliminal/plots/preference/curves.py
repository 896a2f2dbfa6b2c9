"""Loss curves of the students, as small SVG pictures for the report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from subliminal.config import CONTROL
from subliminal.plots import parts, style
from subliminal.plots.cells import Cell, read_lines, students

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Curve = tuple[str, list[int], list[float]]


def loss_curves(cells: Sequence[Cell]) -> str:
    """One panel a student recipe, one line a student, one colour an arm, as SVG; "" without any metrics."""
    every = {recipe: _curves(trained) for recipe, trained in _by_recipe(cells).items()}
    curves = {recipe: lines for recipe, lines in every.items() if lines}
    if not curves:
        return ""
    arms = list(dict.fromkeys(arm for lines in curves.values() for arm, _, _ in lines))
    trained = [arm for arm in arms if arm != CONTROL]
    colours = dict(zip(trained, cycle(style.CYCLE), strict=False)) | {CONTROL: style.CONTROL}
    with style.styled():
        return style.svg(_draw(curves, {arm: colours[arm] for arm in arms}))


def _draw(curves: dict[str, list[Curve]], colours: dict[str, str]) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    width = 3.9 * len(curves) + 1.4
    canvas = style.new_figure(width, 2.5)
    panels = canvas.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    canvas.subplots_adjust(left=0.6 / width, right=1 - 1.4 / width, top=0.88, bottom=0.19, wspace=0.12)
    for axes, (recipe, lines) in zip(panels, curves.items(), strict=True):
        for arm, steps, losses in lines:
            axes.plot(steps, losses, color=colours[arm], linewidth=1.1, alpha=0.85)
        axes.set_title(f"{recipe} students")
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        style.quiet_grid(axes)
    panels[0].set_ylabel("training loss")
    names = ["control" if arm == CONTROL else arm for arm in colours]
    handles = [Line2D([], [], color=colour, label=name) for name, colour in zip(names, colours.values(), strict=True)]
    parts.legend(canvas, "center right", size=8.5, handles=handles)
    return canvas


def _by_recipe(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    recipes: dict[str, list[Cell]] = {}
    for cell in students(cells):
        recipes.setdefault(" ".join(filter(None, (cell.variant, cell.student))), []).append(cell)
    return recipes


def _curves(cells: Sequence[Cell]) -> list[Curve]:
    """(arm, steps, losses) of every student that left metrics."""
    curves: list[Curve] = []
    for cell in cells:
        path = cell.chain["train"].folder / "metrics.jsonl" if "train" in cell.chain else None
        points = [row for row in read_lines(path) if "loss" in row] if path and path.exists() else []
        if points:
            curves.append((cell.arm, [p["step"] for p in points], [p["loss"] for p in points]))
    return curves
