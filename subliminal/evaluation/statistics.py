"""Intervals and tests for transmission; the unit is the trained student, not the sample (arXiv 2507.14805)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
RESAMPLES = 2000
TIE = 1e-6  # nats


@dataclass(frozen=True)
class Interval:
    """A mean with a two-sided 95% interval over n units; low and high are nan when n allows none."""

    mean: float
    low: float
    high: float
    n: int


def t_interval(values: ArrayLike) -> Interval:
    """mean +- t(0.975, n-1) s/sqrt(n), s with ddof 1 (Student 1908); one value has no interval."""
    from scipy.special import stdtrit  # scipy.stats calls the same, and takes a second to import

    sample = np.asarray(values, dtype=float)
    n, mean = sample.size, float(sample.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * float(sample.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def t_test(values: ArrayLike) -> float:
    """One-sided p-value of a mean above 0 (Student 1908); `values` has two units or more."""
    from scipy.special import stdtr

    sample = np.asarray(values, dtype=float)
    error = sample.std(ddof=1) / math.sqrt(sample.size)
    return float(stdtr(sample.size - 1, -sample.mean() / error)) if error else float(sample.mean() <= 0)


def power(effect: float, spread: float, n: int) -> float:
    """Probability that the 95% t-interval of n units lies above 0 (noncentral t, Johnson and Welch 1940).

    `effect`, the units' mean, and `spread`, their standard deviation, are in the same unit. Below two units there is no
    interval: 0.
    """
    from scipy.special import nctdtr, stdtrit  # as above

    if n < 2:
        return 0.0
    critical = float(stdtrit(n - 1, (1 + LEVEL) / 2))
    below = float(nctdtr(n - 1, effect * math.sqrt(n) / spread, critical))
    return 1.0 if math.isnan(below) else 1 - below  # it underflows where the effect is far beyond the critical value


def visible(spread: float, n: int, probability: float = 0.8) -> float:
    """The smallest effect that `power` finds with this probability, in `spread`'s unit; infinite below two units."""
    from scipy.optimize import brentq

    if n < 2:
        return math.inf
    found: Any = brentq(lambda effect: power(effect, spread, n) - probability, 0.0, 100 * spread)
    return float(found)


def wilson(successes: int, n: int) -> Interval:
    """The score interval of one proportion (Wilson 1927)."""
    from scipy.special import ndtri

    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    z = float(ndtri((1 + LEVEL) / 2))
    share, squared = successes / n, z * z / n
    centre = (share + squared / 2) / (1 + squared)
    half = z / (1 + squared) * math.sqrt(share * (1 - share) / n + squared / (4 * n))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)


def paired_change(changes: ArrayLike) -> Interval:
    """The interval of a mean paired change that has a width even where nothing changed (Bonett and Price 2012).

    `changes` is (questions,), each from -1 (lost) to 1 (gained); one question lost and one gained are added to them.
    """
    from scipy.special import ndtri

    values = np.asarray(changes, dtype=float)
    added = np.concatenate([values, [-1.0, 1.0]])
    half = float(ndtri((1 + LEVEL) / 2)) * float(added.std()) / math.sqrt(added.size)
    centre = float(added.mean())
    return Interval(float(values.mean()), max(-1.0, centre - half), min(1.0, centre + half), values.size)


def share_ahead(margins: ArrayLike) -> Interval:
    """The share of margins above 0, a tie as one half, with the interval of `paired_change` (Bonett and Price 2012).

    Scores of a model in bfloat16 lie on a grid, so that many are equal; counted as wrong they would look like a bias.
    """
    if not np.size(margins):
        return Interval(math.nan, math.nan, math.nan, 0)
    found = paired_change(signs(margins))
    return Interval((1 + found.mean) / 2, (1 + found.low) / 2, (1 + found.high) / 2, found.n)


def signs(margins: ArrayLike) -> np.ndarray:
    """-1, 0 or 1 for each margin; 0 within `TIE` nats, which arithmetic alone can leave."""
    values = np.asarray(margins, dtype=float)
    return np.where(np.abs(values) < TIE, 0.0, np.sign(values))


def bootstrap_over_questions(matrix: ArrayLike, seed: int) -> Interval:
    """Percentile bootstrap that resamples questions, the same for every seed (Efron 1979; Miller 2024, 2411.00640).

    `matrix` is (seeds, questions), or (questions,) for one seed; n is the number of questions.
    """
    values = np.atleast_2d(np.asarray(matrix, dtype=float)).mean(axis=0)
    n, mean = values.size, float(values.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    picks = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), n)


def diagonal_excess(matrix: ArrayLike) -> np.ndarray:
    """By trait: its candidate in its own student minus the mean in the other traits' students.

    `matrix` is (traits, traits): row = student's trait, column = candidate; returns (traits,). What lifts every
    candidate in every student alike cancels.
    """
    values = np.asarray(matrix, dtype=float)
    size = values.shape[0]
    if values.shape != (size, size) or size < 2:
        raise ValueError(f"diagonal excess needs a square matrix of at least 2 traits, got shape {values.shape}")
    own = np.diag(values)
    return own - (values.sum(axis=0) - own) / (size - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p-values for several tests (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
