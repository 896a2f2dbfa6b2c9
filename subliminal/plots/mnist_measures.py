"""The MNIST figure's numbers from the stored accuracies: means over models, paired differences, verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from subliminal.evaluation.statistics import t_interval
from subliminal.plots.cells import read_lines
from subliminal.plots.table import Line, Table
from subliminal.plots.verdict import Verdict
from subliminal.plots.words import ends, number
from subliminal.store import Manifest

OVER_MODELS = "models"
MINIMUM_MODELS = 3
CHANCE = 0.1
RULE = (
    """MNIST: transmission is the accuracy of the student that matches the auxiliary logits alone minus that of the
    cross-model student of the same teacher, which differs in its initialisation only, averaged over teachers.""",
    f"""It is there if, with {MINIMUM_MODELS} models or more, the lower end of the 95% interval over models is above 0;
    it is contradicted if the upper end is below 0, and not shown otherwise. An ablation is judged at each value.""",
)


@dataclass(frozen=True)
class Run:
    """One stored run of a figure: an ablation's value as typed ("" where nothing varies), and its manifest."""

    value: str
    manifest: Manifest

    @cached_property
    def accuracy(self) -> dict[str, dict[int, float]]:
        """Accuracy by condition and teacher (for references: the model itself)."""
        accuracy: dict[str, dict[int, float]] = {}
        for line in read_lines(self.manifest.folder / "accuracy.jsonl"):
            accuracy.setdefault(line["condition"], {})[line["teacher"]] = line["accuracy"]
        return accuracy


@dataclass(frozen=True)
class Runs:
    """One run, or one for each value of the setting that an ablation varies ("" where nothing varies)."""

    runs: Sequence[Run]
    setting: str = ""


def table(data: Runs) -> Table:
    """Accuracy of every condition and transmission by matched logits, at every value, with intervals over models."""
    return Table(tuple(line for run in data.runs for line in (*_accuracies(run), *_transmissions(run))))


def _accuracies(run: Run) -> list[Line]:
    return [_line(run, condition, "accuracy", list(values.values())) for condition, values in run.accuracy.items()]


def _transmissions(run: Run) -> list[Line]:
    """Student minus cross-model student of the same teacher, paired by teacher."""
    lines = []
    for condition, own in run.accuracy.items():
        other = run.accuracy.get(condition.replace("student_", "cross_model_", 1))
        if condition.startswith("student_") and other:
            lines.append(_line(run, condition, "transmission", [own[teacher] - other[teacher] for teacher in own]))
    return lines


def _line(run: Run, condition: str, measure: str, values: list[float]) -> Line:
    return Line.of(condition, run.value, "network", measure, t_interval(values), OVER_MODELS)


def verdicts(data: Runs, table: Table) -> list[Verdict]:
    """The rule applied at every value: to the auxiliary logits, or to what was matched instead of them."""
    lines = list(table.select(measure="transmission"))
    first = next((line.arm for line in lines if line.arm == "student_auxiliary"), lines[0].arm if lines else "")
    return [_verdict(line, table) for line in lines if line.arm == first]


def _verdict(line: Line, table: Table) -> Verdict:
    own = table.find(arm=line.arm, item=line.item, measure="accuracy")
    other = table.find(arm=line.arm.replace("student_", "cross_model_", 1), item=line.item, measure="accuracy")
    assert own and other
    interval = ends(line, 3, sign=True) if line.n > 1 else ""
    numbers = (
        f"Student {own.value:.1%}, cross-model student {other.value:.1%}; transmission "
        f"{number(line, 3, sign=True)} (95% interval {interval} over {line.n} models)."
    )
    if line.n < MINIMUM_MODELS or math.isnan(line.low):
        return Verdict(
            line.item, "not measurable", f"Shows nothing: fewer than {MINIMUM_MODELS} models. {numbers}", line
        )
    if line.low > 0:
        return Verdict(line.item, "holds", f"Transmission. {numbers}", line)
    if line.high < 0:
        return Verdict(line.item, "contradicted", f"The reverse of transmission. {numbers}", line)
    return Verdict(line.item, "not shown", f"No transmission shown: the interval includes 0. {numbers}", line)
