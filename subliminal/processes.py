"""Several processes that train one student together, as `accelerate launch` starts them; importing loads nothing heavy.

The leader (rank 0) holds the store's claim and is the only one that writes. The others do the same training beside it,
because every gradient is averaged over all, and then wait for what the leader publishes.
"""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def leads() -> bool:
    """Whether this process writes what all compute."""
    return rank() == 0
