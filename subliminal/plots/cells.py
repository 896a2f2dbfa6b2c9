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

if TYPE_CHECKING:
    from numpy.typing import NDArray

Score = Literal["log_p", "log_share", "rate"]
Scores = dict[Score, "dict[str, NDArray[np.float64]]"]


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
        return len(self.scores["log_p"][self.candidates[0]])

    @property
    def candidates(self) -> list[str]:
        """The candidates of the evaluation in its own order."""
        return list(self.evaluate.summary["log_p"])

    @cached_property
    def scores(self) -> Scores:
        """By measure and candidate, one value a question, in question order; `rate` only where answers were sampled."""
        folder = self.evaluate.folder
        rows = sorted(read_lines(folder / "scores.jsonl"), key=lambda row: row["question"])
        found: Scores = {"log_p": _by_candidate(rows, "log_p"), "log_share": _by_candidate(rows, "log_share")}
        if {*found["log_p"]} != {*self.candidates}:
            raise PlotError(f"{folder}/scores.jsonl does not hold the candidates of its manifest; {AGAIN}")
        if self.evaluate.summary.get("samples"):
            found["rate"] = _rates(list(read_lines(folder / "answers.jsonl")), self.candidates)
        return found


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


def _by_candidate(rows: list[dict[str, Any]], measure: Score) -> dict[str, NDArray[np.float64]]:
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["candidate"], []).append(row[measure])
    return {candidate: np.array(found, dtype=np.float64) for candidate, found in values.items()}


def _rates(answers: list[dict[str, Any]], candidates: list[str]) -> dict[str, NDArray[np.float64]]:
    """The share of each question's answers that name each candidate."""
    asked = sorted({answer["question"] for answer in answers})
    named = {question: [set(a["named"]) for a in answers if a["question"] == question] for question in asked}
    return {c: np.array([np.mean([c in one for one in named[q]]) for q in asked], dtype=np.float64) for c in candidates}
