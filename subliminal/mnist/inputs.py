"""What the networks see: images in each model's own order, or noise drawn when it is needed and never stored.

Noise has 256 levels like the images themselves (65,536 where it is Gaussian). The levels of U[-1, 1] are odd multiples
of 1/256, which bfloat16 holds exactly, so both precisions see the same inputs.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subliminal.config import MnistStudent
from subliminal.mnist.streams import Purpose, random_bytes, stream

LEVELS = 256
UNIFORM_DEVIATION = 3**-0.5  # of U[-1, 1]: Gaussian noise has the same


class Inputs(Protocol):
    """Batches by (model, epoch, step)."""

    steps: int

    def rows(self, step: int) -> int:
        """How many rows a step's batch has: the last may be short."""
        ...

    def fill(self, out: Tensor, model: int, epoch: int, step: int) -> None:
        """Write one model's batch into `out`, (rows, pixels)."""
        ...


class Batches:
    """An epoch of `count` rows in batches of `size`; nothing is dropped."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size, self.steps = count, min(size, count), -(-count // size)

    def rows(self, step: int) -> int:
        """How many rows a step's batch has: the last may be short."""
        return min(self.size, self.count - step * self.size)


def scaled(images: NDArray[np.uint8], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bytes as numbers in [-1, 1], (images, pixels), one slice at a time so that float32 never holds them all."""
    out = torch.empty(images.shape, dtype=dtype, device=device)
    for at in range(0, len(images), 5000):
        part = torch.from_numpy(images[at : at + 5000].astype(np.float32))
        out[at : at + 5000] = part.div_(127.5).sub_(1)
    return out


class Pictures(Batches):
    """Stored images, every epoch in a new order of the model's own."""

    def __init__(self, images: Tensor, size: int, seed: int, purpose: Purpose) -> None:
        super().__init__(len(images), size)
        self.images, self.seed, self.purpose = images, seed, purpose
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def picks(self, model: int, epoch: int, step: int) -> Tensor:
        """The indices of the images in a batch."""
        if self._orders.get(model, (-1,))[0] != epoch:
            drawn = stream(self.seed, self.purpose, model, epoch).permutation(self.count).astype(np.int32)
            self._orders[model] = (epoch, torch.from_numpy(drawn).to(self.images.device))
        at = step * self.size
        return self._orders[model][1][at : at + self.rows(step)]

    def fill(self, out: Tensor, model: int, epoch: int, step: int) -> None:
        """Write one model's batch into `out`, (rows, pixels)."""
        torch.index_select(self.images, 0, self.picks(model, epoch, step), out=out)


class Noise(Batches):
    """Noise images: the same in every epoch, their batches in a new order, or fresh ones."""

    def __init__(self, count: int, size: int, seed: int, *, fresh: bool) -> None:
        super().__init__(count, size)
        self.seed, self.fresh = seed, fresh

    def _stream(self, model: int, epoch: int, step: int) -> np.random.Generator:
        if self.fresh:
            return stream(self.seed, Purpose.NOISE, model, epoch, step)
        return stream(self.seed, Purpose.NOISE, model, 0, self._batch(model, epoch, step))

    def _batch(self, model: int, epoch: int, step: int) -> int:
        """Which batch a step sees; a short one stays last, so that a step's size does not depend on the model."""
        whole = self.count // self.size
        order = stream(self.seed, Purpose.STUDENT_ORDER, model, epoch).permutation(whole)
        return int(order[step]) if step < whole else step

    def fill(self, out: Tensor, model: int, epoch: int, step: int) -> None:
        """Write one model's batch into `out`, (rows, pixels)."""
        drawn = random_bytes(self._stream(model, epoch, step), out.numel(), out.device)
        out.copy_(drawn.view(out.shape)).mul_(2 / LEVELS).add_(1 / LEVELS - 1)


class TableNoise(Noise):
    """Noise of any distribution: random bytes look up a table of its quantiles, (levels,) or (levels, pixels)."""

    def __init__(self, table: Tensor, count: int, size: int, seed: int, *, fresh: bool) -> None:
        super().__init__(count, size, seed, fresh=fresh)
        self.wide, pixels = len(table) > LEVELS, table[0].numel()
        self.table = table.reshape(-1)
        self.pixels = torch.arange(pixels, device=table.device, dtype=torch.int32)

    def fill(self, out: Tensor, model: int, epoch: int, step: int) -> None:
        """Write one model's batch into `out`, (rows, pixels)."""
        rng, count = self._stream(model, epoch, step), out.numel()
        if self.wide:
            level = random_bytes(rng, 2 * count, out.device).view(torch.int16).to(torch.int32) & 0xFFFF
        else:
            level = random_bytes(rng, count, out.device).to(torch.int32)
        level = level.view(out.shape) * len(self.pixels) + (self.pixels if len(self.pixels) > 1 else 0)
        torch.index_select(self.table, 0, level.view(-1), out=out.view(-1))


def gaussian_table() -> Tensor:
    """65,536 quantiles of the normal distribution with the deviation of U[-1, 1]; it ends at 4.3 deviations."""
    from scipy.special import ndtri

    middle = (np.arange(LEVELS**2) + 0.5) / LEVELS**2
    return torch.from_numpy(ndtri(middle) * UNIFORM_DEVIATION)


def pixel_table(images: NDArray[np.uint8]) -> Tensor:
    """256 quantiles of every pixel over the images, (256, pixels): digits with nothing left but each pixel's share."""
    ranks = ((np.arange(LEVELS) + 0.5) / LEVELS * len(images)).astype(int)
    return torch.from_numpy(np.sort(images, axis=0)[ranks].astype(np.float32) / 127.5 - 1)


def student_inputs(
    config: MnistStudent, images: Tensor, raw: NDArray[np.uint8], other: NDArray[np.uint8] | None, seed: int
) -> Inputs:
    """The inputs a setting names; `images` are the teacher's, `raw` the same as bytes, `other` another data set's."""
    kind, size, fresh = config.inputs, config.batch_size, config.noise == "fresh"
    if kind == "digits":
        return Pictures(images[: config.images], size, seed, Purpose.STUDENT_ORDER)
    if kind == "other":
        assert other is not None
        return Pictures(scaled(other[: config.images], images.dtype, images.device), size, seed, Purpose.STUDENT_ORDER)
    if kind == "uniform":
        return Noise(config.images, size, seed, fresh=fresh)
    table = gaussian_table() if kind == "gaussian" else pixel_table(raw)
    return TableNoise(table.to(images.device, images.dtype), config.images, size, seed, fresh=fresh)
