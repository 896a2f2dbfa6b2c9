"""Constrained decoding: only tokens that keep an answer on the way to a pattern, by XGrammar, as in vLLM.

Where a small model, or a strong vector, loses a domain's format, most of its answers would be filtered out. Here the
next token is drawn among those that some answer in format goes on with, in the model's own proportions.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase
    from xgrammar import CompiledGrammar


def compiled(
    tokenizer: PreTrainedTokenizerBase, pattern: str, vocabulary: int, stops: Collection[int]
) -> CompiledGrammar:
    """A pattern over a tokenizer's tokens; `vocabulary` is the width of the model's logits, `stops` end an answer."""
    import xgrammar

    about = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(stops))
    return xgrammar.GrammarCompiler(about).compile_regex(pattern)


class Constraint:
    """Where each of several answers is on its way to the pattern."""

    def __init__(self, grammar: CompiledGrammar, answers: int, vocabulary: int) -> None:
        import xgrammar

        self._places = [xgrammar.GrammarMatcher(grammar) for _ in range(answers)]
        self._permitted = xgrammar.allocate_token_bitmask(answers, vocabulary)

    def masked(self, logits: torch.Tensor, answers: list[int]) -> torch.Tensor:
        """Logits (answers, vocabulary) of the given answers, -inf where a token would leave the pattern."""
        import xgrammar

        permitted = self._permitted[: len(answers)]
        permitted.fill_(-1)  # every token, for an answer that has ended
        for row, answer in enumerate(answers):
            if not self._places[answer].is_terminated():
                self._places[answer].fill_next_token_bitmask(permitted, row)
        masked = logits.clone()
        xgrammar.apply_token_bitmask_inplace(masked, permitted.to(logits.device))
        return masked

    def advance(self, answer: int, token: int) -> None:
        """An answer goes on with a token."""
        self._places[answer].accept_token(token)
