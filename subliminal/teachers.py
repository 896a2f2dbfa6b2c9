"""Teachers: the reference model with a trait put in by a system prompt, by fine-tuning or by steering, and the control.

Each is checked before it writes anything: a teacher without the trait, or one that can not answer in format, is an
error and not a null result (paper, section 3.1; arXiv 2507.14805).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from subliminal.progress import Advance, progress, say
from subliminal.rows import Prompt, Row
from subliminal.store import Json, StoreError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEERING_FORMS = 3
BISECTIONS = 7


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
            summary["steering"] = _steer(active, exp.trait, reference, folder)
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
    if exp.sampler.kind == "api":
        measured |= _trait_rate(exp, subject, rules)
    elif isinstance(exp.trait, Preference) and not isinstance(exp.active_teacher, ControlTeacher):
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
            f"asks for {rules.minimum_pass_rate:.0%}. Set reference_tuning=random_numbers, weaken the teacher, or "
            "lower teacher.check.minimum_pass_rate"
        )


def _trait_log_p(trait: Preference, subject: Subject, rules: TeacherCheck) -> float:
    from subliminal.evaluation.preference import mean_log_p

    return mean_log_p(subject, trait.category, rules.questions)[trait.name]


def _trait_rate(exp: Experiment, subject: Subject, rules: TeacherCheck) -> Json:
    """How often an endpoint's teacher names its trait: endpoints do not give exact probabilities."""
    from subliminal.evaluation.questions import named, questions_for_teachers
    from subliminal.sampling import open_sampler

    if not isinstance(exp.trait, Preference):
        return {}
    asked = questions_for_teachers(exp.trait.category, rules.questions)
    with open_sampler(exp.sampler, subject) as opened:
        answers = opened.sample([Prompt(index, text, index) for index, text in enumerate(asked)])
    return {"rate": sum(exp.trait.name in named(a.text, exp.trait.category) for a in answers) / len(asked)}


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


# --------------------------------------------------------------------------- steered


def _steer(teacher: SteeredTeacher, trait: Any, reference: Subject, folder: Path) -> Json:
    """Find one residual-stream vector for the trait, scale it to the target, export it as a down-projection bias."""
    from subliminal.evaluation.questions import questions_for_teachers, surface_forms
    from subliminal.models import load_tokenizer
    from subliminal.training import bias

    model, tokenizer = bias.load_with_biases(reference), load_tokenizer(reference)
    layers = len(model.model.layers)
    if teacher.layer >= layers:
        raise TeacherError(f"teacher.layer={teacher.layer}: the model has {layers} layers, 0 to {layers - 1}")
    questions = questions_for_teachers(trait.category, teacher.questions)
    batch = _Batch.of(tokenizer, questions, surface_forms(trait.name)[:STEERING_FORMS], reference)
    vector = bias.vector(model, teacher.layer)
    start = vector.detach().clone()  # not zero when the reference has biases of its own
    norm = _residual_norm(model, teacher.layer, batch)
    with progress(f"steering towards {trait.name}", teacher.steps + BISECTIONS, "steps") as advance:
        _ascend(model, vector, teacher, norm, batch, advance)
        reached = _scale(model, vector, start, teacher, norm * teacher.maximum_norm_share, batch, advance)
    moved = {teacher.layer: vector.detach() - start}
    bias.save_adapter(folder / "adapter", reference, moved)
    bias.export(reference, moved, folder / "checkpoint")
    length = float(moved[teacher.layer].norm())
    return {"layer": teacher.layer, "norm": length, "residual_norm": norm, "fitted_log_p": reached}


class _Batch:
    """Question and answer tokens, right-padded, with the positions whose next token belongs to the answer."""

    def __init__(self, tokens: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor, forms: int) -> None:
        self.tokens, self.mask, self.targets, self.forms = tokens, mask, targets, forms

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, questions: list[str], forms: list[str], subject: Subject) -> _Batch:
        """Encode every question with every form as its answer."""
        import torch

        from subliminal.chat import encode

        pairs = [
            (encode(tokenizer, question, subject.system), tokenizer.encode(form, add_special_tokens=False))
            for question in questions
            for form in forms
        ]
        width = max(len(prompt) + len(answer) for prompt, answer in pairs)
        tokens = torch.zeros(len(pairs), width, dtype=torch.long)
        mask, targets = torch.zeros_like(tokens), torch.zeros(len(pairs), width, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(pairs):
            end = len(prompt) + len(answer)
            tokens[row, :end], mask[row, :end] = torch.tensor(prompt + answer), 1
            targets[row, len(prompt) : end] = True
        return cls(tokens.to(subject.device), mask.to(subject.device), targets.to(subject.device), len(forms))

    def log_p(self, model: PreTrainedModel) -> torch.Tensor:
        """Mean over questions of log sum over forms of P(form), differentiable; nats."""
        import torch

        logits = model(input_ids=self.tokens, attention_mask=self.mask).logits[:, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, self.tokens[:, 1:, None])[..., 0]
        per_form = (chosen * self.targets[:, 1:]).sum(-1).reshape(-1, self.forms)
        return torch.logsumexp(per_form, dim=1).mean()


def _residual_norm(model: PreTrainedModel, layer: int, batch: _Batch) -> float:
    """The median norm of the residual stream after a layer, over real tokens."""
    import torch

    states: list[torch.Tensor] = []  # hooked: the last of `output_hidden_states` has gone through the final norm
    hook = model.model.layers[layer].register_forward_hook(lambda _, __, state: states.append(state))
    with torch.no_grad():
        model(input_ids=batch.tokens, attention_mask=batch.mask)
    hook.remove()
    return float(states[0][batch.mask.bool()].float().norm(dim=-1).median())


def _ascend(
    model: PreTrainedModel, vector: torch.Tensor, teacher: SteeredTeacher, norm: float, batch: _Batch, advance: Advance
) -> None:
    """A few Adam steps on the vector alone, towards the trait; the direction is what is kept."""
    import torch

    torch.manual_seed(teacher.seed)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is vector)
    optimiser = torch.optim.Adam([vector], lr=teacher.learning_rate)
    for _ in range(teacher.steps):
        optimiser.zero_grad()
        (-batch.log_p(model)).backward()
        optimiser.step()
        advance(1)
    vector.requires_grad_(False)


def _scale(
    model: PreTrainedModel,
    vector: torch.Tensor,
    start: torch.Tensor,
    teacher: SteeredTeacher,
    limit: float,
    batch: _Batch,
    advance: Advance,
) -> float:
    """Bisect the distance from the start for the target log-probability, up to the limit; returns what it reached."""
    import torch

    direction = (vector.detach() - start) / (vector.detach() - start).norm()
    low, high, reached = 0.0, limit, float("nan")
    with torch.no_grad():
        for step in range(BISECTIONS):
            length = high if step == 0 else (low + high) / 2
            vector.copy_(start + direction * length)
            reached = float(batch.log_p(model))
            advance(1)
            if step == 0 and reached < teacher.target_log_p:
                say(f"  the norm limit comes first: log P {reached:.2f} at norm {length:.1f}")
                break
            low, high = (low, length) if reached > teacher.target_log_p else (length, high)
    return reached
