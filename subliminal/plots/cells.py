"""What a figure is made of: evaluated subjects with the runs behind them, and the scores read from their files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from subliminal.store import Manifest, StoreError
from subliminal.transmission import log_odds, pooled_log_odds

if TYPE_CHECKING:
    from numpy.typing import NDArray

Score = Literal["log_odds", "probability", "log_p", "share", "rate"]
Scores = dict[Score, "dict[str, NDArray[np.float64]]"]

WITHIN = (1e-300, 1 - 2.0**-24)  # a probability of 1 is one that float32 can not tell from it


class PlotError(StoreError):
    """A figure that can not be drawn from what the store has; the text says what is missing or does not match."""


@dataclass(frozen=True)
class Cell:
    """One evaluated subject of a figure with the manifests it came from.

    `trait` is "none" for the control ("regular numbers"); `teacher` is the teacher's kind; `student` names the student
    recipe and is "" for references and teachers; `chain` holds the upstream manifests that exist, by stage name;
    `variant` is "" in a figure that has none.
    """

    role: Literal["student", "reference", "teacher"]
    trait: str
    teacher: str
    student: str
    seed: int
    evaluate: Manifest
    chain: dict[str, Manifest] = field(default_factory=dict)
    variant: str = ""

    @property
    def arm(self) -> str:
        """The name of the cell's arm: its trait, "none", "random" or "reference"."""
        if self.role == "reference":
            return "reference"
        return "random" if self.teacher == "random" else self.trait

    @property
    def questions(self) -> int:
        """How many questions were asked."""
        return int(self.evaluate.summary["questions"])

    @property
    def candidates(self) -> list[str]:
        """The candidates of the evaluation in its own order."""
        return list(self.evaluate.summary["log_p"])

    @cached_property
    def scores(self) -> Scores:
        """By measure and candidate, values in question order.

        `log_p` (nats) and `probability` have one a question, `rate` one a question and only where answers were sampled.
        `log_odds` (nats) and `share` of the candidates' probability have one altogether: logarithms are taken of means
        over questions. What only samples tell, stories, has the log-odds of counts pooled over its prompts.
        """
        folder = self.evaluate.folder
        rows = sorted(read_lines(folder / "scores.jsonl"), key=lambda row: row["question"])
        log_p = _by_candidate(rows, "log_p")
        if {*log_p} != {*self.candidates}:
            raise PlotError(f"{folder}/scores.jsonl does not hold the candidates of its manifest; {AGAIN}")
        samples, kind = self.evaluate.summary.get("samples"), self.evaluate.summary.get("kind")
        scores: Scores = {"log_p": log_p} if samples and kind == "stories" else _exact(log_p)
        if samples:
            named = _named(list(read_lines(folder / "answers.jsonl")), self.candidates)
            rate = {c: [np.mean(hits) for hits in questions] for c, questions in named.items()}
            scores["rate"] = {c: np.array(shares, np.float64) for c, shares in rate.items()}
            scores.setdefault("log_odds", {c: _pooled(by_question) for c, by_question in named.items()})
            scores.setdefault("probability", scores["rate"])
        return scores

    def named_share(self) -> float:
        """The mean probability over questions that the answer names any candidate at all."""
        return float(sum(values.mean() for values in self.scores["probability"].values()))


AGAIN = "remove the folder and run evaluate.py again"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; raises `PlotError` naming a file that is missing or damaged."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except FileNotFoundError:
        raise PlotError(f"{path} is missing; python -m subliminal verify lists what else is") from None
    except json.JSONDecodeError as error:
        raise PlotError(f"{path} is damaged ({error.msg}); {AGAIN}") from None


def students(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of trained students."""
    return [cell for cell in cells if cell.role == "student"]


def _exact(log_p: dict[str, NDArray[np.float64]]) -> Scores:
    """What exact log-probabilities by question say, in every measure."""
    probability = {candidate: np.exp(values) for candidate, values in log_p.items()}
    means = {candidate: values.mean(keepdims=True).clip(*WITHIN) for candidate, values in probability.items()}
    total = np.sum(list(means.values()), axis=0)
    return {
        "log_p": log_p,
        "probability": probability,
        "log_odds": {candidate: log_odds(value) for candidate, value in means.items()},
        "share": {candidate: value / total for candidate, value in means.items()},
    }


def _by_candidate(rows: list[dict[str, Any]], measure: str) -> dict[str, NDArray[np.float64]]:
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["candidate"], []).append(row[measure])
    return {candidate: np.array(column, dtype=np.float64) for candidate, column in values.items()}


def _named(answers: list[dict[str, Any]], candidates: list[str]) -> dict[str, list[list[bool]]]:
    """By candidate and question, which of the question's answers name it."""
    by_question: dict[int, list[set[str]]] = {}
    for answer in answers:
        by_question.setdefault(answer["question"], []).append(set(answer["named"]))
    ordered = [by_question[question] for question in sorted(by_question)]
    return {c: [[c in names for names in question] for question in ordered] for c in candidates}


def _pooled(by_question: list[list[bool]]) -> NDArray[np.float64]:
    """The log-odds of a candidate's answers among all answers, (1,)."""
    hits = [hit for question in by_question for hit in question]
    return pooled_log_odds([sum(hits)], [len(hits)])


def model_names(cells: Sequence[Cell]) -> list[str]:
    """The names of the models the cells start from, as far as their manifests say."""
    names = [
        _model_name(cell.chain["model"].recipe["settings"].get("weights", {}))
        for cell in cells
        if "model" in cell.chain
    ]
    return [name for name in dict.fromkeys(names) if name]


def _model_name(weights: dict[str, Any]) -> str:
    """The hub name or the package; of a local folder the start of its hash, since its path means nothing elsewhere."""
    if "content" in weights:
        return f"local model {weights['content'][:8]}"
    return str(weights.get("name") or weights.get("package") or "")
