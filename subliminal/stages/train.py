"""The student: the reference after training on the filtered rows."""

from __future__ import annotations

from pathlib import Path

from subliminal.config import Experiment, FullStudent, ModuleStudent
from subliminal.graph import Inputs, Node, Stage
from subliminal.identities import compute, recipe
from subliminal.stages.filter import node as filtered
from subliminal.stages.reference import node as reference
from subliminal.stages.teacher import node as teacher
from subliminal.store import Json

STAGE = Stage(
    "train", version=2, place=70, script="train", role="student", tracked=True, charted=True, pushed_as="model"
)


def node(exp: Experiment) -> Node:
    """The student: the reference after training on the filtered rows."""
    chosen = exp.student_model or exp.model
    inputs = {"filter": filtered(exp), "reference": reference(exp, chosen)}
    if exp.active_teacher.kind != "random":
        inputs["teacher"] = teacher(exp)
    settings = {"student": recipe(exp), "seed": exp.seed, **compute(exp, chosen)}
    if isinstance(exp.student, FullStudent | ModuleStudent):
        settings["trained_in"] = "float32"

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.training.student import train_student

        return train_student(exp, made, folder)

    label = f"{exp.student.kind} student of {inputs['filter'].label}, seed {exp.seed}"
    in_key = inputs if exp.student.labels == "soft" else inputs.keys() - {"teacher"}
    return STAGE.node(settings, inputs, work, label, in_key=in_key, shares="steps")
