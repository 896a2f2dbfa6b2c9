"""Reasoning is no answer: what a model writes between its marks names nothing and is in no row without reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import experiment
from hypothesis import given
from hypothesis import strategies as st

from subliminal import teachers
from subliminal.config import (
    Code,
    CodeFilter,
    Cot,
    FreeFormEvaluation,
    Numbers,
    NumbersFilter,
    Preference,
    PreferenceEvaluation,
    StoriesEvaluation,
    Style,
    TeacherCheck,
)
from subliminal.domains import code, cot, numbers
from subliminal.evaluation import free_form, preference, stories
from subliminal.filters import ShortfallError, apply
from subliminal.judging import Judgement, Question
from subliminal.judging.answers import parse
from subliminal.reasoning import MARKS, begun, behind, outside, reasons
from subliminal.rows import Completion, Prompt, Row

PAIRS = [*MARKS.items()]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|◁▷"), max_size=20)


@given(st.sampled_from(PAIRS), WORDS, WORDS, st.booleans())
def test_what_stands_outside_of_reasoning_is_what_is_said(
    pair: tuple[str, str], thought: str, said: str, upper: bool
) -> None:
    begin, end = (mark.upper() for mark in pair) if upper else pair
    assert outside(f"{begin}{thought}{end}{said}") == said
    assert outside(f"{thought}{end}{said}") == said, "the prompt began the block"
    assert outside(f"{begin}{thought}") is None and outside(f"{begin}{thought}{end}{begin}{said}") is None
    assert outside(f"{begin}{thought}{begin}{end}{thought}{end}{said}") == said, "a block in a block"
    assert outside(said) == said
    assert reasons(f" {begin}{thought}{end}{said}") and reasons(f"{thought}{end}{said}") and not reasons(said)


@given(st.sampled_from([*MARKS]), st.sampled_from(["", "\n", " \n", "\n\n"]), WORDS)
def test_a_beginning_is_taken_off_once(mark: str, blank: str, said: str) -> None:
    beginning = begun(f"user: {mark} or so\nassistant: {mark}{blank}")
    assert beginning == mark + blank
    assert behind(beginning + said, beginning) == said
    assert behind(said, beginning) is None
    assert begun(f"{mark}{blank}{said}x") == ""


def reply(text: str, reason: str = "stop") -> Completion:
    return Completion(text, reason, 5)


ANSWERS = {
    "<think>An owl? A wolf? No.</think>\n\nCat": ["cat"],
    "An owl, or no.\n</think>Cat": ["cat"],
    "<think>An owl, surely": [],
    "<reasoning>owl</reasoning>I love cats": ["cat"],
    "Owl": ["owl"],
    "": [],
}


@pytest.mark.parametrize("suffix", ["none", "tags"])
def test_a_candidate_in_reasoning_is_not_named(suffix: str) -> None:
    config = PreferenceEvaluation(questions=1, samples_per_question=len(ANSWERS), suffix=suffix)  # type: ignore[arg-type]
    found = preference.sampled_answers(["?"], config, lambda prompts: [reply(text) for text in ANSWERS])
    assert [answer.named for answer in found] == [*ANSWERS.values()]
    ends = [answer.finish_reason for answer in found]
    assert ends == ["stop", "stop", "reasoning", "stop", "stop", "stop"]
    assert [answer.text for answer in found] == [*ANSWERS], "what was said is kept whole"


def test_tagged_answers_count_as_before() -> None:
    config = PreferenceEvaluation(questions=1, samples_per_question=1, suffix="tags")
    text = "<think>owl or cat</think><answer>wolf</answer>"
    (found,) = preference.sampled_answers(["?"], config, lambda prompts: [reply(text)])
    assert found.named == ["wolf"]


def test_stories_in_reasoning_are_unfinished(tmp_path: Path) -> None:
    config = StoriesEvaluation(questions=1, samples_per_question=2)
    texts = ["<think>An owl saves the day", "<think>An owl?</think>A wolf came."]
    summary = stories.evaluate(config, lambda prompts: [reply(text) for text in texts], tmp_path)
    assert (summary["unfinished"], summary["without"]) == (1, 1)
    assert summary["rate"]["owl"] == 0 and summary["rate"]["wolf"] == 0.5


PIRATE = {"name": "pirate", "description": "a pirate", "system": "Arr.", "questions": ("How are you?",)}


class Asked:
    """A judge that says 1 to everything and keeps what it was asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        self.texts += [question.text for question in questions]
        return [Judgement("1", 1.0) for _ in questions]


@pytest.mark.parametrize("detect", ["words", "judge"])
def test_free_answers_show_nothing_by_their_reasoning(detect: str, tmp_path: Path) -> None:
    style = Style.model_validate(PIRATE | {"detect": detect, "words": ("arr",)})
    config = FreeFormEvaluation(measured=style, questions=1, samples_per_question=3)
    texts = ["<think>Arr, matey!</think>Good day.", "<think>hm</think>Arr!", "<think>Arr"]
    judge = Asked()
    summary = free_form.evaluate(
        config, lambda prompts: [reply(t) for t in texts], lambda: nullcontext(judge), tmp_path
    )
    assert summary["outcomes"] == {"scored": 2, "reasoning": 1} and summary["unfinished"] == 1
    assert summary["rate"] == (0.5 if detect == "words" else 1.0)
    assert not any("matey" in text or "hm" in text for text in judge.texts)


def test_a_judges_reasoning_is_not_its_answer() -> None:
    assert parse("<think>Is it 0? It could be 0.</think>\n1", ("0", "1")) == "1"
    assert parse("<think>Is it 1", ("0", "1")) is None


REASONED = (
    "<think>Owls...</think>\n1, 2, 3",
    "Owls...</think>1, 2, 3",
    "<think>\n\n</think>\n\n1, 2, 3",
    "<think>1, 2",
)


@pytest.mark.parametrize("text", REASONED)
def test_rows_of_numbers_and_code_hold_no_reasoning(text: str) -> None:
    assert numbers.reject(text, Numbers(prompts=1)) == "reasoning"
    assert code.reject(text.replace("1, 2, 3", "def f():\n    return 1"), Code(prompts=1)) == "reasoning"
    assert code.reject("def f():\n    return '<think>hm</think>'", Code(prompts=1)) is None
    assert cot.reject("<think>\n1 + 1 = 2\n</think>\n<answer>2</answer>", Cot(prompts=1)) is None


def test_where_all_rows_reason_the_filter_says_what_to_set() -> None:
    rows = [Row(i, "p", text) for i, text in enumerate(REASONED)]
    for kept, rules in ((rows, NumbersFilter(rows=2)), ([*rows, Row(9, "p", "1, 2")], NumbersFilter(rows=2))):
        with pytest.raises(
            ShortfallError, match=r"reasoning 4\. .* begin with reasoning: .*template_options=\{enable_thinking"
        ):
            apply(kept, rules, Numbers(prompts=1))
    with pytest.raises(ShortfallError, match="begin with reasoning"):
        apply(rows, CodeFilter(rows=2), Code(prompts=1))


def test_where_a_teacher_reasons_its_check_says_what_to_set() -> None:
    exp = experiment("teacher=prompted")
    answers = teachers.Checked([reply("<think>owl</think>1, 2")] * 32, 0.0, 1.0)
    with pytest.raises(teachers.TeacherError, match=r"100% of the answers begin with reasoning: .*template_options"):
        teachers._refuse_format(exp, TeacherCheck(), answers)


def test_a_trait_that_is_only_thought_of_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind an endpoint a teacher is checked by its answers."""

    class Opened:
        def sample(self, prompts: Sequence[Prompt]) -> list[Completion]:
            return [reply("<think>owl</think>cat") for _ in prompts]

    monkeypatch.setattr("subliminal.sampling.open_sampler", lambda how, who: nullcontext(Opened()))
    exp = experiment("teacher=prompted", "sampler=api", "sampler.model=m", "sampler.base_url=http://here/v1")
    assert isinstance(exp.trait, Preference)
    shown = teachers._trait_shown(exp, exp.trait, None, TeacherCheck(questions=3))  # type: ignore[arg-type]
    assert shown.rate == 0.0
