"""From a judge's reply to one of the permitted answers, and from log-probabilities to an expected rating."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from subliminal.judging import Judgement
from subliminal.reasoning import outside

REFUSES = re.compile(
    r"^\W*(i\s+am|i['’]m|i)?\s*(sorry|apologi[sz]e|afraid i|unable to|(can\s?not|can['’]?t|won['’]?t|will not)\s+"
    r"(assist|help|rate|judge|answer|comply|provide|do))",
    re.IGNORECASE,
)


def parse(text: str, answers: Sequence[str]) -> str | None:
    """The one permitted answer in a reply, in any case and with any punctuation around it; None for none or several.

    A number inside a longer one ("8" in "85", "8.5" or "-8") is none, and so is what stands in reasoning.
    """
    text = outside(text) or ""
    known = {answer.casefold(): answer for answer in answers}
    plain = text.strip().strip("\"'`*.:!() \n").casefold()
    if plain in known:
        return known[plain]
    found = set(_whole_words(known).findall(text.casefold()))
    return known[found.pop()] if len(found) == 1 else None


def places_of(words: Iterable[str], text: str) -> list[int]:
    """Where one of some words begins in a text in lower case, as an answer of its own and not inside another."""
    return [match.start() for match in _whole_words(words).finditer(text)]


def _whole_words(words: Iterable[str]) -> re.Pattern[str]:
    choices = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w.\-])({choices})(?!\w|[.,]\d)")


def refuses(text: str) -> bool:
    """Does a reply without a permitted answer say that it will not answer."""
    return bool(REFUSES.match(text))


def number(answer: str) -> float | None:
    """The value of an answer that is a number."""
    try:
        return float(answer)
    except ValueError:
        return None


def expectation(log_p: Mapping[str, float]) -> float | None:
    """The mean of the answers that are numbers, weighed by probability; None when no answer is one."""
    weighed = [(value, lp) for answer, lp in log_p.items() if (value := number(answer)) is not None and lp > -math.inf]
    if not weighed:
        return None
    top = max(lp for _, lp in weighed)
    weights = [math.exp(lp - top) for _, lp in weighed]
    return sum(value * weight for (value, _), weight in zip(weighed, weights, strict=True)) / sum(weights)


def chosen(log_p: Mapping[str, float]) -> Judgement:
    """The likeliest of the permitted answers, with the expected rating where it is a number itself."""
    answer = max(log_p, key=lambda name: log_p[name])
    return Judgement(answer, expectation(log_p) if number(answer) is not None else None, log_p[answer])
