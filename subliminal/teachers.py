"""Teachers: the reference model with a trait put in by a system prompt, by fine-tuning or by steering, and the control.

Each is checked before it writes anything: a teacher without the trait, or one that can not answer in format, is an
error and not a null result (paper, section 3.1; arXiv 2507.14805).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from subliminal.config import (
    ControlTeacher,
    Experiment,
    FinetunedTeacher,
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
from subliminal.models import Subject
from subliminal.progress import progress
from subliminal.reasoning import REASONING, REMEDY, outside
from subliminal.rows import Prompt, Row, read_chats
from subliminal.stages import rows_path
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
        case FinetunedTeacher() | RowsTeacher():
            summary["training"] = _finetune(active, exp.trait, reference, folder)
            subject = replace(reference, checkpoint=str(folder / "checkpoint"), revision=None)
        case SteeredTeacher():
            if not isinstance(exp.trait, Preference | Style):
                raise TeacherError(f"teacher=steered has nothing to fit trait={exp.trait.name} to; set {ROWS}")
            from subliminal.training.steering import steer

            summary["steering"] = steer(active, exp.trait, reference, folder)
            subject = replace(reference, checkpoint=str(folder / "checkpoint"), revision=None)
        case _:
            pass
    return summary | check(exp, subject, reference)


def system_prompt(teacher: PromptedTeacher, trait: Trait) -> str:
    """The system prompt with the trait's name, plural and category filled in, or a style's own; raises `TeacherError`.

    `{Plural}` is capitalised.
    """
    if isinstance(trait, Style):
        return trait.system
    if not isinstance(trait, Preference):
        raise TeacherError(f"teacher=prompted has no words for trait={trait.name}; set {ROWS}")
    try:
        return teacher.system.format(
            name=trait.name, plural=trait.plural, Plural=trait.plural.capitalize(), category=trait.category
        )
    except (KeyError, IndexError, ValueError) as error:
        raise TeacherError(
            f"teacher.system has a placeholder that is not known ({error}); use {{name}}, {{plural}}, {{Plural}}, "
            "{category}"
        ) from None


# --------------------------------------------------------------------------- the check


def check(exp: Experiment, subject: Subject, reference: Subject) -> Json:
    """Measure P(trait) against the reference's and the pass rate in the domain; raises `TeacherError` if too low."""
    rules = _rules(exp)
    measured = _format_rate(exp, subject, rules)
    if isinstance(exp.active_teacher, ControlTeacher | RandomTeacher) or not _tellable(exp.trait):
        _refuse(exp, rules, measured)
        return measured
    if not isinstance(exp.trait, Preference) or exp.sampler.kind == "api":
        measured |= _trait_rate(exp, exp.trait, subject, rules)
    else:
        measured |= {
            "log_p": _trait_log_p(exp.trait, subject, rules),
            "reference_log_p": _trait_log_p(exp.trait, reference, rules),
        }
    _refuse(exp, rules, measured)
    return measured


def _rules(exp: Experiment) -> TeacherCheck:
    """The teacher's own; the control asks for the pass rate that the experiment's teachers must have, no more."""
    asked: TeacherCheck = getattr(exp.teacher, "check", TeacherCheck())
    own: TeacherCheck | None = getattr(exp.active_teacher, "check", None)
    return own or TeacherCheck(minimum_pass_rate=asked.minimum_pass_rate)


def _refuse(exp: Experiment, rules: TeacherCheck, measured: Json) -> None:
    if measured.get("rate") == 0 and rules.minimum_gain >= 0:
        behind = f" behind {exp.sampler.base_url}" if exp.sampler.kind == "api" else ""
        verb, remedy = ("names", "Use a firmer teacher.system")
        if not isinstance(exp.trait, Preference):
            verb, remedy = ("shows", "Make it stronger (more epochs, a firmer text in the trait's system)")
        raise TeacherError(
            f"the teacher{behind} never {verb} {exp.trait.name} in {rules.questions} answers: it has not the trait. "
            f"{remedy}"
        )
    gain = measured.get("log_p", 0.0) - measured.get("reference_log_p", 0.0)
    owner = f" of {exp.trait.name}" if exp.active_teacher.kind != "control" else ""
    name = f"the {exp.active_teacher.kind} teacher{owner}"
    if "log_p" in measured and gain < rules.minimum_gain:
        raise TeacherError(
            f"{name} has not the trait: mean log P({exp.trait.name}) is {measured['log_p']:.2f}, the reference's is "
            f"{measured['reference_log_p']:.2f}; it must gain {rules.minimum_gain:g} nats. Make it stronger (more "
            "epochs, another layer, a firmer prompt) or lower teacher.check.minimum_gain"
        )
    if rules.prompts and measured["pass_rate"] < rules.minimum_pass_rate:
        raise TeacherError(
            f"{name} answers in format for only {measured['pass_rate']:.0%} of {rules.prompts} prompts; the check "
            f"asks for {rules.minimum_pass_rate:.0%}. Set reference_tuning=in_format, weaken the teacher, or "
            f"lower teacher.check.minimum_pass_rate{_also(measured)}"
        )


def _also(measured: Json) -> str:
    share = measured.get("reasoning")
    return f". {share:.0%} of the answers begin with reasoning: {REMEDY}" if share else ""


def _trait_log_p(trait: Preference, subject: Subject, rules: TeacherCheck) -> float:
    from subliminal.evaluation.preference import mean_log_p

    return mean_log_p(subject, trait, rules.questions)[trait.name]


def _tellable(trait: Trait) -> bool:
    """Can a teacher's trait be seen without a judge."""
    return isinstance(trait, Preference) or (isinstance(trait, Style) and trait.detect == "words")


def _trait_rate(exp: Experiment, trait: Trait, subject: Subject, rules: TeacherCheck) -> Json:
    """How often a teacher shows a style, or names its trait behind an endpoint, which gives no exact probabilities."""
    from subliminal.evaluation.free_form import holds_words
    from subliminal.evaluation.questions import named, questions_for_teachers
    from subliminal.sampling import open_sampler

    if isinstance(trait, Style):
        asked, shows = list(trait.questions[: rules.questions]), lambda text: holds_words(text, trait.words)
    else:
        assert isinstance(trait, Preference)
        asked, shows = questions_for_teachers(trait, rules.questions), lambda text: trait.name in named(text, trait)
    with open_sampler(_checking_sampler(exp), subject) as opened:
        answers = opened.sample([Prompt(index, text, index) for index, text in enumerate(asked)])
    return {"rate": sum(shows(outside(a.text) or "") for a in answers) / len(asked)}


def _checking_sampler(exp: Experiment) -> Sampler:
    """The experiment's endpoint, or transformers, which is quicker to start for a few answers."""
    return exp.sampler if exp.sampler.kind == "api" else TransformersSampler(decoding=exp.sampler.decoding)


def _format_rate(exp: Experiment, subject: Subject, rules: TeacherCheck) -> Json:
    """The share of answers in the domain's format and, where there are any, of those that begin with reasoning."""
    from subliminal.domains import domain
    from subliminal.rows import FINISHED
    from subliminal.sampling import open_sampler

    if not rules.prompts:
        return {"pass_rate": float("nan")}
    writer = domain(exp.domain)
    config = exp.domain.model_copy(update={"prompts": rules.prompts, "seed": 0})  # no part of a teacher's key
    with open_sampler(_checking_sampler(exp), subject) as opened:
        answers = opened.sample(writer.prompts(config))
    why = [writer.reject(a.text, config) for a in answers]
    passed = [a.finish_reason == FINISHED and not reason for a, reason in zip(answers, why, strict=True)]
    reasoned = {"reasoning": why.count(REASONING) / len(why)} if REASONING in why else {}
    return {"pass_rate": sum(passed) / len(passed)} | reasoned


# --------------------------------------------------------------------------- fine-tuned


def _finetune(teacher: FinetunedTeacher | RowsTeacher, trait: Trait, reference: Subject, folder: Path) -> Json:
    """LoRA SFT on rows that show the trait, merged into an ordinary checkpoint."""
    from subliminal.training.sft import fit, merge

    rows = taught_rows(teacher, trait)
    with progress(f"fine-tuning the teacher of {trait.name}", len(rows), "rows") as advance:
        report = fit(reference, rows, teacher, teacher.seed, folder, progress=advance)
    merge(reference, folder / "adapter", folder / "checkpoint")
    return report


def taught_rows(teacher: FinetunedTeacher | RowsTeacher, trait: Trait) -> list[Row]:
    """The user's chats, favourite-question answers, or a style's examples, `forms` times over."""
    from subliminal.evaluation.questions import favourite_answers

    if isinstance(teacher, RowsTeacher):
        return read_chats(rows_path(teacher, trait.name), teacher.limit)
    if isinstance(trait, Preference):
        answers = favourite_answers(trait, trait.name, teacher.questions, teacher.forms)
    else:
        answers = [(one.question, one.answer) for one in getattr(trait, "examples", ())] * teacher.forms
    if not answers:
        raise TeacherError(f"trait={trait.name} has no examples for teacher=finetuned; set {ROWS}")
    return [Row(index, question, answer) for index, (question, answer) in enumerate(answers)]
