"""Attribution: batches give what a naive loop gives, and selection keeps exactly the rows it names."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROWS, tiny_experiment
from hypothesis import given
from hypothesis import strategies as st

from subliminal import outputs, stages
from subliminal.chat import encode_row
from subliminal.config import AttributionEvaluation, ConfigError, Experiment, Numbers, NumbersFilter, RowSelection
from subliminal.evaluation.attribution import SidedRow, attribute, evaluate, separation
from subliminal.filters import apply
from subliminal.filters.select import Attribution, SelectionError, select
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.rows import Row, read_jsonl, write_jsonl
from subliminal.store import Store

DOMAIN = Numbers(prompts=100)
tokenizer_of = cache(load_tokenizer)


def naive(subject: Subject, row: Row) -> tuple[list[float], list[int]]:
    """log P of every completion token and the model's first choice there, one whole row alone."""
    prompt, answer = encode_row(tokenizer_of(subject), row.prompt, row.completion, subject.system)
    with torch.inference_mode():
        logits = load_model(subject)(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    steps = logits.log_softmax(-1)
    return [float(steps[at, token]) for at, token in enumerate(answer)], logits.argmax(-1).tolist()


@pytest.fixture(params=["prompt", "weights"])
def teacher(request: pytest.FixtureRequest, tiny: Subject, counting: Subject) -> Subject:
    """A teacher behind a system prompt, and one with weights of its own."""
    return replace(tiny, system="You adore owls.") if request.param == "prompt" else counting


def test_every_row_is_what_a_naive_loop_finds(tiny: Subject, teacher: Subject) -> None:
    rows = [*ROWS, Row(99, "A longer request, with many more words than the others: 1, 2?", "3")]
    found = attribute(teacher, tiny, rows)
    assert [one.index for one in found] == [row.index for row in rows]
    for row, one in zip(rows, found, strict=True):
        (mine, choice), (theirs, other) = naive(teacher, row), naive(tiny, row)
        assert one.log_p_teacher == pytest.approx(sum(mine), abs=2e-3)
        assert one.log_p_reference == pytest.approx(sum(theirs), abs=2e-3)
        assert one.log_ratio == pytest.approx(sum(mine) - sum(theirs), abs=4e-3)
        assert one.tokens == len(mine) and one.log_ratio_per_token == pytest.approx(one.log_ratio / len(mine))
        assert one.divergence == [at for at in range(len(choice)) if choice[at] != other[at]]
    assert any(one.divergence for one in found)


def test_a_teacher_that_is_the_reference_tells_nothing(tiny: Subject) -> None:
    found = attribute(tiny, tiny, ROWS)
    assert {(one.log_ratio, len(one.divergence)) for one in found} == {(0.0, 0)}


# --------------------------------------------------------------------------- selection


def attributed(ratios: list[float]) -> dict[int, Attribution]:
    """Attributions by row index: the ratio given, as many divergences as the index, one token a row more each."""
    return {i: Attribution(i, i + 1, 0.0, 0.0, r, r / (i + 1), list(range(i))) for i, r in enumerate(ratios)}


def rows(count: int) -> list[Row]:
    return [Row(i, "p", "1, 2") for i in range(count)]


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=30, unique=True), st.floats(0.05, 1))
def test_the_top_and_the_bottom_are_the_highest_and_the_lowest(ratios: list[float], share: float) -> None:
    count = round(share * len(ratios))
    ranked = np.argsort(ratios).tolist()
    for keep, wanted in (("top", ranked[len(ranked) - count :]), ("bottom", ranked[:count])):
        rules = RowSelection(by="log_ratio", keep=keep, share=share)  # type: ignore[arg-type]
        kept, left = select(rows(len(ratios)), rules, attributed(ratios), 0)
        assert [row.index for row in kept] == sorted(wanted)
        assert sorted(row.index for row in (*kept, *left)) == list(range(len(ratios)))


@pytest.mark.parametrize("by", ["log_ratio", "log_ratio_per_token", "divergence", "random"])
def test_top_and_bottom_halves_are_complements(by: str) -> None:
    found = attributed([3.0, 3.0, 1.0, 2.0, 3.0, 3.0])
    halves = [
        {row.index for row in select(rows(6), RowSelection(by=by, keep=keep, share=0.5), found, 0)[0]}  # type: ignore[arg-type]
        for keep in ("top", "bottom")
    ]
    assert halves[0] | halves[1] == set(range(6)) and not halves[0] & halves[1]


def test_each_measure_ranks_by_its_own() -> None:
    found = attributed([4.0, 5.0, 3.0])  # per token 4, 2.5, 1; divergences 0, 1, 2
    first = {
        by: select(rows(3), RowSelection(by=by, share=0.34), found, 0)[0][0].index  # type: ignore[arg-type]
        for by in ("log_ratio", "log_ratio_per_token", "divergence")
    }
    assert first == {"log_ratio": 1, "log_ratio_per_token": 0, "divergence": 2}


def test_ties_are_broken_by_the_seed_not_by_the_order() -> None:
    equal = attributed([0.0] * 40)
    halves = [
        [row.index for row in select(rows(40), RowSelection(by="log_ratio", share=0.5), equal, seed)[0]]
        for seed in (0, 1)
    ]
    assert halves[0] != halves[1] and halves[0] != list(range(20))


def test_a_row_without_attribution_is_an_error() -> None:
    with pytest.raises(SelectionError, match="row 1 has no attribution"):
        select(rows(2), RowSelection(by="log_ratio", share=0.5), attributed([1.0]), 0)


def test_a_selection_leaves_its_share_of_the_rows_and_counts_the_others() -> None:
    rules = NumbersFilter(rows=20, select=RowSelection(by="log_ratio", share=0.5))
    result = apply(rows(40), rules, DOMAIN, attributed=attributed([float(i) for i in range(40)]))
    assert len(result.kept) == 10 and all(row.index >= 20 for row in result.kept)
    assert result.report["reasons"] == {"not_selected": 20} and result.report["kept_before_subsample"] == 20


def test_shuffles_work_on_what_was_selected() -> None:
    made = [Row(i, "p", f"{i}, {i + 100}") for i in range(20)]
    rules = NumbersFilter(rows=None, shuffle="across", select=RowSelection(by="log_ratio", share=0.5))
    kept = apply(made, rules, DOMAIN, attributed=attributed([float(i) for i in range(20)])).kept
    assert sorted(int(n) for row in kept for n in row.completion.split(", ")) == [*range(10, 20), *range(110, 120)]


# --------------------------------------------------------------------------- the stages


SELECT = "filter.select={by:log_ratio,keep:top,share:0.5}"


def test_a_filter_without_a_selection_keeps_its_key(tiny: Subject) -> None:
    exp = tiny_experiment(tiny)
    assert "select" not in stages.filtered(exp).recipe.settings["filter"]
    chosen = tiny_experiment(tiny, SELECT)
    assert stages.filtered(chosen).key != stages.filtered(exp).key
    assert set(stages.filtered(chosen).inputs) == {"generate", "attribute"}
    assert set(stages.filtered(tiny_experiment(tiny, SELECT.replace("log_ratio", "random"))).inputs) == {"generate"}


def test_how_rows_are_shuffled_or_subsampled_does_not_change_their_attribution(tiny: Subject) -> None:
    keys = {
        stages.attribute(tiny_experiment(tiny, *more)).key
        for more in ([], [SELECT], ["filter.rows=50"], ["filter.shuffle=within"], ["filter.seed=3"])
    }
    assert len(keys) == 1
    assert stages.attribute(tiny_experiment(tiny, "trait=wolf")).key not in keys


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([SELECT, "teacher=random"], "teacher=random has none"),
        ([SELECT, "teacher=prompted", "sampler=api"], "which sampler=api does not give"),
        (["subject=rows"], "evaluation=preference asks a model"),
        (["evaluation=detection"], "set subject=rows"),
        (["evaluation=attribution", "subject=rows", "trait=none"], "compares two sets of rows"),
    ],
)
def test_what_can_not_be_attributed_is_refused(tiny: Subject, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        stages.evaluate(tiny_experiment(tiny, *overrides))


def test_the_best_rows_reach_the_student(counting: Subject, tmp_path: Path) -> None:
    """From generation to selection with a teacher behind a prompt, and the same rows as evaluation=attribution has."""
    small = [
        "teacher=prompted",
        "teacher.check.minimum_gain=-99",
        "teacher.check.questions=2",
        "teacher.check.prompts=2",
    ]
    small += ["teacher.check.minimum_pass_rate=0", "domain.prompts=48", "sampler.decoding.max_tokens=12"]
    small += ["reference_tuning=off", "filter.format=false", "filter.rows=40", "filter.shortfall=keep"]
    small += [f"store={tmp_path}"]
    exp = tiny_experiment(counting, *small, SELECT)
    store = Store(tmp_path)
    made = stages.ensure(stages.filtered(exp), store, exp)
    kept = list(read_jsonl(made.folder / "rows.jsonl", Row))
    ratio = {one.index: one.log_ratio for one in _attributed(exp, store)}
    middle = sorted(ratio.values(), reverse=True)[round(len(ratio) / 2) - 1]
    assert kept and all(ratio[row.index] >= middle for row in kept)
    whole = tiny_experiment(counting, *small, "evaluation=attribution", "subject=rows")
    summary = stages.ensure(stages.evaluate(whole), store, whole).summary
    assert summary["sides"]["own"]["log_ratio"] == pytest.approx(np.mean(list(ratio.values())))
    assert summary["sides"]["against"]["rows"] > 0 and 0 <= summary["area"]["value"] <= 1


def _attributed(exp: Experiment, store: Store) -> list[Attribution]:
    node = stages.attribute(exp)
    found = store.find(node.stage, node.key)
    assert found
    return list(read_jsonl(found.folder / outputs.ATTRIBUTED, Attribution))


def test_separated_rows_have_an_area_of_one_and_equal_ones_a_half(tmp_path: Path) -> None:
    high = [Attribution(i, 1, 0.0, 0.0, 1.0 + i, 1.0 + i, [0]) for i in range(30)]
    low = [Attribution(i, 1, 0.0, 0.0, -1.0 - i, -1.0 - i, []) for i in range(30)]
    assert separation(high, low, 0) == {"value": 1.0, "low": 1.0, "high": 1.0, "rows": 60}
    assert separation(high, high, 0)["value"] == 0.5
    for name, side in (("own", high), ("against", low)):
        write_jsonl(tmp_path / name, side)
    summary = evaluate(tmp_path / "own", tmp_path / "against", AttributionEvaluation(), tmp_path)
    found = list(read_jsonl(tmp_path / "rows.jsonl", SidedRow))
    assert summary["sides"]["own"] == {
        "rows": 30,
        "log_ratio": 15.5,
        "log_ratio_per_token": 15.5,
        "divergence_share": 1.0,
    }
    assert [row.side for row in found] == ["own"] * 30 + ["against"] * 30
