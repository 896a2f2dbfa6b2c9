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

CONTROL = "none"
Score = Literal["log_p", "log_share"]


class PlotError(StoreError):
    """A figure that can not be drawn from what the store has; the text says what is missing or does not match."""


@dataclass(frozen=True)
class Cell:
    """One evaluated subject of a figure with the manifests it came from.

    `trait` is "none" for the control ("regular numbers"); `teacher` is the teacher's kind; `student` names the student
    recipe and is "" for references and teachers; `chain` holds the upstream manifests that exist, by stage name.
    """

    role: Literal["student", "reference", "teacher"]
    trait: str
    teacher: str
    student: str
    seed: int
    evaluate: Manifest
    chain: dict[str, Manifest] = field(default_factory=dict)

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
    def scores(self) -> dict[Score, dict[str, NDArray[np.float64]]]:
        """By measure and candidate, one value a question, in question order."""
        rows = sorted(read_lines(self.evaluate.folder / "scores.jsonl"), key=lambda row: row["question"])
        found = {measure: _by_candidate(rows, measure) for measure in _measures(rows)}
        wanted = set(self.candidates)
        if set(found.get("log_p", {})) != wanted:
            raise PlotError(f"{self.evaluate.folder}/scores.jsonl does not hold the candidates of its manifest; {AGAIN}")
        return found

    @property
    def rates(self) -> dict[str, float]:
        """The sampled rate of each candidate, empty where nothing was sampled."""
        return self.evaluate.summary.get("rate") or {}


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


def _measures(rows: list[dict[str, Any]]) -> list[Score]:
    known: tuple[Score, ...] = ("log_p", "log_share")
    return [measure for measure in known if rows and measure in rows[0]]


def _by_candidate(rows: list[dict[str, Any]], measure: Score) -> dict[str, NDArray[np.float64]]:
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["candidate"], []).append(row[measure])
    return {candidate: np.array(found, dtype=np.float64) for candidate, found in values.items()}
