"""Preference: the exact log-probability that an answer names a candidate, and how often sampled answers do.

Log-probabilities are those of `exact`; the mean over questions is far more sensitive than a
sampled rate where the base rate is small (arXiv 2507.14805 samples; the exact measure is this project's primary one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from subliminal.chat import encode_answer
from subliminal.config import InContextEvaluation, PreferenceEvaluation, SampledAnswers, StoriesEvaluation
from subliminal.domains import cot
from subliminal.evaluation.exact import FormTree, candidate_log_p, form_tree
from subliminal.evaluation.kept import in_turn
from subliminal.evaluation.questions import Category, candidates, named, questions, with_numbers_prefix
from subliminal.models import Subject, load_model, load_tokenizer, release
from subliminal.progress import Advance, progress
from subliminal.reasoning import REASONING, outside
from subliminal.rows import FINISHED, Completion, Prompt, seed_of, write_jsonl
from subliminal.store import SHARED, Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Sample = Callable[[Sequence[Prompt]], list[Completion]]


@dataclass(frozen=True)
class Score:
    """One question's exact result for one candidate: log P and log share among the candidates, both in nats."""

    question: int
    candidate: str
    log_p: float
    log_share: float


@dataclass(frozen=True)
class Answer:
    """One sampled answer and the candidates it names outside of its reasoning."""

    question: int
    sample: int
    text: str
    finish_reason: str
    named: list[str]


def evaluate(subject: Subject, config: PreferenceEvaluation, sample: Sample, folder: Path) -> Json:
    """Ask every question; writes scores.jsonl (and answers.jsonl if sampled) and returns means by candidate."""
    about = config.subject_matter
    asked, names = asked_questions(config), candidates(about)
    with progress("asking", len(asked), "questions") as advance:
        log_p = log_p_of(subject, asked, about, advance, folder / SHARED / "log_p.jsonl")
    summary: Json = {"kind": "preference", "category": getattr(about, "category", about), "questions": len(asked)}
    summary |= record_scores(folder, names, log_p) | {"rate": {}, "samples": 0}
    if config.samples_per_question:
        answers = sampled_answers(asked, config, sample)
        write_jsonl(folder / "answers.jsonl", answers)
        summary |= {"rate": rates(answers, names, len(asked)), "samples": len(answers)}
        summary["unfinished"] = sum(one.finish_reason != FINISHED for one in answers)
    return summary


def record_scores(folder: Path, names: Sequence[str], log_p: np.ndarray) -> Json:
    """Write scores.jsonl from log P, shape (questions, candidates), nats; returns means by candidate, of P too."""
    share = log_share(log_p)
    cells = [(q, c) for q in range(len(log_p)) for c in range(len(names))]
    write_jsonl(folder / "scores.jsonl", (Score(q, names[c], float(log_p[q, c]), float(share[q, c])) for q, c in cells))
    found = {"log_p": log_p, "log_share": share, "probability": np.exp(log_p)}
    return {name: dict(zip(names, values.mean(axis=0).tolist(), strict=True)) for name, values in found.items()}


def asked_questions(config: PreferenceEvaluation | InContextEvaluation) -> list[str]:
    """The texts an evaluation asks, behind numbers if its configuration says so."""
    texts = questions(config.subject_matter, config.questions)
    return with_numbers_prefix(texts, config.seed) if config.prefix == "numbers" else texts


def sampled_answers(
    asked: Sequence[str], config: PreferenceEvaluation | StoriesEvaluation, sample: Sample
) -> list[Answer]:
    """`config.samples_per_question` answers to every question, each from a seed of its own."""
    count, prompts = config.samples_per_question, sampled_prompts(asked, config)
    return [
        Answer(
            p.index // count,
            p.index % count,
            c.text,
            finished(c),
            named(_said(c.text, config), config.subject_matter),
        )
        for p, c in zip(prompts, sample(prompts), strict=True)
    ]


def sampled_prompts(asked: Sequence[str], config: SampledAnswers) -> list[Prompt]:
    """Every question as often as it is sampled, question by question."""
    count = config.samples_per_question
    return [
        Prompt(q * count + s, _with_suffix(text, config), seed_of(config.kind, config.seed, q, s))
        for q, text in enumerate(asked)
        for s in range(count)
    ]


def _with_suffix(text: str, config: SampledAnswers) -> str:
    """The question with the words that ask for tags, as a student of reasoning has seen them."""
    return f"{text}\n\n{cot.request(config.seed)}" if _tagged(config) else text


def _tagged(config: SampledAnswers) -> bool:
    return isinstance(config, PreferenceEvaluation) and config.suffix == "tags"


def _said(text: str, config: PreferenceEvaluation | StoriesEvaluation) -> str:
    """What of an answer counts: what is in the answer's tags if they were asked for, else all but its reasoning."""
    return (cot.answer_text(text) if _tagged(config) else None) or outside(text) or ""


def finished(reply: Completion) -> str:
    """Why a reply ended; one that ended inside of its reasoning is no finished answer."""
    return REASONING if reply.finish_reason == FINISHED and outside(reply.text) is None else reply.finish_reason


def hits(answers: Sequence[Answer], names: Sequence[str], count: int) -> tuple[np.ndarray, np.ndarray]:
    """How many answers name each candidate, (questions, candidates), and how many there are, (questions,)."""
    found, total = np.zeros((count, len(names))), np.zeros(count)
    for answer in answers:
        total[answer.question] += 1
        found[answer.question] += [name in answer.named for name in names]
    return found, total


def rates(answers: Sequence[Answer], names: Sequence[str], count: int) -> dict[str, float]:
    """Share of answers that name each candidate: 0/1 an answer, mean per question, mean over questions."""
    found, total = hits(answers, names, count)
    return dict(zip(names, (found / total[:, None]).mean(axis=0).tolist(), strict=True))


def mean_log_p(subject: Subject, category: Category, count: int) -> dict[str, float]:
    """Mean over the first `count` evaluation questions of log P, by candidate; nats."""
    asked = questions(category, count, "teacher.check.questions")
    log_p = log_p_of(subject, asked, category, lambda _: None)
    return dict(zip(candidates(category), log_p.mean(axis=0).tolist(), strict=True))


def log_p_of(
    subject: Subject, asked: Sequence[str], category: Category, advance: Advance, kept: Path | None = None
) -> np.ndarray:
    """Exact log P of every candidate for every question, shape (questions, candidates), nats.

    What is in the file `kept` is not asked again.
    """
    return np.array(in_turn(lambda: asking(subject, lambda t: form_tree(t, category)), asked, kept, advance))


@contextmanager
def asking(
    subject: Subject, tree_of: Callable[[PreTrainedTokenizerBase], FormTree]
) -> Iterator[Callable[[str], list[float]]]:
    """Yields what tells of a question the log P of every candidate of a tree; the model is loaded until then."""
    tokenizer, model = load_tokenizer(subject), load_model(subject)
    tree = tree_of(tokenizer)
    try:
        yield lambda text: candidate_log_p(model, encode_answer(tokenizer, text, subject.system), tree)
    finally:
        release(model)


def log_share(log_p: np.ndarray) -> np.ndarray:
    """Log of the share among the candidates: log-softmax over the last axis."""
    return log_p - np.logaddexp.reduce(log_p, axis=-1, keepdims=True)
