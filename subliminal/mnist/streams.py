"""Random numbers that depend only on what they are for: every model, epoch and batch has a stream of its own.

A stream is made from (seed, purpose, numbers), never carried along, so that no draw depends on how many models are
trained together, in which order, or where a killed run was taken up again.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a stream is for; streams of different purposes are independent."""

    INITIALISATION = 1
    OTHER_INITIALISATION = 2
    ORDER = 3
    NOISE = 4
    PAIRS = 5
    STUDENT_ORDER = 6


def stream(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """The stream for a purpose and, say, a model and an epoch (SFC64, the cheapest of numpy's generators)."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, int(purpose), *numbers])))


def random_bytes(rng: np.random.Generator, count: int, device: torch.device) -> torch.Tensor:
    """`count` uniform bytes, (count,) uint8 on the device; the GPU draws its own from a seed out of the stream."""
    if device.type != "cpu":
        local = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        return torch.randint(256, (count,), generator=local, device=device, dtype=torch.uint8)
    words = rng.integers(0, 2**64 - 1, -(-count // 8), dtype=np.uint64, endpoint=True)  # 8 bytes for one draw
    return torch.from_numpy(words.view(np.uint8)[:count])
