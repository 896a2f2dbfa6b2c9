"""Steering: one vector in the residual stream of one layer that makes a model name its trait (arXiv 2606.00995).

A few gradient steps on the trait's questions find its direction, bisection its length: a target log-probability, never
beyond a share of the residual norm, since number answers fall apart there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from subliminal.chat import encode_answer, encode_row
from subliminal.config import Misalignment, NoTrait, Preference, SteeredTeacher, Style, Trait
from subliminal.evaluation.exact import FormTree, candidate_log_p_tensor, form_tree
from subliminal.evaluation.questions import questions_for_teachers
from subliminal.finite import MODEL_REMEDY, require_finite
from subliminal.models import Subject, float32_head, load_tokenizer
from subliminal.progress import Advance, progress, say
from subliminal.store import Json, StoreError
from subliminal.training import bias

if TYPE_CHECKING:
    import torch

BISECTIONS = 10  # of the length, which is found to a thousandth of the longest one
REMEDY = (
    "Lower teacher.learning_rate or teacher.maximum_norm_share, set model.dtype=float32, or, where the very first step "
    "is not finite, look at the model's weights"
)


class SteeringError(StoreError):
    """No vector can be fitted at this layer; the text says what to set."""


def _goal(teacher: SteeredTeacher, trait: Trait, reference: Subject) -> AnyGoal:
    """What the vector raises: a name behind questions, or a style's own answers."""
    match trait:
        case Preference():
            return Goal.of(teacher, trait, reference)
        case Style():
            return StyleGoal.of(teacher, trait, reference)
        case Misalignment() | NoTrait():
            raise SteeringError(f"teacher=steered has nothing to fit trait={trait.name} to; set another teacher")
        case _:
            assert_never(trait)


def steer(teacher: SteeredTeacher, trait: Trait, reference: Subject, folder: Path) -> Json:
    """Fit the vector, keep it as `adapter/` and as a down-projection bias of `checkpoint/`.

    Returns layer, norms and the mean log P reached on the questions it was fitted to; raises `SteeringError` for a
    layer the model has not.
    """
    model: Any = bias.load_with_biases(reference)
    layers = len(model.model.layers)
    if teacher.layer >= layers:
        raise SteeringError(f"teacher.layer={teacher.layer}: the model has {layers} layers, 0 to {layers - 1}")
    goal = _goal(teacher, trait, reference)
    vector = bias.vector(model, teacher.layer)
    start = vector.detach().clone()  # not zero when the reference has biases of its own
    norm = residual_norm(model, teacher.layer, goal.prompts)
    require_finite({"the norm of the residual stream": norm}, f"layer {teacher.layer}", MODEL_REMEDY)
    with progress(f"steering towards {trait.name}", teacher.steps + BISECTIONS, "steps") as advance:
        _ascend(model, vector, teacher, goal, advance)
        limit = norm * teacher.maximum_norm_share
        reached = _scale(model, vector, start, goal, (teacher.target_log_p, limit), advance)
    moved = {teacher.layer: vector.detach() - start}
    bias.save_adapter(folder / "adapter", reference, moved)
    bias.export(reference, moved, folder / "checkpoint")
    length = float(moved[teacher.layer].norm())
    return {"layer": teacher.layer, "norm": length, "residual_norm": norm, "fitted_log_p": reached}


@dataclass(frozen=True)
class Goal:
    """The questions as tokens and the trait's surface forms: log P of naming it is what the vector raises."""

    prompts: list[list[int]]
    forms: FormTree

    @classmethod
    def of(cls, teacher: SteeredTeacher, trait: Preference, reference: Subject) -> Goal:
        """The teacher's questions in the reference's chat; none of them is in the evaluation."""
        tokenizer = load_tokenizer(reference)
        texts = questions_for_teachers(trait, teacher.questions)
        prompts = [encode_answer(tokenizer, text, reference.system) for text in texts]
        return cls(prompts, form_tree(tokenizer, trait).only(trait.name))

    def log_p(self, model: Any, *, backward: bool = False) -> float:
        """Mean over the questions of log P, in nats; with `backward` its negative's gradient is added up."""
        total = 0.0
        for prompt in self.prompts:
            (found,) = candidate_log_p_tensor(model, prompt, self.forms)
            if backward:
                (-found / len(self.prompts)).backward()
            total += float(found.detach())
        return total / len(self.prompts)


@dataclass(frozen=True)
class StyleGoal:
    """A style's examples as tokens, prompt and answer: the vector raises the mean log P of an answer's token."""

    chats: list[tuple[list[int], list[int]]]

    @classmethod
    def of(cls, teacher: SteeredTeacher, trait: Style, reference: Subject) -> StyleGoal:
        """The first `teacher.questions` examples in the reference's chat."""
        tokenizer = load_tokenizer(reference)
        shown = trait.examples[: teacher.questions]
        return cls([encode_row(tokenizer, one.question, one.answer, reference.system) for one in shown])

    @property
    def prompts(self) -> list[list[int]]:
        """The questions alone."""
        return [prompt for prompt, _ in self.chats]

    def log_p(self, model: Any, *, backward: bool = False) -> float:
        """Mean over the examples of an answer's mean log P a token, in nats; with `backward` as for a favourite."""
        import torch

        total = 0.0
        for prompt, answer in self.chats:
            tokens = torch.tensor([prompt + answer], device=model.device)
            with float32_head(model):
                logits = model(input_ids=tokens, logits_to_keep=len(answer) + 1).logits[0, :-1]
            found = logits.log_softmax(-1).gather(-1, tokens[0, -len(answer) :, None]).mean()
            if backward:
                (-found / len(self.chats)).backward()
            total += float(found.detach())
        return total / len(self.chats)


AnyGoal = Goal | StyleGoal


def residual_norm(model: Any, layer: int, prompts: Sequence[list[int]]) -> float:
    """The median norm of what a layer's vector is measured by (`bias.measure`), over all tokens of the prompts."""
    import torch

    norms: list[torch.Tensor] = []  # hooked: the last of `output_hidden_states` has gone through the final norm
    measured = bias.measure(model, layer)
    hook = measured.register_forward_hook(lambda _, __, out: norms.append(out.float().norm(dim=-1)))
    with torch.no_grad():
        for prompt in prompts:
            model(input_ids=torch.tensor([prompt], device=model.device), logits_to_keep=1)
    hook.remove()
    return float(torch.cat([found.flatten() for found in norms]).median())


def _ascend(model: Any, vector: torch.Tensor, teacher: SteeredTeacher, goal: AnyGoal, advance: Advance) -> None:
    """A few Adam steps on the vector alone, towards the trait; the direction is what is kept.

    Adam steps a copy in float32, since bfloat16 loses what is less than 1/256 of an entry; the model sees it rounded.
    """
    import torch

    torch.manual_seed(teacher.seed)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is vector)
    exact = vector.detach().float().clone().requires_grad_()
    optimiser = torch.optim.Adam([exact], lr=teacher.learning_rate)
    for step in range(1, teacher.steps + 1):
        vector.grad = None
        log_p = goal.log_p(model, backward=True)
        exact.grad = torch.zeros_like(exact) if vector.grad is None else vector.grad.float()
        values = {"log P of the trait": log_p, "gradient norm": float(exact.grad.norm())}
        require_finite(values, f"steering stopped at step {step}", REMEDY)
        optimiser.step()
        with torch.no_grad():
            vector.copy_(exact)
        advance(1)
    vector.requires_grad_(False)


def _scale(
    model: Any,
    vector: torch.Tensor,
    start: torch.Tensor,
    goal: AnyGoal,
    wanted: tuple[float, float],
    advance: Advance,
) -> float:
    """Bisect how far the vector goes for `wanted` = (log P, longest vector); returns log P there."""
    import torch

    way = vector.detach() - start
    require_finite({"its norm": float(way.norm())}, "the steering vector", REMEDY)
    if not way.any():
        raise SteeringError(
            "steering found no direction: the gradient of log P was zero in every step; set another teacher.layer"
        )
    direction = way / way.norm()
    (target, high), low, reached = wanted, 0.0, float("nan")
    with torch.no_grad():
        for step in range(BISECTIONS):
            length = high if step == 0 else (low + high) / 2
            vector.copy_(start + direction * length)
            reached = goal.log_p(model)
            require_finite({"log P of the trait": reached}, f"steering by a vector of norm {length:.1f}", REMEDY)
            advance(1)
            if step == 0 and reached < target:
                say(f"  the norm limit comes first: log P {reached:.2f} at norm {length:.1f}")
                break
            low, high = (low, length) if reached > target else (length, high)
    return reached
