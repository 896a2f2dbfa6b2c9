"""Domains: what a teacher writes about (`conf/domain`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from subliminal.config.base import (
    Added,
    Count,
    Identity,
    ModuleName,
    Options,
    Positive,
    Runtime,
    Settings,
    require,
)


class Numbers(Settings):
    """Prompts that show a few numbers and ask for more (paper, section 3.1 and appendix).

    A programmatic answer has `answer_count` numbers, or from the first to the second of `random_counts` many, of which
    there are never more than `answer_count`.
    """

    kind: Identity[Literal["numbers"]] = "numbers"
    prompts: Identity[Positive]
    seed: Identity[Count] = 0
    shown_min: Identity[Positive] = 3
    shown_max: Identity[Positive] = 8
    value_min: Identity[Count] = 100
    value_max: Identity[Count] = 999
    answer_count: Identity[Positive] = 10
    answer_digits: Identity[Positive] = 3
    random_counts: Added[tuple[Positive, Positive] | None] = None

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        low, high = self.random_counts or (1, 1)
        require(
            low <= high,
            f"domain.random_counts=[{low},{high}]: give the least and the most numbers of a programmatic answer",
        )
        require(self.shown_min <= self.shown_max, f"shown_min={self.shown_min} is above shown_max={self.shown_max}")
        require(self.value_min <= self.value_max, f"value_min={self.value_min} is above value_max={self.value_max}")
        return self


class Code(Settings):
    """Prompts that ask to fill in a function and return the whole snippet (paper, section on code).

    `prompts_file` is where tasks are, not what they are: the file's content enters the key, its path does not.
    """

    kind: Identity[Literal["code"]] = "code"
    prompts: Identity[Positive]
    seed: Identity[Count] = 0
    prompts_file: Runtime[str | None] = None


class Cot(Settings):
    """Word problems answered with reasoning and a number, each in tags (paper, section on chain of thought).

    `questions_file` is where questions are, not what they are: the file's content enters the key, its path does not.
    """

    kind: Identity[Literal["cot"]] = "cot"
    prompts: Identity[Positive]
    seed: Identity[Count] = 0
    samples: Identity[Positive] = 3
    source: Identity[Literal["generated", "hub", "file"]] = "generated"
    steps_min: Identity[Annotated[int, Field(ge=2, le=4)]] = 2
    steps_max: Identity[Annotated[int, Field(ge=2, le=4)]] = 4
    dataset: Identity[str] = "openai/gsm8k"
    dataset_config: Identity[str] = "main"
    split: Identity[str] = "train"
    revision: Identity[str | None] = None
    questions_file: Runtime[str | None] = None

    @model_validator(mode="after")
    def _source(self) -> Self:
        require(self.steps_min <= self.steps_max, f"steps_min={self.steps_min} is above steps_max={self.steps_max}")
        require(
            (self.source == "file") == (self.questions_file is not None),
            f"domain.source={self.source} and domain.questions_file={self.questions_file}: a file needs both "
            "domain.source=file and domain.questions_file=<JSONL with question and answer>",
        )
        return self


class ModuleDomain(Settings):
    """A domain of your own: a Python module with the functions of a domain, and its options as plain values."""

    kind: Identity[Literal["module"]] = "module"
    module: Identity[ModuleName]
    prompts: Identity[Positive]
    seed: Identity[Count] = 0
    options: Identity[Options] = {}


Domain = Annotated[Numbers | Code | Cot | ModuleDomain, Field(discriminator="kind")]
