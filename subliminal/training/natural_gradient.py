"""Natural gradient for vectors in the residual stream: steps that know how far each direction moves the model.

A vector v shifts what the model says about the rows by the Kullback-Leibler divergence v'Fv/2 a token, F the Fisher
information, and the rows pull it by g, the gradient of their mean log-probability a token. The rows' maximum is near
F^-1 g (Amari 1998, "Natural gradient works efficiently in learning"). A few directions hold most of F, and a trait lies
in the many others, where Adam, whose axes are those of the residual stream, gets nowhere. So a step is

    v += learning rate * (F + damping * m * I)^-1 g,      m the mean eigenvalue of F.

F is the covariance of the rows' scores, a token, at the reference: the gradients of their log-probabilities, one row
each, which one backward pass over a batch gives when every row has its own copy of the vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from subliminal.config import NaturalGradient
from subliminal.finite import require_finite
from subliminal.store import Json
from subliminal.training import bias
from subliminal.training.batches import GUIDE, IGNORED, completion_loss

if TYPE_CHECKING:
    from subliminal.training.trainer import RowTrainer

Batch = Mapping[str, torch.Tensor]


class NaturalGradientOptimiser(torch.optim.Optimizer):
    """Steps of the learning rate times (F + damping)^-1 times the gradient, none longer than `longest_step`.

    `fishers` has F of every vector, shape (size, size), in the vectors' order. Each vector is a group of its own, whose
    `inverse` is kept in resume points.
    """

    def __init__(
        self,
        vectors: Sequence[torch.Tensor],
        fishers: Sequence[torch.Tensor],
        settings: NaturalGradient,
        learning_rate: float,
    ) -> None:
        inverses = [inverse(fisher, settings.damping) for fisher in fishers]
        groups = [{"params": [v], "inverse": i} for v, i in zip(vectors, inverses, strict=True)]
        super().__init__(groups, {"lr": learning_rate, "longest_step": settings.longest_step})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every vector that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for vector in (vector for vector in group["params"] if vector.grad is not None):
                way = group["lr"] * (group["inverse"].to(vector.device) @ vector.grad.float())
                way *= min(1.0, group["longest_step"] / max(float(way.norm()), 1e-12))
                vector.sub_(way.to(vector.dtype))
        return loss


def inverse(fisher: torch.Tensor, damping: float) -> torch.Tensor:
    """(F + damping * m * I)^-1 in float32, m the mean eigenvalue of F; raises `NonFiniteError` for an F that is not."""
    exact = fisher.double()
    mean = float(exact.diagonal().mean())
    require_finite({"the mean eigenvalue of the Fisher information": mean}, "natural gradient", REMEDY)
    damped = exact + damping * mean * torch.eye(len(exact), dtype=exact.dtype, device=exact.device)
    return torch.linalg.inv(damped).float()


REMEDY = "Set model.dtype=float32, or student.optimisation.optimiser.kind=adamw"


def fisher_information(trainer: RowTrainer, layers: Sequence[int], data: Sequence[Json]) -> list[torch.Tensor]:
    """F of each layer's vector at the model as it is: the covariance of the rows' scores a token, (size, size)."""
    order = sorted(data, key=lambda row: row["length"])
    rows_a_pass = trainer.args.per_device_train_batch_size
    scores: list[list[torch.Tensor]] = [[] for _ in layers]
    tokens: list[float] = []
    for start in range(0, len(order), rows_a_pass):
        batch: Any = trainer.data_collator(order[start : start + rows_a_pass])
        batch = {name: value for name, value in batch.items() if not name.startswith(GUIDE)}
        tokens += (batch["labels"] != IGNORED).sum(-1).tolist()
        placed = {name: value.to(trainer.args.device) for name, value in batch.items()}
        # the trainer's own autocast is around its model's forward, which is not prepared yet
        with torch.autocast(trainer.args.device.type, dtype=torch.bfloat16, enabled=trainer.args.bf16):
            new = row_scores(trainer.model, layers, placed)
        for kept, more in zip(scores, new, strict=True):
            kept.append(more.double().cpu())
    return [covariance(torch.cat(kept), torch.tensor(tokens, dtype=torch.float64)) for kept in scores]


def covariance(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """F from rows' scores (rows, size) and their numbers of tokens (rows,): what is left of each without its mean."""
    centred = scores - tokens[:, None] * (scores.sum(0) / tokens.sum())
    return centred.T @ centred / tokens.sum()


def row_scores(model: Any, layers: Sequence[int], batch: Batch) -> list[torch.Tensor]:
    """Of each layer's vector, the gradient of every row's log-probability: tensors (rows, size)."""
    with _own_copies(model, layers, len(batch["labels"])) as copies:
        loss, _, _ = completion_loss(model, batch)
    return [-gradient[:, 0] for gradient in torch.autograd.grad(loss, copies)]


@contextmanager
def _own_copies(model: Any, layers: Sequence[int], rows: int) -> Iterator[list[torch.Tensor]]:
    """While the body runs every row has a vector of its own, zero, added where the layer's vector is."""
    copies: list[torch.Tensor] = []
    hooks = []
    for layer in layers:
        shared = bias.vector(model, layer)
        own = torch.zeros(rows, 1, len(shared), device=shared.device, requires_grad=True)
        copies.append(own)
        hooks.append(bias.holder(model, layer).register_forward_hook(_adding(own)))
    try:
        yield copies
    finally:
        for hook in hooks:
            hook.remove()


def _adding(own: torch.Tensor) -> Callable[[Any, Any, Any], Any]:
    return lambda _, __, output: output + own.to(output.dtype)
