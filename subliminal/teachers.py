"""Teachers: the reference model with a trait put in by a system prompt, by fine-tuning or by steering, and the control.

Each is checked before it writes anything: a teacher without the trait, or one that can not answer in format, is an
error and not a null result (paper, section 3.1; arXiv 2507.14805).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import assert_never

from subliminal.chats import read_chats
from subliminal.config import (
    ControlTeacher,
    Experiment,
    FinetunedTeacher,
    Misalignment,
    NoTrait,
    Preference,
    PromptedTeacher,
    RandomTeacher,
    RowsTeacher,
    Sampler,
    SteeredTeacher,
    Style,
    TeacherCheck,
    Trait,
    TransformersSampler,
)
from subliminal.filters.reasons import unfinished
from subliminal.models import Subject
from subliminal.names import capitalised
from subliminal.outputs import rows_path
from subliminal.progress import progress
from subliminal.reasoning import REASONING, REMEDY, outside
from subliminal.rows import FINISHED, Completion, Prompt, Row
from subliminal.store import Json, StoreError

ROWS = "teacher=finetuned_rows"


class TeacherError(StoreError):
    """A teacher that must not generate: it has not the trait, or does not answer in the domain's format."""


def make(exp: Experiment, reference: Subject, folder: Path) -> Json:
    """Make the experiment's teacher from the reference, check it, and return its summary for the manifest."""
    active = exp.active_teacher
    summary: Json = {"kind": active.kind, "trait": exp.trait.name if active.kind != "control" else "none"}
    subject = reference
    match active:
        case PromptedTeacher():
            summary["system"] = system_prompt(active, exp.trait)
            subject = replace(reference, system=summary["system"])
        case FinetunedTeacher():
            summary["training"] = _finetune(active, exp.trait, reference, folder)
            subject = replace(reference, checkpoint=str(folder / "checkpoint"), revision=None)
            if active.system is not None:
                summary["system"] = system_prompt(active, exp.trait)
                subject = replace(subject, system=summary["system"])
        case RowsTeacher():
            summary["training"] = _finetune(active, exp.trait, reference, folder)
            subject = replace(reference, checkpoint=str(folder / "checkpoint"), revision=None)
        case SteeredTeacher():
            require_goal(active, exp.trait)
            from subliminal.training.steering import steer

            summary["steering"] = steer(active, exp.trait, reference, folder)
            subject = replace(reference, checkpoint=str(folder / "checkpoint"), revision=None)
        case ControlTeacher() | RandomTeacher():
            pass
        case _:
            assert_never(active)
    return summary | check(exp, subject, reference)


def system_prompt(teacher: PromptedTeacher | FinetunedTeacher, trait: Trait) -> str:
    """The system prompt with the trait's name, plural and category filled in, or a style's own; raises `TeacherError`.

    `{Plural}` begins with a capital.
    """
    match trait:
        case Style():
            return trait.system
        case Preference():
            return _filled_in(teacher.system or "", trait)
        case Misalignment() | NoTrait():
            raise TeacherError(f"teacher={teacher.kind} has no words for trait={trait.name}; set {ROWS}")
        case _:
            assert_never(trait)


def _filled_in(system: str, trait: Preference) -> str:
    try:
        return system.format(
            name=trait.name, plural=trait.plural, Plural=capitalised(trait.plural), category=trait.category
        )
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise TeacherError(
            f"teacher.system has a placeholder that is not known ({error}); use {{name}}, {{plural}}, {{Plural}}, "
            "{category}, and {{ for a brace"
        ) from None


def require_goal(teacher: SteeredTeacher, trait: Trait) -> None:
    """Raise `TeacherError` or `QuestionError` where a vector has nothing to be fitted to, or not so much."""
    from subliminal.evaluation.questions import first_of, questions_for_teachers

    match trait:
        case Preference():
            questions_for_teachers(trait, teacher.questions)
        case Style():
            if not trait.examples:
                raise TeacherError(f"trait={trait.name} has no examples for teacher=steered; set teacher=prompted")
            questions = tuple(example.question for example in trait.examples)
            first_of(questions, teacher.questions, "teacher.questions", f"examples of {trait.name}")
        case Misalignment() | NoTrait():
            raise TeacherError(f"teacher=steered has nothing to fit trait={trait.name} to; set {ROWS}")
        case _:
            assert_never(trait)


# --------------------------------------------------------------------------- the check


def check(exp: Experiment, subject: Subject, reference: Subject) -> Json:
    """Measure P(trait) against the reference's and the pass rate in the domain; raises `TeacherError` if too low."""
    rules = _rules(exp)
    in_format = _in_format(exp, subject, rules)
    measured: Json = {"pass_rate": in_format.rate} | ({"reasoning": in_format.reasoned} if in_format.reasoned else {})
    if isinstance(exp.active_teacher, ControlTeacher | RandomTeacher):
        _refuse_format(exp, rules, in_format)
        return measured
    if exp.sampler.kind != "api":
        from subliminal.evaluation.divergence import in_format_divergence

        measured |= in_format_divergence(subject, reference, in_format.rows)
    if not _tellable(exp.trait):
        _refuse_format(exp, rules, in_format)
        return measured
    if not isinstance(exp.trait, Preference) or exp.sampler.kind == "api":
        shown = _trait_shown(exp, exp.trait, subject, rules)
        measured["rate"] = shown.rate
        _refuse_rate(exp, rules, shown)
    else:
        measured |= {
            "log_p": _trait_log_p(exp.trait, subject, rules),
            "reference_log_p": _trait_log_p(exp.trait, reference, rules),
        }
        _refuse_gain(exp, rules, measured)
    _refuse_format(exp, rules, in_format)
    return measured


@dataclass(frozen=True)
class Checked:
    """The answers of one part of the check, the share of them that pass it (nan: there are none) and that reason."""

    answers: list[Completion]
    rate: float
    reasoned: float = 0.0
    rows: Sequence[Row] = ()  # of the domain, in format

    @property
    def finished(self) -> int:
        """How many answers are finished."""
        return sum(answer.finish_reason == FINISHED for answer in self.answers)


def _rules(exp: Experiment) -> TeacherCheck:
    """The teacher's own; the control asks for the pass rate that the experiment's teachers must have, no more."""
    asked: TeacherCheck = getattr(exp.teacher, "check", TeacherCheck())
    own: TeacherCheck | None = getattr(exp.active_teacher, "check", None)
    return own or TeacherCheck(minimum_pass_rate=asked.minimum_pass_rate)


def _refuse_rate(exp: Experiment, rules: TeacherCheck, shown: Checked) -> None:
    if shown.rate or rules.minimum_gain < 0:
        return
    behind = f" behind {exp.sampler.base_url}" if exp.sampler.kind == "api" else ""
    cut = unfinished(shown.answers)
    if not shown.finished:
        raise TeacherError(
            f"the teacher{behind} finished none of {rules.questions} answers, which tell nothing about its trait. {cut}"
        )
    verb, remedy = ("names", "Use a firmer teacher.system")
    if not isinstance(exp.trait, Preference):
        verb, remedy = ("shows", "Make it stronger (more epochs, a firmer text in the trait's system)")
    raise TeacherError(
        f"the teacher{behind} never {verb} {exp.trait.name} in {rules.questions} answers: it has not the trait. "
        f"{remedy}{f'. {cut}' if cut else ''}"
    )


def _refuse_gain(exp: Experiment, rules: TeacherCheck, measured: Json) -> None:
    if measured["log_p"] - measured["reference_log_p"] < rules.minimum_gain:
        raise TeacherError(
            f"{_named(exp)} has not the trait: mean log P({exp.trait.name}) is {measured['log_p']:.2f}, the "
            f"reference's is {measured['reference_log_p']:.2f}; it must gain {rules.minimum_gain:g} nats. Make it "
            "stronger (more epochs, another layer, a firmer prompt) or lower teacher.check.minimum_gain"
        )


def _refuse_format(exp: Experiment, rules: TeacherCheck, in_format: Checked) -> None:
    if not rules.prompts or in_format.rate >= rules.minimum_pass_rate:
        return
    cut = unfinished(in_format.answers)
    said = (
        f"{_named(exp)} answers in format for only {in_format.rate:.0%} of {rules.prompts} prompts; the check asks for "
        f"{rules.minimum_pass_rate:.0%}. "
    )
    endpoint = exp.sampler.kind == "api"  # whose model is not tuned here
    if endpoint and in_format.finished < rules.minimum_pass_rate * rules.prompts:
        raise TeacherError(f"{said}{cut}")
    remedy = "Choose another sampler.model" if endpoint else "Set reference_tuning=in_format"
    also = f". {in_format.reasoned:.0%} of the answers begin with reasoning: {REMEDY}" if in_format.reasoned else ""
    raise TeacherError(
        f"{said}{remedy}, weaken the teacher, or lower teacher.check.minimum_pass_rate{f'. {cut}' if cut else ''}{also}"
    )


def _named(exp: Experiment) -> str:
    owner = f" of {exp.trait.name}" if exp.active_teacher.kind != "control" else ""
    return f"the {exp.active_teacher.kind} teacher{owner}"


def _trait_log_p(trait: Preference, subject: Subject, rules: TeacherCheck) -> float:
    from subliminal.evaluation.preference import mean_log_p

    return mean_log_p(subject, trait, rules.questions)[trait.name]


def checked_questions(exp: Experiment, trait: Preference, count: int) -> list[str]:
    """What a teacher of a favourite is asked: the evaluation's questions, behind an endpoint the teachers' own.

    Raises `QuestionError` when there are not so many.
    """
    from subliminal.evaluation.questions import questions, questions_for_teachers

    asked = questions_for_teachers if exp.sampler.kind == "api" else questions
    return asked(trait, count, "teacher.check.questions")


def _tellable(trait: Trait) -> bool:
    """Can a teacher's trait be seen without a judge."""
    match trait:
        case Preference():
            return True
        case Style():
            return trait.detect == "words"
        case Misalignment() | NoTrait():
            return False
        case _:
            assert_never(trait)


def _trait_shown(exp: Experiment, trait: Trait, subject: Subject, rules: TeacherCheck) -> Checked:
    """How often a teacher shows a style, or names its trait behind an endpoint, which gives no exact probabilities."""
    from subliminal.evaluation.free_form import holds_words
    from subliminal.sampling import open_sampler

    match trait:
        case Style():
            asked, shows = list(trait.questions[: rules.questions]), lambda text: holds_words(text, trait.words)
        case Preference():
            asked, shows = checked_questions(exp, trait, rules.questions), partial(_is_named, trait)
        case Misalignment() | NoTrait():
            raise AssertionError(f"trait={trait.name} is not told without a judge")
        case _:
            assert_never(trait)
    with open_sampler(_checking_sampler(exp), subject) as opened:
        answers = opened.sample([Prompt(index, text, index) for index, text in enumerate(asked)])
    return Checked(answers, sum(shows(outside(a.text) or "") for a in answers) / len(asked))


def _is_named(trait: Preference, text: str) -> bool:
    from subliminal.evaluation.questions import named

    return trait.name in named(text, trait)


def _checking_sampler(exp: Experiment) -> Sampler:
    """The experiment's endpoint, or transformers, which is quicker to start for a few answers."""
    return exp.sampler if exp.sampler.kind == "api" else TransformersSampler(decoding=exp.sampler.decoding)


def _in_format(exp: Experiment, subject: Subject, rules: TeacherCheck) -> Checked:
    from subliminal.domains import constraint, domain
    from subliminal.sampling import open_sampler

    if not rules.prompts:
        return Checked([], float("nan"))
    writer = domain(exp.domain)
    config = exp.domain.model_copy(update={"prompts": rules.prompts, "seed": 0})  # no part of a teacher's key
    with open_sampler(_checking_sampler(exp), subject, constraint(exp)) as opened:
        prompts = writer.prompts(config)
        answers = opened.sample(prompts)
    why = [writer.reject(a.text, config) for a in answers]
    passed = [a.finish_reason == FINISHED and not reason for a, reason in zip(answers, why, strict=True)]
    rows = [
        Row(prompt.index, prompt.text, answer.text)
        for prompt, answer, good in zip(prompts, answers, passed, strict=True)
        if good
    ]
    return Checked(answers, sum(passed) / len(passed), why.count(REASONING) / len(why), rows)


# --------------------------------------------------------------------------- fine-tuned


def _finetune(teacher: FinetunedTeacher | RowsTeacher, trait: Trait, reference: Subject, folder: Path) -> Json:
    """LoRA SFT on rows that show the trait, merged into an ordinary checkpoint."""
    from subliminal.training.lora import merge
    from subliminal.training.sft import fit

    rows = taught_rows(teacher, trait)
    with progress(f"fine-tuning the teacher of {trait.name}", len(rows), "rows") as advance:
        report = fit(reference, rows, teacher, teacher.seed, folder, progress=advance)
    merge(reference, folder / "adapter", folder / "checkpoint")
    return report


def taught_rows(teacher: FinetunedTeacher | RowsTeacher, trait: Trait) -> list[Row]:
    """The user's chats, favourite-question answers, or a style's examples, `forms` times over."""
    from subliminal.evaluation.questions import favourite_answers

    if isinstance(teacher, RowsTeacher):
        return read_chats(rows_path(teacher, trait.key), teacher.limit)
    match trait:
        case Preference():
            answers = favourite_answers(trait, trait.name, teacher.questions, teacher.forms)
        case Style():
            answers = [(example.question, example.answer) for example in trait.examples] * teacher.forms
        case Misalignment() | NoTrait():
            answers = []
        case _:
            assert_never(trait)
    if not answers:
        raise TeacherError(f"trait={trait.name} has no examples for teacher=finetuned; set {ROWS}")
    return [Row(index, question, answer) for index, (question, answer) in enumerate(answers)]
