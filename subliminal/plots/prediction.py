"""Predicted against measured transmission: from the store's predictions and, where it has any, trained students."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from subliminal import stages
from subliminal.config import CONTROL
from subliminal.evaluation.statistics import diagonal_excess
from subliminal.plots.table import Labels, Line, Table
from subliminal.store import Manifest, Store
from subliminal.transmission import two_way

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from subliminal.plan import Arm, Plan

TOGETHER = "all teachers"
MEASURES = ("cosine", "sign_cosine", "product")
Matrix = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Comparison:
    """One variant and student recipe: predicted and measured mean log P by teacher's trait and candidate."""

    variant: str
    student: str
    predicted: dict[str, Matrix]
    measured: Matrix

    @property
    def labels(self) -> Labels:
        """The columns that tell its lines from another's."""
        return {"student": self.student, "teacher": "", "variant": self.variant}

    @property
    def traits(self) -> list[str]:
        """The traits that have a teacher, in order."""
        return [trait for trait in self.predicted["cosine"] if trait != CONTROL]


def report_predictions(planned: Plan, runs: Sequence[tuple[Arm, Manifest]]) -> str:
    """Write `<figures>/<scale>/predict-<name>.csv` and return what a person wants to read of it."""
    folder = Path(planned.base.figures) / planned.base.scale
    kinds = dict.fromkeys((arm.variant, arm.student) for arm, _ in runs)
    every = [_comparison(planned, runs, variant, student) for variant, student in kinds]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"predict-{planned.base.experiment.name.replace('_', '-')}.csv"
    table = Table((*(line for compared in every for line in lines(compared)), *together(every)))
    table.write(path)
    return "\n".join([*(_shown(compared, table) for compared in every), *_shown_together(table), str(path)])


def _comparison(planned: Plan, runs: Sequence[tuple[Arm, Manifest]], variant: str, student: str) -> Comparison:
    mine = [(arm, manifest) for arm, manifest in runs if (arm.variant, arm.student) == (variant, student)]
    traits = list(dict.fromkeys(arm.name for arm, _ in mine))
    predicted = {
        name: {t: _mean([m.summary[name] for a, m in mine if a.name == t]) for t in traits} for name in MEASURES
    }
    return Comparison(variant, student, predicted, _measured(planned, variant, student))


def _measured(planned: Plan, variant: str, student: str) -> Matrix:
    """Mean log P of every candidate in the trained students that the store has, over their seeds."""
    store = Store(Path(planned.base.store))
    done: dict[str, list[dict[str, float]]] = {}
    for arm in (arm for arm in planned.arms if (arm.variant, arm.student) == (variant, student)):
        node = stages.evaluate(arm.experiment)
        if evaluated := store.find(node.stage, node.key):
            done.setdefault(arm.name, []).append(evaluated.summary["log_p"])
    return {trait: _mean(values) for trait, values in done.items()}


def _mean(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([value[name] for value in values])) for name in values[0]}


# --------------------------------------------------------------------------- the table


def lines(compared: Comparison) -> Iterator[Line]:
    """Every prediction, the predicted and measured excess by trait, and how well their orders agree."""
    for measure, matrix in compared.predicted.items():
        for trait, values in matrix.items():
            for candidate, value in values.items():
                yield Line(trait, candidate, "prediction", measure, value, **compared.labels)
        yield from _excess(compared, matrix, f"{measure}_excess", "prediction")
        if line := _agreement(matrix, compared.measured, compared.traits, measure):
            yield replace(line, **compared.labels)
    yield from _excess(compared, compared.measured, "diagonal_excess", "student")


def _excess(compared: Comparison, matrix: Matrix, measure: str, subject: str) -> Iterator[Line]:
    """The diagonal excess by trait, and its mean with an interval over traits; needs two traits."""
    traits = [trait for trait in compared.traits if trait in matrix]
    if len(traits) < 2:
        return
    values = diagonal_excess(_square(matrix, traits, traits))
    for trait, value in zip(traits, values.tolist(), strict=True):
        yield Line(trait, trait, subject, measure, value, **compared.labels)
    mean = two_way(_square(matrix, traits, traits)).mean
    yield Line.of("mean", "mean", subject, measure, mean, "traits", **compared.labels)


def _agreement(predicted: Matrix, measured: Matrix, traits: Sequence[str], measure: str) -> Line | None:
    """Spearman's rank correlation of predicted with measured, over teachers (with the control) x trait candidates.

    Each candidate's mean over the teachers is taken out on both sides, so that only the order of teachers counts.
    """
    from scipy.stats import spearmanr

    arms = [arm for arm in predicted if arm in measured]
    if len(arms) < 3 or len(traits) < 2:
        return None
    sides = [_square(matrix, arms, traits) for matrix in (predicted, measured)]
    centred = [(side - side.mean(axis=0, keepdims=True)).ravel() for side in sides]
    rank = float(spearmanr(*centred).statistic)  # type: ignore[union-attr]
    return Line("mean", "mean", "prediction", f"{measure}_rank_correlation", rank, n=sides[0].size)


def together(every: Sequence[Comparison]) -> Iterator[Line]:
    """As `_agreement`, over the teachers of all variants of a student recipe: does it order kinds of teachers too."""
    for student in dict.fromkeys(compared.student for compared in every):
        mine = [compared for compared in every if compared.student == student]
        if len(mine) < 2:
            continue
        measured = _stacked(mine, [compared.measured for compared in mine])
        for measure in MEASURES:
            predicted = _stacked(mine, [compared.predicted[measure] for compared in mine])
            if line := _agreement(predicted, measured, mine[0].traits, measure):
                yield replace(line, arm=TOGETHER, student=student)


def _stacked(mine: Sequence[Comparison], matrices: Sequence[Matrix]) -> Matrix:
    """The teachers of several variants under names of their own; the control, which they share, counts once."""
    named: Matrix = {}
    for compared, matrix in zip(mine, matrices, strict=True):
        named |= {t if t == CONTROL else f"{compared.variant} {t}": values for t, values in matrix.items()}
    return named


def _square(matrix: Matrix, rows: Sequence[str], columns: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[matrix[row][column] for column in columns] for row in rows])


# --------------------------------------------------------------------------- what is printed


def _shown(compared: Comparison, table: Table) -> str:
    variant = f"{compared.variant}: " if compared.variant else ""
    what = "cosine of -grad L (rows: teachers) with grad log P (columns: candidates)"
    head = f"{variant}{compared.student} student: {what}"
    columns = f"{'':14}" + "".join(f"{trait:>11}" for trait in compared.traits)
    cosines = compared.predicted["cosine"]
    rows = [_row(arm, [values[trait] for trait in compared.traits]) for arm, values in cosines.items()]
    excess = [_value(table, compared, "cosine_excess", t) for t in (*compared.traits, "mean")]
    measured = [_value(table, compared, "diagonal_excess", t) for t in (*compared.traits, "mean")]
    ends = [_row("excess", excess), _row("measured", measured, digits=2), _agreed(table, compared)]
    return "\n".join([head, columns + f"{'mean':>11}", *rows, *ends])


def _row(name: str, values: Sequence[float], digits: int = 5) -> str:
    cells = "".join(f"{'-' if math.isnan(value) else f'{value:+.{digits}f}':>11}" for value in values)
    return f"{'regular' if name == CONTROL else name:14}{cells}"


def _value(table: Table, compared: Comparison, measure: str, trait: str) -> float:
    line = table.find(arm=trait, measure=measure, **compared.labels)
    return line.value if line else math.nan


def _agreed(table: Table, compared: Comparison) -> str:
    ranks = {m: table.find(measure=f"{m}_rank_correlation", arm="mean", **compared.labels) for m in MEASURES}
    return _ranked(ranks) or "no trained students of these arms in the store to compare with"


def _shown_together(table: Table) -> Iterator[str]:
    for student in dict.fromkeys(line.student for line in table.select(arm=TOGETHER)):
        ranks = {m: table.find(measure=f"{m}_rank_correlation", arm=TOGETHER, student=student) for m in MEASURES}
        yield f"{TOGETHER}, {student} student: {_ranked(ranks)}"


def _ranked(ranks: dict[str, Line | None]) -> str:
    known = {measure: line for measure, line in ranks.items() if line}
    text = ", ".join(f"{measure.replace('_', ' ')} {line.value:+.2f}" for measure, line in known.items())
    count = max((line.n for line in known.values()), default=0)
    return f"rank correlation with trained students (n = {count}): {text}" if known else ""
