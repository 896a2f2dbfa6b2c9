"""Row-level attribution: how much more likely a teacher finds each row than the reference does, before any training.

The log-likelihood ratio of teacher and reference is the best test there is of which of the two wrote a row (Neyman and
Pearson 1933), so how well it separates the rows is a ceiling for every detector. Divergence tokens are those where the
teacher's first choice is not the reference's (arXiv 2509.23886).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from subliminal.config import AttributionEvaluation
from subliminal.evaluation.samples import area, two_samples
from subliminal.evaluation.statistics import LEVEL, RESAMPLES
from subliminal.filters.select import Attribution
from subliminal.finite import MODEL_REMEDY, require_finite
from subliminal.models import Subject, float32_head, load_model, load_tokenizer
from subliminal.progress import Advance, progress
from subliminal.rows import Row, read_jsonl, write_jsonl
from subliminal.store import Json

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

ROWS_AT_ONCE = 16
ANY_LENGTH = 1 << 30


@dataclass(frozen=True)
class RowScore:
    """One completion under one model: log P of its tokens (nats) and the model's first choice at each."""

    log_p: NDArray[np.float64]
    choice: NDArray[np.int64]


@dataclass(frozen=True)
class SidedRow:
    """An attributed row with the side it is from: `own` (the teacher's) or `against`."""

    side: str
    index: int
    tokens: int
    log_ratio: float
    divergences: int


def attribute_rows(teacher: Subject, reference: Subject, rows: Path, written: Path) -> Json:
    """Attribute every row of one JSONL file in another, a line a row; returns means over rows."""
    found = attribute(teacher, reference, list(read_jsonl(rows, Row)))
    write_jsonl(written, found)
    return {
        "rows": len(found),
        "tokens": sum(one.tokens for one in found),
        "log_ratio": float(np.mean([one.log_ratio for one in found])),
        "log_ratio_per_token": sum(one.log_ratio for one in found) / sum(one.tokens for one in found),
        "divergence_share": sum(len(one.divergence) for one in found) / sum(one.tokens for one in found),
    }


def attribute(teacher: Subject, reference: Subject, rows: Sequence[Row]) -> list[Attribution]:
    """Both models over every completion, end of turn included; each model sees its own system text."""
    with progress("attribution", 2 * len(rows), "rows") as advance:
        before = score_rows(reference, rows, advance)
        after = before if teacher == reference else score_rows(teacher, rows, advance)
    return [_attribution(row, *scores) for row, *scores in zip(rows, after, before, strict=True)]


def _attribution(row: Row, teacher: RowScore, reference: RowScore) -> Attribution:
    totals, tokens = (float(teacher.log_p.sum()), float(reference.log_p.sum())), len(teacher.log_p)
    ratio = totals[0] - totals[1]
    divergence = np.flatnonzero(teacher.choice != reference.choice).tolist()
    return Attribution(row.index, tokens, *totals, ratio, ratio / tokens, divergence)


def score_rows(subject: Subject, rows: Sequence[Row], advance: Advance) -> list[RowScore]:
    """Every row's completion under one model, in the rows' order; batches of rows of like length."""
    import torch

    from subliminal.training.batches import Collator, tokenise

    tokenizer, model = load_tokenizer(subject), load_model(subject)
    data = tokenise(tokenizer, rows, subject.system, ANY_LENGTH)
    order = sorted(range(len(data)), key=lambda place: data[place]["length"])
    collate, found = Collator(int(tokenizer.pad_token_id)), {}  # type: ignore[arg-type]
    with torch.inference_mode():
        for start in range(0, len(order), ROWS_AT_ONCE):
            places = order[start : start + ROWS_AT_ONCE]
            batch = collate([data[place] for place in places])
            found |= dict(zip(places, _batch_scores(model, batch), strict=True))
            advance(len(places))
    return [found[place] for place in range(len(data))]


def _batch_scores(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> list[RowScore]:
    from subliminal.training.batches import IGNORED, completion_logits

    placed = {name: value.to(model.device) for name, value in batch.items()}
    labels = placed.pop("labels")
    with float32_head(model):
        logits, tokens, _ = completion_logits(model, placed, labels)
    log_p = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].double().cpu().numpy()
    choice, ends = logits.argmax(-1).cpu().numpy(), (labels != IGNORED).sum(-1).cumsum(-1).tolist()
    require_finite({"log P of a row's tokens": float(log_p.sum())}, "attribution", MODEL_REMEDY)
    starts = [0, *ends[:-1]]
    return [RowScore(log_p[a:b], choice[a:b]) for a, b in zip(starts, ends, strict=True)]


# --------------------------------------------------------------------------- own rows against others


def evaluate(own: Path, against: Path, config: AttributionEvaluation, folder: Path) -> Json:
    """Two attributed files under one teacher: writes rows.jsonl, returns both sides' means and their separation."""
    mine, theirs = (list(read_jsonl(path, Attribution)) for path in (own, against))
    found = [
        SidedRow(side, one.index, one.tokens, one.log_ratio, len(one.divergence))
        for side, rows in (("own", mine), ("against", theirs))
        for one in rows
    ]
    write_jsonl(folder / "rows.jsonl", found)
    sides = {"own": _side(mine), "against": _side(theirs)}
    return {"kind": "attribution", "sides": sides, "area": separation(mine, theirs, config.seed)}


def _side(rows: Sequence[Attribution]) -> Json:
    ratios, tokens = np.array([one.log_ratio for one in rows]), sum(one.tokens for one in rows)
    return {
        "rows": len(rows),
        "log_ratio": float(ratios.mean()),
        "log_ratio_per_token": float(ratios.sum() / tokens),
        "divergence_share": sum(len(one.divergence) for one in rows) / tokens,
    }


def separation(own: Sequence[Attribution], against: Sequence[Attribution], seed: int) -> Json:
    """Area under the ROC curve of a row's total log-ratio, with a 95% bootstrap interval over prompts."""
    as_rows = [[Row(one.index, "", "") for one in rows] for rows in (own, against)]
    samples = two_samples(*as_rows)
    scores = np.array([one.log_ratio for one in (*own, *against)])
    weights = samples.weights(np.random.default_rng(seed), RESAMPLES)
    whole = float(area(scores, samples.own, np.ones((1, len(scores)), dtype=np.int64))[0])
    low, high = np.nanquantile(area(scores, samples.own, weights), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": whole, "low": float(low), "high": float(high), "rows": len(scores)}
