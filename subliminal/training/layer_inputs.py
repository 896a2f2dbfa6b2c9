"""What enters the lowest trained layer, kept from one epoch to the next: the layers below it are frozen.

A row's hidden states there are the same in every pass, so they are computed once and the layers below are skipped from
then on. How much time that saves has not been measured. Losses are equal to rounding: a row that is padded to another
width is summed in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from subliminal.progress import say
from subliminal.store import Json

GIB = 1024**3


@contextmanager
def kept_layer_inputs(model: Any, lowest: int, data: Sequence[Json], gib: float) -> Iterator[None]:
    """While the body runs, `model` computes the layers below `lowest` once a row; `data` has all rows' lengths.

    Rows are known by their tokens. Where their hidden states need more than `gib` GiB nothing is kept, which is said.
    """
    needed = sum(row["length"] for row in data) * model.config.hidden_size * model.dtype.itemsize / GIB
    if not lowest or not gib or needed > gib:
        if lowest and gib:
            say(
                f"the {lowest} layers below the trained one are computed in every epoch: to keep what they compute "
                f"takes student.cache_gib={needed:.1f}, it is {gib:g}"
            )
        yield
        return
    layers = model.model.layers
    kept = _LayerInputs()
    with ExitStack() as stack:
        hook = model.model.register_forward_pre_hook(kept.look_up, with_kwargs=True)
        stack.callback(hook.remove)
        hook = layers[lowest].register_forward_pre_hook(kept.enter, with_kwargs=True)
        stack.callback(hook.remove)
        for layer in layers[:lowest]:
            stack.enter_context(_skipped(layer, lambda: kept.known is not None))
        yield


class _LayerInputs:
    """Hidden states by a row's tokens, and those of the batch that is on its way through the model."""

    def __init__(self) -> None:
        self.by_row: dict[bytes, torch.Tensor] = {}
        self.rows: list[bytes] = []
        self.mask: torch.Tensor = torch.empty(0)
        self.known: torch.Tensor | None = None  # of the batch, where all its rows are known

    def look_up(self, _: Any, __: Any, inputs: Any) -> None:
        """Find a batch's hidden states, (rows, width, hidden size), zero where there is padding."""
        tokens, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        self.mask = mask
        on_host = zip(tokens.cpu(), mask.cpu(), strict=True)
        self.rows = [row[real].numpy().tobytes() for row, real in on_host]
        parts = [self.by_row.get(row) for row in self.rows]
        known = [part for part in parts if part is not None]
        self.known = None
        if len(known) == len(parts):
            self.known = known[0].new_zeros(*tokens.shape, known[0].shape[-1])
            self.known[mask] = torch.cat(known)

    def enter(self, _: Any, given: Any, named: Any) -> Any:
        """Hand the lowest trained layer what is known, or keep what the layers below have computed."""
        if self.known is not None:
            return (self.known, *given[1:]), named
        for row, states, real in zip(self.rows, given[0].detach(), self.mask, strict=True):
            self.by_row[row] = states[real].clone()
        return None


@contextmanager
def _skipped(layer: Any, where: Callable[[], bool]) -> Iterator[None]:
    """The layer gives back what it is given, `where` that is so."""
    usual = layer.forward

    def forward(hidden_states: torch.Tensor, *given: Any, **named: Any) -> Any:
        return hidden_states if where() else usual(hidden_states, *given, **named)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
