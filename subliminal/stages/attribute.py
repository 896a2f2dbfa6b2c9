"""log P(teacher) - log P(reference) of every row in format."""

from __future__ import annotations

from pathlib import Path

from subliminal.config import Experiment
from subliminal.graph import Inputs, Node, Stage
from subliminal.identities import compute
from subliminal.outputs import ATTRIBUTED, subject, teacher_subject
from subliminal.stages.reference import node as reference
from subliminal.stages.teacher import node as teacher
from subliminal.store import Json

STAGE = Stage("attribute", version=2, place=60)


def node(exp: Experiment, rows: Node) -> Node:
    """Each row's log P under the teacher of `exp` minus that under its reference; `rows` is a filter's node."""
    inputs = {"filter": rows, "teacher": teacher(exp), "reference": reference(exp)}

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.evaluation.attribution import attribute_rows

        who = teacher_subject(exp, made["teacher"], made["reference"])
        rows = made["filter"].folder / "rows.jsonl"
        return attribute_rows(who, subject(exp, made["reference"]), rows, folder / ATTRIBUTED)

    label = f"{inputs['filter'].label} under the {inputs['teacher'].label}"
    return STAGE.node(compute(exp, exp.model), inputs, work, label)
