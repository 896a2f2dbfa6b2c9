"""Cards, and machines without one (`conf/hardware`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from subliminal.config.base import PositiveFloat, Runtime, Settings


class Hardware(Settings):
    """What a card, or a machine without one, can do: what estimates of time and memory go by.

    `flops` are FLOP/s in dense bfloat16, `bandwidth` bytes/s and `memory` bytes (null: not looked at) of one card, each
    as its maker states it; the shares are what this project's stages reach of them. `layer_seconds` is the least that a
    decoder layer takes in a pass, for launches and Python, and `engine_seconds` the start of a vLLM engine.
    """

    name: Runtime[str]
    gpu: Runtime[bool]
    flops: Runtime[PositiveFloat]
    flops_share: Runtime[Annotated[float, Field(gt=0, le=1)]]
    bandwidth: Runtime[PositiveFloat]
    bandwidth_share: Runtime[Annotated[float, Field(gt=0, le=1)]]
    memory: Runtime[PositiveFloat | None]
    layer_seconds: Runtime[Annotated[float, Field(ge=0)]]
    engine_seconds: Runtime[Annotated[float, Field(ge=0)]]
