"""Who holds the memory of a GPU: the model that transformers loaded, vLLM's engine, or a training alone.

An engine takes minutes to start, and every evaluation of a LoRA student needs both a model, for exact
log-probabilities, and an engine, for samples: they stay side by side where both fit. A training has the whole card.
"""

from __future__ import annotations

import gc
import time
from typing import Any

from subliminal.progress import say

GIB = 1024**3
SPARE = 2 * GIB  # what passes of a few short prompts need besides a model's weights, and torch itself
OVERHEAD = 1.2  # bytes an engine holds for each byte of its weights: its graphs and its largest batch
CACHE = 8 * GIB  # the least an engine gets for keys and values: 256 chats of 500 tokens on a model of 7B parameters
WAIT_SECONDS = 60.0  # for memory that a process which has just ended still holds
LOOK_SECONDS = 0.5

MODELS: dict[Any, Any] = {}
"""The base model that stays loaded, by its subject, so that several adapters share it; at most one."""
ENGINES: dict[Any, Any] = {}
"""The vLLM engine that runs, by what it was started with; at most one."""


def memory() -> tuple[int, int]:
    """Free and total bytes of this process's GPU; what other processes hold is not free."""
    import torch

    return torch.cuda.mem_get_info()


def unload() -> None:
    """Let go of the model that stays loaded, and give its memory on a GPU back."""
    import torch

    MODELS.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def shut_down() -> None:
    """Stop the running engine and give its memory back."""
    while ENGINES:
        _, running = ENGINES.popitem()
        running.llm_engine.engine_core.shutdown()


def room_for_model(weights: int) -> None:
    """Stop the engine where a model of that many bytes does not fit on the GPU as long as the engine runs."""
    needed = round(weights * 1.1) + SPARE
    if ENGINES and memory()[0] < needed:
        shut_down()
        wait_for(needed)


def room_for_training(device: str) -> None:
    """Let a training have the whole memory: no engine runs on its GPU, and no model stays loaded."""
    unload()
    if device == "cuda" and ENGINES:
        shut_down()
        wait_for(round(memory()[1] * 0.9))


def room_for_engine(weights: int, wanted: float) -> float:
    """The share of the GPU's memory, at most `wanted`, that an engine with that many bytes of weights may take.

    It leaves room for the same weights in transformers, or lets a model stay that is loaded already, where `CACHE`
    bytes and more are left for keys and values. Where they are not, a loaded model goes, and the engine gets all of
    `wanted`.
    """
    free, total = memory()
    model = 0 if MODELS else round(weights * 1.1)
    share = min(wanted, (free - model - SPARE) / total)
    if share * total >= weights * OVERHEAD + CACHE:
        return share
    unload()
    wait_for(round(total * wanted))
    return wanted


def wait_for(needed: int) -> None:
    """Wait until `needed` bytes of the GPU are free: memory comes back a while after the process that held it ended.

    After `WAIT_SECONDS` a line says what is still taken, and the work goes on: what starts next knows whether that is
    enough.
    """
    until = time.monotonic() + WAIT_SECONDS
    while (free := memory()[0]) < needed:
        if time.monotonic() > until:
            say(f"  {free / GIB:.1f} GiB of the GPU are free, not {needed / GIB:.1f}: another process holds the rest")
            return
        time.sleep(LOOK_SECONDS)
