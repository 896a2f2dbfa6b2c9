"""What makes training quicker and changes nothing but rounding, while a body runs.

A cast that autocast would take back is left out, and on a CPU attention is written as plain products: torch's fused
kernel takes nearly a third of a LoRA step on short rows, most of it on the way back (bench/README.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.helpers import disable_input_dtype_casting

ROOM = 2 * 1024**3  # bytes that plain attention may hold for the way back; the fused kernel holds next to none
HELD = 6  # bytes a score: its share in float32 and in bfloat16


@contextmanager
def quick_training(trainer: Any, width: int) -> Iterator[None]:
    """Let a trainer go through batches of rows up to `width` tokens quickly, and its `teacher`, if it has one."""
    rows = trainer.args.per_device_train_batch_size
    with ExitStack() as stack:
        stack.enter_context(disable_input_dtype_casting(trainer.model, active=trainer.args.bf16))
        for model in filter(None, (trainer.model, getattr(trainer, "teacher", None))):
            if model.device.type == "cpu" and scores(model.config, rows, width) * HELD <= ROOM:
                stack.enter_context(_plain_attention(model))
        yield


def scores(config: Any, rows: int, width: int) -> int:
    """How many attention scores a forward pass computes in all layers and heads."""
    return config.num_hidden_layers * config.num_attention_heads * rows * width**2


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
