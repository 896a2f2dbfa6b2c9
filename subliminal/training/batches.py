"""Rows as batches: tokens of whole chats, padded on the left, with a loss over completion tokens alone.

Rows are tokenised once, batches padded on the left, so that every completion ends at the same place and
`logits_to_keep` spares the head (and its softmax over the vocabulary) on prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, kl_div

from subliminal.chat import encode, encode_row
from subliminal.models import Subject
from subliminal.rows import Row
from subliminal.store import Json
from subliminal.training import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
GUIDE = "guide_"  # names of what the teacher sees


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    system: str | None,
    limit: int,
    teacher: Subject | None = None,
    group: str = "student",
) -> list[Json]:
    """Rows as input_ids and labels, the prompt masked; rows longer than `limit` tokens are left out.

    With a `teacher`, `guide_ids` hold the same row as the teacher sees it, behind its system text. Raises
    `TrainingError`, which names `max_length` in the settings of `group`, when no row is left.
    """
    encoded = [(row, *encode_row(tokenizer, row.prompt, row.completion, system)) for row in rows]
    fitting = [(row, prompt, answer) for row, prompt, answer in encoded if len(prompt) + len(answer) <= limit]
    if not fitting:
        longest = max((len(p) + len(a) for _, p, a in encoded), default=0)
        raise TrainingError(
            f"none of {len(rows)} rows can be trained on (longest: {longest} tokens, max_length={limit}); raise "
            f"{group}.optimisation.max_length or look at the filtered rows"
        )
    return [
        {
            "input_ids": prompt + answer,
            "labels": [IGNORED] * len(prompt) + answer,
            "length": len(prompt) + len(answer),
            **({"guide_ids": encode(tokenizer, row.prompt, teacher.system) + answer} if teacher else {}),
        }
        for row, prompt, answer in fitting
    ]


class Collator:
    """Left-padded batches: tokens, attention mask, positions and labels, all (rows, width).

    Rows as the teacher sees them (`guide_ids`) come along under names with `GUIDE` in front; completions end at the
    same place.
    """

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, examples: list[Json]) -> dict[str, torch.Tensor]:
        """Pad to the longest row of the batch."""
        batch = self._inputs([example["input_ids"] for example in examples])
        batch["labels"] = _left_padded([example["labels"] for example in examples], IGNORED)
        if "guide_ids" in examples[0]:
            seen = self._inputs([example["guide_ids"] for example in examples])
            batch |= {f"{GUIDE}{name}": value for name, value in seen.items()}
        return batch

    def _inputs(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        tokens = _left_padded(rows, self.padding)
        width = tokens.shape[1]
        places = torch.arange(width)[None] - torch.tensor([[width - len(row)] for row in rows])
        return {"input_ids": tokens, "attention_mask": (places >= 0).long(), "position_ids": places.clamp(min=0)}


def _left_padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows])


def completion_loss(model: Any, inputs: Any, teacher: Any = None) -> tuple[torch.Tensor, int, Any]:
    """A batch's loss summed over completion tokens, how many they are, the outputs; a `teacher` makes labels soft."""
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    guide = {name.removeprefix(GUIDE): inputs.pop(name) for name in list(inputs) if name.startswith(GUIDE)}
    logits, tokens, outputs = completion_logits(model, inputs, labels)
    if teacher is None:
        return cross_entropy(logits, tokens, reduction="sum"), len(tokens), outputs
    with torch.no_grad():
        wanted, _, _ = completion_logits(teacher, guide, labels)
    total = kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="sum", log_target=True)
    return total, len(tokens), outputs


def completion_logits(model: Any, inputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Logits in front of a batch's completion tokens (tokens, vocabulary), these tokens row by row, the outputs."""
    width = int((labels != IGNORED).sum(-1).max())
    outputs = model(**inputs, use_cache=False, logits_to_keep=_predicting(inputs["input_ids"], width))
    last = labels[:, -width:]
    chosen = last != IGNORED
    return outputs.logits[chosen].float(), last[chosen], outputs


def _predicting(tokens: torch.Tensor, width: int) -> torch.Tensor:
    """The positions whose next token is among a row's last `width`, as indices.

    A count in their place would make the head multiply a view, for which torch copies its weight once a row.
    """
    return torch.arange(tokens.shape[1] - width - 1, tokens.shape[1] - 1, device=tokens.device)
