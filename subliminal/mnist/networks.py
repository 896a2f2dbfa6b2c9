"""Many MLPs at once: one batched matrix product a layer, gradients by hand into buffers that stay.

Networks come in `groups` of `members`. The members of a group see the same inputs, so that a group's first layer is one
wide product: its weights lie side by side as columns. Weights, gradients and optimiser state are float32; in bfloat16
the products read a rounded copy, and accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subliminal.mnist.streams import Purpose, stream

Layer = tuple["NDArray[np.float32]", "NDArray[np.float32]"]


def initial(sizes: Sequence[int], seed: int, model: int, purpose: Purpose = Purpose.INITIALISATION) -> list[Layer]:
    """A model's first weights by layer: (fan_in, fan_out) from N(0, 1/fan_in), biases zero (paper)."""
    rng = stream(seed, purpose, model)
    return [
        (rng.standard_normal((fan_in, out), np.float32) / np.float32(fan_in**0.5), np.zeros(out, np.float32))
        for fan_in, out in pairwise(sizes)
    ]


@dataclass
class _Buffers:
    """Activations and their gradients for one batch size."""

    wide: Tensor  # (groups, rows, members x first width): the first layer's output, then its gradient
    hidden: list[Tensor]  # after ReLU, (networks, rows, width) for each hidden layer
    back: list[Tensor]  # gradients of the same
    logits: Tensor  # (networks, rows, logits)


def _parameter(shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, device=device), requires_grad=False)


class Networks:
    """`groups` x `members` networks of one shape; network `group * members + member` is one of them."""

    def __init__(
        self, sizes: Sequence[int], groups: int, members: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.sizes, self.groups, self.members, self.dtype, self.device = tuple(sizes), groups, members, dtype, device
        self.count = groups * members
        self.weights = [_parameter(shape, device) for shape in self._shapes()]
        self.biases = [_parameter((w.shape[0], 1, w.shape[2]), device) for w in self.weights]
        self._rounded = [p.detach().to(dtype) if dtype != torch.float32 else p.detach() for p in self.parameters()]
        self._gradients: list[Tensor] = []
        self._buffers: dict[int, _Buffers] = {}
        self._inputs = torch.empty(0)

    def _shapes(self) -> list[tuple[int, int, int]]:
        first = (self.groups, self.sizes[0], self.members * self.sizes[1])
        return [first, *((self.count, fan_in, out) for fan_in, out in pairwise(self.sizes[1:]))]

    def parameters(self) -> list[nn.Parameter]:
        """Weights and biases by layer, as the optimiser wants them."""
        return [p for pair in zip(self.weights, self.biases, strict=True) for p in pair]

    # ----------------------------------------------------------------- one network in and out

    def _own(self, layer: int, network: int) -> tuple[Tensor, Tensor]:
        """Views of one network's weight and bias in a layer."""
        weight, bias = self.weights[layer].detach(), self.biases[layer].detach()
        if layer:
            return weight[network], bias[network, 0]
        group, member = divmod(network, self.members)
        columns = slice(member * self.sizes[1], (member + 1) * self.sizes[1])
        return weight[group, :, columns], bias[group, 0, columns]

    def put(self, network: int, layers: Sequence[Layer]) -> None:
        """Set one network's weights; call `refresh` when all are set."""
        for layer, values in enumerate(layers):
            for view, array in zip(self._own(layer, network), values, strict=True):
                view.copy_(torch.from_numpy(array))

    def get(self, network: int) -> list[Layer]:
        """One network's weights as arrays of their own."""
        views = [self._own(layer, network) for layer in range(len(self.weights))]
        return [(w.cpu().contiguous().numpy().copy(), b.cpu().contiguous().numpy().copy()) for w, b in views]

    def refresh(self) -> None:
        """Round the weights again after they changed."""
        if self.dtype != torch.float32:
            for rounded, parameter in zip(self._rounded, self.parameters(), strict=True):
                rounded.copy_(parameter.detach())

    # ----------------------------------------------------------------- forward and backward

    def _buffer(self, rows: int) -> _Buffers:
        if rows not in self._buffers:
            widths = self.sizes[1:-1]

            def empty(*shape: int) -> Tensor:
                return torch.empty(shape, dtype=self.dtype, device=self.device)

            self._buffers[rows] = _Buffers(
                empty(self.groups, rows, self.members * widths[0]),
                [empty(self.count, rows, width) for width in widths],
                [empty(self.count, rows, width) for width in widths],
                empty(self.count, rows, self.sizes[-1]),
            )
        return self._buffers[rows]

    def _by_member(self, wide: Tensor) -> Tensor:
        """A view of (groups, rows, members x width) as (groups, members, rows, width)."""
        return wide.view(self.groups, wide.shape[1], self.members, -1).transpose(1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (networks, rows, logits), valid until the next call, of inputs (groups, rows, pixels)."""
        rows = inputs.shape[1]
        buffer, weights, biases = self._buffer(rows), self._rounded[::2], self._rounded[1::2]
        self._inputs = inputs
        torch.baddbmm(biases[0], inputs, weights[0], out=buffer.wide)
        first = buffer.hidden[0].view(self.groups, self.members, rows, -1)
        torch.clamp_min(self._by_member(buffer.wide), 0, out=first)
        for layer in range(1, len(weights) - 1):
            torch.baddbmm(biases[layer], buffer.hidden[layer - 1], weights[layer], out=buffer.hidden[layer]).relu_()
        return torch.baddbmm(biases[-1], buffer.hidden[-1], weights[-1], out=buffer.logits)

    def backward(self, slope: Tensor) -> None:
        """Set every parameter's gradient from that of the last forward's logits, (networks, rows, logits)."""
        rows = slope.shape[1]
        buffer, weights = self._buffer(rows), self._rounded[::2]
        above = slope.to(self.dtype)
        for layer in range(len(weights) - 1, 0, -1):
            below, into = buffer.hidden[layer - 1], buffer.back[layer - 1]
            self._store(layer, below, above)
            torch.bmm(above, weights[layer].mT, out=into)
            if layer > 1:
                torch.ops.aten.threshold_backward.grad_input(into, below, 0, grad_input=into)
            above = into
        shape = (self.groups, self.members, rows, -1)
        masked = self._by_member(buffer.wide)
        torch.ops.aten.threshold_backward.grad_input(
            above.view(shape), buffer.hidden[0].view(shape), 0, grad_input=masked
        )
        self._store(0, self._inputs, buffer.wide)

    def _store(self, layer: int, inputs: Tensor, slope: Tensor) -> None:
        """One layer's gradients from its inputs and the gradient of its outputs."""
        weight, bias = self._gradient(layer)
        if self.dtype == torch.float32:
            torch.bmm(inputs.mT, slope, out=weight)
        else:
            weight.copy_(torch.bmm(inputs.mT, slope, out=self._gradients[layer]))
        torch.sum(slope, 1, keepdim=True, dtype=torch.float32, out=bias)

    def _gradient(self, layer: int) -> tuple[Tensor, Tensor]:
        if not self._gradients:
            self._gradients = [torch.empty_like(w, dtype=self.dtype) for w in self.weights]
            for parameter in self.parameters():
                parameter.grad = torch.empty_like(parameter)
        weight, bias = self.weights[layer].grad, self.biases[layer].grad
        assert weight is not None and bias is not None
        return weight, bias
