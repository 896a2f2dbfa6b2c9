"""Selection: which passing rows are kept by what their attribution says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from subliminal.config import RowSelection
from subliminal.rows import Row
from subliminal.store import StoreError


@dataclass(frozen=True)
class Attribution:
    """One row's completion under teacher and reference: log P in nats, and where their first choices differ.

    `tokens` counts the completion's tokens with its end of turn; `divergence` holds positions among them, from 0
    (arXiv 2509.23886).
    """

    index: int
    tokens: int
    log_p_teacher: float
    log_p_reference: float
    log_ratio: float
    log_ratio_per_token: float
    divergence: list[int]


class SelectionError(StoreError):
    """A row that can not be ranked, since nothing was attributed to it."""


def select(
    rows: Sequence[Row], rules: RowSelection, attributed: Mapping[int, Attribution], seed: int
) -> tuple[list[Row], list[Row]]:
    """(kept, left out), each in the old order; ties are broken at random by `seed`."""
    score = {row.index: _score(row, rules, attributed) for row in rows}
    sign = -1 if rules.keep == "top" else 1
    ranked = sorted(rows, key=lambda row: (sign * score[row.index], sign * _lot(row, seed)))
    kept = {row.index for row in ranked[: round(rules.share * len(rows))]}
    return [row for row in rows if row.index in kept], [row for row in rows if row.index not in kept]


def _score(row: Row, rules: RowSelection, attributed: Mapping[int, Attribution]) -> float:
    if rules.by == "random":
        return 0.0
    if row.index not in attributed:
        raise SelectionError(f"row {row.index} has no attribution; remove the attribute run and run filter.py again")
    found = attributed[row.index]
    return float(len(found.divergence)) if rules.by == "divergence" else getattr(found, rules.by)


def _lot(row: Row, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"select:{seed}:{row.index}".encode()).digest()[:8])
