"""Number frequencies: planted differences are found, equal rows are not told apart more often than the stated rate."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subliminal.config import FrequenciesEvaluation
from subliminal.evaluation.frequencies import NumberUse, evaluate, presence
from subliminal.evaluation.samples import SamplesError, area, halves, two_samples
from subliminal.rows import Row, read_jsonl


def written(seed: int, count: int = 60, favourite: int | None = None, clustered: bool = False) -> list[Row]:
    """Rows of eight numbers from 0 to 39; `favourite` is added to a third, `clustered` rows repeat one number."""
    draw, rows = random.Random(f"rows:{seed}"), []
    for index in range(count):
        numbers = [draw.randint(0, 39)] * 8 if clustered else [draw.randint(0, 39) for _ in range(8)]
        if favourite is not None and draw.random() < 0.35:
            numbers[0] = favourite
        rows.append(Row(index, f"Go on: {index}", ", ".join(map(str, numbers))))
    return rows


CONFIG = FrequenciesEvaluation(permutations=199, minimum_rows=10)


def test_a_planted_number_is_found_and_is_first(tmp_path: Path) -> None:
    summary = evaluate(two_samples(written(1, favourite=777), written(2)), CONFIG, tmp_path)
    uses = list(read_jsonl(tmp_path / "numbers.jsonl", NumberUse))
    assert (uses[0].number, uses[0].p) == (777, pytest.approx(1 / 200))
    assert uses[0].own > 10 and uses[0].against == 0
    assert 0 < uses[0].low < uses[0].log_odds < uses[0].high
    assert summary["differing"] >= 1 and summary["smallest_p"] == uses[0].p
    assert summary["tested"] == len(uses) and summary["rows"] == {"own": 60, "against": 60}


def test_the_other_sides_favourite_has_the_other_sign(tmp_path: Path) -> None:
    evaluate(two_samples(written(1), written(2, favourite=777)), CONFIG, tmp_path)
    first = next(read_jsonl(tmp_path / "numbers.jsonl", NumberUse))
    assert first.number == 777 and first.high < 0


@pytest.mark.parametrize("clustered", [False, True])
def test_equal_rows_are_told_apart_no_more_often_than_the_stated_rate(tmp_path: Path, clustered: bool) -> None:
    """Also where the numbers of one row hang together, which a test of single numbers would take for a signal."""
    found = 0
    for trial in range(60):
        rows = [written(1000 + 2 * trial + side, 40, clustered=clustered) for side in range(2)]
        config = FrequenciesEvaluation(permutations=99, minimum_rows=3, seed=trial)
        found += evaluate(two_samples(*rows), config, tmp_path)["differing"] > 0
    assert found <= 8  # of 60 at 5%: more than 8 in 0.6% of all cases


def test_a_trait_against_itself_is_halved(tmp_path: Path) -> None:
    samples = halves(written(1, favourite=777), 0)
    assert int(samples.own.sum()) == 30 and len(samples.pairs) == 0
    assert evaluate(samples, CONFIG, tmp_path)["differing"] == 0


def test_too_few_rows_are_refused_with_a_remedy() -> None:
    with pytest.raises(SamplesError, match=r"5 rows on the own side.*raise filter\.rows"):
        two_samples(written(1)[:5], written(2))
    with pytest.raises(SamplesError, match="too few to halve"):
        halves(written(1)[:30], 0)


def test_without_any_frequent_number_nothing_is_tested(tmp_path: Path) -> None:
    rare = FrequenciesEvaluation(minimum_rows=1000, permutations=99)
    summary = evaluate(two_samples(written(1), written(2)), rare, tmp_path)
    assert (summary["tested"], summary["differing"], summary["smallest_p"]) == (0, 0, None)


def test_a_row_counts_a_number_once() -> None:
    numbers, held = presence([Row(0, "", "5, 5, 7"), Row(1, "", "7")])
    assert numbers.tolist() == [5, 7] and held.toarray().tolist() == [[1, 1], [0, 1]]


@given(st.integers(0, 2**31), st.sets(st.integers(0, 59), min_size=20), st.sets(st.integers(0, 59), min_size=20))
@settings(max_examples=40, deadline=None)
def test_labels_are_dealt_within_prompts_and_keep_their_counts(seed: int, mine: set[int], theirs: set[int]) -> None:
    rows = written(1)
    samples = two_samples([rows[i] for i in mine], [rows[i] for i in theirs])
    dealt = samples.dealt(np.random.default_rng(seed))
    assert dealt.sum() == samples.own.sum() == len(mine)
    assert len(samples.pairs) == len(mine & theirs)
    assert (dealt[samples.pairs].sum(axis=1) == 1).all(), "a prompt that both answered keeps one row on each side"


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30))
def test_the_area_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool, int]]) -> None:
    scores, own, weights = (np.array(column) for column in zip(*rows, strict=True))
    pairs = [
        (wi * wj, 1.0 if si > sj else 0.5 if si == sj else 0.0)
        for si, oi, wi in rows
        for sj, oj, wj in rows
        if oi and not oj
    ]
    total = sum(weight for weight, _ in pairs)
    (found,) = area(scores.astype(float), own.astype(bool), weights[None])
    if total:
        assert found == pytest.approx(sum(weight * right for weight, right in pairs) / total)
    else:
        assert np.isnan(found)
