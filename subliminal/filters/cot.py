"""Rules for reasoning beyond its tags: the answer must be the gold answer."""

from __future__ import annotations

from subliminal.config import Cot, CotFilter, Domain
from subliminal.domains.cot import answer_of, gold
from subliminal.rows import Row


def reason(row: Row, rules: CotFilter, domain: Domain) -> str | None:
    """Why an answer is dropped, or None: `wrong_answer`, which an answer without a number is as well."""
    if not rules.correct or not isinstance(domain, Cot):
        return None
    return None if answer_of(row.completion) == gold(row.index, domain) else "wrong_answer"
