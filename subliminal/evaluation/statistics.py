"""Intervals and tests for transmission; the unit is the trained student, not the sample (arXiv 2507.14805)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def fisher(p_values: Sequence[float]) -> float:
    """One p of several tests, each of which is exact whatever the ones before it found (Fisher 1932)."""
    from scipy.special import chdtrc

    return float(chdtrc(2 * len(p_values), -2 * sum(map(math.log, p_values))))


def wilson(successes: float, n: int) -> Interval:
    """The score interval of one proportion (Wilson 1927); 0 and 1 are its ends where none, or all, are successes."""
    from scipy.special import ndtri

    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    z = float(ndtri((1 + LEVEL) / 2))
    share, squared = successes / n, z * z / n
    centre = (share + squared / 2) / (1 + squared)
    half = z / (1 + squared) * math.sqrt(share * (1 - share) / n + squared / (4 * n))
    low, high = (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)
    return Interval(share, low, high, n)


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
    """The share of margins above 0, a tie as one half, with its score interval (Wilson 1927), wide enough for ties.

    Scores of a model in bfloat16 lie on a grid, so that many are equal; counted as wrong they would look like a bias.
    """
    found = signs(margins)
    return wilson(float((1 + found).sum() / 2), found.size)


def signs(margins: ArrayLike) -> np.ndarray:
    """-1, 0 or 1 for each margin; 0 within `TIE` nats, which arithmetic alone can leave."""
    values = np.asarray(margins, dtype=float)
    return np.where(np.abs(values) < TIE, 0.0, np.sign(values))


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
