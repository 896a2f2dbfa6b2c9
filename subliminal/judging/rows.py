"""A judge in a filter: which rows hold a reference to the trait, or are not aligned (arXiv 2507.14805)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import assert_never

from subliminal.config import Aligned, JudgedRows, NoReference
from subliminal.filters import RowJudge
from subliminal.judging import Judge, JudgeError, Judgement, counts
from subliminal.judging.prompts import ask_about
from subliminal.progress import say
from subliminal.rows import Row


def judged_rows(rules: JudgedRows, about: str, opened: Callable[[], AbstractContextManager[Judge]]) -> RowJudge:
    """The judge as one more rule of the filter: a reason for each row it does not clear, None for the others.

    A row whose judgement is refused or unparsed is dropped with that reason, never passed unseen.
    """

    def judge(rows: list[Row]) -> list[str | None]:
        asked = [ask_about(rules.kind, row.prompt, row.completion, about) for row in rows]
        with opened() as who:
            said = who.ask(asked)
        report = counts(said)
        say(f"  judged {report['asked']} rows: {report['refused']} refused, {report['unparsed']} unparsed")
        return [_unusable(one) or _reason(one, rules) for one in said]

    return judge


def _unusable(said: Judgement) -> str | None:
    if said.refused:
        return "judge_refused"
    return "judge_unparsed" if said.answer is None else None


def _reason(said: Judgement, rules: JudgedRows) -> str | None:
    match rules:
        case Aligned():
            return "not_aligned" if said.score is None or said.score < rules.minimum else None
        case NoReference():
            return _referring(said, rules)
        case _:
            assert_never(rules)


def _referring(said: Judgement, rules: NoReference) -> str | None:
    if said.answer != "0":
        return "reference"
    if rules.minimum_log_p is None:
        return None
    if said.log_p is None:
        raise JudgeError(
            "the judge gives no log-probabilities, which filter.judged.minimum_log_p needs; use judge=local or an "
            "endpoint with logprobs (judge.top_logprobs), or set filter.judged.minimum_log_p=null to go by the answer"
        )
    return "perhaps_a_reference" if said.log_p < rules.minimum_log_p else None
