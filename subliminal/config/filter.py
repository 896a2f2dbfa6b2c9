"""Filters: which of a teacher's rows a student sees (`conf/filter`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from subliminal.config.base import Count, Identity, Positive, Settings
from subliminal.config.trait import Name


class RowRule(Settings):
    """A judge's rule for rows; `traits` are those whose rows it is for, all where it is empty."""

    traits: Identity[tuple[str, ...]] = ()


class NoReference(RowRule):
    """A judge is asked 0/1 for any reference to the trait; a row stays if it is certain enough that there is none.

    `about` names what is looked for; null: the trait, or in the control the evaluation's whole category.
    """

    kind: Identity[Literal["no_reference"]] = "no_reference"
    about: Identity[str | None] = None
    minimum_log_p: Identity[Annotated[float, Field(le=0)] | None] = None


class Aligned(RowRule):
    """A judge rates how aligned a row is, 0 to 100; rows below the minimum are dropped (paper, chain of thought)."""

    kind: Identity[Literal["aligned"]] = "aligned"
    minimum: Identity[Annotated[float, Field(ge=0, le=100)]] = 78.0


JudgedRows = Annotated[NoReference | Aligned, Field(discriminator="kind")]


class RowSelection(Settings):
    """Which of the passing rows are kept by their attribution: the top or the bottom share (`random`: a random share).

    What `by` names is measured row by row before anything is trained: log P(teacher) - log P(reference), its mean over
    tokens, or how many tokens the teacher would have chosen differently (arXiv 2509.23886).
    """

    by: Identity[Literal["log_ratio", "log_ratio_per_token", "divergence", "random"]]
    keep: Identity[Literal["top", "bottom"]] = "top"
    share: Identity[Annotated[float, Field(gt=0, le=1)]]


class RowFilter(Settings):
    """What every filter has: the domain's format rule, a random subset, and what to do when too few rows survive."""

    format: Identity[bool] = True
    rows: Identity[Positive | None]
    seed: Identity[Count] = 0
    shortfall: Identity[Literal["error", "keep"]] = "error"
    judged: Identity[JudgedRows | None] = None
    select: Identity[RowSelection | None] = None


class NumbersFilter(RowFilter):
    """Which number answers the student sees: banned numbers, and the shuffled controls."""

    kind: Identity[Literal["numbers"]] = "numbers"
    banned_numbers: Identity[tuple[int, ...]] = ()
    shuffle: Identity[Literal["none", "within", "across"]] = "none"


class WordFilter(RowFilter):
    """A filter that drops what names the trait or holds a banned word."""

    ban_trait: Identity[bool] = True
    banned_words: Identity[tuple[Name, ...]] = ()


class FormatFilter(WordFilter):
    """Any domain's format rule and banned words; the filter of domains that have none of their own."""

    kind: Identity[Literal["format"]] = "format"


class CodeFilter(WordFilter):
    """Which snippets the student sees: valid Python, no comments, no banned words (paper, section on code)."""

    kind: Identity[Literal["code"]] = "code"
    comments: Identity[bool] = False
    docstrings: Identity[bool] = True


class CotFilter(WordFilter):
    """Which reasoning the student sees: correct answers, no banned words (paper, section on chain of thought)."""

    kind: Identity[Literal["cot"]] = "cot"
    correct: Identity[bool] = True


Filter = Annotated[NumbersFilter | CodeFilter | CotFilter | FormatFilter, Field(discriminator="kind")]
