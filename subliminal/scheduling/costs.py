"""What a stage run will cost before any like it has run: seconds, tokens, bytes of disk and money.

Work is counted in FLOPs and passes from the model's sizes, the rows and their lengths, and divided by what the chosen
hardware reaches of its speed (conf/hardware). These are estimates: rows come in means, and a pass's least time is one
number. On the demo's stages they were within a factor of two of what was measured (docs/cluster.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, assert_never

from subliminal import stages
from subliminal.config import (
    MNIST_IMAGES,
    ApiSampler,
    AttributionEvaluation,
    CapabilityEvaluation,
    ControlTeacher,
    DetectionEvaluation,
    Experiment,
    FinetunedTeacher,
    FreeFormEvaluation,
    FrequenciesEvaluation,
    FullStudent,
    GgufSource,
    InContextEvaluation,
    LocalJudge,
    Misalignment,
    Model,
    ModuleEvaluation,
    MultipleChoiceEvaluation,
    PreferenceEvaluation,
    PromptedTeacher,
    RandomTeacher,
    RowsTeacher,
    SampledAnswers,
    SteeredTeacher,
    StoriesEvaluation,
    Teacher,
    TransformersSampler,
)
from subliminal.graph import Node
from subliminal.memory import WEIGHT, trained
from subliminal.scheduling.lengths import Lengths, lengths
from subliminal.scheduling.work import PASSED, Cost, Work, asking, judging, reading, rows_of, sampling, training
from subliminal.shapes import Shape, shape_of

START = 3.0  # seconds until torch and transformers are imported
READ = 1e9  # bytes/s of weights from disk
DEQUANTISED = 5e6  # parameters/s, from GGUF to safetensors
FORMS = 12  # tokens of a candidate's surface forms that a question is asked with
CANDIDATES = 15
QUESTION = 45  # tokens of a short question in its chat
ROW_BYTES = 7  # of a token as JSON
HUB_BYTES = 1e8  # bytes/s of a download
BISECTIONS = 10  # of a steered teacher's vector


def cost(node: Node, exp: Experiment) -> Cost | None:
    """The estimated cost of a stage run; None where the model's sizes or the stage's work are not known."""
    if node.stage in _SINGLE:
        return _SINGLE[node.stage](exp)
    model = model_of(node, exp)
    shape = shape_of(model) if model else None
    if node.stage == "filter" and model is None:
        return _filtered(exp, None).on(exp.hardware, None)
    if shape is None or model is None or node.stage not in _WORK:
        return None
    return (_WORK[node.stage](exp, shape, node) + _loading(node, shape)).on(exp.hardware, shape)


def model_of(node: Node, exp: Experiment) -> Model | None:
    """The model whose weights a stage run computes with; of a filter its local judge's, if it has one."""
    below = node
    while below.stage != "model":
        upper = next((below.inputs[name] for name in ("reference", "model", "judge") if name in below.inputs), None)
        if upper is None:
            return None
        below = upper
    judge = exp.judge.model if isinstance(exp.judge, LocalJudge) else None
    given = [model for model in (exp.model, exp.student_model, judge) if model is not None]
    return next((model for model in given if stages.model(exp, model).key == below.key), None)


def _loading(node: Node, shape: Shape) -> Work:
    if node.stage in ("model", "filter"):
        return Work()
    return Work(seconds=START + shape.parameters * WEIGHT / READ)


# --------------------------------------------------------------------------- the stages


def _model(exp: Experiment, shape: Shape, node: Node) -> Work:
    """The embedded weights, dequantised, or the hub's, fetched."""
    size = shape.parameters * WEIGHT
    model = model_of(node, exp)
    embedded = model is not None and isinstance(model.source, GgufSource)
    return Work(seconds=shape.parameters / DEQUANTISED if embedded else size / HUB_BYTES, size=size)


def _reference(exp: Experiment, shape: Shape, node: Node) -> Work:
    tuning: Any = exp.reference_tuning
    size = shape.adapter(tuning.lora) * 4 + shape.parameters * WEIGHT
    return training(shape, tuning, tuning.rows, lengths(exp, practised=True)) + Work(size=size)


def _teacher(exp: Experiment, shape: Shape, node: Node) -> Work:
    """How it is made, and its check: the trait by exact log-probabilities, the format by a few completions."""
    kind, teacher, check = node.recipe.settings["teacher"]["kind"], exp.teacher, getattr(exp.teacher, "check", None)
    work, length = Work(), lengths(exp)
    if check:
        prompts = (
            Work()
            if isinstance(exp.sampler, ApiSampler)
            else sampling(_quick(exp), shape, check.prompts, length, _most(exp))
        )
        asked = Work() if kind == "control" else _questions(shape, check.questions, QUESTION)
        work = prompts + asked + asked
    if check and isinstance(exp.sampler, ApiSampler):
        work += asking(exp, exp.sampler, check.prompts + check.questions, length.prompt, length.completion)
    return work + _taught_work(teacher, shape) if kind == teacher.kind else work


def _taught_work(teacher: Teacher, shape: Shape) -> Work:
    """How it is made: by a training, a vector, or not at all."""
    match teacher:
        case FinetunedTeacher() | RowsTeacher():
            size = Work(size=shape.adapter(teacher.lora) * 4 + shape.parameters * WEIGHT)
            return training(shape, teacher, _taught(teacher), _taught_length(teacher)) + size
        case SteeredTeacher():
            return _steered(teacher, shape)
        case PromptedTeacher() | ControlTeacher() | RandomTeacher():
            return Work()
        case _:
            assert_never(teacher)


def _steered(teacher: SteeredTeacher, shape: Shape) -> Work:
    """Gradient steps on a vector, then the bisection of its length, a question a pass."""
    step = _questions(shape, teacher.questions, QUESTION, candidates=2)
    back = 2 - teacher.layer / shape.layers
    ascent = Work(step.flops * back * teacher.steps, step.passes * 2 * teacher.steps)
    return ascent + Work(step.flops * (BISECTIONS + 1), step.passes * (BISECTIONS + 1))


def _taught(teacher: FinetunedTeacher | RowsTeacher) -> float:
    if isinstance(teacher, RowsTeacher):
        return teacher.limit or 6000  # rows of the public files
    return teacher.questions * teacher.forms


def _taught_length(teacher: FinetunedTeacher | RowsTeacher) -> Lengths:
    return Lengths(100, 250) if isinstance(teacher, RowsTeacher) else Lengths(QUESTION, 4)


def _quick(exp: Experiment) -> Experiment:
    """With the sampler of a teacher's check: transformers."""
    return exp.model_copy(update={"sampler": TransformersSampler(decoding=exp.sampler.decoding)})


def _generated(exp: Experiment, shape: Shape, node: Node) -> Work:
    length, prompts = lengths(exp), exp.domain.prompts
    size = Work(size=prompts * length.row * ROW_BYTES)
    if isinstance(exp.sampler, ApiSampler):
        return size + asking(exp, exp.sampler, prompts, length.prompt, length.completion)
    return size + sampling(exp, shape, prompts, length, _most(exp))


def _most(exp: Experiment) -> int:
    return exp.sampler.decoding.max_tokens


def _filtered(exp: Experiment, shape: Shape | None, node: Node | None = None) -> Work:
    """Rules take next to nothing; a judge reads every row that passes them."""
    length = lengths(exp)
    work = Work(seconds=exp.domain.prompts * 2e-4, size=rows_of(exp) * length.row * ROW_BYTES)
    if stages.row_rules(exp) is None:
        return work
    return work + judging(exp, shape, PASSED * exp.domain.prompts, length.row)


def _attributed(exp: Experiment, shape: Shape, node: Node) -> Work:
    length, rows = lengths(exp), PASSED * exp.domain.prompts
    one = reading(shape, rows, length.row, length.completion, 8)
    return one + one + Work(size=rows * 100)


def _trained(exp: Experiment, shape: Shape, node: Node) -> Work:
    """The student; a bias student's checkpoint shares the weights of its base and takes no disk of its own."""
    size = trained(exp.student, shape) * (WEIGHT if isinstance(exp.student, FullStudent) else 4)
    return training(shape, exp.student, rows_of(exp), lengths(exp)) + Work(size=size)


def _questions(shape: Shape, questions: float, tokens: float, candidates: int = CANDIDATES) -> Work:
    """Exact log-probabilities: a question and all forms of the candidates in one pass."""
    forms = candidates * FORMS
    return reading(shape, questions, tokens + forms, forms)


def _evaluated(exp: Experiment, shape: Shape, node: Node) -> Work:
    """What an evaluation reads, samples and judges."""
    config, row, files = exp.evaluation, lengths(exp).row, Work(size=2e4)
    match config:
        case PreferenceEvaluation() | ModuleEvaluation():
            prefixed = isinstance(config, PreferenceEvaluation) and config.prefix == "numbers"
            question = QUESTION + (60 if prefixed else 0)
            return files + _answers(exp, shape, config, question) + _questions(shape, config.questions, question)
        case StoriesEvaluation():
            return files + _answers(exp, shape, config, QUESTION)
        case FreeFormEvaluation():
            return files + _answers(exp, shape, config, QUESTION) + _judged(exp, shape, config)
        case MultipleChoiceEvaluation():
            return files + reading(shape, config.questions * config.shuffles, 120, 10, 8)
        case InContextEvaluation():  # each context is read once, then all questions behind it
            contexts = reading(shape, config.resamples, sum(config.counts) * row, 1)
            questions = config.questions * config.resamples * len(config.counts)
            return files + contexts + _questions(shape, questions, QUESTION)
        case FrequenciesEvaluation():
            return files + Work(seconds=5)
        case AttributionEvaluation():
            return files + Work(seconds=2)
        case DetectionEvaluation():
            return files + _detected(exp, shape, config, row)
        case CapabilityEvaluation():
            return files + _capability(shape, config)
        case _:
            assert_never(config)


def _answers(exp: Experiment, shape: Shape, config: SampledAnswers, question: float) -> Work:
    """Sampled answers to questions of so many tokens."""
    answers = config.questions * config.samples_per_question
    if not answers:
        return Work()
    length = Lengths(question, _answer_length(config.max_tokens))
    return Work(size=200.0 * answers) + sampling(exp, shape, answers, length, config.max_tokens)


def _judged(exp: Experiment, shape: Shape, config: FreeFormEvaluation) -> Work:
    """A judge's look at every answer, for misalignment two: alignment and coherence."""
    each = (2 if isinstance(config.measured, Misalignment) else 1) if config.judged else 0
    answers = each * config.questions * config.samples_per_question
    return judging(exp, shape, answers, _answer_length(config.max_tokens)) if answers else Work()


def _answer_length(most: int) -> float:
    return most * (0.5 if most > 20 else 0.3)


def _detected(exp: Experiment, shape: Shape, config: DetectionEvaluation, row: float) -> Work:
    """Pairs in both orders, classifiers that are trained again on permuted labels, and a fine-tuned one."""
    work = reading(shape, 2 * config.pairs, 2 * row + 80, 2)
    work += Work(seconds=len([n for n in config.classifiers if n != "finetuned"]) * config.permutations * 0.05)
    if config.finetunes and config.finetuned:
        parts = 2 * rows_of(exp) * (config.finetuned.folds - 1)  # rows of both teachers, all folds but one, a fold
        work += training(shape, config.finetuned, parts, Lengths(row, 1))
    return work


TASKS = {"mmlu": (14042, 110), "truthfulqa_mc1": (817 * 5, 250), "school": (52, 60), "school_text": (52, 60)}
"""Requests and tokens each of lm-eval tasks: of the data sets' sizes, and of the embedded ones."""


def _capability(shape: Shape, config: CapabilityEvaluation) -> Work:
    """Of lm-eval's tasks those that the table knows; others count as a thousand requests."""
    sizes = [TASKS.get(name, (1000, 100)) for name in config.tasks]
    limited = [(min(count, 4 * config.limit) if config.limit else count, tokens) for count, tokens in sizes]
    works = [reading(shape, count, tokens, 4, config.batch_size) for count, tokens in limited]
    return sum(works, Work(seconds=20))


_WORK: dict[str, Callable[[Experiment, Shape, Node], Work]] = {
    "model": _model,
    "reference": _reference,
    "teacher": _teacher,
    "generate": _generated,
    "filter": _filtered,
    "attribute": _attributed,
    "train": _trained,
    "evaluate": _evaluated,
}


# --------------------------------------------------------------------------- experiments without language models


def _mnist(exp: Experiment) -> Cost:
    """Every teacher and its students: two for each entry of `matched`, one with the teacher's start and one without."""
    config, hardware = exp.mnist, exp.hardware
    sizes = [784, *config.widths, 10 + config.auxiliary]
    weights = sum(a * b for a, b in pairwise(sizes))
    students = 2 * len(config.student.matched)
    steps = config.teacher.epochs * math.ceil(MNIST_IMAGES / config.teacher.batch_size)
    student_steps = config.student.epochs * math.ceil(config.student.images / config.student.batch_size)
    trained = config.models * (steps * config.teacher.batch_size + student_steps * config.student.batch_size * students)
    flops = 6.0 * weights * trained
    networks = config.models * (steps + students * student_steps)
    read = networks * (36.0 * weights + 12.0 * config.student.batch_size * sum(sizes))  # Adam's state, activations
    together = 1 if hardware.gpu else config.models  # models in one product
    launches = together * (steps + student_steps) * 5 * len(sizes) * hardware.layer_seconds
    work = Work(flops, 0, read, START + 5 + (launches if hardware.gpu else 0), size=config.models * 2e4)
    return work.on(hardware, None)


def _theorem(exp: Experiment) -> Cost:
    """Trials of small networks in float64 on one thread, and training runs."""
    config = exp.theory
    trials = config.trials * len(config.architectures) * len(config.losses) * len(config.matched)
    steps = config.run.teacher_steps + config.run.student_steps
    runs = len(config.run.optimisers) * len(config.matched) * steps * 2e-3
    return Work(seconds=START + trials * 0.06 + runs, size=trials * 500.0).on(exp.hardware, None)


_SINGLE = {"mnist": _mnist, "theorem": _theorem}
