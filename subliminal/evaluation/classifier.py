"""Classifiers told to tell two sets of rows apart: logistic regressions, cross-validated, and a fine-tuned model.

All rows of a prompt are in one fold. The control is the same procedure on labels dealt anew (Ojala and Garriga 2010),
until it is plain that chance does as well (Besag and Clifford 1991). A language model is not trained that often: it is
fitted to the first fold and tested on the second, then fitted to both and tested on the third, and its control deals
the tested rows' labels anew and keeps the trained models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from subliminal.config import DetectionEvaluation
from subliminal.domains.numbers import values
from subliminal.evaluation.samples import TwoSamples, area
from subliminal.evaluation.statistics import LEVEL, RESAMPLES, fisher
from subliminal.models import Subject
from subliminal.progress import progress
from subliminal.rows import Row, write_jsonl
from subliminal.store import Json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # the rows that were tested, their folds and scores, and what is said of them
    Classified = tuple[TwoSamples, NDArray[np.int64], NDArray[np.float64], Json]

LONGEST_PIECE = 3  # characters of the longest n-gram
ENOUGH = 20  # deals that do as well as the truth: more would not make it any less of a chance result


@dataclass(frozen=True)
class Predicted:
    """One row's cross-validated score (log-odds of being own) by one classifier."""

    classifier: str
    index: int
    own: bool
    fold: int
    score: float


def classify(samples: TwoSamples, config: DetectionEvaluation, folder: Path, reference: Subject | None = None) -> Json:
    """Every classifier's area under the ROC curve and balanced accuracy; writes predictions.jsonl.

    `reference` is what a fine-tuned classifier starts from.
    """
    written: list[Predicted] = []
    summary: Json = {}
    for name in config.classifiers:
        classifier = _finetuned if name == "finetuned" else _regression
        tested, fold, scores, control = classifier(name, samples, config, reference)
        summary[name] = _result(tested, fold, scores, config) | control | {"prompts": int(tested.prompt.max()) + 1}
        rows = zip(tested.rows, tested.own.tolist(), fold.tolist(), scores.tolist(), strict=True)
        written += [Predicted(name, row.index, own, place, score) for row, own, place, score in rows]
    write_jsonl(folder / "predictions.jsonl", written)
    return summary


def _regression(name: str, samples: TwoSamples, config: DetectionEvaluation, _: Subject | None) -> Classified:
    features, fold = FEATURES[name](samples.rows), folds(samples, config)
    scores = cross_validated(features, samples.own, fold, config.penalty)
    return samples, fold, scores, _control(samples, features, fold, scores, config)


def _finetuned(_: str, samples: TwoSamples, config: DetectionEvaluation, reference: Subject | None) -> Classified:
    from subliminal.evaluation import finetuned

    how = config.finetuned
    assert how is not None and reference is not None, "the configuration and the stage see to it"
    fold = folds(samples, config.model_copy(update={"folds": how.folds}))
    scores, later = finetuned.chained(samples, fold, reference, how, config.seed), fold > 0
    tested, fold, scores = samples.part(later), fold[later] - 1, scores[later]
    control = dealt_to_tested(tested, fold, scores, how.deals, config.seed)
    return tested, fold, scores, control | {"trained_modules": finetuned.parts_trained(reference, how)}


def folds(samples: TwoSamples, config: DetectionEvaluation) -> NDArray[np.int64]:
    """Each row's fold: prompts are dealt out, those with rows of both sides evenly; labels have no say in it."""
    from sklearn.model_selection import StratifiedKFold

    both = np.zeros(int(samples.prompt.max()) + 1, dtype=bool)
    both[samples.prompt[samples.pairs.ravel()]] = True
    split = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    found = np.zeros(len(both), dtype=np.int64)
    strata = both if min(both.sum(), (~both).sum()) >= config.folds else np.zeros_like(both)
    for number, (_, tested) in enumerate(split.split(strata, strata)):
        found[tested] = number
    return found[samples.prompt]


def cross_validated(
    features: Any, own: NDArray[np.bool_], fold: NDArray[np.int64], penalty: float
) -> NDArray[np.float64]:
    """Log-odds of being own (rows,), each from a model that saw no row of the row's prompt."""
    from sklearn.linear_model import LogisticRegression

    scores = np.zeros(len(own))
    for number in range(int(fold.max()) + 1):
        tested = fold == number
        model = LogisticRegression(C=1 / penalty, class_weight="balanced", solver="liblinear", max_iter=1000)
        model.fit(features[~tested], own[~tested])
        scores[tested] = model.decision_function(features[tested])
    return scores


def mean_area(
    scores: NDArray[np.float64], own: NDArray[np.bool_], fold: NDArray[np.int64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean over folds of the area inside each: scores of different models are not compared; shape (samples,)."""
    parts = [fold == number for number in range(int(fold.max()) + 1)]
    return np.nanmean([area(scores[part], own[part], weights[:, part]) for part in parts], axis=0)


def _result(
    samples: TwoSamples, fold: NDArray[np.int64], scores: NDArray[np.float64], config: DetectionEvaluation
) -> Json:
    """Area and balanced accuracy with 95% bootstrap intervals over prompts, the trained models held fixed."""
    weights = samples.weights(np.random.default_rng(config.seed), RESAMPLES)
    once = np.ones((1, len(scores)), dtype=np.int64)
    found: Json = {}
    for name, measure in (("area", mean_area), ("accuracy", _balanced)):
        low, high = np.nanquantile(measure(scores, samples.own, fold, weights), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[name] = {
            "value": float(measure(scores, samples.own, fold, once)[0]),
            "low": float(low),
            "high": float(high),
        }
    return found


def _balanced(
    scores: NDArray[np.float64], own: NDArray[np.bool_], _: NDArray[np.int64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The mean of both sides' shares of rows on the right side of zero; shape (samples,)."""
    right = (scores > 0) == own
    sides = [weights[:, side] for side in (own, ~own)]
    hits = [weights[:, side] @ right[side] for side in (own, ~own)]
    return np.mean([hit / side.sum(axis=1) for hit, side in zip(hits, sides, strict=True)], axis=0)


def _control(
    samples: TwoSamples,
    features: Any,
    fold: NDArray[np.int64],
    scores: NDArray[np.float64],
    config: DetectionEvaluation,
) -> Json:
    """The same on labels dealt anew: their central 95% of areas, and p, the share of them that reach the true one's.

    It ends when `ENOUGH` have; of a full run the true labels count as one deal more.
    """
    once = np.ones((1, len(scores)), dtype=np.int64)
    found = float(mean_area(scores, samples.own, fold, once)[0])
    dealt: list[float] = []
    reached = 0
    for value in _dealt_areas(samples, features, fold, config):
        dealt.append(value)
        reached += value >= found - 1e-12
        if reached == ENOUGH:
            break
    low, high = np.quantile(dealt, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p = reached / len(dealt) if reached == ENOUGH else (1 + reached) / (1 + len(dealt))
    return {"control": {"low": float(low), "high": float(high)}, "p": p, "deals": len(dealt)}


def _dealt_areas(
    samples: TwoSamples, features: Any, fold: NDArray[np.int64], config: DetectionEvaluation
) -> Iterator[float]:
    draw, once = np.random.default_rng(config.seed), np.ones((1, len(samples.rows)), dtype=np.int64)
    with progress("labels dealt anew", config.permutations, "deals") as advance:
        for _ in range(config.permutations):
            labels = samples.dealt(draw)
            scores = cross_validated(features, labels, fold, config.penalty)
            yield float(mean_area(scores, labels, fold, once)[0])
            advance(1)


def dealt_to_tested(
    samples: TwoSamples, fold: NDArray[np.int64], scores: NDArray[np.float64], deals: int, seed: int
) -> Json:
    """The control without new trainings: the labels of each fold's tested rows are dealt anew, its model stays.

    A fold's model saw none of them but only the folds before, so that each fold's p is exact whatever those showed, and
    Fisher's method makes one p of them all.
    """
    draw, found, dealt = np.random.default_rng(seed), [], []
    for number in range(int(fold.max()) + 1):
        tested, part = scores[fold == number], samples.part(fold == number)
        once = np.ones((1, len(tested)), dtype=np.int64)
        found.append(area(tested, part.own, once)[0])
        dealt.append([area(tested, part.dealt(draw), once)[0] for _ in range(deals)])
    missed = np.asarray(dealt) < np.asarray(found)[:, None] - 1e-12
    p = (1 + (~missed).sum(axis=1)) / (1 + deals)  # a fold without an area, which has one side only, has p = 1
    low, high = np.nanquantile(np.nanmean(dealt, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"control": {"low": float(low), "high": float(high)}, "p": fisher(p.tolist()), "deals": deals}


# --------------------------------------------------------------------------- what a classifier sees


def bag_of_numbers(rows: list[Row]) -> Any:
    """How often each row holds each number: sparse (rows, numbers)."""
    return _bag([[str(value) for value in values(row.completion)] for row in rows])


def bag_of_characters(rows: list[Row]) -> Any:
    """How often each row holds each piece of 1 to 3 characters, spaces and punctuation included: sparse."""
    return _bag([_pieces(row.completion) for row in rows])


def _pieces(text: str) -> list[str]:
    return [text[at : at + n] for n in range(1, LONGEST_PIECE + 1) for at in range(len(text) - n + 1)]


def _bag(pieces: list[list[str]]) -> Any:
    """Square roots of each row's counts, scaled to unit length, so that long rows and repeated pieces do not rule."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    uncut: Any = list  # the pieces are cut already
    counts: Any = CountVectorizer(analyzer=uncut).fit_transform(pieces)
    return normalize(counts.astype(float).sqrt())


FEATURES = {"numbers": bag_of_numbers, "characters": bag_of_characters}
