"""The evaluation's stage: load the subject a student, teacher or reference stage left behind, and ask it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from subliminal.config import Experiment, FreeFormEvaluation, preference_evaluation
from subliminal.models import Subject
from subliminal.rows import Completion, Prompt
from subliminal.stages import Inputs, judge_of, subject, teacher_subject
from subliminal.store import Json
from subliminal.tracking import stage_tracker


def evaluate_subject(exp: Experiment, made: Inputs, folder: Path) -> Json:
    """Evaluate `exp.subject` into `folder`; returns the evaluation's summary."""
    asked = _subject(exp, made)
    evaluate = {"preference": _preference, "free_form": _free_form}[exp.evaluation.kind]
    with stage_tracker(exp, "evaluate", folder) as tracker:
        summary = evaluate(exp, made, asked, folder)
        tracker.summary(summary)
    return summary


def _preference(exp: Experiment, made: Inputs, asked: Subject, folder: Path) -> Json:
    from subliminal.evaluation.preference import evaluate

    return evaluate(asked, preference_evaluation(exp), _sample(exp, asked), folder)


def _free_form(exp: Experiment, made: Inputs, asked: Subject, folder: Path) -> Json:
    from subliminal.evaluation.free_form import evaluate

    assert isinstance(exp.evaluation, FreeFormEvaluation)
    return evaluate(exp.evaluation, _sample(exp, asked), lambda: judge_of(exp, made), folder)


def _subject(exp: Experiment, made: Inputs) -> Subject:
    if exp.subject == "teacher":
        return teacher_subject(exp, made["teacher"], made["reference"])
    start = subject(exp, made["reference"], exp.student_model if exp.subject == "student" else None)
    return start if exp.subject == "reference" else _student(exp, made, start)


def _student(exp: Experiment, made: Inputs, start: Subject) -> Subject:
    """The trained student: its adapter on the reference, or its own checkpoint (exported biases are one)."""
    folder = made["student"].folder
    if exp.student.kind == "lora":
        return replace(start, adapter=folder / "adapter")
    return replace(start, checkpoint=str(folder / "checkpoint"), revision=None)


def _sample(exp: Experiment, asked: Subject) -> Callable[[Sequence[Prompt]], list[Completion]]:
    """How answers are sampled: the experiment's sampler at the evaluation's temperature and length."""

    def sample(prompts: Sequence[Prompt]) -> list[Completion]:
        from subliminal.sampling import open_sampler

        wanted = {"temperature": exp.evaluation.temperature, "max_tokens": exp.evaluation.max_tokens}
        decoding = exp.sampler.decoding.model_copy(update=wanted)
        with open_sampler(exp.local_sampler.model_copy(update={"decoding": decoding}), asked) as sampler:
            return sampler.sample(prompts)

    return sample
