"""What computing takes: work in FLOPs, passes and bytes, and the time, disk and money it costs on some hardware."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

from subliminal.config import (
    ApiJudge,
    BiasStudent,
    CachedJudge,
    Endpoint,
    Experiment,
    FinetunedClassifier,
    FinetunedTeacher,
    FullStudent,
    Hardware,
    InFormatTuning,
    LocalJudge,
    LoraStudent,
    ModuleStudent,
    NaturalGradient,
    Optimisation,
    RowsTeacher,
    Student,
    TransformersSampler,
    VllmSampler,
)
from subliminal.memory import WEIGHT
from subliminal.scheduling.lengths import Lengths
from subliminal.shapes import Shape

LORA = 1.3  # what a LoRA step takes of one without: its small products (bench/README.md: 1.26 and 1.48)
JUDGED = 150  # tokens of a judge's question without the text it is about
PASSED = 0.8  # share of completions that become rows where all that pass are kept
RETRIED = 2.0  # seconds an endpoint takes for a request


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


def reading(shape: Shape, rows: float, tokens: float, predicted: float, rows_a_pass: float = 1) -> Work:
    """Forward passes over rows of so many tokens, with logits for `predicted` of them."""
    attention = 4 * shape.layers * shape.attention * tokens
    flops = rows * (tokens * (2 * shape.body + attention) + 2 * predicted * shape.head)
    return Work(flops, rows / rows_a_pass, tokens=rows * tokens)


Trained = Student | InFormatTuning | FinetunedTeacher | RowsTeacher | FinetunedClassifier
"""Settings by which some weights are fitted to rows."""


def training(shape: Shape, recipe: Trained, rows: float, length: Lengths) -> Work:
    """Epochs over rows: forward, and backward as far as the recipe trains."""
    how = recipe.optimisation
    natural = how.optimiser if isinstance(how, Optimisation) else None
    before = min(rows, natural.fisher_rows) if isinstance(natural, NaturalGradient) else 0.0  # rows of the pass for F
    seen = rows * how.epochs + before
    forward = reading(shape, seen, length.row, length.completion, how.rows_a_pass(how.batch_size))
    back, more, soft = 1.0, 1.0, 0.0
    match recipe:
        case FullStudent():
            back = 2.0
        case ModuleStudent():  # as far as its lowest parameter, which may be the first
            pass
        case BiasStudent():
            back = 1.0 if recipe.layers == "all" else 1 - min(recipe.layers) / shape.layers
        case LoraStudent() | InFormatTuning() | FinetunedTeacher() | RowsTeacher() | FinetunedClassifier():
            more = LORA
        case _:
            assert_never(recipe)
    if isinstance(recipe, LoraStudent | FullStudent | BiasStudent | ModuleStudent) and recipe.labels == "soft":
        soft = 1.0
    again = 1.0 if how.gradient_checkpointing else 0.0
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
    match sampler:
        case VllmSampler():
            passes = written / min(sampler.max_num_seqs, max(answers, 1)) * (0.1 if exp.hardware.gpu else 1.0)
            return Work(flops, passes, read, exp.hardware.engine_seconds, written)
        case TransformersSampler():
            batch = sampler.batch_size or (512 if exp.hardware.gpu else 64)
            return Work(flops, math.ceil(answers / batch) * most, read, 0.0, written)
        case _:
            assert_never(sampler)


def asking(exp: Experiment, endpoint: Endpoint, requests: float, given: float, answered: float) -> Work:
    """Requests to an endpoint with so many tokens each: money and the least time."""
    usd = requests * (given * endpoint.usd_per_million_input + answered * endpoint.usd_per_million_output) / 1e6
    speed = min(endpoint.requests_per_minute / 60, endpoint.workers / RETRIED)
    return Work(seconds=requests / speed, tokens=requests * answered, usd=usd)


def judging(exp: Experiment, shape: Shape | None, texts: float, tokens: float) -> Work:
    """A judge's answers about texts of so many tokens."""
    judge = exp.judge
    match judge:
        case ApiJudge():
            return asking(exp, judge, texts, JUDGED + tokens, min(4, judge.decoding.max_tokens))
        case LocalJudge():
            return reading(shape, texts, JUDGED + tokens, 2) if shape else Work()
        case CachedJudge() | None:
            return Work()
        case _:
            assert_never(judge)


def rows_of(exp: Experiment) -> float:
    """The rows that a student sees."""
    selection = exp.filter.select
    return (exp.filter.rows or PASSED * exp.domain.prompts) * (selection.share if selection else 1)
