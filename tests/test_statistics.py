"""Intervals and tests against textbook values, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from subliminal.evaluation.statistics import (
    bootstrap_over_questions,
    diagonal_excess,
    holm,
    paired_change,
    power,
    share_ahead,
    t_interval,
    visible,
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


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = bootstrap_over_questions(draw.normal(size=40), seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


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


@pytest.mark.parametrize(("effect", "n"), [(0.0, 3), (0.5, 3), (1.0, 3), (1.0, 5)])
def test_power_is_how_often_simulated_intervals_lie_above_zero(effect: float, n: int) -> None:
    seen = np.random.default_rng(0).normal(effect, 0.5, size=(4000, n))
    half = stats.t.ppf(0.975, n - 1) * seen.std(axis=1, ddof=1) / math.sqrt(n)
    assert np.mean(seen.mean(axis=1) - half > 0) == pytest.approx(power(effect, 0.5, n), abs=0.03)


@given(st.floats(0.01, 10), st.integers(2, 30), st.floats(0.1, 0.95))
def test_the_visible_effect_is_the_inverse_of_power(spread: float, n: int, probability: float) -> None:
    assert power(visible(spread, n, probability), spread, n) == pytest.approx(probability, abs=1e-6)


def test_one_unit_shows_nothing() -> None:
    assert power(100.0, 0.1, 1) == 0.0 and visible(0.1, 1) == math.inf


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
