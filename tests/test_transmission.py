"""The estimate, the tests and the rule of transmission, by algebra and by simulated level, coverage and power.

Where an estimate replaces another, the former is repeated here to show what was wrong with it.
"""

from __future__ import annotations

import csv
import math
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from subliminal.composition import ROOT
from subliminal.evaluation.statistics import diagonal_excess, t_interval
from subliminal.transmission import (
    MARGIN,
    Interval,
    absent,
    candidate_test,
    judged,
    log_odds,
    lost,
    one_trait,
    outcome,
    over_seeds,
    pooled_log_odds,
    power,
    relabelling,
    two_way,
    visible,
    welch,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS = {"student": 0.26, "cell": 0.18, "seed_student": 0.25, "seed_cell": 0.22}  # nats, as in docs/results.md


def tables(
    count: int,
    traits: int,
    seeds: int,
    effect: float = 0.0,
    differ: float = 0.0,
    spreads: dict[str, float] = NUMBERS,
    candidates: int = 0,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Simulated scores (tables, seeds, traits, candidates): students' and candidates' effects, cells, seeds, excess."""
    draw, columns = np.random.default_rng(seed), candidates or traits

    def normal(spread: float, *shape: int) -> NDArray[np.float64]:
        return draw.normal(0, spread, shape)

    made = normal(spreads["student"], count, 1, traits, 1) + normal(1.0, count, 1, 1, columns)
    made = made + normal(spreads["cell"], count, 1, traits, columns)
    made = made + normal(spreads["seed_student"], count, seeds, traits, 1)
    made = made + normal(spreads["seed_cell"], count, seeds, traits, columns)
    own = np.arange(traits)
    made[:, :, own, own] += effect + normal(differ, count, 1, traits)
    return made


def share(hits: list[bool]) -> float:
    return float(np.mean(hits))


# --------------------------------------------------------------------------- the estimate


@given(st.integers(3, 7), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_the_estimate_is_least_squares_with_free_diagonal_cells(traits: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(traits, traits))
    rows, columns = np.divmod(np.arange(traits**2), traits)
    parts = [np.equal.outer(rows, np.arange(traits)), np.equal.outer(columns, np.arange(traits))]
    parts.append(np.equal.outer(np.where(rows == columns, rows, -1), np.arange(traits)))
    solved = np.linalg.lstsq(np.concatenate(parts, axis=1).astype(float), matrix.ravel(), rcond=None)[0]
    found = two_way(matrix)
    assert found.by_trait == pytest.approx(solved[-traits:], abs=1e-9)
    assert found.mean.mean == pytest.approx(found.by_trait.mean(), abs=1e-9)
    assert found.mean.mean == pytest.approx(diagonal_excess(matrix).mean(), abs=1e-9)


@given(st.integers(2, 6), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_what_a_student_or_a_candidate_has_throughout_changes_nothing(traits: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrix = draw.normal(size=(traits, traits))
    moved = matrix + draw.normal(0, 5, (traits, 1)) + draw.normal(0, 5, (1, traits))
    plain, shifted = two_way(matrix), two_way(moved)
    assert shifted.by_trait == pytest.approx(plain.by_trait, abs=1e-9, nan_ok=True)
    assert shifted.mean.mean == pytest.approx(plain.mean.mean, abs=1e-9)
    assert shifted.mean.high == pytest.approx(plain.mean.high, abs=1e-9, nan_ok=True)
    assert relabelling(moved) == relabelling(matrix)


def test_the_interval_over_traits_covers_as_often_as_it_says_and_is_no_wider_than_that() -> None:
    """With the spreads of numbers and of Gemma; the interval of the columns' differences covers always."""
    gemma = {"student": 1.16, "cell": 0.39, "seed_student": 0.0, "seed_cell": 0.09}
    for spreads in (NUMBERS, gemma):
        matrices = tables(1500, 5, 3, effect=0.4, differ=0.2, spreads=spreads).mean(axis=1)
        new = [two_way(matrix).mean for matrix in matrices]
        old = [t_interval(diagonal_excess(matrix)) for matrix in matrices]
        assert 0.94 <= share([one.low <= 0.4 <= one.high for one in new]) <= 0.985
        assert share([one.low <= 0.4 <= one.high for one in old]) > 0.985
        assert np.mean([one.high - one.low for one in new]) < 0.8 * np.mean([one.high - one.low for one in old])


def test_two_traits_have_a_mean_and_no_interval() -> None:
    found = two_way([[1.0, 0.0], [0.0, 3.0]])
    assert found.mean.mean == pytest.approx(2.0) and math.isnan(found.mean.low)
    assert np.isnan(found.by_trait).all()
    with pytest.raises(ValueError, match="at least 2 traits"):
        two_way([[1.0]])


def test_the_interval_over_seeds_counts_every_student_as_independent() -> None:
    """Coverage, and how much narrower it is than a paired interval with its two degrees of freedom."""
    fixed = tables(1, 5, 1)[0, 0]
    true = two_way(fixed).mean.mean
    scores = fixed + tables(1500, 5, 3, spreads=NUMBERS | {"student": 0.0, "cell": 0.0}, seed=1)
    new = [over_seeds(list(np.moveaxis(one, 1, 0))) for one in scores]
    paired = [t_interval([diagonal_excess(seed).mean() for seed in one]) for one in scores]
    assert 0.935 <= share([one.low <= true <= one.high for one in new]) <= 0.975
    assert np.mean([one.high - one.low for one in new]) < 0.85 * np.mean([one.high - one.low for one in paired])


def test_one_seed_has_no_interval_over_seeds() -> None:
    found = over_seeds([np.array([[2.0, 0.0]]), np.array([[0.0, 1.0]])])
    assert found.mean == pytest.approx(1.5) and math.isnan(found.low)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 999))
def test_welch_is_scipys(own: int, control: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    left, right = draw.normal(1, 2, own), draw.normal(0, 1, control)
    expected = stats.ttest_ind(left, right, equal_var=False).confidence_interval()
    found = welch(left, right)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


# --------------------------------------------------------------------------- the tests


def test_the_relabelling_counts_every_assignment_of_whole_teachers() -> None:
    matrix = np.random.default_rng(3).normal(size=(5, 5))
    traces = [sum(matrix[row, column] for row, column in enumerate(one)) for one in permutations(range(5))]
    found = relabelling(matrix)
    assert found.assignments == 120
    assert found.above == pytest.approx(np.mean(np.array(traces) >= np.trace(matrix) - 1e-9))
    assert relabelling(-matrix).above == found.below


@pytest.mark.parametrize(("traits", "smallest"), [(3, 1 / 6), (4, 1 / 24), (5, 1 / 120), (6, 1 / 720)])
def test_the_smallest_p_is_one_of_all_assignments(traits: int, smallest: float) -> None:
    assert relabelling(np.eye(traits)).above == pytest.approx(smallest)
    assert outcome(np.eye(traits)) == ("holds" if traits >= 5 else "undecided")
    assert outcome(-np.eye(traits)) == ("contradicted" if traits >= 5 else "undecided")


def test_many_traits_are_relabelled_at_random_with_the_true_labels_counted() -> None:
    found = relabelling(10 * np.eye(9))
    assert found.assignments == 10_000 and found.above == pytest.approx(1e-4)
    assert relabelling(np.random.default_rng(0).normal(size=(9, 9)), seed=1).above < 1


def test_a_table_without_differences_shows_nothing() -> None:
    assert relabelling(np.zeros((5, 5))).above == 1.0 and outcome(np.zeros((5, 5))) == "not shown"


def both_intervals(scores: NDArray[np.float64]) -> bool:
    """The former rule: intervals over seeds and over traits of the columns' differences, both above 0."""
    over_traits = t_interval(diagonal_excess(scores.mean(axis=0)))
    return over_traits.low > 0 and t_interval([diagonal_excess(one).mean() for one in scores]).low > 0


def test_the_rule_has_its_level_where_two_intervals_had_none() -> None:
    scores = tables(1500, 5, 3)
    assert 0.015 <= share([outcome(one.mean(axis=0)) == "holds" for one in scores]) <= 0.035
    assert 0.015 <= share([outcome(one.mean(axis=0)) == "contradicted" for one in scores]) <= 0.035
    assert share([both_intervals(one) for one in scores]) < 0.008


def test_the_rule_finds_what_is_there() -> None:
    scores = tables(600, 5, 3, effect=0.4, differ=0.2)
    assert share([outcome(one.mean(axis=0)) == "holds" for one in scores]) > 0.72
    assert share([both_intervals(one) for one in scores]) < 0.35


def test_seeds_alone_would_let_rows_hold_that_carry_nothing() -> None:
    """In one case of ten for numbers, five traits and seeds, as docs/results.md says; students' levels play no part."""
    scores = tables(2000, 5, 5)
    level = share([t_interval([diagonal_excess(one).mean() for one in table]).low > 0 for table in scores])
    assert 0.08 <= level <= 0.13
    doubled = tables(2000, 5, 5, spreads=NUMBERS | {"student": 2.6})
    without = share([t_interval([diagonal_excess(one).mean() for one in table]).low > 0 for table in doubled])
    assert without == pytest.approx(level, abs=1e-9)


def stored(figure: str, student: str, variant: str = "") -> NDArray[np.float64]:
    """M of a figure's stored table: mean log P of every trait (columns) in every trait's students (rows)."""
    with (ROOT / "docs" / "pictures" / f"{figure}-cpu.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["measure"], line["subject"]) == ("log_p", "student")]
    mine = [line for line in lines if (line["student"], line["variant"]) == (student, variant)]
    cells = {(line["arm"], line["trait"]): float(line["value"]) for line in mine}
    traits = list(dict.fromkeys(arm for arm, trait in cells if arm == trait))
    return np.array([[cells[row, column] for column in traits] for row in traits])


@pytest.mark.parametrize(
    ("figure", "student", "variant", "numbers"),
    [
        ("fig-animals-numbers", "bias_one_layer", "", (0.19, 0.05, 0.33, 0.0167)),
        ("fig-animals-code", "lora_few_rows", "", (0.53, 0.33, 0.73, 0.0083)),
        ("fig-animals-cot", "bias_one_layer", "", (2.19, 0.78, 3.60, 0.0083)),
        ("fig-cross-model", "bias", "gemma3_270m > gemma3_270m", (0.97, 0.77, 1.18, 0.0083)),
        ("fig-cross-model", "bias", "smollm2_135m > gemma3_270m", (0.07, -0.15, 0.28, 0.225)),
    ],
)
def test_stored_tables_give_what_the_results_say_of_them(
    figure: str, student: str, variant: str, numbers: tuple[float, ...]
) -> None:
    matrix = stored(figure, student, variant)
    found = two_way(matrix).mean
    assert (found.mean, found.low, found.high) == pytest.approx(numbers[:3], abs=0.006)
    assert relabelling(matrix).above == pytest.approx(numbers[3], abs=1e-4)


def test_a_comparison_of_variants_has_its_level() -> None:
    """Half of one variant minus another, whose effects are such that the difference is none."""
    shared = tables(1500, 5, 1, spreads=NUMBERS | {"seed_student": 0.0, "seed_cell": 0.0})[:, 0]
    more = shared + tables(1500, 5, 1, effect=2.0, seed=1)[:, 0]
    less = shared / 2 + tables(1500, 5, 1, effect=1.0, seed=2)[:, 0]
    found = [outcome(lost(*pair, share=0.5)) for pair in zip(more, less, strict=True)]
    assert 0.012 <= share([one == "holds" for one in found]) <= 0.04


def test_three_traits_can_be_suggestive_by_all_candidates() -> None:
    scores = tables(400, 3, 1, candidates=20)[:, 0]
    level = share([candidate_test(one, range(3)).above <= 0.025 for one in scores])
    assert level <= 0.05
    scores = tables(200, 3, 1, effect=1.5, candidates=20)[:, 0]
    assert share([candidate_test(one, range(3)).above <= 0.025 for one in scores]) > 0.8
    assert candidate_test(np.eye(2, 20), range(2)).above == pytest.approx(1 / 380)


def test_a_trait_alone_takes_four_teachers_a_side() -> None:
    assert one_trait([5, 6, 7, 8], [1, 2, 3, 4]).above == pytest.approx(1 / 70)
    assert one_trait([5, 6, 7], [1, 2, 3]).above == pytest.approx(1 / 20)
    many = one_trait(np.arange(10.0) + 20, np.arange(10.0))
    assert many.assignments == 10_000 and many.above == pytest.approx(1e-4), "of 184,756 ways some are drawn"
    draw = np.random.default_rng(0)
    nulls = [one_trait(*draw.normal(size=(2, 4))).above <= 0.025 for _ in range(2000)]
    assert 0.005 <= share(nulls) <= 0.03


# --------------------------------------------------------------------------- the rule


def test_absence_needs_the_whole_interval_within_the_margin_and_traits_enough() -> None:
    assert absent(Interval(0.0, -0.2, 0.2, 5))
    assert not absent(Interval(0.0, -0.2, 0.3, 5))
    assert not absent(Interval(0.0, -0.2, 0.2, 4))
    assert not absent(Interval(0.0, math.nan, math.nan, 5))
    assert MARGIN == 0.25


def test_too_few_teachers_are_undecided_whatever_the_numbers() -> None:
    assert judged(one_trait([5, 6, 7, 8], [1, 2, 3, 4]), decidable=False) == "undecided"


# --------------------------------------------------------------------------- scores


@given(st.integers(0, 50), st.integers(1, 50))
def test_pooled_counts_have_finite_log_odds(named: int, more: int) -> None:
    answers = named + more
    found = float(pooled_log_odds(named, answers))
    assert math.isfinite(found)
    assert found == pytest.approx(-float(pooled_log_odds(answers - named, answers)))


@given(st.floats(1e-9, 0.999))
def test_log_odds_are_those_of_the_probability(probability: float) -> None:
    assert 1 / (1 + math.exp(-float(log_odds(probability)))) == pytest.approx(probability)


# --------------------------------------------------------------------------- planning


@pytest.mark.parametrize(("effect", "traits", "seeds"), [(0.2, 5, 3), (0.4, 5, 3), (0.4, 6, 1)])
def test_the_planned_power_is_how_often_the_rule_finds_simulated_effects(
    effect: float, traits: int, seeds: int
) -> None:
    scores = tables(500, traits, seeds, effect=effect, differ=effect / 2, seed=7)
    seen = share([outcome(one.mean(axis=0)) == "holds" for one in scores])
    assert power(effect, traits, seeds, NUMBERS["cell"], NUMBERS["seed_cell"]) == pytest.approx(seen, abs=0.06)


def test_the_visible_effect_is_found_with_the_probability_asked_for() -> None:
    effect = visible(5, 3, 0.18, 0.22)
    assert power(effect, 5, 3, 0.18, 0.22) == pytest.approx(0.8, abs=0.02)
    assert visible(6, 1, 0.18, 0.22) < visible(5, 1, 0.18, 0.22)


def test_too_few_traits_have_no_power() -> None:
    assert power(100.0, 4, 9, 0.1, 0.1) == 0.0 and visible(4, 9, 0.1, 0.1) == math.inf


def test_more_traits_than_can_be_counted_have_a_power_too() -> None:
    assert power(2.0, 10, 1, 0.18, 0.22) > 0.95
