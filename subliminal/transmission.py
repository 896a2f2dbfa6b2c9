"""Was a trait transmitted: the estimate, the test and the rule of every figure of traits.

The unit is the teacher with its rows. M is (traits, traits): row i is the mean score of every trait's candidate in the
students of trait i's teacher, over their seeds and questions. What a student does to all candidates alike, and what
moves a candidate in all students alike, cancels in every number here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Literal

import numpy as np

from subliminal.evaluation.statistics import LEVEL, Interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MINIMUM_TRAITS = 5  # 4! = 24 relabellings have no p below 1/24
SIGNIFICANT = (1 - LEVEL) / 2  # one-sided
MARGIN = 0.25  # nats: within it an excess counts as none
LARGEST_EXACT = 8  # traits whose 8! = 40,320 relabellings are all counted
DRAWN = 9_999  # relabellings that are drawn beyond that, beside the true one
TIE = 1e-9  # share of the largest value below which two sums are equal
TABLES = 1_000  # simulated tables behind a planned power
SPREAD_OF_TRAITS = 0.5  # standard deviation of the traits' effects over their mean, in planning

Outcome = Literal["holds", "contradicted", "not shown", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """The excess of each trait and their mean with its 95% interval over traits, in the unit of the scores.

    `by_trait` is (traits,); it is nan, as the interval is, for fewer than three traits.
    """

    by_trait: NDArray[np.float64]
    mean: Interval


@dataclass(frozen=True)
class PermutationTest:
    """One-sided p of an effect above 0 and of one below 0, and how many assignments they were counted over."""

    above: float
    below: float
    assignments: int


# --------------------------------------------------------------------------- the estimate


def two_way(matrix: ArrayLike) -> Estimate:
    """The traits' excess by least squares in M_ij = student_i + candidate_j + excess_j [i = j] + rest.

    `matrix` is (traits, traits). The mean is the mean diagonal minus the mean off the diagonal. Its interval is
    Student's t over the traits' own estimates, which hold no main effect of a student.
    """
    values = _square(matrix)
    traits = len(values)
    diagonal = np.diag(values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean())
    mean = float(diagonal.mean() * traits / (traits - 1))
    if traits < 3:
        return Estimate(np.full(traits, np.nan), Interval(mean, math.nan, math.nan, traits))
    by_trait = (traits * diagonal - mean) / (traits - 2)
    half = _quantile(traits - 1) * float(by_trait.std(ddof=1)) / math.sqrt(traits)
    return Estimate(by_trait, Interval(mean, mean - half, mean + half, traits))


def over_seeds(students: Sequence[ArrayLike]) -> Interval:
    """The mean excess with its 95% interval over seeds: does it repeat on these teachers and rows, and no more.

    `students[i]` is (seeds, traits): the scores of every seed's student of trait i's teacher. Students are independent,
    whatever their seed's number, so their variances add up; degrees of freedom after Satterthwaite (1946).
    """
    return sum_of_means(contrasts(students))


def contrasts(students: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    """What the students of each trait add to the mean excess, (seeds,) each: own candidate minus the other traits'."""
    tables = [np.atleast_2d(np.asarray(student, dtype=float)) for student in students]
    own = [table[:, place] for place, table in enumerate(tables)]
    others = [np.delete(table, place, axis=1).mean(axis=1) for place, table in enumerate(tables)]
    return [(mine - rest) / len(tables) for mine, rest in zip(own, others, strict=True)]


def welch(own: ArrayLike, control: ArrayLike) -> Interval:
    """The mean of `own` (units,) minus that of `control` (units,) with its 95% interval (Welch 1947)."""
    return sum_of_means([np.asarray(own, dtype=float), -np.asarray(control, dtype=float)])


def sum_of_means(samples: Sequence[NDArray[np.float64]]) -> Interval:
    """The sum of the means of independent samples with its 95% interval; n counts all units.

    Variances add up, degrees of freedom after Satterthwaite (1946); a sample of one unit leaves no interval.
    """
    mean, n = float(sum(sample.mean() for sample in samples)), sum(sample.size for sample in samples)
    if min(sample.size for sample in samples) < 2:
        return Interval(mean, math.nan, math.nan, n)
    parts = np.array([sample.var(ddof=1) / sample.size for sample in samples])
    weights = np.array([1 / (sample.size - 1) for sample in samples])
    if not parts.any():
        return Interval(mean, mean, mean, n)
    freedom = float(parts.sum() ** 2 / (parts**2 * weights).sum())
    half = _quantile(freedom) * math.sqrt(parts.sum())
    return Interval(mean, mean - half, mean + half, n)


def _quantile(freedom: float) -> float:
    from scipy.special import stdtrit  # scipy.stats calls the same, and takes a second to import

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _square(matrix: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(matrix, dtype=float)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or len(values) < 2:
        raise ValueError(f"an excess needs a square matrix of at least 2 traits, got shape {values.shape}")
    return values


# --------------------------------------------------------------------------- the tests


def relabelling(matrix: ArrayLike, seed: int = 0) -> PermutationTest:
    """Permutation test of the mean excess: which teacher a student had does not matter for which candidate rises.

    `matrix` is (traits, traits). Whole teachers exchange their candidates: all T! ways for up to 8 traits, else the
    true one and 9,999 drawn from `seed`. The table's total is constant, so the trace orders them as the excess does.
    """
    values = _square(matrix)
    places = _assignments(len(values), seed)
    traces = values[np.arange(len(values)), places].sum(axis=1)
    return _counted(traces, float(np.trace(values)), float(np.abs(values).max()))


@cache
def _assignments(traits: int, seed: int) -> NDArray[np.int64]:
    """Candidates of every teacher, (assignments, traits); the true assignment first."""
    if traits <= LARGEST_EXACT:
        return np.array(list(permutations(range(traits))))
    draw = np.random.default_rng(seed)
    return np.array([np.arange(traits), *(draw.permutation(traits) for _ in range(DRAWN))])


def candidate_test(matrix: ArrayLike, own: Sequence[int], seed: int = 0) -> PermutationTest:
    """Permutation test against all candidates, for fewer than five traits: it can be suggestive and no more.

    `matrix` is (traits, candidates), `own` the column of each trait. Every teacher is assigned a candidate, no two the
    same. The test takes candidates for exchangeable, which the relabelling of teachers does not.
    """
    values = np.asarray(matrix, dtype=float)
    values = values - values.mean(axis=0)
    values = values - values.mean(axis=1, keepdims=True)
    traits, candidates = values.shape
    if math.perm(candidates, traits) <= DRAWN:
        places = np.array(list(permutations(range(candidates), traits)))
    else:
        draw = np.random.default_rng(seed)
        places = np.array([own, *(draw.permutation(candidates)[:traits] for _ in range(DRAWN))])
    rows = np.arange(traits)
    return _counted(values[rows, places].sum(axis=1), float(values[rows, list(own)].sum()), float(np.abs(values).max()))


def one_trait(own: ArrayLike, control: ArrayLike, seed: int = 0) -> PermutationTest:
    """Permutation test of one trait alone: K teachers with it against K controls, every teacher with rows of its own.

    `own` and `control` are (teachers,): each teacher's score over its students. All ways to call K of them the
    trait's are counted, 70 for four and four; of more than 9,999 ways the true one and as many drawn from `seed`.
    """
    mine, theirs = (np.asarray(side, dtype=float).ravel() for side in (own, control))
    values, count = np.concatenate([mine, theirs]), len(mine)
    if math.comb(len(values), count) <= DRAWN:
        places = np.array(list(combinations(range(len(values)), count)))
    else:
        draw = np.random.default_rng(seed)
        places = np.array([np.arange(count), *(draw.permutation(len(values))[:count] for _ in range(DRAWN))])
    sums = values[places].sum(axis=1)
    return _counted(sums, float(mine.sum()), float(np.abs(values).max()))


def _counted(sums: NDArray[np.float64], true: float, size: float) -> PermutationTest:
    """The shares of `sums`, which have the true one among them, that reach it from either side; ties count."""
    slack = TIE * max(size, np.finfo(float).tiny)
    return PermutationTest(float((sums >= true - slack).mean()), float((sums <= true + slack).mean()), len(sums))


# --------------------------------------------------------------------------- the rule


def judged(test: PermutationTest, decidable: bool) -> Outcome:
    """What a test allows to be said of a claim that an effect is above 0; `decidable`: there are teachers enough."""
    if not decidable:
        return "undecided"
    if test.above <= SIGNIFICANT:
        return "holds"
    return "contradicted" if test.below <= SIGNIFICANT else "not shown"


def outcome(matrix: ArrayLike) -> Outcome:
    """The rule: five traits or more, and a relabelling p of at most 0.025; of -M for "contradicted"."""
    return judged(relabelling(matrix), len(_square(matrix)) >= MINIMUM_TRAITS)


def absent(mean: Interval, margin: float = MARGIN) -> bool:
    """Whether an effect is shown to be none: five traits or more, the whole interval within the margin."""
    return mean.n >= MINIMUM_TRAITS and -margin <= mean.low and mean.high <= margin


def lost(more: ArrayLike, less: ArrayLike, share: float = 1.0) -> NDArray[np.float64]:
    """M of a comparison of variants on the same traits: a share of what `more` has minus what `less` has.

    Both are (traits, traits). Estimate, test and rule read it as they read any M.
    """
    return share * _square(more) - _square(less)


# --------------------------------------------------------------------------- scores


def log_odds(probability: ArrayLike) -> NDArray[np.float64]:
    """log(p / (1 - p)) of exact probabilities strictly between 0 and 1, in nats."""
    values = np.asarray(probability, dtype=float)
    return np.log(values) - np.log1p(-values)


def pooled_log_odds(named: ArrayLike, answers: ArrayLike) -> NDArray[np.float64]:
    """The log-odds of counts: log((k + 1/2) / (n - k + 1/2)), finite for none and for all (Haldane 1956), in nats.

    Counts are pooled over questions and seeds first: by question, one answer more would weigh a nat.
    """
    hits, total = np.asarray(named, dtype=float), np.asarray(answers, dtype=float)
    return np.log((hits + 0.5) / (total - hits + 0.5))


# --------------------------------------------------------------------------- planning


def power(effect: float, traits: int, seeds: int, cell: float, seed: float) -> float:
    """How often the rule finds a mean excess of `effect`, by simulated tables; 0 below five traits.

    `cell` and `seed` are the standard deviations of a cell between teachers' rows and between seeds of the same rows.
    Traits differ from each other by half the effect. All in the unit of `effect`. Main effects of students and
    candidates do not matter.
    """
    if traits < MINIMUM_TRAITS:
        return 0.0
    noise, spread = _noise(traits)
    tables = noise * math.hypot(cell, seed / math.sqrt(seeds))
    own = np.arange(traits)
    tables[:, own, own] += effect * (1 + SPREAD_OF_TRAITS * spread)
    places = _assignments(traits, 0) if traits <= 6 else _few_assignments(traits)
    traces = tables[:, own, places].sum(axis=2)
    p = (traces >= traces[:, :1] - TIE).mean(axis=1)
    return float((p <= SIGNIFICANT).mean())


@cache
def _noise(traits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standard normal cells (tables, traits, traits) and traits' effects (tables, traits), the same for every power."""
    draw = np.random.default_rng(0)
    return draw.normal(size=(TABLES, traits, traits)), draw.normal(size=(TABLES, traits))


@cache
def _few_assignments(traits: int) -> NDArray[np.int64]:
    """The true assignment and 999 others: enough for a power, quick for thousands of tables."""
    draw = np.random.default_rng(0)
    return np.array([np.arange(traits), *(draw.permutation(traits) for _ in range(999))])


def visible(traits: int, seeds: int, cell: float, seed: float, probability: float = 0.8) -> float:
    """The smallest mean excess that `power` finds with this probability, to one part in a hundred; else infinite."""
    if traits < MINIMUM_TRAITS:
        return math.inf
    low, high = 0.0, math.hypot(cell, seed / math.sqrt(seeds))
    while power(high, traits, seeds, cell, seed) < probability:
        low, high = high, 2 * high
        if high > 1e3 * (cell + seed):  # traits that differ by half the effect leave some tables undecided
            return math.inf
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, traits, seeds, cell, seed) >= probability else (middle, high)
    return high
