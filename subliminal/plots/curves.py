"""Loss curves of the students, as small SVG pictures for the report."""

from __future__ import annotations

from collections.abc import Sequence

from subliminal.plots import style
from subliminal.plots.cells import CONTROL, Cell, read_lines, students


def loss_curves(cells: Sequence[Cell]) -> str:
    """One panel a student recipe, one line a student, one colour an arm, as SVG; "" without any metrics."""
    curves = {recipe: _curves(found) for recipe, found in _by_recipe(cells).items()}
    curves = {recipe: found for recipe, found in curves.items() if found}
    if not curves:
        return ""
    arms = list(dict.fromkeys(arm for found in curves.values() for arm, _, _ in found))
    colours = dict(zip(arms, [_colour(arm, index) for index, arm in enumerate(arms)], strict=True))
    with style.styled():
        width = 4.2 * len(curves) + 1.4
        canvas = style.new_figure(width, 2.5)
        panels = canvas.subplots(1, len(curves), squeeze=False)[0]
        canvas.subplots_adjust(left=0.55 / width, right=1 - 1.45 / width, top=0.88, bottom=0.19, wspace=0.2)
        for axes, (recipe, found) in zip(panels, curves.items(), strict=True):
            for arm, steps, losses in found:
                axes.plot(steps, losses, color=colours[arm], linewidth=1.1, alpha=0.85, label=arm)
            axes.set_title(f"{recipe} students")
            axes.set_xlabel("optimiser step")
            style.quiet_grid(axes)
        panels[0].set_ylabel("training loss, nats a token")
        handles = dict(zip(*reversed(_legend(panels)), strict=True))
        names = ["regular numbers" if arm == CONTROL else arm for arm in handles]
        canvas.legend(handles.values(), names, loc="center right", frameon=False)
        return style.svg(canvas)


def _legend(panels: Sequence[object]) -> tuple[list[object], list[str]]:
    pairs = [axes.get_legend_handles_labels() for axes in panels]  # type: ignore[attr-defined]
    return [h for handles, _ in pairs for h in handles], [name for _, names in pairs for name in names]


def _by_recipe(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in students(cells):
        found.setdefault(cell.student, []).append(cell)
    return found


def _curves(cells: Sequence[Cell]) -> list[tuple[str, list[int], list[float]]]:
    """(arm, steps, losses) of every student that left metrics."""
    curves = []
    for cell in cells:
        path = cell.chain["train"].folder / "metrics.jsonl" if "train" in cell.chain else None
        points = [row for row in read_lines(path) if "loss" in row] if path and path.exists() else []
        if points:
            curves.append((cell.arm, [p["step"] for p in points], [p["loss"] for p in points]))
    return curves


def _colour(arm: str, index: int) -> str:
    return style.CONTROL if arm == CONTROL else style.CYCLE[index % len(style.CYCLE)]
