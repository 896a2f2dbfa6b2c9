"""The teacher of a trait: the reference with a system prompt, a vector or weights of its own, and its check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subliminal import texts
from subliminal.config import Experiment, RowsTeacher, identity
from subliminal.graph import Inputs, Node, Stage
from subliminal.identities import compute, constraint, require_unchanged, row_format, wording
from subliminal.outputs import rows_path, subject
from subliminal.stages.reference import node as reference
from subliminal.store import Json
from subliminal.user_files import content, kind_of_path

STAGE = Stage("teacher", version=3, place=30, script="train", role="teacher", pushed_as="model")


def node(exp: Experiment) -> Node:
    """The teacher, made and checked: does it have the trait, and does it answer in the domain's format."""
    base, active = reference(exp), exp.active_teacher
    settings = {"trait": _trait(exp), "teacher": identity(active), "domain": row_format(exp), **compute(exp, exp.model)}
    settings["decoding"] = identity(exp.sampler.decoding)
    settings |= constraint(exp)
    if settings["trait"] is not None:
        settings |= wording(texts.of_teacher(active, exp.trait, behind_an_endpoint=exp.sampler.kind == "api"))
    if exp.sampler.kind == "api":  # the check asks the model that will write, and that is not the reference
        others = {"kind", "decoding", "shard_size"}
        settings["endpoint"] = {name: value for name, value in identity(exp.sampler).items() if name not in others}
    if isinstance(active, RowsTeacher):
        path = rows_path(active, exp.trait.key)
        there = kind_of_path(path) == "file"  # a figure can be planned before they are
        settings["rows"] = content(path) if there else None

    def work(inputs: Inputs, folder: Path) -> Json:
        from subliminal import teachers

        summary = teachers.make(exp, subject(exp, inputs["reference"]), folder)
        if isinstance(active, RowsTeacher):
            require_unchanged("teacher.rows", settings["rows"], content(rows_path(active, exp.trait.key)))
        return summary

    label = f"{active.kind} teacher of {exp.trait.name}" if exp.trait.kind != "none" else "control teacher"
    return STAGE.node(settings, {"reference": base}, work, label)


def _trait(exp: Experiment) -> dict[str, Any] | None:
    """The trait the teacher has; words of its own only where it has them, as for the evaluation."""
    if exp.active_teacher.kind == "control":
        return None
    own = {"candidates", "questions", "taught"}
    return {name: value for name, value in identity(exp.trait).items() if name not in own or value}
