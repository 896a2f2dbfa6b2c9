"""Filtering: which completions the student sees, and why each other one was dropped."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from subliminal.config import CodeFilter, CotFilter, Domain, Filter, FormatFilter, NumbersFilter
from subliminal.domains import domain as domain_module
from subliminal.domains import numbers
from subliminal.filters.reasons import why_dropped
from subliminal.filters.select import Attribution, select
from subliminal.filters.words import holds
from subliminal.rows import FINISHED, Dropped, Row
from subliminal.store import Json, StoreError

SAMPLE_PER_REASON = 20
MARGIN = 1.1


class ShortfallError(StoreError):
    """Fewer rows survived than the student was to see."""


@dataclass(frozen=True)
class FilterResult:
    """Rows kept, a sample of those dropped, and the counts for the manifest."""

    kept: list[Row]
    dropped: list[Dropped]
    report: Json


RowJudge = Callable[[list[Row]], list[str | None]]  # why each row is dropped, or None


def apply(
    rows: Iterable[Row],
    rules: Filter,
    domain: Domain,
    *,
    banned: Iterable[str] = (),
    judge: RowJudge | None = None,
    attributed: Mapping[int, Attribution] | None = None,
) -> FilterResult:
    """Filter, select, shuffle and subsample; `attributed` (by row index) is what `rules.select` goes by.

    The judge sees only what the rules let through. Raises `ShortfallError` when too few rows survive both and
    `rules.shortfall` is error.
    """
    everything, words = list(rows), tuple(banned)
    judged = [(row, reason(row, rules, domain, words)) for row in everything]
    if judge:
        judged = _also_judged(judged, judge)
    passed = [row for row, why in judged if why is None]
    refused = [Dropped(row.index, why, row.prompt, row.completion) for row, why in judged if why is not None]
    _enough(judged, rules)
    selected, left = select(passed, rules.select, attributed or {}, rules.seed) if rules.select else (passed, [])
    refused += [Dropped(row.index, "not_selected", row.prompt, row.completion) for row in left]
    counts = Counter(dropped.reason for dropped in refused)
    kept = subsample(_shuffle(selected, rules), _wanted(rules), rules.seed)
    report = {
        "generated": len(everything),
        "kept_before_subsample": len(selected),
        "kept": len(kept),
        "pass_rate": len(passed) / len(everything) if everything else 0.0,
        "reasons": dict(counts.most_common()),
    }
    return FilterResult(kept, _sample(refused), report)


def _also_judged(found: list[tuple[Row, str | None]], judge: RowJudge) -> list[tuple[Row, str | None]]:
    said = iter(judge([row for row, why in found if why is None]))
    return [(row, next(said) if why is None else why) for row, why in found]


def reason(row: Row, rules: Filter, domain: Domain, banned: Iterable[str] = ()) -> str | None:
    """Why this row is dropped, or None: unfinished, out of format, or against a rule of the domain's own filter."""
    if row.finish_reason != FINISHED:
        return "unfinished"
    if rules.format and (why := domain_module(domain).reject(row.completion, domain)):
        return why
    if why := _own_rule(row, rules, domain):
        return why
    return "banned_word" if holds(f"{row.prompt}\n{row.completion}", banned) else None


def _own_rule(row: Row, rules: Filter, domain: Domain) -> str | None:
    match rules:
        case NumbersFilter():
            return "banned_number" if set(numbers.values(row.completion)) & set(rules.banned_numbers) else None
        case CodeFilter():
            from subliminal.filters.code import reason as of_code

            return of_code(row, rules)
        case CotFilter():
            from subliminal.filters.cot import reason as of_cot

            return of_cot(row, rules, domain)
        case FormatFilter():
            return None
        case _:
            assert_never(rules)


def subsample(rows: list[Row], wanted: int | None, seed: int) -> list[Row]:
    """A uniform random subset in the old order; raising `wanted` adds rows and removes none."""
    if wanted is None or wanted >= len(rows):
        return rows
    chosen = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row.index}".encode()).digest())[:wanted]
    indices = {row.index for row in chosen}
    return [row for row in rows if row.index in indices]


def _wanted(rules: Filter) -> int | None:
    """Rows in the end: of `rules.rows` a selection leaves its share, so that every selection of a share is as large."""
    if rules.rows is None or rules.select is None:
        return rules.rows
    return max(1, round(rules.select.share * rules.rows))


def _shuffle(rows: list[Row], rules: Filter) -> list[Row]:
    if not isinstance(rules, NumbersFilter) or rules.shuffle == "none":
        return rows
    shuffles = {"within": numbers.shuffle_within, "across": numbers.shuffle_across}
    return shuffles[rules.shuffle](rows, rules.seed)


def _enough(judged: Sequence[tuple[Row, str | None]], rules: Filter) -> None:
    wanted, generated = rules.rows or 1, len(judged)
    passed = sum(why is None for _, why in judged)
    if passed >= wanted or (rules.shortfall == "keep" and passed):
        return
    why = why_dropped(judged)
    if not passed:
        raise ShortfallError(f"none of {generated} completions passed the filter{why}")
    needed = math.ceil(wanted * generated / passed * MARGIN)
    raise ShortfallError(
        f"{passed} of {generated} completions passed the filter ({passed / generated:.0%}), filter.rows asks for "
        f"{wanted}: generate about {needed - generated} more prompts with domain.prompts={needed}, or set filter.rows="
        f"{passed} or filter.shortfall=keep. Dropped{why}"
    )


def _sample(refused: list[Dropped]) -> list[Dropped]:
    """Up to `SAMPLE_PER_REASON` dropped rows for each reason, the first ones."""
    seen: Counter[str] = Counter()
    kept = []
    for dropped in refused:
        seen[dropped.reason] += 1
        if seen[dropped.reason] <= SAMPLE_PER_REASON:
            kept.append(dropped)
    return kept
