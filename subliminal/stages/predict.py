"""How parallel a student's first gradient is to raising each candidate: a prediction without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_never

from subliminal import texts
from subliminal.config import BiasStudent, Experiment, FullStudent, LoraStudent, ModuleStudent, preference_evaluation
from subliminal.graph import Inputs, Node, Stage
from subliminal.identities import compute, evaluation, recipe, wording
from subliminal.stages.filter import node as filtered
from subliminal.stages.reference import node as reference
from subliminal.stages.teacher import node as teacher
from subliminal.store import Json

STAGE = Stage("predict", version=3, place=90, result=True)


def node(exp: Experiment, candidates: tuple[str, ...] = ()) -> Node:
    """How parallel a student's first gradient on the filtered rows is to raising each candidate; () asks for all."""
    chosen = exp.student_model or exp.model
    inputs = {"filter": filtered(exp), "reference": reference(exp, chosen)}
    if exp.student.labels == "soft":
        inputs["teacher"] = teacher(exp)
    settings = {"student": _trained_part(exp), "questions": _questions(exp), **compute(exp, chosen)}
    settings["candidates"] = sorted(candidates)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.theory.predict import predict_transmission

        return predict_transmission(exp, made, folder, sorted(candidates))

    return STAGE.node(settings, inputs, work, f"{exp.student.kind} student of {inputs['filter'].label}")


def _trained_part(exp: Experiment) -> dict[str, Any]:
    """What decides a student's gradient at the reference: parameters, labels, rows that fit; of LoRA also its draw."""
    settings = {name: value for name, value in recipe(exp).items() if name != "optimisation"}
    match exp.student:
        case LoraStudent() | ModuleStudent():
            drawn = {"seed": exp.seed}
        case FullStudent() | BiasStudent():
            drawn = {}
        case _:
            assert_never(exp.student)
    return settings | drawn | {"max_length": exp.student.optimisation.max_length}


def _questions(exp: Experiment) -> dict[str, Any]:
    """What decides the exact log-probabilities; sampled answers have no gradient."""
    names = ("category", "measured", "questions", "prefix", "seed")
    settings = {name: value for name, value in evaluation(exp).items() if name in names}
    return settings | wording(texts.favourites(preference_evaluation(exp)))
