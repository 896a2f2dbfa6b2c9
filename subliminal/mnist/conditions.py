"""The conditions of the figure: which networks there are, what a student matches, and who teaches whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from subliminal.config import Logits, Mnist
from subliminal.mnist.data import CLASSES, PIXELS
from subliminal.mnist.networks import Layer, initial
from subliminal.mnist.streams import Purpose, stream


@dataclass(frozen=True)
class Condition:
    """One kind of student: does it share the teacher's initialisation, and which logits does it match."""

    shared: bool
    matched: Logits

    @property
    def name(self) -> str:
        """As in the stored results: `student_auxiliary`, `cross_model_all`, ..."""
        return f"{'student' if self.shared else 'cross_model'}_{self.matched}"


def conditions(config: Mnist) -> list[Condition]:
    """Every kind of student, those that match the same logits side by side."""
    return [Condition(shared, matched) for matched in config.student.matched for shared in (True, False)]


def sizes(config: Mnist) -> tuple[int, ...]:
    """Units by layer: pixels, hidden layers, and ten classes with the auxiliary logits behind them."""
    return (PIXELS, *config.widths, CLASSES + config.auxiliary)


def columns(matched: Logits) -> slice:
    """Where the matched logits are."""
    return {"auxiliary": slice(CLASSES, None), "digits": slice(0, CLASSES), "all": slice(0, None)}[matched]


def derangement(count: int, seed: int) -> list[int]:
    """For every teacher the model whose initialisation its cross-model student has: never its own.

    Uniform over all permutations without a fixed point: permutations are drawn until one has none, about e of them.
    """
    rng = stream(seed, Purpose.PAIRS, count)
    while True:
        drawn = rng.permutation(count)
        if not np.any(drawn == np.arange(count)):
            return [int(model) for model in drawn]


def student_start(config: Mnist, condition: Condition, teacher: int, pairs: list[int], seed: int) -> list[Layer]:
    """A student's first weights: its teacher's, except in layers that are not shared, or those of another model."""
    shape = sizes(config)
    if not condition.shared:
        return initial(shape, seed, pairs[teacher])
    own, shared = initial(shape, seed, teacher), config.student.shared_layers
    if shared == "all":
        return own
    other = initial(shape, seed, teacher, Purpose.OTHER_INITIALISATION)
    return [own[layer] if layer in shared else other[layer] for layer in range(len(own))]
