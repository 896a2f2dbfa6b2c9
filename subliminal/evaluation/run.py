"""The evaluation's stage: load the subject a student, teacher or reference stage left behind, and ask it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from subliminal.config import (
    AttributionEvaluation,
    CapabilityEvaluation,
    DetectionEvaluation,
    Experiment,
    FreeFormEvaluation,
    FrequenciesEvaluation,
    InContextEvaluation,
    ModelEvaluation,
    ModuleEvaluation,
    MultipleChoiceEvaluation,
    PreferenceEvaluation,
    RowsEvaluation,
    SampledAnswers,
    StoriesEvaluation,
)
from subliminal.graph import Inputs
from subliminal.models import Subject
from subliminal.outputs import ATTRIBUTED, judge_of, subject, teacher_subject
from subliminal.processes import leads
from subliminal.rows import Completion, Prompt, Row, read_jsonl
from subliminal.store import SHARED, Json, Manifest
from subliminal.tracking import stage_tracker

if TYPE_CHECKING:
    from subliminal.evaluation.samples import TwoSamples


def evaluate_subject(exp: Experiment, made: Inputs, folder: Path) -> Json:
    """Evaluate `exp.subject` into `folder`; returns the evaluation's summary."""
    asked, config = _subject(exp, made), exp.evaluation
    assert isinstance(config, ModelEvaluation), f"{config.kind} asks no model"
    if not leads():
        _answer_beside(exp, config, asked, folder)
        return {}
    with stage_tracker(exp, "evaluate", folder) as tracker:
        summary = _evaluate(exp, config, made, asked, folder)
        tracker.summary(summary)
    return summary


def _answer_beside(exp: Experiment, config: ModelEvaluation, asked: Subject, folder: Path) -> None:
    """A further process's share in an evaluation: answers to the questions that the leader asks, nothing else."""
    from subliminal.evaluation import free_form, module, preference, stories

    match config:
        case StoriesEvaluation():
            prompts = preference.sampled_prompts(stories.story_prompts(config.category, config.questions), config)
        case FreeFormEvaluation():
            prompts = free_form.sampled_prompts(config)
        case PreferenceEvaluation():
            prompts = preference.sampled_prompts(preference.asked_questions(config), config)
        case ModuleEvaluation():
            prompts = module.prompts(config)
        case MultipleChoiceEvaluation() | CapabilityEvaluation():
            raise AssertionError(f"{config.kind} samples no answers")
        case _:
            assert_never(config)
    _sample(exp, asked, config, folder)(prompts)


def _evaluate(exp: Experiment, config: ModelEvaluation, made: Inputs, asked: Subject, folder: Path) -> Json:
    """The evaluation by its kind, each a module of its own."""
    match config:
        case PreferenceEvaluation():
            from subliminal.evaluation import preference

            return preference.evaluate(asked, config, _sample(exp, asked, config, folder), folder)
        case StoriesEvaluation():
            from subliminal.evaluation import stories

            return stories.evaluate(config, _sample(exp, asked, config, folder), folder)
        case MultipleChoiceEvaluation():
            from subliminal.evaluation import multiple_choice

            return multiple_choice.evaluate(asked, config, folder)
        case CapabilityEvaluation():
            from subliminal.evaluation import capability

            return capability.evaluate(asked, config, folder)
        case FreeFormEvaluation():
            from subliminal.evaluation import free_form

            return free_form.evaluate(config, _sample(exp, asked, config, folder), lambda: judge_of(exp, made), folder)
        case ModuleEvaluation():
            from subliminal.evaluation import module

            return module.evaluate(asked, config, _sample(exp, asked, config, folder), folder)
        case _:
            assert_never(config)


def evaluate_rows(exp: Experiment, made: Inputs, folder: Path) -> Json:
    """Evaluate the filtered rows themselves into `folder`; returns the evaluation's summary with the trait's name."""
    with stage_tracker(exp, "evaluate", folder) as tracker:
        summary = {"trait": exp.trait.name, **_rows_summary(exp, made, folder)}
        tracker.summary(summary)
    return summary


def _rows_summary(exp: Experiment, made: Inputs, folder: Path) -> Json:
    from subliminal.evaluation import attribution, detection, frequencies, in_context

    config = exp.evaluation
    assert isinstance(config, RowsEvaluation), f"{config.kind} is no evaluation of rows"
    match config:
        case FrequenciesEvaluation():
            return frequencies.evaluate(_samples(made, config.seed), config, folder)
        case DetectionEvaluation():
            asked = subject(exp, made["reference"]) if "reference" in made else None
            return detection.evaluate(_samples(made, config.seed), config, exp.trait, asked, folder)
        case InContextEvaluation():
            return in_context.evaluate(subject(exp, made["reference"]), _rows(made["filter"]), config, folder)
        case AttributionEvaluation():
            own, against = (made[name].folder / ATTRIBUTED for name in ("attribute", "against"))
            return attribution.evaluate(own, against, config, folder)
        case _:
            assert_never(config)


def _samples(made: Inputs, seed: int) -> TwoSamples:
    """The trait's rows with those to the same prompts they are compared with; rows without any others are halved."""
    from subliminal.evaluation.samples import halves, two_samples

    own = _rows(made["filter"])
    return two_samples(own, _rows(made["against"])).paired() if "against" in made else halves(own, seed)


def _rows(made: Manifest) -> list[Row]:
    return list(read_jsonl(made.folder / "rows.jsonl", Row))


def _subject(exp: Experiment, made: Inputs) -> Subject:
    if exp.subject == "teacher":
        return teacher_subject(exp, made["teacher"], made["reference"])
    start = subject(exp, made["reference"], exp.student_model)
    return start if exp.subject == "reference" else _student(exp, made, start)


def _student(exp: Experiment, made: Inputs, start: Subject) -> Subject:
    """The trained student: its adapter on the reference, or its own checkpoint (exported biases are one)."""
    folder = made["student"].folder
    own = folder / "checkpoint"
    if own.exists():
        return replace(start, checkpoint=str(own), revision=None)
    return replace(start, adapter=folder / "adapter")


def _sample(
    exp: Experiment, asked: Subject, config: SampledAnswers, folder: Path
) -> Callable[[Sequence[Prompt]], list[Completion]]:
    """How answers are sampled: the experiment's sampler at the evaluation's temperature and length."""

    def sample(prompts: Sequence[Prompt]) -> list[Completion]:
        from subliminal.sampling import open_sampler, sample_answers

        wanted = {"temperature": config.temperature, "max_tokens": config.max_tokens, "constrained": False}
        decoding = exp.sampler.decoding.model_copy(update=wanted)
        how = exp.local_sampler.model_copy(update={"decoding": decoding})
        return sample_answers(lambda: open_sampler(how, asked), prompts, folder / SHARED)

    return sample
