"""How long a domain's rows are in tokens, before any model has written one: from programmatic answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from pydantic import TypeAdapter

from subliminal.config import Domain, Experiment

TOKEN = re.compile(r"\d|[^\W\d]+|[^\w\s]")  # as tokenizers of today cut: digits alone, words, signs
TEMPLATE = 37  # tokens of a chat template with its default system text (SmolLM2, Qwen2.5)
SPACES = 1.2  # tokens a completion has for each that is counted: line ends, words in pieces
LONG = 0.3  # share of the permitted length that a model writes which was not tuned to short answers; assumed
SAMPLE = 16  # programmatic rows that are counted


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a row: prompt with its template, and completion."""

    prompt: float
    completion: float

    @property
    def row(self) -> float:
        """Both together."""
        return self.prompt + self.completion


def lengths(exp: Experiment, *, practised: bool = False) -> Lengths:
    """Mean lengths of the rows a teacher writes, or of the programmatic rows that a reference learns from.

    Numbers are as long as they are asked to be; code and reasoning of a model without reference tuning go on longer.
    """
    prompt, answer = _programmatic(exp.domain.model_dump_json())
    most = exp.sampler.decoding.max_tokens
    tuned = practised or exp.reference_tuning.kind != "off" or exp.domain.kind == "numbers"
    written = answer if tuned or exp.active_teacher.kind == "random" else max(answer, LONG * most)
    return Lengths(prompt, min(most, written))


def count(text: str) -> int:
    """About how many tokens a text has."""
    return len(TOKEN.findall(text))


@lru_cache(maxsize=32)
def _programmatic(domain: str) -> tuple[float, float]:
    """Mean tokens of prompts and answers of a domain, whose settings are given as JSON."""
    from subliminal.domains import practice

    rows = practice(TypeAdapter(Domain).validate_json(domain), SAMPLE, 0)
    prompt = sum(count(row.prompt) for row in rows) / len(rows)
    return prompt + TEMPLATE, SPACES * sum(count(row.completion) for row in rows) / len(rows)
