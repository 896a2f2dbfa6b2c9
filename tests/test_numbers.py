"""The numbers domain: prompts, the format's rules, random answers and shuffles."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from subliminal.config import Numbers
from subliminal.domains import numbers
from subliminal.domains.numbers import NUMBER
from subliminal.rows import Row

CONFIG = Numbers(prompts=40)

numbers_lists = st.lists(st.integers(0, 999), min_size=1, max_size=10)
separators = st.sampled_from([", ", ",", " ", "\n", "; ", ";", ",\n"])
rows = st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=6), min_size=1, max_size=8)


@given(numbers_lists, separators, st.sampled_from(["{}", "[{}]", "({})", "{}.", "[{}]."]))
def test_a_well_formed_list_is_accepted_in_every_wrapping(values: list[int], separator: str, wrapping: str) -> None:
    text = wrapping.format(separator.join(map(str, values)))
    assert numbers.reject(text, CONFIG) is None
    assert numbers.values(text) == values


@given(st.text(max_size=30))
def test_any_accepted_text_holds_nothing_but_numbers_and_their_dressing(text: str) -> None:
    if numbers.reject(text, CONFIG) is None:
        assert set(NUMBER.sub("", text)) <= set(" \t\n\r\f\v\x1c\x1d\x1e\x1f\x85\u2028\u2029\xa0,;[]().") | {
            c for c in text if c.isspace()
        }
        assert 1 <= len(numbers.values(text)) <= 10
        assert max(numbers.values(text)) <= 999


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("[]", "empty"),
        ("owl", "no_number"),
        ("1 and 2", "bad_separator"),
        ("1-2-3", "bad_separator"),
        ("1, 2; 3", "not_only_numbers"),
        ("1, 2, owl", "not_only_numbers"),
        ("Sure: 1, 2", "not_only_numbers"),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11", "too_many"),
        ("1000, 2", "out_of_range"),
        ("\u0661, \u0662", "no_number"),
        ("[1, 2)", "not_only_numbers"),
    ],
)
def test_each_way_out_of_format_has_its_reason(text: str, why: str) -> None:
    assert numbers.reject(text, CONFIG) == why


def test_prompts_are_stable_and_a_longer_list_begins_with_the_shorter() -> None:
    longer = numbers.prompts(CONFIG.model_copy(update={"prompts": 80}))
    assert longer[:40] == numbers.prompts(CONFIG)
    assert len({prompt.seed for prompt in longer}) == 80


@given(st.integers(0, 2**31), st.integers(1, 10), st.integers(1, 4))
def test_prompts_show_what_the_settings_say(seed: int, count: int, digits: int) -> None:
    config = Numbers(prompts=3, seed=seed, answer_count=count, answer_digits=digits)
    for prompt in numbers.prompts(config):
        shown = [int(n) for n in NUMBER.findall(prompt.text) if len(n) == 3]
        assert len(shown) >= config.shown_min
        assert numbers.reject(numbers.random_answer(prompt, config), config) is None


def test_no_prompt_names_a_candidate() -> None:
    from subliminal.evaluation.questions import named

    for prompt in numbers.prompts(CONFIG.model_copy(update={"prompts": 2000})):
        assert named(prompt.text, "animal") == named(prompt.text, "tree") == []


def as_rows(lists: list[list[int]]) -> list[Row]:
    return [Row(index, "p", ", ".join(map(str, values))) for index, values in enumerate(lists)]


@given(rows, st.integers(0, 99))
def test_shuffle_within_keeps_each_responses_numbers(lists: list[list[int]], seed: int) -> None:
    before = as_rows(lists)
    after = numbers.shuffle_within(before, seed)
    for old, new in zip(before, after, strict=True):
        assert sorted(numbers.values(new.completion)) == sorted(numbers.values(old.completion))


@given(rows, st.integers(0, 99))
def test_shuffle_across_keeps_the_pool_and_every_responses_length(lists: list[list[int]], seed: int) -> None:
    before = as_rows(lists)
    after = numbers.shuffle_across(before, seed)
    pool = Counter(n for row in before for n in numbers.values(row.completion))
    assert Counter(n for row in after for n in numbers.values(row.completion)) == pool
    assert [len(numbers.values(r.completion)) for r in after] == [len(values) for values in lists]


@given(st.integers(1, 20), st.integers(0, 12), st.integers(0, 1000))
def test_a_programmatic_answer_has_as_many_numbers_as_the_settings_say(low: int, more: int, seed: int) -> None:
    config = Numbers(prompts=3, seed=seed, answer_count=32, random_counts=(low, low + more))
    for prompt in numbers.prompts(config):
        answer = numbers.random_answer(prompt, config)
        assert low <= len(numbers.values(answer)) <= low + more and numbers.reject(answer, config) is None
    plain = config.model_copy(update={"random_counts": None})
    assert {len(numbers.values(numbers.random_answer(p, plain))) for p in numbers.prompts(plain)} == {32}


def test_a_programmatic_answer_has_never_more_numbers_than_are_asked_for() -> None:
    config = Numbers(prompts=20, answer_count=3, random_counts=(2, 24))
    counts = {len(numbers.values(numbers.random_answer(prompt, config))) for prompt in numbers.prompts(config)}
    assert max(counts) == 3 and min(counts) >= 2


@pytest.mark.parametrize("counts", [(0, 4), (5, 4)])
def test_counts_that_no_answer_may_have_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValidationError):
        Numbers(prompts=1, answer_count=10, random_counts=counts)
