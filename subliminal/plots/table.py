"""A figure's table: every number it shows with its interval, one line each, written as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from subliminal.evaluation.statistics import Interval

COLUMNS: tuple[str, ...] = (
    "arm",
    "trait",
    "subject",
    "measure",
    "value",
    "low",
    "high",
    "n",
    "interval",
    "student",
    "teacher",
    "variant",
    "seeds",
    "by_seed",
)
NONE = float("nan")
MIRRORED = ("lift_over_control", "log_odds_excess", "diagonal_excess", "alignment_excess")  # to W&B by name


class Labels(TypedDict, total=False):
    """The fields that tell one comparison's lines from another's."""

    student: str
    teacher: str
    variant: str


class Wanted(Labels, total=False):
    """The fields by which lines are looked up."""

    arm: str
    item: str
    subject: str
    measure: str


@dataclass(frozen=True)
class Line:
    """One number: whose (`arm`, `subject`), of what (`item`), what (`measure`), and how sure.

    `item` is what the measure is of: a candidate, a task, a number, whose rows these are compared with, a setting's
    value, what trials are split by, a step. Its column in the CSV is called `trait`, as candidates are most of them.
    `n` counts what `interval` names: seeds, questions, rows. Without an interval `low` and `high` are NaN.
    """

    arm: str
    item: str
    subject: str
    measure: str
    value: float
    low: float = NONE
    high: float = NONE
    n: int = 1
    interval: str = "none"
    student: str = ""
    teacher: str = ""
    variant: str = ""
    by_seed: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(
        cls,
        arm: str,
        item: str,
        subject: str,
        measure: str,
        estimate: Interval,
        over: str,
        by_seed: tuple[tuple[int, float], ...] = (),
        **labels: Unpack[Labels],
    ) -> Line:
        """A number with its interval, `over` what its units are."""
        ends = (estimate.low, estimate.high, estimate.n, over)
        return cls(arm, item, subject, measure, estimate.mean, *ends, by_seed=by_seed, **labels)

    @property
    def seeds(self) -> list[int]:
        """The seeds behind the number."""
        return [seed for seed, _ in self.by_seed]

    def cells(self) -> dict[str, str]:
        """The line as CSV cells by column; what does not exist is empty."""
        by_seed = " ".join(_text(value) for _, value in self.by_seed)
        lists = {"trait": self.item, "seeds": " ".join(map(str, self.seeds)), "by_seed": by_seed}
        return {name: lists[name] if name in lists else _text(getattr(self, name)) for name in COLUMNS}


@dataclass(frozen=True)
class Table:
    """The lines of a figure in order."""

    lines: tuple[Line, ...]

    def select(self, **wanted: Unpack[Wanted]) -> Iterator[Line]:
        """The lines whose fields equal `wanted`."""
        return (line for line in self.lines if all(getattr(line, name) == value for name, value in wanted.items()))

    def find(self, **wanted: Unpack[Wanted]) -> Line | None:
        """The first line whose fields equal `wanted`, or None."""
        return next(self.select(**wanted), None)

    def write(self, path: Path) -> None:
        """Write the table as CSV, UTF-8, `.` as decimal point."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(line.cells() for line in self.lines)


def series(measure: str, arm: str, student: str = "", variant: str = "") -> str:
    """The name under which a number of a table is mirrored: measure, variant and student where there are any, arm."""
    return "/".join(filter(None, (measure, variant, student, arm)))


def mirrored(path: Path) -> dict[str, float]:
    """What a table's CSV says of every arm in its own trait, in the measures `MIRRORED`, by the names of `series`."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["measure"] in MIRRORED and line["value"]]
    return {
        series(line["measure"], line["arm"], line["student"], line["variant"]): float(line["value"])
        for line in lines
        if line["arm"] == line["trait"]
    }


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)
