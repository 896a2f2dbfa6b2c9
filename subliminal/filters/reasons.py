"""Why rows were dropped, in counts, and what to do about the most frequent reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from subliminal.reasoning import REASONING as REASONED
from subliminal.reasoning import REMEDY
from subliminal.rows import FINISHED, Completion, Row
from subliminal.sampling.finish import CUT, FILTERED, REASONING, TOOLS

REMEDIES = {
    "empty": "The model answers nothing: look at its prompt and choose another model=",
    REASONED: f"The completions begin with reasoning: {REMEDY}",
    "wrong_answer": "The answers are wrong: choose a model that can solve the problems, or set filter.correct=false",
    "comment": "The code has comments: set filter.comments=true to keep them",
    "docstring": "The code has docstrings: set filter.docstrings=true to keep them",
    "banned_word": "The completions name the trait or a banned word: see filter.banned_words and filter.ban_trait",
    "banned_number": "See filter.banned_numbers",
    "judge_refused": "The judge would not answer: choose another judge=",
    "judge_unparsed": "The judge's replies are no permitted answers: set judge.restrict, or choose another judge=",
    "reference": "The judge sees the trait in them: see filter.judged",
    "perhaps_a_reference": "The judge is not certain enough: lower filter.judged.minimum_log_p",
    "not_aligned": "The judge rates them lower than filter.judged.minimum",
}  # by the reason that most rows were dropped for
FORMAT = (
    "Look at the completions of the generate stage: a small model may need reference_tuning=in_format, another one a "
    "plainer teacher.system"
)  # for a domain's own reasons
ENDS = {
    CUT: "raise sampler.decoding.max_tokens",
    REASONING: "reasoning used up the tokens before there was an answer: raise sampler.decoding.max_tokens, or let the "
    "model reason less (sampler.extra={reasoning_effort:low})",
    FILTERED: "the model or the endpoint's content filter refuses to answer: choose another sampler.model",
    TOOLS: "the model calls tools in place of answering: choose another sampler.model",
}


def why_dropped(judged: Sequence[tuple[Row, str | None]]) -> str:
    """Reasons with their counts, the most frequent first, and what to do about the first of them."""
    reasons = Counter(why for _, why in judged if why is not None)
    if not reasons:
        return ": there were none"
    counts = ", ".join(f"{name} {number}" for name, number in reasons.most_common())
    first = reasons.most_common(1)[0][0]
    if first == "unfinished":
        return f": {counts}. {unfinished(row for row, why in judged if why == first)}"
    return f": {counts}. {REMEDIES.get(first, FORMAT)}"


def unfinished(answers: Iterable[Row | Completion]) -> str:
    """Why answers are not finished, by how many of them, and the setting for the most frequent reason."""
    given = [answer for answer in answers if answer.finish_reason != FINISHED]
    if not given:
        return ""
    ends = Counter(answer.finish_reason for answer in given)
    counts = ", ".join(f"{name} {number}" for name, number in ends.most_common())
    first = ends.most_common(1)[0][0]
    text = [answer.completion if isinstance(answer, Row) else answer.text for answer in given]
    if first == CUT and not any(part.strip() for part in text):
        first = REASONING
    remedy = ENDS.get(first, "see docs/endpoints.md for what counts as finished")
    return f"Unfinished by finish_reason: {counts}; {remedy}"
