"""Cells sorted into groups that can be compared: per variant, student recipe and teacher kind, every arm by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from subliminal.config import CONTROL, Comparison
from subliminal.plots.cells import Cell, PlotError, students
from subliminal.plots.samples import Seeds
from subliminal.plots.table import Labels


@dataclass(frozen=True)
class Group:
    """The students of one variant, recipe and kind of teacher, with their controls and the common reference."""

    student: str
    teacher: str
    own: dict[str, Seeds]
    control: Seeds
    random: Seeds
    reference: Cell | None
    variant: str = ""

    @property
    def labels(self) -> Labels:
        """The columns of the figure's table that tell this group's lines from another's."""
        return {"student": self.student, "teacher": self.teacher, "variant": self.variant}

    @property
    def traits(self) -> list[str]:
        """The traits that have students, in the order they were given."""
        return list(self.own)

    @property
    def arms(self) -> dict[str, Seeds]:
        """Every arm that has students: the controls, then the traits."""
        every = {CONTROL: self.control, "random": self.random, **self.own}
        return {name: cells for name, cells in every.items() if cells}

    @property
    def candidates(self) -> list[str]:
        """The traits first, then the other candidates of the evaluation."""
        return [*self.traits, *(c for c in self._first.candidates if c not in self.own)]

    @property
    def evaluation(self) -> Any:
        """The evaluation's settings: what the group's numbers are about."""
        return self._first.evaluate.recipe["settings"].get("evaluation")

    @property
    def _first(self) -> Cell:
        return next(iter(next(iter(self.arms.values())).values()))

    @property
    def label(self) -> str:
        """The group in words."""
        teachers = f" of {self.teacher} teachers" if self.teacher else ""
        name = f"{self.variant.replace('_', ' ')}: " if self.variant else ""
        return f"{name}{self.student} students{teachers}"


@dataclass(frozen=True)
class Preferences:
    """The evaluated subjects of a figure, and which variants its claim compares."""

    cells: Sequence[Cell]
    comparisons: Sequence[Comparison] = ()

    @cached_property
    def groups(self) -> list[Group]:
        """The cells in groups; raises `PlotError` when no student was evaluated or cells do not match."""
        return groups(self.cells)


def groups(cells: Sequence[Cell]) -> list[Group]:
    """The comparisons in the cells; raises `PlotError` when no student was evaluated or cells do not match."""
    trained = students(cells)
    if not trained:
        raise PlotError("no evaluated student to draw; run the figure's sweep first: make fig-animals-numbers")
    return [group for name in dict.fromkeys(c.variant for c in trained) for group in _variant(cells, name)]


def _variant(cells: Sequence[Cell], name: str) -> list[Group]:
    mine = [cell for cell in cells if cell.variant == name]
    _require_same_evaluation(mine)
    reference = next((cell for cell in mine if cell.role == "reference"), None)
    return [_group(students(mine), *kind, reference) for kind in _kinds(students(mine))]


def _kinds(trained: Sequence[Cell]) -> list[tuple[str, str]]:
    """(student recipe, teacher kind) of every group; the controls alone make a group where a recipe has no trait."""
    kinds = list(dict.fromkeys((c.student, c.teacher) for c in trained if not _bare(c)))
    have = {student for student, _ in kinds}
    return kinds + [(s, "") for s in dict.fromkeys(c.student for c in trained) if s not in have]


def _group(trained: Sequence[Cell], student: str, teacher: str, reference: Cell | None) -> Group:
    mine = [cell for cell in trained if cell.student == student]
    own = [cell for cell in mine if not _bare(cell) and cell.teacher == teacher]
    bare = [cell for cell in mine if _bare(cell)]
    return Group(
        student=student,
        teacher=teacher,
        own={trait: _seeds([c for c in own if c.trait == trait]) for trait in dict.fromkeys(c.trait for c in own)},
        control=_seeds([c for c in bare if c.teacher != "random"]),
        random=_seeds([c for c in bare if c.teacher == "random"]),
        reference=reference,
        variant=trained[0].variant,
    )


def _bare(cell: Cell) -> bool:
    """Whether the cell's data carries no trait."""
    return cell.trait == CONTROL or cell.teacher == "random"


def _seeds(cells: Sequence[Cell]) -> Seeds:
    return {cell.seed: cell for cell in sorted(cells, key=lambda cell: cell.seed)}


def _require_same_evaluation(cells: Sequence[Cell]) -> None:
    first = cells[0]
    for cell in cells:
        if {*cell.candidates} != {*first.candidates} or cell.questions != first.questions:
            raise PlotError(
                f"{cell.evaluate.folder} and {first.evaluate.folder} were evaluated with different questions or "
                "candidates and can not share a figure; run evaluate.py with the same evaluation for both"
            )
