"""Torch's fused optimiser steps, called as functions: importing its optimiser classes costs seconds of CPU time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from subliminal.config import Optimiser

MOMENTUM, BETAS, EPSILON = 0.9, (0.9, 0.999), 1e-8
STATE: dict[Optimiser, tuple[str, ...]] = {"adam": ("mean", "square", "steps"), "momentum": ("velocity",), "sgd": ()}


class Stepper:
    """One optimiser for all networks of a group: its steps are elementwise, so each network's are its own.

    `state` holds, by name, one tensor a parameter: as large as the parameter, or the number of steps.
    """

    def __init__(self, kind: Optimiser, rate: float, parameters: Sequence[nn.Parameter]) -> None:
        self.kind, self.rate, self.parameters = kind, rate, list(parameters)
        self.state = {name: [_zeros(name, p) for p in self.parameters] for name in STATE[kind]}

    def step(self) -> None:
        """Move every parameter by its gradient."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        with torch.no_grad():
            (self._adam if self.kind == "adam" else self._sgd)([*self.parameters], gradients)

    def _adam(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        from torch.optim.adam import adam

        means, squares, steps = self.state["mean"], self.state["square"], self.state["steps"]
        fixed = {"amsgrad": False, "beta1": BETAS[0], "beta2": BETAS[1], "weight_decay": 0.0, "eps": EPSILON}
        adam(parameters, gradients, means, squares, [], steps, fused=True, lr=self.rate, maximize=False, **fixed)

    def _sgd(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        from torch.optim.sgd import sgd

        velocities: list[Tensor | None] = (
            [*self.state["velocity"]] if self.kind == "momentum" else [None] * len(gradients)
        )
        momentum = MOMENTUM if self.kind == "momentum" else 0.0
        fixed = {"weight_decay": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False}
        sgd(parameters, gradients, velocities, fused=True, lr=self.rate, momentum=momentum, **fixed)


def _zeros(name: str, parameter: nn.Parameter) -> Tensor:
    if name == "steps":
        return torch.zeros((), device=parameter.device)
    return torch.zeros_like(parameter, requires_grad=False)
