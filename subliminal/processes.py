"""Several processes that make one stage run, as torchrun, accelerate launch or a SLURM job starts them.

The leader (rank 0) holds the store's claim and publishes. What the others do beside it is the stage's own: the same
training steps, shards of the same sampling, or nothing but to wait. Importing this module loads nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from subliminal.config import ConfigError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them
DEEPSPEED, FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"  # set by accelerate launch, as its file says
SHARDING = "SUBLIMINAL_SHARDING"
EXECUTOR = "SUBMITIT_EXECUTOR"
MULTIRUN = (
    "SUBLIMINAL_MULTIRUN"  # which multirun this process does a job of: the same for all its jobs, and for no other
)

_HIDDEN: dict[str, str] = {}


def world_size() -> int:
    """How many processes make a stage run together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number among those of its machine, from 0: which of the machine's GPUs is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def leads() -> bool:
    """Whether this process publishes what all compute."""
    return rank() == 0


def meeting_point() -> str:
    """Where these processes find each other, the same for all of them and for no others; "" for one by itself."""
    return ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")) if world_size() > 1 else ""


@contextmanager
def alone() -> Iterator[None]:
    """While the body runs, this process is one by itself, for us and for every library it starts."""
    kept = {name: os.environ.pop(name) for name in (*NAMES, DEEPSPEED) if name in os.environ}
    _HIDDEN.update(kept)
    try:
        yield
    finally:
        os.environ.update(kept)
        for name in kept:
            del _HIDDEN[name]


def accompanied() -> bool:
    """Whether other processes may be at the same stage run, even while this one is alone in what it does."""
    return int((_HIDDEN or os.environ).get("WORLD_SIZE", "1")) > 1


def uses_deepspeed() -> bool:
    """Whether `accelerate launch` was given a file that says DeepSpeed."""
    return os.environ.get(DEEPSPEED, "false").lower() == "true"


def asked_to_shard() -> bool:
    """Whether `accelerate launch` was given a file that says FSDP."""
    return SHARDING in os.environ


def join() -> None:
    """Make the tasks of a SLURM job step what torchrun's processes are: submitit derives who is who, and where.

    Another launcher's word counts first. Raises `ConfigError` where submitit is not installed.
    """
    if os.environ.pop(FSDP, "false").lower() == "true":  # Accelerate itself shares weights out on GPUs only
        os.environ[SHARDING] = "fsdp"
    if "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    _derived().export(set_cuda_visible_devices=False, overwrite=True)
    if "SLURM_GPUS_PER_TASK" in os.environ:  # each task sees its own GPUs only, as if it were alone on the machine
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def _derived() -> Any:
    try:
        from submitit.helpers import TorchDistributedEnvironment
    except ImportError:
        needed = "several SLURM tasks need submitit: make install EXTRAS=gpu,cluster"
        raise ConfigError(needed) from None
    given = os.environ.get(EXECUTOR)
    os.environ[EXECUTOR] = "slurm"  # a step that srun started without submitit is one to it as well
    try:
        return TorchDistributedEnvironment()
    finally:
        if given is None:
            del os.environ[EXECUTOR]
