"""What is known of an experiment before any work: every problem at once, in words that say what to change.

Most checks call, with the experiment's settings, the very function that its stage will call, and keep what it raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, assert_never

from subliminal import machine, model_checks, sources, stages
from subliminal.composition import argument_problems
from subliminal.config import (
    CATEGORIES,
    ApiJudge,
    ApiSampler,
    AttributionEvaluation,
    CachedJudge,
    CapabilityEvaluation,
    Code,
    ConfigError,
    ControlTeacher,
    DetectionEvaluation,
    Experiment,
    FinetunedTeacher,
    FreeFormEvaluation,
    FrequenciesEvaluation,
    InContextEvaluation,
    InFormatTuning,
    LocalJudge,
    ModuleEvaluation,
    ModuleStudent,
    MultipleChoiceEvaluation,
    NoReference,
    Preference,
    PreferenceEvaluation,
    PromptedTeacher,
    RandomTeacher,
    RowsTeacher,
    SteeredTeacher,
    StoriesEvaluation,
)
from subliminal.domains import constraint, one_word
from subliminal.graph import Node
from subliminal.model_checks import raised
from subliminal.names import CANDIDATES
from subliminal.outputs import require_rows
from subliminal.store import Store


def check(exp: Experiment, stage: str, *, here: bool) -> None:
    """Raise a `ConfigError` with every problem of a stage and what it reads; `here`: this machine is to do the work."""
    check_all([exp], stage, here=here)


def check_all(experiments: Iterable[Experiment], stage: str, *, here: bool) -> None:
    """`check` for many experiments, each problem told once; seeds make no difference."""
    different = {exp.model_copy(update={"seed": 0}).model_dump_json(): exp for exp in experiments}
    found = dict.fromkeys(problem for exp in different.values() for problem in problems(exp, stage, here=here))
    if found:
        raise ConfigError("\n".join(found))


def arms_problems(exp: Experiment, folders: Sequence[Path]) -> Iterator[str]:
    """Traits, students, variants and settings of a figure that are in none of the folders of options."""
    arms = exp.experiment.arms
    for setting, group, names in (("traits", "trait", arms.traits), ("students", "student", arms.students)):
        for name in names:
            yield from (f"experiment.arms.{setting}: {said}" for said in argument_problems(f"{group}={name}", folders))
    for name, overrides in arms.variants.items():
        for part in overrides:
            yield from (f"experiment.arms.variants.{name}: {said}" for said in argument_problems(part, folders))
    if arms.setting is not None:
        yield from (f"experiment.arms.setting: {said}" for said in argument_problems(f"{arms.setting}=0", folders))


def problems(exp: Experiment, stage: str, *, here: bool) -> list[str]:
    """Every reason why a stage (a script's, `predict` or `judge`) can not be made, as far as it is known without work.

    Settings that go with no data or text of ours are wrong in any stage; what needs a model, a file, a package or a key
    counts only for the stage runs that the store has not. Without `here` nothing is looked for on this machine.
    """
    single = stages.single(exp)
    found = list(single.problems(exp) if single else _settings(exp))
    missing: list[Node] = []
    found += raised(lambda: missing.extend(_missing(exp, stage)))
    names = {node.stage for node in missing}
    if not single:
        if "teacher" in names:
            found += _teacher(exp)
        if "filter" in names:
            found += _judged_filter(exp)
        if "generate" in names and isinstance(exp.active_teacher, RandomTeacher):
            found += _programmatic(exp)
        if names & {"teacher", "generate"}:
            found += _constrained(exp)
        found += _precision(exp, names)
        found += model_checks.problems(exp, missing, online=here)
        writes = bool(names & {"reference", "teacher", "generate", "filter", "attribute", "train"})
        found += raised(lambda: model_checks.require_templates(exp, rows=writes))
    if here:
        found += machine.lacking(exp, missing)
        if "teacher" in names:
            found += raised(lambda: require_rows(exp))
    return list(dict.fromkeys(found))


def _missing(exp: Experiment, stage: str) -> list[Node]:
    """The stage runs that the store has not, below a stage: nothing is looked for below what is there."""
    return [absent for node in _ends(exp, stage) for absent in stages.missing(node, Store(Path(exp.store)))]


def _ends(exp: Experiment, stage: str) -> list[Node]:
    if stage == "judge":
        return list(stages.judge_model(exp).values())
    return [stages.predict(exp) if stage == "predict" else stages.node(stage, exp)]


# --------------------------------------------------------------------------- settings and our own texts


def _settings(exp: Experiment) -> Iterator[str]:
    """Settings that ask for more than there is, whatever the stage."""
    from subliminal.domains import require

    yield from _other_category(exp)
    yield from _evaluation(exp)
    yield from _one_word(exp)
    yield from raised(lambda: require(exp.domain))
    if isinstance(exp.student, ModuleStudent):
        module = exp.student.module
        yield from raised(lambda: sources.load("student", module))
    if isinstance(exp.reference_tuning, InFormatTuning) and isinstance(exp.domain, Code):
        from subliminal.domains.code import require_practice

        rows, domain = exp.reference_tuning.rows, exp.domain
        yield from raised(lambda: require_practice(domain, rows))


def _precision(exp: Experiment, missing: set[str]) -> Iterator[str]:
    """A training in float16 loses small gradients unless losses are scaled, which no training of ours does."""
    fits = isinstance(exp.active_teacher, FinetunedTeacher | RowsTeacher)
    if exp.model.dtype == "float16" and (missing & {"reference", "train"} or ("teacher" in missing and fits)):
        yield (
            "model.dtype=float16 can sample and be measured, but not trained: small gradients would be lost; set "
            "model.dtype=bfloat16 or float32"
        )


def _one_word(exp: Experiment) -> Iterator[str]:
    """Does the reference's tuning teach words that are measured afterwards."""
    about, tuning = exp.evaluation.subject_matter, exp.reference_tuning
    if about is None or not isinstance(tuning, InFormatTuning) or not tuning.one_word:
        return
    own = isinstance(about, Preference)
    words = one_word.taught(about.plurals if own else CANDIDATES[about], about.category if own else about)
    if words:
        yield (
            f"reference_tuning.one_word={tuning.one_word:g} teaches the reference to say what is measured "
            f"({', '.join(words)}); set reference_tuning.one_word=0"
        )


def _other_category(exp: Experiment) -> Iterator[str]:
    """Are the questions about something else, or are their candidates without the trait."""
    asked, own = category(exp), getattr(exp.trait, "category", None)
    if asked is None or own is None:
        return
    mine = f"trait@evaluation.measured={exp.trait.key}"
    if own != asked:
        remedy = f"evaluation.category={own}" if own in CATEGORIES else mine
        yield f"evaluation.category={asked} but trait={exp.trait.name} is a {own}; set {remedy}"
        return
    about = exp.evaluation.subject_matter
    candidates = [*(about.plurals if isinstance(about, Preference) else CANDIDATES[about])] if about else []
    if about and exp.trait.name not in candidates:
        remedy = f"set {mine}" if hasattr(exp.evaluation, "measured") else "choose another trait or evaluation"
        yield f"trait={exp.trait.name} is not among what is measured ({', '.join(candidates)}); {remedy}"


def category(exp: Experiment) -> str | None:
    """What kind of thing the evaluation's candidates are, or None for an evaluation without candidates."""
    measured = getattr(exp.evaluation, "measured", None)
    return getattr(measured, "category", None) or getattr(exp.evaluation, "category", None)


def _evaluation(exp: Experiment) -> Iterator[str]:
    """Questions, options and rows that an evaluation has not."""
    from subliminal.evaluation.questions import offered, questions

    config = exp.evaluation
    match config:
        case PreferenceEvaluation():
            yield from raised(lambda: questions(config.subject_matter, config.questions))
        case InContextEvaluation():
            yield from raised(lambda: questions(config.subject_matter, config.questions))
            yield from _context_rows(exp, config)
        case StoriesEvaluation():
            from subliminal.evaluation.stories import story_prompts

            yield from raised(lambda: story_prompts(config.category, config.questions))
        case MultipleChoiceEvaluation():
            from subliminal.evaluation.multiple_choice import choice_prompts

            yield from raised(lambda: choice_prompts(config.category, config.questions))
            yield from raised(lambda: offered(config.category, config.options))
        case FreeFormEvaluation():
            from subliminal.evaluation.free_form import asked_questions

            yield from raised(lambda: asked_questions(config))
        case CapabilityEvaluation():
            from subliminal.evaluation.tasks import local_tasks

            yield from raised(lambda: local_tasks(config))
        case ModuleEvaluation():
            from subliminal.evaluation import module

            yield from raised(lambda: module.questions(config))
        case FrequenciesEvaluation() | DetectionEvaluation() | AttributionEvaluation():
            yield from _compared_rows(exp, config)
        case _:
            assert_never(config)


def _most_rows(exp: Experiment) -> int:
    """The most rows that a filter can leave."""
    rows, selection = exp.filter.rows or exp.domain.prompts, exp.filter.select
    return max(1, round(selection.share * rows)) if selection else rows


def _context_rows(exp: Experiment, config: InContextEvaluation) -> Iterator[str]:
    most = _most_rows(exp)
    if max(config.counts) > most:
        yield (
            f"evaluation.counts={list(config.counts)}: the filter leaves at most {most} rows; lower the counts or "
            "raise filter.rows"
        )


def _compared_rows(
    exp: Experiment, config: FrequenciesEvaluation | DetectionEvaluation | AttributionEvaluation
) -> Iterator[str]:
    from subliminal.evaluation.samples import MINIMUM_ROWS

    if isinstance(config, AttributionEvaluation):
        if isinstance(exp.active_teacher, ControlTeacher):
            yield (
                "evaluation=attribution: the control is the reference itself, so log P(teacher) - log P(reference) is "
                "0 for every row; set a trait, and a teacher other than control"
            )
        return
    itself = config.against == exp.trait
    needed, most = MINIMUM_ROWS * (2 if itself else 1), _most_rows(exp)
    if most < needed:
        own = "with their own half, so" if itself else "with others:"
        yield (
            f"evaluation={config.kind} compares rows {own} {needed} are needed at least, the filter leaves at most "
            f"{most}; raise filter.rows"
        )


# --------------------------------------------------------------------------- teachers, filters


def _teacher(exp: Experiment) -> Iterator[str]:
    """A trait that a kind of teacher can not have, and questions, forms and words there are not."""
    from subliminal import teachers

    active, trait = exp.active_teacher, exp.trait
    match active:
        case PromptedTeacher():
            yield from raised(lambda: teachers.system_prompt(active, trait))
        case FinetunedTeacher():
            yield from raised(lambda: teachers.taught_rows(active, trait))
            if active.system is not None:
                yield from raised(lambda: teachers.system_prompt(active, trait))
        case SteeredTeacher():
            yield from raised(lambda: teachers.require_goal(active, trait))
        case ControlTeacher() | RandomTeacher() | RowsTeacher():
            pass
        case _:
            assert_never(active)
    rules = getattr(active, "check", None)
    if rules and isinstance(trait, Preference):
        yield from raised(lambda: teachers.checked_questions(exp, trait, rules.questions))


def _judged_filter(exp: Experiment) -> Iterator[str]:
    """A judge without log-probabilities where the filter goes by them."""
    rules = stages.row_rules(exp)
    if not isinstance(rules, NoReference) or rules.minimum_log_p is None:
        return
    remedy = "set filter.judged.minimum_log_p=null to go by the answer alone"
    match exp.judge:
        case ApiJudge():
            if not exp.judge.top_logprobs:
                yield (
                    "filter.judged.minimum_log_p needs log-probabilities, and judge.top_logprobs=0 asks for none; "
                    f"raise judge.top_logprobs, or {remedy}"
                )
        case CachedJudge():
            from subliminal.judging.cache import read_judgements

            path, known = Path(exp.judge.path).expanduser(), dict[str, Any]()
            yield from raised(lambda: known.update(read_judgements(path) if path.is_file() else {}))
            if known and all(judgement.log_p is None for judgement in known.values()):
                yield f"filter.judged.minimum_log_p needs log-probabilities, and {path} holds no log_p; {remedy}"
        case LocalJudge() | None:
            pass
        case _:
            assert_never(exp.judge)


def _constrained(exp: Experiment) -> Iterator[str]:
    """Constrained decoding where there is no pattern, or nobody to hold answers to it."""
    if not exp.sampler.decoding.constrained:
        return
    if isinstance(exp.sampler, ApiSampler):
        yield "sampler.decoding.constrained=true is not for endpoints; set it to false, or set sampler=vllm"
    yield from raised(lambda: constraint(exp))


def _programmatic(exp: Experiment) -> Iterator[str]:
    """Tasks of a user's file that have no solution where solutions are the answers."""
    from subliminal.domains import programmatic

    if getattr(exp.domain, "prompts_file", None) is not None:
        yield from raised(lambda: programmatic(exp.domain))
