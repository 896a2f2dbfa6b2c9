"""Scores by question and seed: of the students of one arm, of their mean, of what they differ by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from subliminal.plots.cells import Cell, Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

Seeds = dict[int, Cell]  # the students of one arm


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


def stack(cells: Seeds, candidate: str, measure: Score) -> Sample | None:
    """The scores of one candidate over the seeds of an arm; None where they do not exist."""
    every = [cell.scores.get(measure, {}).get(candidate) for cell in cells.values()]
    present = [scores for scores in every if scores is not None]
    return Sample(tuple(cells), np.stack(present)) if present and len(present) == len(every) else None


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
