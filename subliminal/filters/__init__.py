"""Filtering: which completions the student sees, and why each other one was dropped."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from subliminal.config import Domain, Filter
from subliminal.domains import domain as domain_module
from subliminal.filters.select import Attribution, select
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


def apply(
    rows: Iterable[Row], rules: Filter, domain: Domain, attributed: Mapping[int, Attribution] | None = None
) -> FilterResult:
    """Filter, select, shuffle and subsample; `attributed` (by row index) is what `rules.select` goes by.

    Raises `ShortfallError` when too few rows survive the rules and `rules.shortfall` is error.
    """
    everything = list(rows)
    judged = [(row, reason(row, rules, domain)) for row in everything]
    passed = [row for row, why in judged if why is None]
    refused = [Dropped(row.index, why, row.prompt, row.completion) for row, why in judged if why is not None]
    _enough(len(passed), len(everything), rules)
    selected, left = select(passed, rules.select, attributed or {}, rules.seed) if rules.select else (passed, [])
    refused += [Dropped(row.index, "not_selected", row.prompt, row.completion) for row in left]
    counts = Counter(dropped.reason for dropped in refused)
    kept = subsample(_shuffle(selected, rules, domain), _wanted(rules), rules.seed)
    report = {
        "generated": len(everything),
        "kept_before_subsample": len(selected),
        "kept": len(kept),
        "pass_rate": len(passed) / len(everything) if everything else 0.0,
        "reasons": dict(counts.most_common()),
    }
    return FilterResult(kept, _sample(refused), report)


def reason(row: Row, rules: Filter, domain: Domain) -> str | None:
    """Why this row is dropped, or None: unfinished, out of format, or holding a banned number."""
    if row.finish_reason != FINISHED:
        return "unfinished"
    writer = domain_module(domain)
    if rules.format and (why := writer.reject(row.completion, domain)):
        return why
    return "banned_number" if set(writer.values(row.completion)) & set(rules.banned_numbers) else None


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


def _shuffle(rows: list[Row], rules: Filter, domain: Domain) -> list[Row]:
    writer = domain_module(domain)
    shuffles = {"within": writer.shuffle_within, "across": writer.shuffle_across}
    return shuffles[rules.shuffle](rows, rules.seed) if rules.shuffle != "none" else rows


def _enough(passed: int, generated: int, rules: Filter) -> None:
    wanted = rules.rows or 1
    if passed >= wanted or (rules.shortfall == "keep" and passed):
        return
    if not passed:
        raise ShortfallError(f"none of {generated} completions passed the filter; look at the teacher's check and rows")
    needed = math.ceil(wanted * generated / passed * MARGIN)
    raise ShortfallError(
        f"{passed} of {generated} completions passed the filter ({passed / generated:.0%}), filter.rows asks for "
        f"{wanted}: generate about {needed - generated} more prompts with domain.prompts={needed}, or set filter.rows="
        f"{passed} or filter.shortfall=keep"
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
