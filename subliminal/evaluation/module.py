"""Evaluations of your own (`evaluation.kind=module`): what the Python module offers, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from subliminal import sources
from subliminal.config import ModuleEvaluation
from subliminal.evaluation.preference import Sample, finished, sampled_prompts
from subliminal.evaluation.questions import QuestionError
from subliminal.models import Subject
from subliminal.rows import Prompt, write_jsonl
from subliminal.store import Json


@dataclass(frozen=True)
class Answer:
    """One sampled answer; question and sample are numbered from 0."""

    question: int
    sample: int
    text: str
    finish_reason: str


class EvaluationModule(Protocol):
    """What the module of an evaluation offers."""

    def questions(self, config: ModuleEvaluation) -> Sequence[str]:
        """The texts that are asked, `config.questions` of them."""
        ...

    def evaluate(self, subject: Subject, config: ModuleEvaluation, answers: Sequence[Answer], folder: Path) -> Json:
        """What is measured, for the manifest; what is larger goes into files of `folder`.

        `answers` has `config.samples_per_question` answers to each question; the `subject` can be asked for more.
        """
        ...


def _module(config: ModuleEvaluation) -> EvaluationModule:
    return cast(EvaluationModule, sources.load("evaluation", config.module))


def questions(config: ModuleEvaluation) -> list[str]:
    """The module's questions; raises `QuestionError` for another number of them than are configured."""
    asked = list(_module(config).questions(config))
    if len(asked) != config.questions:
        raise QuestionError(
            f"evaluation.questions={config.questions}: {config.module} gives {len(asked)}; set that number, or mend "
            "questions(config)"
        )
    return asked


def prompts(config: ModuleEvaluation) -> list[Prompt]:
    """Every question as often as it is sampled, question by question."""
    return sampled_prompts(questions(config), config)


def evaluate(subject: Subject, config: ModuleEvaluation, sample: Sample, folder: Path) -> Json:
    """Sample the answers, if any, into answers.jsonl, and let the module measure; returns its summary."""
    count, asked = config.samples_per_question, prompts(config)
    replies = sample(asked) if asked else []
    answers = [
        Answer(prompt.index // count, prompt.index % count, reply.text, finished(reply))
        for prompt, reply in zip(asked, replies, strict=True)
    ]
    if answers:
        write_jsonl(folder / "answers.jsonl", answers)
    measured = _module(config).evaluate(subject, config, answers, folder)
    return {"kind": config.kind, "questions": config.questions, "samples": len(answers)} | measured
