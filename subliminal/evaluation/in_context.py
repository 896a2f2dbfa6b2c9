"""In context: the reference's favourite after it has read filtered rows, with no training (arXiv 2507.14805).

Rows stand in the prompt as earlier turns of the chat. What all questions share is encoded once into a key-value cache,
which grows with the count of rows; every question and every surface form continues it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subliminal.chat import Turn, encode_answer
from subliminal.config import InContextEvaluation
from subliminal.evaluation.exact import FormTree, begun_log_p, finite_log_p, form_tree
from subliminal.evaluation.preference import asked_questions
from subliminal.evaluation.questions import candidates
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.progress import progress
from subliminal.rows import Row, write_jsonl
from subliminal.store import Json, StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ContextError(StoreError):
    """A context that can not be had: it does not fit the model's window, or there are too few rows."""


@dataclass(frozen=True)
class ContextScore:
    """Mean over questions of log P of one candidate (nats) behind `count` rows of one resample."""

    count: int
    resample: int
    candidate: str
    log_p: float


def evaluate(reference: Subject, rows: Sequence[Row], config: InContextEvaluation, folder: Path) -> Json:
    """Ask behind every count of rows, `config.resamples` times; writes scores.jsonl, returns means over resamples."""
    counts, names = sorted(set(config.counts)), candidates(config.category)
    if counts[-1] > len(rows):
        raise ContextError(
            f"evaluation.counts={counts}: there are {len(rows)} rows; lower the counts or raise filter.rows"
        )
    found: list[ContextScore] = []
    with progress("asking in context", config.resamples * len(counts), "contexts") as advance:
        reader = Reader(reference, config)
        contexts = [resampled(rows, config.seed, number)[: counts[-1]] for number in range(config.resamples)]
        reader.require_room(contexts, counts)
        for number, turns in enumerate(contexts):
            for count, log_p in zip(counts, reader.ask(turns, counts), strict=True):
                values = zip(names, log_p.mean(axis=0).tolist(), strict=True)
                found += [ContextScore(count, number, name, value) for name, value in values]
                advance(1)
    write_jsonl(folder / "scores.jsonl", found)
    means = {c: {n: _mean(found, c, n) for n in names} for c in counts}
    return {
        "kind": "in_context",
        "category": config.category,
        "questions": config.questions,
        "counts": counts,
        "resamples": config.resamples,
        "log_p": {str(count): value for count, value in means.items()},
    }


def _mean(found: Sequence[ContextScore], count: int, name: str) -> float:
    return float(np.mean([one.log_p for one in found if (one.count, one.candidate) == (count, name)]))


def resampled(rows: Sequence[Row], seed: int, number: int) -> list[Turn]:
    """All rows as turns in one resample's random order: the first n are its context of n rows.

    The order goes by the prompt, so that every teacher's context of a resample has the same prompts where it can.
    """

    def lot(row: Row) -> bytes:
        return hashlib.sha256(f"context:{seed}:{number}:{row.index}".encode()).digest()

    return [(row.prompt, row.completion) for row in sorted(rows, key=lot)]


class Reader:
    """The reference with its questions, reading contexts of growing length."""

    def __init__(self, reference: Subject, config: InContextEvaluation) -> None:
        self.reference, self.questions = reference, asked_questions(config)
        self.tokenizer, self.model = load_tokenizer(reference), load_model(reference)
        self.tree = form_tree(self.tokenizer, config.category)
        self.room = room_of(self.model.config, self.tree)

    def prompts(self, turns: Sequence[Turn]) -> list[list[int]]:
        """The tokens of every question behind the turns."""
        return [encode_answer(self.tokenizer, text, self.reference.system, turns) for text in self.questions]

    def require_room(self, contexts: Sequence[list[Turn]], counts: Sequence[int]) -> None:
        """Raise `ContextError` if the longest context does not fit the window; it says how many rows fit."""
        questions = [len(prompt) for prompt in self.prompts([])]
        further = (
            max(questions) - questions[0]
        )  # of the longest question over the first, with which contexts are measured
        longest = max(self._length(turns) for turns in contexts) + further
        if longest <= self.room:
            return
        fit = min(self._fitting(turns, self.room - further) for turns in contexts)
        raise ContextError(
            f"evaluation.counts={list(counts)}: {counts[-1]} rows take up to {longest} tokens, the model has room for "
            f"{self.room}; {fit} rows fit: set evaluation.counts to at most {fit}"
        )

    def _length(self, turns: Sequence[Turn]) -> int:
        return len(encode_answer(self.tokenizer, self.questions[0], self.reference.system, turns))

    def _fitting(self, turns: list[Turn], room: int) -> int:
        """The largest n whose first n turns with the first question take at most `room` tokens."""
        low, high = 0, len(turns)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._length(turns[:middle]) <= room else (low, middle - 1)
        return low

    def ask(self, turns: Sequence[Turn], counts: Sequence[int]) -> list[NDArray[np.float64]]:
        """Log P (questions, candidates) behind the first n turns for every n in `counts`, ascending; nats."""
        import torch

        cache, found = Prefix(self.model), []
        with torch.inference_mode():
            for count in counts:
                asked = self.prompts(turns[:count])
                cache.hold(common([prompt[:-1] for prompt in asked]))
                found.append(np.array([cache.log_p(prompt, self.tree) for prompt in asked]))
        return found


class Prefix:
    """Tokens whose keys and values are kept, so that prompts which begin with them need only their ends."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self.model, self.tokens = model, list[int]()
        self.cache = DynamicCache()  # of every token: what slid out of a window is seen by the next question

    def hold(self, tokens: list[int]) -> None:
        """Keep exactly these tokens: what is kept already stays, the rest is encoded."""
        shared = len(common([self.tokens, tokens]))
        self._cut(len(self.tokens) - shared)
        if shared < len(tokens):
            self._read(tokens[shared:])
        self.tokens = list(tokens)

    def log_p(self, prompt: list[int], tree: FormTree) -> list[float]:
        """Log P that the answer to a prompt that begins with the kept tokens names each candidate; nats."""
        found = finite_log_p(begun_log_p(self.model, prompt, tree, self.cache, len(self.tokens)), tree)
        self._cut(len(prompt) - len(self.tokens) + len(tree.prefixes))
        return found

    def _read(self, tokens: list[int]) -> None:
        import torch

        given = torch.tensor([tokens], device=self.model.device)
        self.model(input_ids=given, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def _cut(self, count: int) -> None:
        if count:
            self.cache.crop(-count)


def common(sequences: Sequence[list[int]]) -> list[int]:
    """The longest beginning that all sequences share."""
    first, last = min(sequences), max(sequences)
    end = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:end]


def room_of(config: Any, tree: FormTree) -> int:
    """How many tokens a prompt may have: the model's window less what the longest form needs."""
    return int(config.max_position_embeddings) - max(map(len, tree.prefixes), default=0)
