"""Two sets of rows to the same prompts: which belong together, labels dealt anew, prompts drawn anew.

The unit is the prompt. Rows of one prompt that both teachers answered swap labels with probability 1/2. Rows whose
prompt only one side has can not be compared so: which prompts pass a filter may differ although the rows do not. They
are left out, but for a set's own halves, whose labels are drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from subliminal.rows import Row
from subliminal.store import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MINIMUM_ROWS = 20


class SamplesError(StoreError):
    """Rows that can not be compared; the text says why."""


@dataclass(frozen=True)
class TwoSamples:
    """Rows with `own` (rows,) telling whose they are and `prompt` (rows,) numbering their prompts from 0.

    `pairs` is (pairs, 2): the places of the own and the other row of each prompt that has both.
    """

    rows: list[Row]
    own: NDArray[np.bool_]
    prompt: NDArray[np.int64]
    pairs: NDArray[np.int64]

    @property
    def alone(self) -> NDArray[np.int64]:
        """The places of rows whose prompt has no row on the other side."""
        return np.setdiff1d(np.arange(len(self.rows)), self.pairs.ravel())

    def paired(self) -> TwoSamples:
        """The rows of prompts that both sides have; raises `SamplesError` when there are too few."""
        if len(self.pairs) < MINIMUM_ROWS:
            raise SamplesError(
                f"only {len(self.pairs)} prompts have a row on both sides ({MINIMUM_ROWS} at least); raise filter.rows"
            )
        kept = np.zeros(len(self.rows), dtype=bool)
        kept[self.pairs.ravel()] = True
        return self.part(kept)

    def dealt(self, draw: np.random.Generator) -> NDArray[np.bool_]:
        """`own` dealt anew, as likely as the true one if the two sets do not differ; shape (rows,).

        Rows without a partner are permuted among themselves, which is right for halves drawn at random alone.
        """
        labels = self.own.copy()
        swapped = self.pairs[draw.random(len(self.pairs)) < 0.5]
        labels[swapped] = labels[swapped[:, ::-1]]
        alone = self.alone
        labels[alone] = draw.permutation(labels[alone])
        return labels

    def part(self, chosen: NDArray[np.bool_]) -> TwoSamples:
        """The rows that `chosen` (rows,) marks, as two samples of their own."""
        return _samples([self.rows[place] for place in np.flatnonzero(chosen)], self.own[chosen])

    def weights(self, draw: np.random.Generator, count: int) -> NDArray[np.int64]:
        """How often each row is in each of `count` bootstrap samples of prompts; shape (count, rows)."""
        prompts = int(self.prompt.max()) + 1
        drawn = draw.multinomial(prompts, np.full(prompts, 1 / prompts), size=count)
        return drawn[:, self.prompt]


def two_samples(own: Sequence[Row], against: Sequence[Row]) -> TwoSamples:
    """The rows of two teachers, paired by prompt; raises `SamplesError` when one side has too few."""
    for side, rows in (("own", own), ("other", against)):
        if len(rows) < MINIMUM_ROWS:
            raise SamplesError(
                f"{len(rows)} rows on the {side} side are too few to compare ({MINIMUM_ROWS} at least); "
                "raise filter.rows"
            )
    rows = [*own, *against]
    labels = np.arange(len(rows)) < len(own)
    return _samples(rows, labels)


def halves(rows: Sequence[Row], seed: int) -> TwoSamples:
    """One teacher's rows against themselves: a random half is called own. Nothing can tell them apart but chance."""
    if len(rows) < 2 * MINIMUM_ROWS:
        raise SamplesError(f"{len(rows)} rows are too few to halve ({2 * MINIMUM_ROWS} at least); raise filter.rows")
    labels = np.arange(len(rows)) < len(rows) // 2
    return _samples(list(rows), np.random.default_rng(seed).permutation(labels))


def _samples(rows: list[Row], own: NDArray[np.bool_]) -> TwoSamples:
    known, prompt = np.unique([row.index for row in rows], return_inverse=True)
    places = np.full((len(known), 2), -1)
    places[prompt, np.where(own, 0, 1)] = np.arange(len(rows))
    return TwoSamples(rows, own, prompt.astype(np.int64), places[(places >= 0).all(axis=1)])


def area(scores: NDArray[np.float64], own: NDArray[np.bool_], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under the ROC curve of `scores` (rows,) for each line of `weights` (samples, rows); ties count half.

    The chance that a random own row scores above a random other one (Hanley and McNeil 1982); shape (samples,).
    """
    order = np.argsort(scores, kind="stable")
    mine, theirs = weights[:, order] * own[order], weights[:, order] * ~own[order]
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    up, down = (np.add.reduceat(side, starts, axis=1).astype(float) for side in (mine, theirs))
    below = down.cumsum(axis=1) - down / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))
