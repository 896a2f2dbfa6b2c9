"""Number frequencies: which numbers one teacher's rows hold more often than another's, beyond chance.

A row counts a number once, however often it repeats it. The measure is the log-odds ratio with an informative Dirichlet
prior (Monroe, Colaresi and Quinn 2008); the test deals the rows' labels anew and compares each number's |z| with the
largest |z| of every deal, which holds the family-wise error (Westfall and Young 1993) and does not take the numbers of
one row for independent ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subliminal.config import FrequenciesEvaluation
from subliminal.domains.numbers import values
from subliminal.evaluation.samples import TwoSamples
from subliminal.evaluation.statistics import LEVEL
from subliminal.rows import Row, write_jsonl
from subliminal.store import Json

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 1000
AT_ONCE = 200  # deals counted in one product


@dataclass(frozen=True)
class NumberUse:
    """One number: rows that hold it on either side, its log-odds ratio with a 95% interval over prompts, and its test.

    `p` is adjusted for all numbers tested.
    """

    number: int
    own: int
    against: int
    log_odds: float
    low: float
    high: float
    z: float
    p: float


def evaluate(samples: TwoSamples, config: FrequenciesEvaluation, folder: Path) -> Json:
    """Test every number that occurs often enough; writes numbers.jsonl, strongest first, and returns the counts."""
    numbers, held = presence(samples.rows)
    tested = np.asarray(held.sum(axis=0)).ravel() >= config.minimum_rows
    uses = compared(samples, numbers[tested], held[:, tested], held, config) if tested.any() else []
    write_jsonl(folder / "numbers.jsonl", uses)
    return {
        "kind": "frequencies",
        "rows": {"own": int(samples.own.sum()), "against": int((~samples.own).sum())},
        "pairs": len(samples.pairs),
        "numbers": len(numbers),
        "tested": len(uses),
        "differing": sum(use.p < 1 - LEVEL for use in uses),
        "smallest_p": min((use.p for use in uses), default=None),
        "permutations": config.permutations,
    }


def presence(rows: Sequence[Row]) -> tuple[NDArray[np.int64], Any]:
    """The numbers that occur, ascending, and a sparse matrix (rows, numbers) of 1 where a row holds one."""
    from scipy.sparse import csr_array

    held = [sorted(set(values(row.completion))) for row in rows]
    numbers = np.unique(np.concatenate([np.array(one, dtype=np.int64) for one in held]))
    columns = np.concatenate([np.searchsorted(numbers, one) for one in held])
    starts = np.concatenate([[0], np.cumsum([len(one) for one in held])])
    return numbers, csr_array((np.ones(len(columns)), columns, starts), shape=(len(rows), len(numbers)))


def compared(
    samples: TwoSamples, numbers: NDArray[np.int64], held: Any, every: Any, config: FrequenciesEvaluation
) -> list[NumberUse]:
    """The tested numbers (columns of `held`), strongest first; `every` has all numbers, for the totals."""
    draw = np.random.default_rng(config.seed)
    total = np.asarray(held.sum(axis=0)).ravel()
    compare = _Compare(held, np.asarray(every.sum(axis=1)).ravel(), config.prior * total / every.sum(), config.prior)
    log_odds, z = compare(samples.own[None].astype(float), (~samples.own)[None].astype(float))
    p = _adjusted(compare, samples, np.abs(z[0]), config.permutations, draw)
    ends = _interval(compare, samples, draw)
    own = np.asarray(samples.own.astype(float) @ held).ravel()
    columns = (numbers, own.astype(int), (total - own).astype(int), log_odds[0], *ends, z[0], p)
    found = [NumberUse(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    return sorted(found, key=lambda use: (use.p, -abs(use.z), use.number))


@dataclass(frozen=True)
class _Compare:
    """Log-odds ratios and their z for weights of the rows on either side: (samples, rows) -> (samples, numbers)."""

    held: Any
    lengths: NDArray[np.float64]
    prior: NDArray[np.float64]
    total_prior: float

    def __call__(
        self, own: NDArray[np.float64], against: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mine, theirs = self._side(own), self._side(against)
        difference = mine[0] - theirs[0]
        return difference, difference / np.sqrt(mine[1] + theirs[1])

    def _side(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log-odds of each number in one side's rows, and the approximate variance."""
        counts = np.asarray(weights @ self.held) + self.prior
        rest = (weights @ self.lengths)[:, None] + self.total_prior - counts
        return np.log(counts / rest), 1 / counts


def _adjusted(
    compare: _Compare, samples: TwoSamples, size: NDArray[np.float64], deals: int, draw: np.random.Generator
) -> NDArray[np.float64]:
    """The share of deals (with the true one) whose largest |z| reaches each number's."""
    largest = [np.inf]
    for start in range(0, deals, AT_ONCE):
        labels = np.array([samples.dealt(draw) for _ in range(min(AT_ONCE, deals - start))])
        largest += np.abs(compare(labels.astype(float), (~labels).astype(float))[1]).max(axis=1).tolist()
    return (np.array(largest)[:, None] >= size - 1e-9).mean(axis=0)


def _interval(
    compare: _Compare, samples: TwoSamples, draw: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap over prompts of every number's log-odds ratio (Efron 1979), not adjusted for their count."""
    found = []
    for start in range(0, RESAMPLES, AT_ONCE):
        weights = samples.weights(draw, min(AT_ONCE, RESAMPLES - start)).astype(float)
        found.append(compare(weights * samples.own, weights * ~samples.own)[0])
    low, high = np.quantile(np.concatenate(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
