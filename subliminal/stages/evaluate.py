"""What an evaluation says of a model, or of the filtered rows themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_never

from subliminal import sources, texts
from subliminal.config import (
    AttributionEvaluation,
    CapabilityEvaluation,
    ConfigError,
    DetectionEvaluation,
    Experiment,
    FreeFormEvaluation,
    FrequenciesEvaluation,
    InContextEvaluation,
    Model,
    ModelEvaluation,
    ModuleEvaluation,
    MultipleChoiceEvaluation,
    Preference,
    PreferenceEvaluation,
    RowsComparison,
    RowsEvaluation,
    StoriesEvaluation,
    members,
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
ROWS = tuple(str(kind.model_fields["kind"].default) for kind in members(RowsEvaluation))


def node(exp: Experiment) -> Node:
    """The subject's answers to the evaluation's questions: exact log-probabilities and, if asked for, samples."""
    config = exp.evaluation
    _require_subject(exp)
    if isinstance(config, RowsEvaluation):
        return _of_rows(exp, config)
    start = reference(exp, _evaluated_model(exp))
    who = start if exp.subject == "reference" else {"student": student, "teacher": teacher}[exp.subject](exp)
    inputs = {exp.subject: who, "reference": start}
    settings = {"evaluation": evaluation(exp), **compute(exp, _evaluated_model(exp))}
    settings |= wording(texts.of_evaluation(config))
    if config.sampled:
        settings["sampler"] = exp.local_sampler.kind
    settings |= _more(exp, config)
    if config.judged:
        settings["judge"] = judge(exp)
        inputs |= judge_model(exp)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.evaluation.run import evaluate_subject

        return evaluate_subject(exp, made, folder)

    label, shares = f"{config.kind} of {who.label}", "shards" if "sampler" in settings else "nothing"
    return STAGE.node(settings, inputs, work, label, in_key={exp.subject, "judge"}, shares=shares)


def _more(exp: Experiment, config: ModelEvaluation) -> dict[str, Any]:
    """What the settings do not say of an evaluation: the content of local tasks, the source of a user's module.

    Raises `ConfigError` early for a multiple choice that does not offer the trait.
    """
    match config:
        case CapabilityEvaluation():
            from subliminal.evaluation.tasks import fingerprint

            return {"tasks": fingerprint(config)}
        case MultipleChoiceEvaluation():
            _require_offered(exp, config)
            return {}
        case ModuleEvaluation():
            return sources.identified("evaluation", config.module)
        case PreferenceEvaluation() | StoriesEvaluation() | FreeFormEvaluation():
            return {}
        case _:
            assert_never(config)


def _require_offered(exp: Experiment, config: MultipleChoiceEvaluation) -> None:
    from subliminal.evaluation.questions import offered

    options = offered(config.category, config.options)
    if not isinstance(exp.trait, Preference) or exp.trait.category != config.category or exp.trait.name in options:
        return
    raise ConfigError(
        f"trait={exp.trait.name} is not among the options {', '.join(options)}; give every option, "
        f"for example evaluation.options=[{','.join([exp.trait.name, *options[:-1]])}]"
    )


def _of_rows(exp: Experiment, config: RowsEvaluation) -> Node:
    """What the filtered rows themselves tell: by numbers, classifiers, a prompted model, in context, by attribution."""
    inputs = _rows_read(exp, config)
    settings = {"evaluation": evaluation(exp), **wording(texts.of_evaluation(config))}
    if "reference" in inputs:
        settings |= compute(exp, exp.model)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.evaluation.run import evaluate_rows

        return evaluate_rows(exp, made, folder)

    label = f"{config.kind} of {exp.trait.name}"
    label += f" against {config.against.name}" if isinstance(config, RowsComparison) else ""
    return STAGE.node(settings, inputs, work, label)


def _rows_read(exp: Experiment, config: RowsEvaluation) -> dict[str, Node]:
    """The nodes an evaluation of rows reads; of a trait against itself there is one set of rows."""
    match config:
        case InContextEvaluation():
            return {"filter": filtered(exp), "reference": reference(exp)}
        case AttributionEvaluation():
            if config.against == exp.trait:
                raise ConfigError(
                    f"evaluation=attribution compares two sets of rows under the teacher of trait={exp.trait.name}; "
                    "set another trait@evaluation.against or another trait"
                )
            other = exp.model_copy(update={"trait": config.against})
            return {"attribute": attributed(exp), "against": attributed(exp, other)}
        case FrequenciesEvaluation():
            return _two_sets(exp, config)
        case DetectionEvaluation():
            inputs = _two_sets(exp, config)
            if config.finetunes or (config.pairs and "against" in inputs):
                inputs["reference"] = reference(exp)
            return inputs
        case _:
            assert_never(config)


def _two_sets(exp: Experiment, config: RowsComparison) -> dict[str, Node]:
    """The trait's rows and those they are compared with, where these are others."""
    inputs = {"filter": filtered(exp), "against": filtered(exp.model_copy(update={"trait": config.against}))}
    if inputs["against"].key == inputs["filter"].key:
        del inputs["against"]
    return inputs


def _require_subject(exp: Experiment) -> None:
    """Stop early when an evaluation of rows is to ask a model, or the other way round."""
    kind, rows = exp.evaluation.kind, isinstance(exp.evaluation, RowsEvaluation)
    if rows and exp.subject != "rows":
        raise ConfigError(f"evaluation={kind} looks at the filtered rows, not at a model; set subject=rows")
    if not rows and exp.subject == "rows":
        raise ConfigError(
            f"evaluation={kind} asks a model; with subject=rows set evaluation to one of {', '.join(ROWS)}"
        )


def _evaluated_model(exp: Experiment) -> Model:
    """A student and what it is compared with start from the student's own reference; teachers from theirs."""
    return exp.model if exp.subject == "teacher" else exp.student_model or exp.model
