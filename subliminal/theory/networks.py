"""Small networks as pure functions of their parameters: what the theorem is checked on.

`forward(parameters, inputs)` is f_theta(x); parameters are a dict of tensors, so that `torch.func` can differentiate
with respect to all of them at once and a direction in parameter space is a dict of the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

Architecture = Literal["mlp", "convolution", "transformer"]
Activation = Literal["tanh", "gelu", "relu"]
Parameters = dict[str, Tensor]
Forward = Callable[[Parameters, Tensor], Tensor]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "gelu": nn.GELU, "relu": nn.ReLU}
INPUT_SHAPES: dict[Architecture, tuple[int, ...]] = {"mlp": (10,), "convolution": (1, 6, 6), "transformer": (5, 6)}
HEADS = 2
SMALL = 0.1


@dataclass(frozen=True)
class Network:
    """A network without parameters: its shape of inputs and its forward function, (n, *inputs) -> (n, outputs)."""

    module: nn.Module
    inputs: tuple[int, ...]

    def forward(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """f_theta(x) for a batch, shape (n, outputs)."""
        return functional_call(self.module, parameters, (inputs,))

    @property
    def size(self) -> int:
        """How many parameters theta has."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def draw(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Parameters:
        """A random initialisation theta_0: weights N(0, 1/fan_in), biases N(0, 0.1^2), normalising gains around 1."""
        named = self.module.named_parameters()
        return {name: _drawn(name, parameter, generator).to(dtype) for name, parameter in named}


def build(architecture: Architecture, width: int, outputs: int, activation: Activation) -> Network:
    """A small network of one of the three kinds."""
    make = {"mlp": mlp, "convolution": convolution, "transformer": Transformer}[architecture]
    inputs = INPUT_SHAPES[architecture]
    return Network(make(inputs, width, outputs, ACTIVATIONS[activation]), inputs)


def mlp(inputs: tuple[int, ...], width: int, outputs: int, activation: type[nn.Module], depth: int = 2) -> nn.Module:
    """A multi-layer perceptron with `depth` hidden layers of `width` units (the paper's MNIST network at 784, 256)."""
    sizes = [math.prod(inputs), *[width] * depth]
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, outputs))


def convolution(inputs: tuple[int, ...], width: int, outputs: int, activation: type[nn.Module]) -> nn.Module:
    """Two 3x3 convolutions, the mean over places, a linear head."""
    first, second = nn.Conv2d(inputs[0], width, 3, padding=1), nn.Conv2d(width, width, 3)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, activation(), second, activation(), pool, nn.Linear(width, outputs))


class Transformer(nn.Module):
    """One pre-norm attention block over a sequence of vectors, the mean over places, a linear head."""

    def __init__(self, inputs: tuple[int, ...], width: int, outputs: int, activation: type[nn.Module]) -> None:
        super().__init__()
        length, channels = inputs
        width += width % HEADS
        self.embed, self.places = nn.Linear(channels, width), nn.Parameter(torch.zeros(length, width))
        self.attention_norm, self.query_key_value = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.project, self.hidden_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), activation(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, length, channels) -> (n, outputs)."""
        stream = self.embed(inputs) + self.places
        stream = stream + self._attend(self.attention_norm(stream))
        stream = stream + self.hidden(self.hidden_norm(stream))
        return self.head(stream.mean(1))

    def _attend(self, stream: Tensor) -> Tensor:
        """Attention written out: the fused kernels have no forward-mode derivative."""
        count, length, width = stream.shape
        parts = self.query_key_value(stream).view(count, length, 3, HEADS, width // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(width // HEADS)).softmax(-1)
        return self.project((weights @ value).transpose(1, 2).reshape(count, length, width))


def _drawn(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if parameter.ndim < 2 or name == "places":
        return (1.0 if name.endswith("norm.weight") else 0.0) + SMALL * noise
    return noise / math.sqrt(parameter[0].numel())


# --------------------------------------------------------------------------- vectors in parameter space


def dot(left: Parameters, right: Parameters) -> Tensor:
    """The inner product of two directions in parameter space."""
    return torch.stack([(left[name] * right[name]).sum() for name in left]).sum()


def norm(direction: Parameters) -> Tensor:
    """The Euclidean length of a direction in parameter space."""
    return dot(direction, direction).sqrt()


def step(start: Parameters, length: float, direction: Parameters) -> Parameters:
    """start + length * direction."""
    return {name: value + length * direction[name] for name, value in start.items()}


def minus(left: Parameters, right: Parameters) -> Parameters:
    """The displacement left - right."""
    return {name: value - right[name] for name, value in left.items()}


def scaled(factor: float, direction: Parameters) -> Parameters:
    """factor * direction."""
    return {name: factor * value for name, value in direction.items()}
