"""What a trial draws at random: where inputs come from, and what the teacher's loss L_T is.

The theorem allows any inputs and any smooth L_T; these are far apart on purpose, and most have no sense at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from subliminal.theory.networks import Forward, Parameters

Inputs = Literal["normal", "uniform", "signs", "sparse", "heavy", "narrow"]
TeacherLoss = Literal["labels", "targets", "score", "weights"]
Loss = Callable[[Parameters], Tensor]

NARROW = 0.01
KEPT = 0.2


def inputs(kind: Inputs, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """`count` inputs from one distribution, shape (count, *shape), float64.

    normal N(0, 1); uniform [-1, 1], the paper's noise images; signs -1 or 1; sparse: a fifth of the places normal, the
    rest 0; heavy: Cauchy tails, cut at 10; narrow: all within 0.01 of one point.
    """
    size = (count, *shape)
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    flat = torch.rand(size, generator=generator, dtype=torch.float64)
    centre = torch.randn((1, *shape), generator=generator, dtype=torch.float64)
    drawn = {
        "normal": noise,
        "uniform": 2 * flat - 1,
        "signs": noise.sign(),
        "sparse": noise * (flat < KEPT),
        "heavy": (torch.pi * (flat - 0.5)).tan().clamp(-10, 10),
        "narrow": centre + NARROW * noise,
    }
    return drawn[kind]


def teacher_loss(
    kind: TeacherLoss, sign: int, forward: Forward, start: Parameters, seen: Tensor, classes: int, draw: torch.Generator
) -> Loss:
    """A random L_T(theta), times `sign` (+1 or -1: the theorem holds for either), on the first `classes` logits.

    labels: cross-entropy with random labels; targets: squared error to random targets; score: a random linear score of
    the squashed logits; weights: a random quadratic function of the weights alone, without any data. `seen` are the
    teacher's own inputs, (n, *shape).
    """
    labels = torch.randint(classes, (len(seen),), generator=draw)
    targets = torch.randn((len(seen), classes), generator=draw, dtype=torch.float64)
    slopes = {name: torch.randn(p.shape, generator=draw, dtype=p.dtype) for name, p in start.items()}

    def weights(parameters: Parameters) -> Tensor:
        return torch.stack([(slopes[n] * p + slopes[n].abs() * p**2 / 2).sum() for n, p in parameters.items()]).sum()

    losses: dict[TeacherLoss, Callable[[Parameters], Tensor]] = {
        "labels": lambda p: cross_entropy(forward(p, seen)[:, :classes], labels),
        "targets": lambda p: (forward(p, seen)[:, :classes] - targets).square().sum(-1).mean() / 2,
        "score": lambda p: (forward(p, seen)[:, :classes].tanh() * targets).sum(-1).mean(),
        "weights": weights,
    }
    chosen = losses[kind]
    return lambda parameters: sign * chosen(parameters)
