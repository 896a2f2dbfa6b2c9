"""What a figure says of a claim: the outcome, a sentence, and the number that decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from subliminal.plots.table import Line

Outcome = Literal["holds", "contradicted", "not shown", "undecided", "suggestive", "not measurable"]


@dataclass(frozen=True)
class Verdict:
    """What the rule says of a group of students, or of two compared, and the number that decided where it is one.

    `p` is the one-sided p of the claim where a test decides.
    """

    group: str
    outcome: Outcome
    sentence: str
    line: Line | None = None
    p: float | None = None
    compares: bool = False
