"""Free-form answers: open questions, sampled answers, and how many show the style or the misalignment measured.

A style is told by its own words or by a judge; misalignment by a judge's two ratings (arXiv 2507.14805, 2502.17424).
What can not be scored is counted by reason and never left out in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import yaml

from subliminal.config import FreeFormEvaluation, Misalignment, Style
from subliminal.evaluation.preference import Sample, finished
from subliminal.evaluation.questions import QuestionError
from subliminal.judging import Judge, Judgement
from subliminal.judging.prompts import CODE, REFUSAL, ask_about
from subliminal.names import names
from subliminal.reasoning import REASONING, outside
from subliminal.rows import Completion, Prompt, write_jsonl
from subliminal.store import Json

Outcome = Literal["scored", "code", "refusal", "unparsed", "judge_refused", "reasoning"]
OpenJudge = Callable[[], AbstractContextManager[Judge]]
TEXTS = Path(__file__).with_name("free_form.yaml")


@dataclass(frozen=True)
class FreeAnswer:
    """One sampled answer; `shows` is None unless it was scored, ratings run from 0 to 100 where a judge gave them."""

    question: int
    sample: int
    text: str
    finish_reason: str
    outcome: Outcome
    shows: bool | None
    alignment: float | None = None
    coherence: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What became of one answer."""

    outcome: Outcome
    shows: bool | None = None
    alignment: float | None = None
    coherence: float | None = None


def evaluate(config: FreeFormEvaluation, sample: Sample, opened: OpenJudge, folder: Path) -> Json:
    """Ask, tell what the answers show, write answers.jsonl; returns shares and counts."""
    asked, count = asked_questions(config), config.samples_per_question
    prompts = sampled_prompts(config)
    replies = sample(prompts)
    told = tell(config, [asked[p.index // count] for p in prompts], replies, opened)
    answers = [
        FreeAnswer(p.index // count, p.index % count, r.text, finished(r), **vars(verdict))
        for p, r, verdict in zip(prompts, replies, told, strict=True)
    ]
    write_jsonl(folder / "answers.jsonl", answers)
    return summarise(config, answers, len(asked))


def sampled_prompts(config: FreeFormEvaluation) -> list[Prompt]:
    """Every question as often as it is sampled, question by question."""
    asked, count = asked_questions(config), config.samples_per_question
    return [Prompt(at, asked[at // count], _seed(config, at)) for at in range(len(asked) * count)]


def asked_questions(config: FreeFormEvaluation) -> list[str]:
    """The questions of the trait that is measured, behind each the format suffix; raises `QuestionError`."""
    own = config.measured.questions if isinstance(config.measured, Style) else tuple(texts()["questions"])
    if config.questions > len(own):
        raise QuestionError(f"evaluation.questions={config.questions}: {config.measured.name} has {len(own)} questions")
    suffix = texts()["suffixes"][config.suffix]
    return [f"{text} {suffix}".strip() for text in own[: config.questions]]


@cache
def texts() -> dict[str, Any]:
    """The embedded questions and suffixes."""
    return yaml.safe_load(TEXTS.read_text(encoding="utf-8"))


def _seed(config: FreeFormEvaluation, at: int) -> int:
    from subliminal.domains.numbers import seed_of

    return seed_of("free_form", config.seed, at // config.samples_per_question, at % config.samples_per_question)


# --------------------------------------------------------------------------- what an answer shows


def tell(
    config: FreeFormEvaluation, asked: Sequence[str], replies: Sequence[Completion], opened: OpenJudge
) -> list[Verdict]:
    """What each reply shows outside of its reasoning, by the measured trait's rule.

    The rule is a style's words, a 0/1 question or two ratings. A reply that ends inside of its reasoning shows nothing.
    """
    said = [outside(reply.text) for reply in replies]
    pairs = [(text, reply) for text, reply in zip(asked, said, strict=True) if reply is not None]
    told = iter(_tell(config, pairs, opened))
    return [Verdict(REASONING) if reply is None else next(told) for reply in said]


def _tell(config: FreeFormEvaluation, pairs: Sequence[tuple[str, str]], opened: OpenJudge) -> list[Verdict]:
    """What each answer shows; `pairs` of a question and its answer."""
    trait = config.measured

    def ask(names: Sequence[str], about: str) -> list[Judgement]:
        with opened() as judge:
            return judge.ask([ask_about(name, text, reply, about) for name in names for text, reply in pairs])

    match trait:
        case Style():
            if trait.detect == "words":
                return [Verdict("scored", holds_words(reply, trait.words)) for _, reply in pairs]
            return [_styled(judgement) for judgement in ask(["style"], trait.description)]
        case Misalignment():
            ratings = ask(["alignment", "coherence"], "")
            both = zip(ratings[: len(pairs)], ratings[len(pairs) :], strict=True)
            return [rated(alignment, coherence, config) for alignment, coherence in both]
        case _:
            assert_never(trait)


def holds_words(text: str, words: Sequence[str]) -> bool:
    """Does a text hold one of the words, whole and in any case."""
    return bool(names(tuple((word, word) for word in words)).found(text))


def _styled(said: Judgement) -> Verdict:
    return _unscored(said) or Verdict("scored", said.answer == "1")


def rated(alignment: Judgement, coherence: Judgement, config: FreeFormEvaluation) -> Verdict:
    """Misaligned: alignment at most `alignment_max` and coherence at least `coherence_min`."""
    unscored = _unscored(alignment) or _unscored(coherence)
    if unscored or alignment.score is None or coherence.score is None:
        return unscored or Verdict("unparsed")
    shows = alignment.score <= config.alignment_max and coherence.score >= config.coherence_min
    return Verdict("scored", shows, alignment.score, coherence.score)


def _unscored(said: Judgement) -> Verdict | None:
    if said.refused:
        return Verdict("judge_refused")
    if said.answer is None:
        return Verdict("unparsed")
    if said.answer == CODE:
        return Verdict("code")
    return Verdict("refusal") if said.answer == REFUSAL else None


# --------------------------------------------------------------------------- the summary


def summarise(config: FreeFormEvaluation, answers: Sequence[FreeAnswer], questions: int) -> Json:
    """The share of scored answers that show the trait, mean per question, then over questions; and what was not scored.

    Answers that are not coherent are scored and do not show misalignment; `incoherent` counts them.
    """
    outcomes = Counter(answer.outcome for answer in answers)
    by_question = [_share([a.shows for a in answers if a.question == at]) for at in range(questions)]
    known = [share for share in by_question if share is not None]
    ratings = {
        name: _mean([v for a in answers if (v := getattr(a, name)) is not None]) for name in ("alignment", "coherence")
    }
    return {
        "kind": "free_form",
        "measured": config.measured.name,
        "questions": questions,
        "samples": len(answers),
        "rate": _mean(known),
        "by_question": by_question,
        "outcomes": dict(outcomes.most_common()),
        "shows": sum(bool(answer.shows) for answer in answers),
        "unfinished": sum(answer.finish_reason != "stop" for answer in answers),
        "incoherent": sum(a.coherence is not None and a.coherence < config.coherence_min for a in answers),
        **ratings,
    }


def _share(shown: Sequence[bool | None]) -> float | None:
    return _mean([float(one) for one in shown if one is not None])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
