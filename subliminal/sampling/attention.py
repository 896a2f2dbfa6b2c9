"""Attention for writing one token at a time with transformers: no copy of the cache a step, none a query head.

Importing this module registers the attention under `NAME`; it differs from transformers' own only in rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

NAME = "subliminal_grouped"


def grouped_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **settings: Any
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention; query heads that share a key head are its query positions when there is one token.

    Shapes: query (rows, heads, positions, size), key and value (rows, key heads, cached, size), mask (rows, 1,
    positions, cached); returns (rows, positions, heads, size).
    """
    rows, heads, positions, size = query.shape
    if positions != 1 or settings.get("position_bias") is not None or (mask is not None and mask.shape[1] != 1):
        return sdpa_attention_forward(module, query, key, value, mask, **settings)
    groups = query.view(rows, key.shape[1], heads // key.shape[1], size)
    found = scaled_dot_product_attention(groups, key, value, attn_mask=mask, scale=settings.get("scaling"))
    return found.reshape(rows, 1, heads, size), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def grouped(model: Any) -> Iterator[None]:
    """Let a model that attends by scaled dot products do so in groups while the body runs."""
    usual = model.config._attn_implementation
    if usual != "sdpa":
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


class RoomyLayer(DynamicLayer):
    """A layer's keys and values in tensors with room for more positions: a new token is written, not joined on."""

    room = 64

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new positions behind the old ones; returns all of them, (rows, key heads, positions, size)."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if start == 0 or end > self.space[0].shape[-2]:
            self.space = self._larger(self.keys, key_states, end), self._larger(self.values, value_states, end)
        for space, new in zip(self.space, (key_states, value_states), strict=True):
            space[..., start:end, :] = new
        self.keys, self.values = (space[..., :end, :] for space in self.space)
        return self.keys, self.values

    def _larger(self, old: Any, new: torch.Tensor, end: int) -> torch.Tensor:
        space = new.new_empty((*new.shape[:-2], end + self.room, new.shape[-1]))
        if old.numel():
            space[..., : old.shape[-2], :] = old
        return space

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only keep these rows."""
        end = self.get_seq_length()
        self.space = self.space[0][indices], self.space[1][indices]
        self.keys, self.values = (space[..., :end, :] for space in self.space)


def roomy_cache(model: Any) -> DynamicCache:
    """The cache the model would make itself, with room in the layers that only grow."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
