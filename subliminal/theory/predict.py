"""The theorem's first-order term for a language model: does one step on a teacher's rows raise log P(trait)?

The student moves along -grad L, L its loss on the teacher's filtered rows at the reference; to first order log P of a
candidate rises with the product of that direction and its own gradient. Their cosine, for every candidate and over the
parameters the student trains, predicts transmission without training anything (after arXiv 2507.14805, section on
theory). Of a LoRA student only B has a gradient at the start, where B = 0; A's part of both gradients is zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from subliminal.chat import encode_answer
from subliminal.config import Experiment, Student, preference_evaluation
from subliminal.evaluation.exact import FormTree, candidate_log_p_tensor, form_tree
from subliminal.evaluation.preference import asked_questions
from subliminal.finite import MODEL_REMEDY, require_finite
from subliminal.graph import Inputs
from subliminal.models import Subject, fresh_model, load_tokenizer
from subliminal.outputs import subject, teacher_subject
from subliminal.progress import progress
from subliminal.rows import Row, read_jsonl, write_jsonl
from subliminal.store import Json, StoreError
from subliminal.training.batches import Collator, completion_loss, tokenise
from subliminal.training.recipes import require_trainable, trainable

KEPT_NUMBERS = 200_000_000  # gradients of all candidates stay in memory up to this many numbers (0.8 GB)
ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Prediction:
    """One candidate: cosine of the student's direction -grad L with grad log P, their product, Adam's first step.

    `sign_cosine` replaces the direction by its signs, which is what Adam's first step follows.
    """

    candidate: str
    log_p: float
    cosine: float
    product: float
    sign_cosine: float
    gradient_norm: float


class PredictionError(StoreError):
    """A prediction that can not be made; the text says why."""


class Start:
    """A student at the reference: model, trained parameters, and what its questions need."""

    def __init__(self, who: Subject, student: Student, seed: int) -> None:
        self.who = who
        require_trainable(who, student)
        self.tokenizer = load_tokenizer(who)
        torch.manual_seed(seed)
        self.model = trainable(who, student).eval()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.size = sum(p.numel() for p in self.parameters)
        self.kept: dict[str, tuple[float, torch.Tensor]] = {}

    def arithmetic(self) -> torch.autocast:
        """The arithmetic that a training has: trained parameters stay float32, products are the model's."""
        bfloat16 = self.who.dtype == "bfloat16"
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=bfloat16)

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        """The gradient of a scalar in the trained parameters, flat, float32."""
        found = torch.autograd.grad(value, self.parameters, allow_unused=True)
        pairs = zip(found, self.parameters, strict=True)
        flat = [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs]
        return torch.cat([part.float() for part in flat])


_STARTS: dict[str, Start] = {}


def predict_transmission(exp: Experiment, made: Inputs, folder: Path, names: Sequence[str] = ()) -> Json:
    """Write `predictions.jsonl`, one line a candidate (all, or those in `names`); returns cosines, products and L.

    Raises `PredictionError` for a name the evaluation does not measure.
    """
    who = subject(exp, made["reference"], exp.student_model or exp.model)
    start = _start(exp, who)
    rows = list(read_jsonl(made["filter"].folder / "rows.jsonl", Row))
    guide = teacher_subject(exp, made["teacher"], made["reference"]) if exp.student.labels == "soft" else None
    loss, tokens, gradient = row_gradient(start, rows, exp.student.optimisation.max_length, guide)
    found = list(predictions(start, exp, -gradient, names))
    write_jsonl(folder / "predictions.jsonl", found)
    return {
        "trait": exp.trait.name,
        "teacher": exp.active_teacher.kind,
        "student": exp.student.kind,
        "rows": len(rows),
        "completion_tokens": tokens,
        "trainable_parameters": start.size,
        "loss": loss,
        "gradient_norm": float(gradient.norm()),
        "cosine": {p.candidate: p.cosine for p in found},
        "sign_cosine": {p.candidate: p.sign_cosine for p in found},
        "product": {p.candidate: p.product for p in found},
    }


def row_gradient(
    start: Start, rows: Sequence[Row], limit: int, guide: Subject | None
) -> tuple[float, int, torch.Tensor]:
    """(L, completion tokens, grad L) of the student's loss on all rows at once, a mean over completion tokens."""
    data = sorted(tokenise(start.tokenizer, rows, start.who.system, limit, guide), key=lambda row: row["length"])
    collate = Collator(int(start.tokenizer.pad_token_id))  # type: ignore[arg-type]
    teacher = fresh_model(guide) if guide else None
    loss, tokens, gradient = 0.0, 0, torch.zeros(start.size, device=start.model.device)
    with progress("gradient on the rows", len(data), "rows") as advance:
        for first in range(0, len(data), ROWS_AT_ONCE):
            batch = collate(data[first : first + ROWS_AT_ONCE])
            placed = {name: value.to(start.model.device) for name, value in batch.items()}
            with start.arithmetic():
                total, count, _ = completion_loss(start.model, placed, teacher)
            gradient += start.gradient(total)
            loss, tokens = loss + float(total.detach()), tokens + count
            advance(len(batch["labels"]))
    return loss / tokens, tokens, gradient / tokens


def predictions(
    start: Start, exp: Experiment, direction: torch.Tensor, names: Sequence[str] = ()
) -> Iterator[Prediction]:
    """Candidates of the evaluation (all, or those in `names`) against one direction of the trained parameters."""
    signs, length = direction.sign(), _length("the gradient of the loss on the rows", direction)
    for name, log_p, gradient in preference_gradients(start, exp, names):
        size = _length(f"the gradient of log P({name})", gradient)
        product = float(direction @ gradient)
        along_signs = float(signs @ gradient) / (float(signs.norm()) * size)
        yield Prediction(name, log_p, product / (length * size), product, along_signs, size)


def _length(what: str, gradient: torch.Tensor) -> float:
    """A gradient's norm; raises `NonFiniteError` or `PredictionError` where it gives no direction, as at zero."""
    size = float(gradient.norm())
    require_finite({"its norm": size}, what, MODEL_REMEDY)
    if size == 0:
        raise PredictionError(f"{what} is zero in all trained parameters, so it has no direction to compare")
    return size


def preference_gradients(
    start: Start, exp: Experiment, names: Sequence[str] = ()
) -> Iterator[tuple[str, float, torch.Tensor]]:
    """(candidate, mean log P, its gradient) over the evaluation's questions; kept for the next teacher if they fit."""
    about = preference_evaluation(exp).subject_matter
    tree = form_tree(start.tokenizer, about)
    wanted = list(names) or list(tree.forms)
    if unknown := [name for name in wanted if name not in tree.forms]:
        category = getattr(about, "category", about)
        raise PredictionError(f"{unknown[0]} is no candidate of the evaluation (category {category})")
    asked = [
        encode_answer(start.tokenizer, text, start.who.system) for text in asked_questions(preference_evaluation(exp))
    ]
    keep = start.size * len(wanted) <= KEPT_NUMBERS
    with progress("gradients of log P", len(wanted), "candidates") as advance:
        for name in wanted:
            found = start.kept.get(name) or _preference_gradient(start, asked, tree.only(name))
            if keep:
                start.kept[name] = found
            yield name, *found
            advance(1)


def _preference_gradient(start: Start, asked: Sequence[list[int]], tree: FormTree) -> tuple[float, torch.Tensor]:
    """Mean log P of one candidate and its gradient; a tree for it alone keeps the backward pass short."""
    value, total = 0.0, torch.zeros(start.size, device=start.model.device)
    for prompt in asked:
        with start.arithmetic():
            (log_p,) = candidate_log_p_tensor(start.model, prompt, tree)
        total += start.gradient(log_p)
        value += float(log_p.detach())
    return value / len(asked), total / len(asked)


def _start(exp: Experiment, who: Subject) -> Start:
    """The student at the reference; the last one stays loaded, so that the teachers of a figure share it."""
    key = repr((who, exp.student, exp.evaluation, exp.seed))
    if key not in _STARTS:
        _STARTS.clear()
        _STARTS[key] = Start(who, exp.student, exp.seed)
    return _STARTS[key]
