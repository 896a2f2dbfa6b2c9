"""Cells sorted into the comparisons of a figure: per variant, student recipe and teacher kind, every arm by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from subliminal.config import CONTROL
from subliminal.plots.cells import Cell, PlotError, Score, students
from subliminal.plots.table import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

Seeds = dict[int, Cell]


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
        asked = next(iter(self.arms.values()))
        rest = [c for c in next(iter(asked.values())).candidates if c not in self.own]
        return [*self.traits, *rest]

    @property
    def asked(self) -> Any:
        """The evaluation's settings: what the group's numbers are about."""
        first = next(iter(next(iter(self.arms.values())).values()))
        return first.evaluate.recipe["settings"].get("evaluation")

    @property
    def seeds(self) -> list[int]:
        """Every seed that any student of the group has."""
        return sorted({seed for cells in self.arms.values() for seed in cells})

    @property
    def label(self) -> str:
        """The group in words."""
        teachers = f" of {self.teacher} teachers" if self.teacher else ""
        name = f"{self.variant.replace('_', ' ')}: " if self.variant else ""
        return f"{name}{self.student} students{teachers}"


@dataclass(frozen=True)
class Sample:
    """Scores of one arm and candidate: `values[s, q]` for seed `seeds[s]` and question q.

    `seeds` is empty for what has none (a reference, a teacher): one row that stands for every seed.
    """

    seeds: tuple[int, ...]
    values: NDArray[np.float64]

    def __sub__(self, other: Sample) -> Sample:
        """The difference by seed on the common seeds; where seeds differ altogether, of the means, without seeds."""
        return _joined(self, other, np.subtract)

    def __add__(self, other: Sample) -> Sample:
        """The sum by seed on the common seeds; where seeds differ altogether, of the means, without seeds."""
        return _joined(self, other, np.add)

    @property
    def by_seed(self) -> dict[int, float]:
        """The mean over questions of every seed."""
        return dict(zip(self.seeds, self.means.tolist(), strict=True)) if self.seeds else {}

    @property
    def means(self) -> NDArray[np.float64]:
        """The mean over questions of every seed, (seeds,)."""
        return self.values.mean(axis=1)


def groups(cells: Sequence[Cell]) -> list[Group]:
    """The comparisons in the cells; raises `PlotError` when no student was evaluated or cells do not match."""
    trained = students(cells)
    if not trained:
        raise PlotError("no evaluated student to draw; run the figure's sweep first: make fig-animals-numbers")
    return [found for name in dict.fromkeys(c.variant for c in trained) for found in _variant(cells, name)]


def _variant(cells: Sequence[Cell], name: str) -> list[Group]:
    mine = [cell for cell in cells if cell.variant == name]
    _require_same_evaluation(mine)
    reference = next((cell for cell in mine if cell.role == "reference"), None)
    return [_group(students(mine), *kind, reference) for kind in _kinds(students(mine))]


def stack(cells: Seeds, candidate: str, measure: Score) -> Sample | None:
    """The scores of one candidate over the seeds of an arm; None where they do not exist."""
    found = [cell.scores.get(measure, {}).get(candidate) for cell in cells.values()]
    present = [scores for scores in found if scores is not None]
    return Sample(tuple(cells), np.stack(present)) if present and len(present) == len(found) else None


def single(cell: Cell | None, candidate: str, measure: Score) -> Sample | None:
    """The scores of a subject without seeds; None where they do not exist."""
    scores = cell.scores.get(measure, {}).get(candidate) if cell else None
    return None if scores is None else Sample((), scores[None])


def mean(samples: Sequence[Sample | None]) -> Sample | None:
    """The mean of several samples, seed by seed; None when there are none or one is missing."""
    present = [sample for sample in samples if sample is not None]
    if not present or len(present) != len(samples):
        return None
    common = set.intersection(*({*sample.seeds} for sample in present))
    total = reduce(Sample.__add__, [_only(sample, common) for sample in present])
    return Sample(total.seeds, total.values / len(present))


def _only(sample: Sample, seeds: set[int]) -> Sample:
    """The sample on some seeds in ascending order, or its mean over all of them where no seed is shared."""
    if not seeds:
        return Sample((), sample.values.mean(axis=0, keepdims=True))
    ordered = sorted(seeds)
    return Sample(tuple(ordered), sample.values[[sample.seeds.index(seed) for seed in ordered]])


def _joined(left: Sample, right: Sample, operation: np.ufunc) -> Sample:
    common = {*left.seeds} & {*right.seeds}
    if common:
        left, right = _only(left, common), _only(right, common)
        return Sample(left.seeds, operation(left.values, right.values))
    if right.seeds:  # both sides vary by seed and share none: means alone, whose spread over seeds is not known
        left = _only(left, common)
    return Sample(left.seeds, operation(left.values, right.values.mean(axis=0, keepdims=True)))


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
