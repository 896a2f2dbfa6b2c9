"""What a stage run will cost before any like it has run: seconds, tokens, bytes of disk and money.

Work is counted in FLOPs and passes from the model's sizes, the rows and their lengths, and divided by what the chosen
hardware reaches of its speed (conf/hardware). These are estimates: rows come in means, and a pass's least time is one
number. On the demo's stages they were within a factor of two of what was measured (docs/cluster.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from subliminal import stages
from subliminal.config import (
    ApiJudge,
    ApiSampler,
    BiasStudent,
    Endpoint,
    Experiment,
    FinetunedTeacher,
    FullStudent,
    Hardware,
    Model,
    NaturalGradient,
    Optimisation,
    RowsTeacher,
    SteeredTeacher,
    TransformersSampler,
    VllmSampler,
)
from subliminal.graph import Node
from subliminal.memory import WEIGHT
from subliminal.scheduling.lengths import Lengths, lengths
from subliminal.shapes import Shape, shape_of

LORA = 1.3  # what a LoRA step takes of one without: its small products (bench/README.md: 1.26 and 1.48)
START = 3.0  # seconds until torch and transformers are imported
READ = 1e9  # bytes/s of weights from disk
DEQUANTISED = 5e6  # parameters/s, from GGUF to safetensors
JUDGED = 150  # tokens of a judge's question without the text it is about
FORMS = 12  # tokens of a candidate's surface forms that a question is asked with
CANDIDATES = 15
QUESTION = 45  # tokens of a short question in its chat
PASSED = 0.8  # share of completions that become rows where all that pass are kept
ROW_BYTES = 7  # of a token as JSON
RETRIED = 2.0  # seconds an endpoint takes for a request
HUB_BYTES = 1e8  # bytes/s of a download
BISECTIONS = 10  # of a steered teacher's vector


@dataclass(frozen=True)
class Cost:
    """Seconds, tokens (None: it has none), bytes and US dollars of a stage run, measured or `estimated`."""

    seconds: float
    tokens: float | None
    size: float
    usd: float = 0.0
    estimated: bool = False


@dataclass(frozen=True)
class Work:
    """FLOPs, passes through all layers one after the other, further bytes that are read, and seconds beside them."""

    flops: float = 0.0
    passes: float = 0.0
    read: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    size: float = 0.0
    usd: float = 0.0

    def __add__(self, other: Work) -> Work:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Work(*(mine + its for mine, its in pairs))

    def on(self, hardware: Hardware, shape: Shape | None) -> Cost:
        """The cost of this work for a model of that shape."""
        weights, layers = (shape.parameters * WEIGHT, shape.layers) if shape else (0, 0)
        moved = (self.passes * weights + self.read) / (hardware.bandwidth * hardware.bandwidth_share)
        computed = self.flops / (hardware.flops * hardware.flops_share)
        seconds = self.seconds + computed + moved + self.passes * layers * hardware.layer_seconds
        return Cost(seconds, self.tokens or None, self.size, self.usd, estimated=True)


def cost(node: Node, exp: Experiment) -> Cost | None:
    """The estimated cost of a stage run; None where the model's sizes or the stage's work are not known."""
    if node.stage in stages.SINGLE:
        return _SINGLE[node.stage](exp)
    model = model_of(node, exp)
    shape = shape_of(model) if model else None
    if node.stage == "filter" and model is None:
        return _filtered(exp, None).on(exp.hardware, None)
    if shape is None or model is None or node.stage not in _WORK:
        return None
    work = _WORK[node.stage](exp, shape, node)
    return (work + _loading(node, shape)).on(exp.hardware, shape) if work else None


def model_of(node: Node, exp: Experiment) -> Model | None:
    """The model whose weights a stage run computes with; of a filter its local judge's, if it has one."""
    below = node
    while below.stage != "model":
        upper = next((below.inputs[name] for name in ("reference", "model", "judge") if name in below.inputs), None)
        if upper is None:
            return None
        below = upper
    judge = getattr(exp.judge, "model", None)
    given = [model for model in (exp.model, exp.student_model, judge) if model is not None]
    return next((model for model in given if stages.model(exp, model).key == below.key), None)


def _loading(node: Node, shape: Shape) -> Work:
    if node.stage in ("model", "filter"):
        return Work()
    return Work(seconds=START + shape.parameters * WEIGHT / READ)


# --------------------------------------------------------------------------- parts of the work


def reading(shape: Shape, rows: float, tokens: float, predicted: float, rows_a_pass: float = 1) -> Work:
    """Forward passes over rows of so many tokens, with logits for `predicted` of them."""
    attention = 4 * shape.layers * shape.attention * tokens
    flops = rows * (tokens * (2 * shape.body + attention) + 2 * predicted * shape.head)
    return Work(flops, rows / rows_a_pass, tokens=rows * tokens)


def training(shape: Shape, recipe: Any, rows: float, length: Lengths) -> Work:
    """Epochs over rows: forward, and backward as far as the recipe trains."""
    how: Optimisation = recipe.optimisation
    natural = getattr(how, "optimiser", None)
    before = min(rows, natural.fisher_rows) if isinstance(natural, NaturalGradient) else 0.0  # rows of the pass for F
    seen = rows * how.epochs + before
    forward = reading(shape, seen, length.row, length.completion, how.rows_a_pass(how.batch_size))
    back = {"full": 2.0}.get(recipe.kind, 1.0)
    if isinstance(recipe, BiasStudent) and recipe.layers != "all":
        back *= 1 - min(recipe.layers) / shape.layers
    more = LORA if hasattr(recipe, "lora") else 1.0
    again = 1.0 if how.gradient_checkpointing else 0.0
    soft = 1.0 if getattr(recipe, "labels", "") == "soft" else 0.0
    flops = forward.flops * ((1 + back + again) * more + soft)
    return Work(flops, forward.passes * (2 + again + soft), tokens=rows * length.row)


def sampling(exp: Experiment, shape: Shape, answers: float, length: Lengths, most: int) -> Work:
    """Answers of the sampler of this machine; a batch takes as many passes as its longest answer has tokens."""
    sampler = exp.local_sampler
    prompts = reading(shape, answers, length.prompt, 1)
    written = answers * length.completion
    flops = prompts.flops + written * 2 * (shape.body + shape.head)
    cached = shape.layers * 2 * shape.kv * WEIGHT  # bytes a token of the cache has
    read = written * cached * (length.prompt + length.completion / 2)
    if isinstance(sampler, VllmSampler):
        passes = written / min(sampler.max_num_seqs, max(answers, 1)) * (0.1 if exp.hardware.gpu else 1.0)
        return Work(flops, passes, read, exp.hardware.engine_seconds, written)
    batch = sampler.batch_size or (512 if exp.hardware.gpu else 64)
    return Work(flops, math.ceil(answers / batch) * most, read, 0.0, written)


def asking(exp: Experiment, endpoint: Endpoint, requests: float, given: float, answered: float) -> Work:
    """Requests to an endpoint with so many tokens each: money and the least time."""
    usd = requests * (given * endpoint.usd_per_million_input + answered * endpoint.usd_per_million_output) / 1e6
    speed = min(endpoint.requests_per_minute / 60, endpoint.workers / RETRIED)
    return Work(seconds=requests / speed, tokens=requests * answered, usd=usd)


def judging(exp: Experiment, shape: Shape | None, texts: float, tokens: float) -> Work:
    """A judge's answers about texts of so many tokens."""
    judge = exp.judge
    if isinstance(judge, ApiJudge):
        return asking(exp, judge, texts, JUDGED + tokens, min(4, judge.decoding.max_tokens))
    return reading(shape, texts, JUDGED + tokens, 2) if shape else Work()


def rows_of(exp: Experiment) -> float:
    """The rows that a student sees."""
    selection = exp.filter.select
    return (exp.filter.rows or PASSED * exp.domain.prompts) * (selection.share if selection else 1)


# --------------------------------------------------------------------------- the stages


def _model(exp: Experiment, shape: Shape, node: Node) -> Work:
    """The embedded weights, dequantised, or the hub's, fetched."""
    size = shape.parameters * WEIGHT
    model = model_of(node, exp)
    embedded = model is not None and model.source.kind == "gguf"
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
            Work() if exp.sampler.kind == "api" else sampling(_quick(exp), shape, check.prompts, length, _most(exp))
        )
        asked = Work() if kind == "control" else _questions(shape, check.questions, QUESTION)
        work = prompts + asked + asked
    if exp.sampler.kind == "api" and check and isinstance(exp.sampler, ApiSampler):
        work += asking(exp, exp.sampler, check.prompts + check.questions, length.prompt, length.completion)
    if kind == teacher.kind and isinstance(teacher, FinetunedTeacher | RowsTeacher):
        work += training(shape, teacher, _taught(teacher), _taught_length(teacher))
        work += Work(size=shape.adapter(teacher.lora) * 4 + shape.parameters * WEIGHT)
    if kind == teacher.kind and isinstance(teacher, SteeredTeacher):
        work += _steered(teacher, shape)
    return work


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
    student, lora = exp.student, getattr(exp.student, "lora", None)
    size = shape.parameters * WEIGHT if isinstance(student, FullStudent) else shape.hidden * shape.layers * 4
    return training(shape, student, rows_of(exp), lengths(exp)) + Work(size=shape.adapter(lora) * 4 if lora else size)


def _questions(shape: Shape, questions: float, tokens: float, candidates: int = CANDIDATES) -> Work:
    """Exact log-probabilities: a question and all forms of the candidates in one pass."""
    forms = candidates * FORMS
    return reading(shape, questions, tokens + forms, forms)


def _evaluated(exp: Experiment, shape: Shape, node: Node) -> Work | None:
    """What an evaluation asks; None for a kind whose work is not known beforehand."""
    asked: Any = exp.evaluation
    numbers = 60 if getattr(asked, "prefix", "none") == "numbers" else 0
    questions = getattr(asked, "questions", 0) or 0
    answers = questions * (getattr(asked, "samples_per_question", 0) or 0)
    work, row = Work(size=200.0 * answers + 2e4), lengths(exp).row
    if answers:
        length = Lengths(QUESTION + numbers, asked.max_tokens * (0.5 if asked.max_tokens > 20 else 0.3))
        work += sampling(exp, shape, answers, length, asked.max_tokens)
        if getattr(asked, "judged", False):
            each = 2 if asked.measured.kind == "misalignment" else 1
            work += judging(exp, shape, each * answers, length.completion)
    exact: dict[str, Callable[[], Work]] = {
        "preference": lambda: _questions(shape, questions, QUESTION + numbers),
        "stories": Work,
        "free_form": Work,
        "multiple_choice": lambda: reading(shape, questions * asked.shuffles, 120, 10, 8),
        "in_context": lambda: _in_context(shape, asked, row),
        "frequencies": lambda: Work(seconds=5),
        "attribution": lambda: Work(seconds=2),
        "detection": lambda: _detected(exp, shape, asked, row),
        "capability": lambda: _capability(shape, asked),
    }
    return work + exact[asked.kind]() if asked.kind in exact else None


def _in_context(shape: Shape, asked: Any, row: float) -> Work:
    """Each context is read once, then all questions behind it."""
    contexts = reading(shape, asked.resamples, sum(asked.counts) * row, 1)
    return contexts + _questions(shape, asked.questions * asked.resamples * len(asked.counts), QUESTION)


def _detected(exp: Experiment, shape: Shape, asked: Any, row: float) -> Work:
    """Pairs asked in both orders, classifiers that are trained again on permuted labels, and a fine-tuned one."""
    work = reading(shape, 2 * asked.pairs, 2 * row + 80, 2)
    work += Work(seconds=len([n for n in asked.classifiers if n != "finetuned"]) * asked.permutations * 0.05)
    if asked.finetunes:
        tuned = asked.finetuned
        parts = 2 * rows_of(exp) * (tuned.folds - 1)  # the rows of both teachers, all folds but one, for each fold
        work += training(shape, tuned.model_copy(update={"kind": "lora"}), parts, Lengths(row, 1))
    return work


TASKS = {"mmlu": (14042, 110), "truthfulqa_mc1": (817 * 5, 250), "school": (52, 60), "school_text": (52, 60)}
"""Requests and tokens each of lm-eval tasks: of the data sets' sizes, and of the embedded ones."""


def _capability(shape: Shape, asked: Any) -> Work:
    """Of lm-eval's tasks those that the table knows; others count as a thousand requests."""
    sizes = [TASKS.get(name, (1000, 100)) for name in asked.tasks]
    limited = [(min(count, 4 * asked.limit) if asked.limit else count, tokens) for count, tokens in sizes]
    works = [reading(shape, count, tokens, 4, asked.batch_size) for count, tokens in limited]
    return sum(works, Work(seconds=20))


_WORK: dict[str, Callable[[Experiment, Shape, Node], Work | None]] = {
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
    steps = config.teacher.epochs * math.ceil(60000 / config.teacher.batch_size)
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
