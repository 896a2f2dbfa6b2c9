"""Beyond one step: how parallel student and teacher stay when both are trained to the end.

The teacher learns labels; the student starts at theta_0, sees noise alone, and matches the teacher's auxiliary logits
(the setting of the paper's MNIST figure). Measured along the way: cos(theta_S - theta_0, theta_T - theta_0), each
displacement from its own start, for students that share the teacher's initialisation and for ones that do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from subliminal.config import AlignmentRun, PlainOptimiser
from subliminal.finite import require_finite
from subliminal.progress import Advance
from subliminal.theory.networks import Network, Parameters, dot, minus, mlp, norm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLUSTERS, CLUSTERS_A_CLASS, CLUSTER_SIZE, CLUSTER_NOISE = 10, 3, (64,), 0.6
TEST_SHARE = 5
REMEDY = "Lower that optimiser's learning_rate in theory.run.optimisers"

Objective = Callable[[Parameters, int], Tensor]


@dataclass(frozen=True)
class Examples:
    """A classification task: inputs (n, *shape) in [-1, 1], labels (n,), and the same for the test."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1


@dataclass(frozen=True)
class Point:
    """One measurement along a student's run.

    `cosine` is between the displacements of student and teacher, `length_share` the student's length over the
    teacher's; `accuracy` and `teacher_loss` are the student's on the teacher's task, which it never sees.
    """

    seed: int
    optimiser: str
    initialisation: str
    step: int
    cosine: float
    length_share: float
    accuracy: float
    teacher_loss: float


def clusters(count: int, seed: int) -> Examples:
    """Ten classes of three noisy clusters each in 64 dimensions: a task that needs no download."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.rand((CLUSTERS, CLUSTERS_A_CLASS, *CLUSTER_SIZE), generator=draw) * 2 - 1

    def part(size: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLUSTERS, (size,), generator=draw)
        which = torch.randint(CLUSTERS_A_CLASS, (size,), generator=draw)
        noise = CLUSTER_NOISE * torch.randn((size, *CLUSTER_SIZE), generator=draw)
        return (centres[labels, which] + noise).clamp(-1, 1), labels

    return Examples(*part(count), *part(max(1, count // TEST_SHARE)))


def load(config: AlignmentRun, seed: int, data_dir: str | None = None) -> Examples:
    """The task a configuration names: clusters made here, or the first images of a real data set in [-1, 1]."""
    if config.dataset == "clusters":
        return clusters(config.examples, seed)
    from subliminal.mnist.data import load as load_images

    images = load_images(config.dataset, data_dir)
    size = config.examples
    train, test = _pixels(images.train[:size]), _pixels(images.test[: max(1, size // TEST_SHARE)])
    labels, test_labels = torch.tensor(images.train_labels[: len(train)]), torch.tensor(images.test_labels)
    return Examples(train, labels.long(), test, test_labels[: len(test)].long())


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    """Bytes (n, pixels) as numbers in [-1, 1] (paper, MNIST)."""
    return torch.tensor(images, dtype=torch.float32) / 127.5 - 1


def run(config: AlignmentRun, examples: Examples, seed: int, advance: Advance) -> Iterator[Point]:
    """One teacher and two students (same and different initialisation) for every optimiser."""
    network = network_of(config, examples)
    draw = torch.Generator().manual_seed(seed)
    start, other = network.draw(draw, torch.float32), network.draw(draw, torch.float32)
    for optimiser in config.optimisers:
        learnt = objective_of_teacher(network, examples, config, seed)
        *_, (_, teacher) = train(start, optimiser, learnt, config.teacher_steps, {config.teacher_steps})
        advance(config.teacher_steps)
        imitated = objective_of_student(network, examples, teacher, config, seed)
        for initialisation, mine in (("same", start), ("different", other)):
            for done, student in train(mine, optimiser, imitated, config.student_steps, when(config)):
                moved, wanted = minus(student, mine), minus(teacher, start)
                parallel = float(dot(moved, wanted) / (norm(moved) * norm(wanted)))
                share = float(norm(moved) / norm(wanted))
                scores = score(network, student, examples)
                values = {"the cosine": parallel, "the length": share, "the student's loss": scores[1]}
                require_finite(values, f"{optimiser.name}, student of {initialisation} initialisation", REMEDY)
                yield Point(seed, optimiser.name, initialisation, done, parallel, share, *scores)
            advance(config.student_steps)


def network_of(config: AlignmentRun, examples: Examples) -> Network:
    """The MLP of teacher and students: one logit for each class, then the auxiliary ones."""
    shape = tuple(examples.inputs.shape[1:])
    return Network(mlp(shape, config.width, examples.classes + config.auxiliary, torch.nn.ReLU, config.depth), shape)


def objective_of_teacher(network: Network, examples: Examples, config: AlignmentRun, seed: int) -> Objective:
    """L_T on a random batch: cross-entropy on the first logits, one for each class."""
    draw = torch.Generator().manual_seed(seed + 1)

    def loss(parameters: Parameters, _: int) -> Tensor:
        chosen = torch.randint(len(examples.inputs), (config.batch,), generator=draw)
        outputs = network.forward(parameters, examples.inputs[chosen])[:, : examples.classes]
        return cross_entropy(outputs, examples.labels[chosen])

    return loss


def objective_of_student(
    network: Network, examples: Examples, teacher: Parameters, config: AlignmentRun, seed: int
) -> Objective:
    """KL(teacher || student) on the auxiliary logits of fresh uniform noise; the step alone decides the noise."""

    def loss(parameters: Parameters, number: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + number)
        noise = torch.rand((config.batch, *network.inputs), generator=draw) * 2 - 1
        with torch.no_grad():
            wanted = network.forward(teacher, noise)[:, examples.classes :].log_softmax(-1)
        outputs = network.forward(parameters, noise)[:, examples.classes :].log_softmax(-1)
        return kl_div(outputs, wanted, reduction="batchmean", log_target=True)

    return loss


def train(
    start: Parameters, optimiser: PlainOptimiser, objective: Objective, steps: int, shown: set[int]
) -> Iterator[tuple[int, Parameters]]:
    """Minimise an objective from `start`; yields (steps done, parameters) after each of the `shown` steps."""
    parameters = {name: value.clone().requires_grad_() for name, value in start.items()}
    rule = _rule(optimiser, list(parameters.values()))
    for number in range(1, steps + 1):
        rule.zero_grad()
        loss = objective(parameters, number)
        loss.backward()
        where = f"{optimiser.name}: training stopped at step {number}"
        require_finite({"its loss": float(loss.detach())}, where, REMEDY)
        rule.step()
        if number in shown:
            yield number, {name: value.detach().clone() for name, value in parameters.items()}


def when(config: AlignmentRun) -> set[int]:
    """The student's steps that are measured: the first, the last, and evenly in the logarithm between."""
    span = math.log(config.student_steps)
    return {round(math.exp(span * point / max(1, config.points - 1))) for point in range(config.points)} | {
        config.student_steps
    }


@torch.no_grad()
def score(network: Network, parameters: Parameters, examples: Examples) -> tuple[float, float]:
    """(accuracy, L_T) on the test examples, from the logits of the classes."""
    outputs = network.forward(parameters, examples.test_inputs)[:, : examples.classes]
    right = (outputs.argmax(-1) == examples.test_labels).float().mean()
    return float(right), float(cross_entropy(outputs, examples.test_labels))


def _rule(optimiser: PlainOptimiser, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if optimiser.name == "adam":
        return torch.optim.Adam(parameters, lr=optimiser.learning_rate)
    return torch.optim.SGD(parameters, lr=optimiser.learning_rate, momentum=optimiser.momentum)
