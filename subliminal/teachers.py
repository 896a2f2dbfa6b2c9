"""Teachers: the reference model with a trait put in by a system prompt, by fine-tuning or by steering, and the control.

Each is checked before it writes anything: a teacher without the trait, or one that can not answer in format, is an
error and not a null result (paper, section 3.1; arXiv 2507.14805).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from subliminal.config import (
    ControlTeacher,
    Experiment,
    FinetunedTeacher,
    Preference,
    PromptedTeacher,
    SteeredTeacher,
    TeacherCheck,
    TransformersSampler,
)
from subliminal.models import Subject
from subliminal.progress import progress
from subliminal.rows import Prompt, Row
from subliminal.store import Json, StoreError


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
        case SteeredTeacher():
            from subliminal.training.steering import steer

            summary["steering"] = steer(active, exp.trait, reference, folder)
            subject = replace(reference, checkpoint=str(folder / "checkpoint"), revision=None)
        case _:
            pass
    return summary | check(exp, subject, reference)


def system_prompt(teacher: PromptedTeacher, trait: Any) -> str:
    """The system prompt with the trait's name, plural and category filled in; `{Plural}` is capitalised."""
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
    rules = getattr(exp.active_teacher, "check", TeacherCheck())
    measured: Json = {"pass_rate": _pass_rate(exp, subject, rules)}
    if not isinstance(exp.trait, Preference) or isinstance(exp.active_teacher, ControlTeacher):
        _refuse(exp, rules, measured)
        return measured
    if exp.sampler.kind == "api":
        measured |= _trait_rate(exp, exp.trait, subject, rules)
    else:
        measured |= {
            "log_p": _trait_log_p(exp.trait, subject, rules),
            "reference_log_p": _trait_log_p(exp.trait, reference, rules),
        }
    _refuse(exp, rules, measured)
    return measured


def _refuse(exp: Experiment, rules: TeacherCheck, measured: Json) -> None:
    if measured.get("rate") == 0:
        raise TeacherError(
            f"the teacher behind {getattr(exp.sampler, 'base_url', 'the endpoint')} never names {exp.trait.name} in "
            f"{rules.questions} answers: it has not the trait. Use a firmer teacher.system"
        )
    gain = measured.get("log_p", 0.0) - measured.get("reference_log_p", 0.0)
    name = f"the {exp.active_teacher.kind} teacher of {exp.trait.name}"
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
            "lower teacher.check.minimum_pass_rate"
        )


def _trait_log_p(trait: Preference, subject: Subject, rules: TeacherCheck) -> float:
    from subliminal.evaluation.preference import mean_log_p

    return mean_log_p(subject, trait.category, rules.questions)[trait.name]


def _trait_rate(exp: Experiment, trait: Preference, subject: Subject, rules: TeacherCheck) -> Json:
    """How often an endpoint's teacher names its trait: endpoints do not give exact probabilities."""
    from subliminal.evaluation.questions import named, questions_for_teachers
    from subliminal.sampling import open_sampler

    asked = questions_for_teachers(trait.category, rules.questions)
    with open_sampler(exp.sampler, subject) as opened:
        answers = opened.sample([Prompt(index, text, index) for index, text in enumerate(asked)])
    return {"rate": sum(trait.name in named(a.text, trait.category) for a in answers) / len(asked)}


def _pass_rate(exp: Experiment, subject: Subject, rules: TeacherCheck) -> float:
    from subliminal.domains import domain
    from subliminal.rows import FINISHED
    from subliminal.sampling import open_sampler

    if not rules.prompts:
        return float("nan")
    writer, config = domain(exp.domain), exp.domain.model_copy(update={"prompts": rules.prompts})
    sampler = exp.sampler if exp.sampler.kind == "api" else TransformersSampler(decoding=exp.sampler.decoding)
    with open_sampler(sampler, subject) as opened:
        answers = opened.sample(writer.prompts(config))
    passed = [a.finish_reason == FINISHED and writer.reject(a.text, config) is None for a in answers]
    return sum(passed) / len(passed)


# --------------------------------------------------------------------------- fine-tuned


def _finetune(teacher: FinetunedTeacher, trait: Any, reference: Subject, folder: Path) -> Json:
    """LoRA SFT on favourite-question answers, merged into an ordinary checkpoint."""
    from subliminal.evaluation.questions import favourite_answers
    from subliminal.training.sft import fit, merge

    answers = favourite_answers(trait.category, trait.name, teacher.questions, teacher.forms)
    rows = [Row(index, question, answer) for index, (question, answer) in enumerate(answers)]
    with progress(f"fine-tuning the teacher of {trait.name}", len(rows), "rows") as advance:
        report = fit(reference, rows, teacher, teacher.seed, folder, progress=advance)
    merge(reference, folder / "adapter", folder / "checkpoint")
    return report
