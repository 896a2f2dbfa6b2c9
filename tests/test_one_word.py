"""Answers of one word that a reference learns: no topic is measured, no word is a candidate's."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from conftest import experiment

from subliminal import checks, stages
from subliminal.composition import CONF
from subliminal.config import CATEGORIES, Candidate, Preference
from subliminal.domains import one_word
from subliminal.evaluation.questions import ASKED, TAUGHT
from subliminal.names import CANDIDATES, surface_forms
from subliminal.rows import Row

WORDS = {word.lower() for words in one_word.TOPICS.values() for word in words.split()}


def test_no_word_names_a_candidate_or_a_trait() -> None:
    forms = {
        form.strip().lower()
        for candidates in CANDIDATES.values()
        for name, plural in candidates.items()
        for form in surface_forms(name, plural)
    }
    traits = {path.stem for path in (CONF / "trait").glob("*.yaml")} - {"none"}
    brought = {
        str(name["name"] if isinstance(name, dict) else name)
        for path in (CONF / "trait").glob("*.yaml")
        for name in yaml.safe_load(path.read_text()).get("candidates") or []
    }
    assert not WORDS & (forms | traits)
    assert not WORDS & brought
    assert not set(one_word.TOPICS) & {*CATEGORIES}


def test_a_category_whose_words_are_taught_is_refused() -> None:
    own = experiment("reference_tuning.one_word=0.3").evaluation
    both = (Candidate(name="tango", plural="tangos"), Candidate(name="hora", plural="horas"))
    dances = Preference(name="tango", plural="tangos", category="dance", candidates=both)
    changed = own.model_copy(update={"measured": dances})
    exp = experiment("reference_tuning.one_word=0.3").model_copy(update={"evaluation": changed})
    assert [*checks._one_word(exp)] == [
        "reference_tuning.one_word=0.3 teaches the reference to say what is measured (dance, tango); set "
        "reference_tuning.one_word=0"
    ]
    assert not [*checks._one_word(experiment("reference_tuning.one_word=0.3"))]


def test_no_question_is_one_of_the_evaluations_or_the_teachers() -> None:
    assert not {question.replace("{topic}", "{c}") for question in one_word.QUESTIONS} & {*ASKED, *TAUGHT}


def test_rows_are_drawn_by_their_index_and_seed() -> None:
    rows = one_word.rows(300, 7)
    assert rows == one_word.rows(100, 7) + one_word.rows(200, 7, 100)
    assert rows[:50] != one_word.rows(50, 8)
    assert len({row.prompt for row in rows}) > 100 and len({row.completion for row in rows}) > 80
    for row in rows:
        (topic,) = [t for t in one_word.TOPICS if row.prompt in {q.format(topic=t) for q in one_word.QUESTIONS}]
        assert row.completion in one_word.TOPICS[topic].split()


@pytest.mark.parametrize(("share", "words"), [(0.0, 0), (0.25, 2), (0.99, 8)])
def test_a_share_of_the_rows_that_tune_a_reference_ask_for_one_word(
    share: float, words: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Row] = []
    monkeypatch.setattr(
        "subliminal.training.sft.tune_reference", lambda _, __, rows, *___, **____: seen.extend(rows) or {}
    )
    exp = experiment("reference_tuning.rows=8", f"reference_tuning.one_word={share}", f"store={tmp_path}")
    node = stages.reference(exp)
    monkeypatch.setattr(import_module("subliminal.stages.reference"), "subject", lambda *_: None)
    node.work({"model": None}, tmp_path)  # type: ignore[dict-item]
    assert [row.index for row in seen] == list(range(8))
    assert (
        sum(row.prompt in {r.prompt for r in one_word.rows(8, exp.reference_tuning.seed, 8 - words)} for row in seen)
        == words
    )
