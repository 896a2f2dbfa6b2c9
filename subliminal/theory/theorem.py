"""One small imitation step never moves the student away from its teacher: the statement, computed exactly in float64.

theta_T = theta_0 + eps d_T with d_T = -grad L_T(theta_0); d_S = -grad_theta E_x l(f_theta(x), f_theta_T(x)) at theta_0.
Then d_S . d_T = eps E_x[(J d_T)^T H (J d_T)] + O(eps^2), J the Jacobian of f at theta_0 and H the Hessian of l in the
logits, which is never negative (arXiv 2507.14805, section on theory; docs/theory.md has the proof). J appears only in
products: J d_T by `torch.func.jvp`, J^T v by `torch.func.vjp`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from subliminal.config import Theory
from subliminal.theory import draws
from subliminal.theory.networks import (
    ACTIVATIONS,
    Activation,
    Architecture,
    Network,
    Parameters,
    build,
    dot,
    norm,
    scaled,
    step,
)

StudentLoss = Literal["squared_error", "cross_entropy"]
Matched = Literal["all", "auxiliary"]
Initialisation = Literal["same", "different"]


@dataclass(frozen=True)
class Case:
    """A combination that gets the same number of trials: network, the student's loss l, the logits it matches."""

    architecture: Architecture
    loss: StudentLoss
    matched: Matched


@dataclass(frozen=True)
class Measurement:
    """One trial at one size of the teacher's step.

    `step` is eps |d_T| / |theta_0|; `measured` is d_S . d_T and `predicted` eps E[(J d_T)^T H (J d_T)], nan with
    different initialisations; `direction_error` is |d_S / eps - E[J^T H J d_T]| over the latter's length; `loss_change`
    is L_T(theta_0 + alpha d_S) - L_T(theta_0), the student's own theta_0, and `loss_predicted` is -alpha d_S . d_T.
    """

    trial: int
    architecture: str
    loss: str
    matched: str
    initialisation: Initialisation
    teacher_loss: str
    sign: int
    inputs: str
    activation: str
    step: float
    measured: float
    predicted: float
    direction_error: float
    loss_change: float
    loss_predicted: float


@dataclass(frozen=True)
class Trial:
    """One draw: a network, its initialisation theta_0, another one, L_T, d_T, and the student's inputs x."""

    network: Network
    start: Parameters
    other: Parameters
    teacher_loss: draws.Loss
    teacher_direction: Parameters
    inputs: Tensor
    loss: StudentLoss
    logits: slice
    labels: dict[str, str | int]

    def outputs(self, parameters: Parameters) -> Tensor:
        """The logits the student matches, shape (n, matched logits)."""
        return self.network.forward(parameters, self.inputs)[:, self.logits]

    def student_direction(self, start: Parameters, teacher: Parameters) -> Parameters:
        """d_S = -grad of the imitation loss at `start`."""
        target = self.outputs(teacher)
        found = grad(lambda parameters: imitation(self.loss, self.outputs(parameters), target))(start)
        return scaled(-1.0, found)


def imitation(loss: StudentLoss, outputs: Tensor, target: Tensor) -> Tensor:
    """E_x l(f_theta(x), f_theta_T(x)): half the squared error, or cross-entropy to the teacher's softmax."""
    if loss == "squared_error":
        return (outputs - target).square().sum(-1).mean() / 2
    return -(target.softmax(-1) * outputs.log_softmax(-1)).sum(-1).mean()


def hessian_product(loss: StudentLoss, outputs: Tensor, change: Tensor) -> Tensor:
    """H u for each input: u itself, or (diag(p) - p p^T) u with p the softmax at theta_0; shape of `change`."""
    if loss == "squared_error":
        return change
    p = outputs.softmax(-1)
    return p * (change - (p * change).sum(-1, keepdim=True))


def quadratic_form(trial: Trial) -> tuple[float, Parameters]:
    """E[(J d_T)^T H (J d_T)] and the direction E[J^T H J d_T], both at theta_0, from one jvp and one vjp."""
    outputs, change, *_ = jvp(trial.outputs, (trial.start,), (trial.teacher_direction,))
    pushed = hessian_product(trial.loss, outputs, change)
    _, pull, *_ = vjp(trial.outputs, trial.start)
    (direction,) = pull(pushed / len(change))
    return float((change * pushed).sum(-1).mean()), direction


def draw_trial(case: Case, config: Theory, seed: int, index: int) -> Trial:
    """Everything random about one trial, from its seed and index alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)

    def pick(options: tuple[str, ...]) -> str:
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    activation: Activation = pick(tuple(ACTIVATIONS))  # type: ignore[assignment]
    network = build(case.architecture, config.width, config.classes + config.auxiliary, activation)
    kind, mine, theirs = pick(config.teacher_losses), pick(config.inputs), pick(config.inputs)
    sign = int(torch.randint(2, (1,), generator=generator)) * 2 - 1
    start, other = network.draw(generator), network.draw(generator)
    seen = draws.inputs(theirs, config.batch, network.inputs, generator)  # type: ignore[arg-type]
    teacher = draws.teacher_loss(kind, sign, network.forward, start, seen, config.classes, generator)  # type: ignore[arg-type]
    x = draws.inputs(mine, config.batch, network.inputs, generator)  # type: ignore[arg-type]
    logits = slice(config.classes, None) if case.matched == "auxiliary" else slice(None)
    labels = {"trial": index, "teacher_loss": kind, "sign": sign, "inputs": mine, "activation": activation}
    return Trial(network, start, other, teacher, scaled(-1.0, grad(teacher)(start)), x, case.loss, logits, labels)


def measure(case: Case, trial: Trial, config: Theory) -> Iterator[Measurement]:
    """Both initialisations at every size of the teacher's step, largest first."""
    form, direction = quadratic_form(trial)
    for length in config.steps:
        eps = length * float(norm(trial.start) / norm(trial.teacher_direction))
        teacher = step(trial.start, eps, trial.teacher_direction)
        same = trial.student_direction(trial.start, teacher)
        error = float(norm(step(same, -eps, direction)) / (eps * norm(direction)))
        yield _measurement(case, trial, config, length, "same", same, eps * form, error)
        different = trial.student_direction(trial.other, teacher)
        yield _measurement(case, trial, config, length, "different", different, float("nan"), float("nan"))


def _measurement(
    case: Case,
    trial: Trial,
    config: Theory,
    length: float,
    initialisation: Initialisation,
    direction: Parameters,
    predicted: float,
    error: float,
) -> Measurement:
    start = trial.start if initialisation == "same" else trial.other
    measured = float(dot(direction, trial.teacher_direction))
    moved = trial.teacher_loss(step(start, config.student_rate, direction))
    return Measurement(
        architecture=case.architecture,
        loss=case.loss,
        matched=case.matched,
        initialisation=initialisation,
        step=length,
        measured=measured,
        predicted=predicted,
        direction_error=error,
        loss_change=float(moved - trial.teacher_loss(start)),
        loss_predicted=-config.student_rate * measured,
        **trial.labels,  # type: ignore[arg-type]
    )


def cases(config: Theory) -> list[Case]:
    """Every combination of network, student loss and matched logits."""
    return [Case(*found) for found in product(config.architectures, config.losses, config.matched)]


def trials(config: Theory, seed: int) -> Iterator[list[Measurement]]:
    """The measurements of every trial of every case, one trial at a time."""
    for number, case in enumerate(cases(config)):
        for index in range(config.trials):
            trial = draw_trial(case, config, seed, number * config.trials + index)
            yield list(measure(case, trial, config))
