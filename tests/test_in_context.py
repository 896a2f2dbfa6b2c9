"""In context: the shared prefix gives what whole prompts give; what does not fit is refused with what does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROWS
from hypothesis import given
from hypothesis import strategies as st

from subliminal.chat import encode, messages
from subliminal.config import InContextEvaluation
from subliminal.evaluation.exact import candidate_log_p, form_tree
from subliminal.evaluation.in_context import ContextError, ContextScore, Prefix, Reader, common, evaluate, resampled
from subliminal.evaluation.questions import candidates, questions
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.rows import Row, read_jsonl

CONFIG = InContextEvaluation(questions=3, counts=(0, 2, 5), resamples=2)


def naive(subject: Subject, config: InContextEvaluation, turns: list[tuple[str, str]]) -> np.ndarray:
    """Every question with the whole chat in front of it, from scratch."""
    tokenizer, model = load_tokenizer(subject), load_model(subject)
    tree = form_tree(tokenizer, config.category)
    asked = [encode(tokenizer, text, subject.system, turns) for text in questions(config.category, config.questions)]
    return np.array([candidate_log_p(model, prompt, tree) for prompt in asked])


@pytest.mark.parametrize("system", [None, "You count."])
def test_the_shared_prefix_gives_what_whole_prompts_give(tiny: Subject, system: str | None) -> None:
    subject = replace(tiny, system=system)
    turns = resampled(ROWS, 0, 0)
    found = Reader(subject, CONFIG).ask(turns, [0, 2, 5])
    for count, log_p in zip([0, 2, 5], found, strict=True):
        assert log_p == pytest.approx(naive(subject, CONFIG, turns[:count]), abs=2e-3)
    assert not np.allclose(found[0], found[2], atol=0.05), "the rows are read"


def test_a_single_question_is_asked_too(tiny: Subject) -> None:
    config = CONFIG.model_copy(update={"questions": 1})
    (found,) = Reader(tiny, config).ask(resampled(ROWS, 0, 0), [3])
    assert found == pytest.approx(naive(tiny, config, resampled(ROWS, 0, 0)[:3]), abs=2e-3)


def test_the_prefix_is_encoded_once(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = Prefix._read
    monkeypatch.setattr(Prefix, "_read", lambda self, tokens: read.append(len(tokens)) or real(self, tokens))
    turns = resampled(ROWS, 0, 0)
    reader = Reader(tiny, CONFIG)
    reader.ask(turns, [2, 5])
    whole = sum(len(prompt) for count in (2, 5) for prompt in reader.prompts(turns[:count]))
    assert sum(read) < 0.5 * whole


def test_the_stage_writes_every_context_and_their_means(tiny: Subject, tmp_path: Path) -> None:
    summary = evaluate(tiny, ROWS, CONFIG, tmp_path)
    rows = list(read_jsonl(tmp_path / "scores.jsonl", ContextScore))
    assert len(rows) == 3 * 2 * len(candidates("animal"))
    owl = [row.log_p for row in rows if (row.count, row.candidate) == (5, "owl")]
    assert len(owl) == 2 and owl[0] != owl[1], "each resample has rows of its own"
    assert summary["log_p"]["5"]["owl"] == pytest.approx(np.mean(owl)) and json.dumps(summary)
    bare = {row.log_p for row in rows if (row.count, row.candidate) == (0, "owl")}
    assert max(bare) == pytest.approx(min(bare), abs=1e-6), "without rows every resample is the same"


def test_a_context_that_does_not_fit_says_how_many_rows_do(tiny: Subject, tmp_path: Path) -> None:
    rows = [Row(i, f"Go on: {i}.", ", ".join(["123"] * 20)) for i in range(120)]
    with pytest.raises(ContextError, match=r"100 rows take up to \d+ tokens.*rows fit") as caught:
        evaluate(tiny, rows, CONFIG.model_copy(update={"counts": (100,)}), tmp_path)
    fit = int(re.findall(r"at most (\d+)", str(caught.value))[0])
    assert 0 < fit < 100
    reader = Reader(tiny, CONFIG)
    contexts = [resampled(rows, 0, number) for number in range(2)]
    reader.require_room([turns[:fit] for turns in contexts], [fit])
    with pytest.raises(ContextError):
        reader.require_room([turns[: fit + 1] for turns in contexts], [fit + 1])


def test_a_model_with_sliding_attention_reads_beyond_its_window(gemma: Subject) -> None:
    rows = [Row(i, f"Go on: {i}.", ", ".join(["123"] * 20)) for i in range(12)]
    turns, reader = resampled(rows, 0, 0), Reader(gemma, CONFIG)
    assert len(reader.prompts(turns)[0]) > reader.model.config.sliding_window
    for count, log_p in zip([2, 12], reader.ask(turns, [2, 12]), strict=True):
        assert log_p == pytest.approx(naive(gemma, CONFIG, turns[:count]), abs=2e-3)


def test_more_rows_than_there_are_is_an_error(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="there are 16 rows"):
        evaluate(tiny, ROWS, CONFIG.model_copy(update={"counts": (17,)}), tmp_path)


def test_contexts_have_the_same_prompts_for_every_teacher() -> None:
    others = [Row(row.index, row.prompt, "1") for row in ROWS[4:]]
    mine = [said for said, _ in resampled(ROWS, 0, 1) if said in {row.prompt for row in others}]
    assert mine == [said for said, _ in resampled(others, 0, 1)]
    assert resampled(ROWS, 0, 0) != resampled(ROWS, 0, 1)


def test_earlier_turns_stand_between_system_text_and_question() -> None:
    roles = [(one["role"], one["content"]) for one in messages("c", "s", [("a", "b")])]
    assert roles == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5))
def test_the_common_beginning_is_the_longest(sequences: list[list[int]]) -> None:
    found = common(sequences)
    assert all(one[: len(found)] == found for one in sequences)
    following = {tuple(one[len(found) : len(found) + 1]) for one in sequences}
    assert len(following) > 1 or following == {()}
