"""Intervals and tests against textbook values, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from subliminal.evaluation.statistics import (
    diagonal_excess,
    fisher,
    holm,
    paired_change,
    share_ahead,
    t_interval,
    wilson,
)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_t_interval_is_scipys(values: list[float]) -> None:
    found = t_interval(values)
    if np.std(values) > 1e-6:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high))


def test_one_value_has_no_interval() -> None:
    assert math.isnan(t_interval([1.0]).low)


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_is_scipys(successes: int, more: int) -> None:
    n = successes + more
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson(successes, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_the_interval_of_a_paired_change_is_that_of_bonett_and_price(lost: int, gained: int, same: int) -> None:
    n = lost + gained + same
    down, up = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * math.sqrt((down + up - (up - down) ** 2) / (n + 2))
    found = paired_change([-1] * lost + [1] * gained + [0] * same)
    ends = (max(-1.0, up - down - half), min(1.0, up - down + half))
    assert (found.mean, found.low, found.high) == pytest.approx(((gained - lost) / n, *ends))
    assert found.high - found.low > 0 and found.n == n


def test_a_paired_change_is_covered_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    for flips in (0.01, 0.2):
        found = [paired_change(draw.choice([-1, 0, 1], 40, p=[flips, 1 - 1.5 * flips, flips / 2])) for _ in range(400)]
        assert np.mean([one.low <= -flips / 2 <= one.high for one in found]) > 0.93


@pytest.mark.parametrize("n", [11, 24])
def test_the_interval_over_questions_covers_as_often_as_it_says(n: int) -> None:
    """Student's t of the questions' means; a percentile bootstrap of so few misses twice as often."""
    draw = np.random.default_rng(0)
    samples = draw.normal(size=(600, n))
    picks = draw.integers(0, n, size=(400, n))
    resampled = [np.quantile(one[picks].mean(axis=1), [0.025, 0.975]) for one in samples]
    intervals = [t_interval(one) for one in samples]
    assert 0.935 <= np.mean([one.low <= 0 <= one.high for one in intervals]) <= 0.965
    assert np.mean([low <= 0 <= high for low, high in resampled]) < 0.935


@pytest.mark.parametrize("pairs", [10, 40])
def test_a_share_of_few_pairs_is_covered_about_as_often_as_it_says(pairs: int) -> None:
    """Where one lost and one gained are added instead (Bonett and Price), ten pairs cover 0.89."""
    draw = np.random.default_rng(0)
    found = [share_ahead(draw.choice([-1.0, 1.0], pairs)) for _ in range(1500)]
    assert np.mean([one.low <= 0.5 <= one.high for one in found]) > 0.935


def test_none_and_all_have_plain_ends() -> None:
    assert wilson(0, 80).low == 0.0 and wilson(80, 80).high == 1.0


def test_fisher_combines_as_scipy_does() -> None:
    assert fisher([0.02, 0.3, 0.5]) == pytest.approx(stats.combine_pvalues([0.02, 0.3, 0.5]).pvalue)


@given(st.integers(2, 6), st.integers(0, 99))
def test_what_lifts_every_candidate_or_every_student_alike_cancels(size: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    candidate_effects = draw.normal(size=size)
    assert diagonal_excess(np.tile(candidate_effects, (size, 1))) == pytest.approx(np.zeros(size))
    assert diagonal_excess(np.eye(size)) == pytest.approx(np.ones(size))


def test_diagonal_excess_wants_two_traits() -> None:
    with pytest.raises(ValueError, match="at least 2 traits"):
        diagonal_excess([[1.0]])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(new >= old for new, old in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(a <= b for a, b in zip(np.array(adjusted)[order], np.array(adjusted)[order][1:], strict=False))


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.sampled_from([-0.5, 0.0, 1e-9, 0.5]), min_size=1, max_size=60))
def test_a_tie_is_half_right_and_right_and_wrong_are_treated_alike(margins: list[float]) -> None:
    found, mirrored = share_ahead(margins), share_ahead([-margin for margin in margins])
    right, tied = margins.count(0.5), sum(abs(margin) < 0.1 for margin in margins)
    assert found.mean == pytest.approx((right + tied / 2) / len(margins))
    assert (found.mean, found.low) == pytest.approx((1 - mirrored.mean, 1 - mirrored.high))
    assert 0 <= found.low <= found.high <= 1 and found.low < found.high


def test_without_margins_there_is_no_share() -> None:
    found = share_ahead([])
    assert found.n == 0 and math.isnan(found.mean)
