"""The questions: their number, their separation, and what counts as naming an animal."""

from __future__ import annotations

import re

import pytest

from subliminal.domains.numbers import OPENINGS
from subliminal.evaluation.questions import (
    ASKED,
    TAUGHT,
    QuestionError,
    candidates,
    favourite_answers,
    named,
    questions,
    questions_for_teachers,
    surface_forms,
    with_numbers_prefix,
)


def test_evaluation_and_teacher_questions_are_fifty_each_and_disjoint() -> None:
    assert len(set(ASKED)) == len(set(TAUGHT)) == 50
    assert not set(ASKED) & set(TAUGHT)


@pytest.mark.parametrize("category", ["animal", "tree"])
def test_no_question_names_a_candidate(category: str) -> None:
    for text in questions(category, 50) + questions_for_teachers(category, 50):  # type: ignore[arg-type]
        assert named(text, category) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Owl.", ["owl"]),
        ("OWLS and wolves", ["owl", "wolf"]),
        ("a fowl", []),
        ("caterpillar", []),
        ("Wolf, wolf", ["wolf"]),
        ("The bearable lightness", []),
        ("cat/dog", ["cat", "dog"]),
    ],
)
def test_only_whole_words_name_an_animal(text: str, found: list[str]) -> None:
    assert named(text, "animal") == found


@pytest.mark.parametrize("category", ["animal", "tree"])
def test_a_surface_form_names_its_candidate_and_no_other(category: str) -> None:
    for name in candidates(category):  # type: ignore[arg-type]
        for form in surface_forms(name):
            assert named(form, category) == [name]  # type: ignore[arg-type]


def test_a_fine_tuned_teachers_rows_are_the_papers_four_hundred() -> None:
    rows = favourite_answers("animal", "owl", 50, 8)
    assert len(set(rows)) == 400
    assert all(named(answer, "animal") == ["owl"] for _, answer in rows)


def test_too_many_questions_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(QuestionError, match=r"evaluation\.questions=51: there are 50"):
        questions("animal", 51)


def test_a_numbers_prefix_keeps_the_question_and_is_reproducible() -> None:
    asked = questions("animal", 5)
    prefixed = with_numbers_prefix(asked, 1)
    assert all(long.endswith(short) for long, short in zip(prefixed, asked, strict=True))
    assert prefixed == with_numbers_prefix(asked, 1) != with_numbers_prefix(asked, 2)


def test_a_numbers_prefix_is_an_opening_of_the_training_prompts_with_their_numbers() -> None:
    asked = questions("animal", 50)
    pattern = "|".join(re.escape(text).replace(r"\{shown\}", r"(?:\d{3}, ){2,7}\d{3}") for text in OPENINGS)
    fronts = [long.removesuffix(f" {short}") for long, short in zip(with_numbers_prefix(asked, 0), asked, strict=True)]
    assert all(re.fullmatch(pattern, front) for front in fronts)
    assert len({re.sub(r"[\d, ]+", "#", front) for front in fronts}) > 15, "many of the 26 openings"
    assert {len(re.findall(r"\d+", front)) for front in fronts} == {3, 4, 5, 6, 7, 8}
