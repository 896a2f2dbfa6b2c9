"""The theorem on small networks (`conf/theory`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from subliminal.config.base import Identity, Positive, PositiveFloat, Rate, Settings


class PlainOptimiser(Settings):
    """How teacher and student of an alignment run are trained: rule, learning rate, momentum."""

    name: Identity[Literal["sgd", "momentum", "adam"]]
    learning_rate: Identity[Rate]
    momentum: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.0


class AlignmentRun(Settings):
    """Beyond one step: teacher and student trained to the end, and how parallel their displacements stay."""

    dataset: Identity[Literal["clusters", "mnist", "fashion"]]
    examples: Identity[Positive]
    width: Identity[Positive]
    depth: Identity[Positive]
    auxiliary: Identity[Positive]
    batch: Identity[Positive]
    teacher_steps: Identity[Positive]
    student_steps: Identity[Positive]
    points: Identity[Positive]
    optimisers: Identity[tuple[PlainOptimiser, ...]]


class Theory(Settings):
    """The theorem on random networks (arXiv 2507.14805): what a trial draws from, and the sizes of its steps."""

    trials: Identity[Positive]
    architectures: Identity[tuple[Literal["mlp", "convolution", "transformer"], ...]]
    losses: Identity[tuple[Literal["squared_error", "cross_entropy"], ...]]
    matched: Identity[tuple[Literal["all", "auxiliary"], ...]]
    teacher_losses: Identity[tuple[Literal["labels", "targets", "score", "weights"], ...]]
    inputs: Identity[tuple[Literal["normal", "uniform", "signs", "sparse", "heavy", "narrow"], ...]]
    width: Identity[Positive]
    classes: Identity[Annotated[int, Field(ge=2)]]
    auxiliary: Identity[Annotated[int, Field(ge=2)]]
    batch: Identity[Positive]
    steps: Identity[Annotated[tuple[PositiveFloat, ...], Field(min_length=2)]]
    student_rate: Identity[PositiveFloat]
    run: Identity[AlignmentRun]
