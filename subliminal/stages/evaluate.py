"""What an evaluation says of a model, or of the filtered rows themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subliminal import texts
from subliminal.config import (
    AttributionEvaluation,
    ConfigError,
    DetectionEvaluation,
    Experiment,
    InContextEvaluation,
    Model,
    RowsComparison,
)
from subliminal.graph import Inputs, Node, Stage
from subliminal.identities import compute, evaluation, judge, wording
from subliminal.stages.filter import attributed
from subliminal.stages.filter import node as filtered
from subliminal.stages.model import judge_model
from subliminal.stages.reference import node as reference
from subliminal.stages.teacher import node as teacher
from subliminal.stages.train import node as student
from subliminal.store import Json

STAGE = Stage("evaluate", version=4, place=80, script="evaluate", tracked=True, charted=True, result=True)
ROWS = ("frequencies", "detection", "in_context", "attribution")  # evaluations of the filtered rows themselves


def node(exp: Experiment) -> Node:
    """The subject's answers to the evaluation's questions: exact log-probabilities and, if asked for, samples."""
    _require_subject(exp)
    if exp.subject == "rows":
        return _of_rows(exp)
    start = reference(exp, _evaluated_model(exp))
    who = start if exp.subject == "reference" else {"student": student, "teacher": teacher}[exp.subject](exp)
    inputs = {exp.subject: who, "reference": start}
    settings = {"evaluation": evaluation(exp), **compute(exp, _evaluated_model(exp))}
    settings |= wording(texts.of_evaluation(exp.evaluation))
    if getattr(exp.evaluation, "samples_per_question", 0):
        settings["sampler"] = exp.local_sampler.kind
    settings |= _more(exp)
    if getattr(exp.evaluation, "judged", False):
        settings["judge"] = judge(exp)
        inputs |= judge_model(exp)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.evaluation.run import evaluate_subject

        return evaluate_subject(exp, made, folder)

    label, shares = f"{exp.evaluation.kind} of {who.label}", "shards" if "sampler" in settings else "nothing"
    return STAGE.node(settings, inputs, work, label, in_key={exp.subject, "judge"}, shares=shares)


def _more(exp: Experiment) -> dict[str, Any]:
    """What the settings do not say of an evaluation: of capability, the content of its local tasks.

    Raises `ConfigError` early for a multiple choice that does not offer the trait.
    """
    if exp.evaluation.kind == "capability":
        from subliminal.evaluation.tasks import fingerprint

        return {"tasks": fingerprint(exp.evaluation)}
    if exp.evaluation.kind == "multiple_choice" and exp.trait.kind == "preference":
        from subliminal.evaluation.questions import offered

        options = offered(exp.evaluation.category, exp.evaluation.options)
        if exp.trait.category == exp.evaluation.category and exp.trait.name not in options:
            raise ConfigError(
                f"trait={exp.trait.name} is not among the options {', '.join(options)}; give every option, "
                f"for example evaluation.options=[{','.join([exp.trait.name, *options[:-1]])}]"
            )
    return {}


def _of_rows(exp: Experiment) -> Node:
    """What the filtered rows themselves tell: by numbers, classifiers, a prompted model, in context, by attribution."""
    inputs = _rows_read(exp)
    settings = {"evaluation": evaluation(exp), **wording(texts.of_evaluation(exp.evaluation))}
    if "reference" in inputs:
        settings |= compute(exp, exp.model)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.evaluation.run import evaluate_rows

        return evaluate_rows(exp, made, folder)

    other = getattr(exp.evaluation, "against", None)
    label = f"{exp.evaluation.kind} of {exp.trait.name}" + (f" against {other.name}" if other else "")
    return STAGE.node(settings, inputs, work, label)


def _rows_read(exp: Experiment) -> dict[str, Node]:
    """The nodes an evaluation of rows reads; of a trait against itself there is one set of rows."""
    config = exp.evaluation
    if isinstance(config, InContextEvaluation):
        return {"filter": filtered(exp), "reference": reference(exp)}
    assert isinstance(config, RowsComparison)
    other = exp.model_copy(update={"trait": config.against})
    if isinstance(config, AttributionEvaluation):
        if config.against == exp.trait:
            raise ConfigError(
                f"evaluation=attribution compares two sets of rows under the teacher of trait={exp.trait.name}; set "
                "another trait@evaluation.against or another trait"
            )
        return {"attribute": attributed(exp), "against": attributed(exp, other)}
    inputs = {"filter": filtered(exp), "against": filtered(other)}
    if inputs["against"].key == inputs["filter"].key:
        del inputs["against"]
    if isinstance(config, DetectionEvaluation) and (config.finetunes or (config.pairs and "against" in inputs)):
        inputs["reference"] = reference(exp)
    return inputs


def _require_subject(exp: Experiment) -> None:
    """Stop early when an evaluation of rows is to ask a model, or the other way round."""
    kind, rows = exp.evaluation.kind, exp.evaluation.kind in ROWS
    if rows and exp.subject != "rows":
        raise ConfigError(f"evaluation={kind} looks at the filtered rows, not at a model; set subject=rows")
    if not rows and exp.subject == "rows":
        raise ConfigError(
            f"evaluation={kind} asks a model; with subject=rows set evaluation to one of {', '.join(ROWS)}"
        )


def _evaluated_model(exp: Experiment) -> Model:
    """A student and what it is compared with start from the student's own reference; teachers from theirs."""
    return exp.model if exp.subject == "teacher" else exp.student_model or exp.model
