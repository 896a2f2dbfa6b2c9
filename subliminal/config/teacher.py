"""Teachers: how the reference gets a trait (`conf/teacher`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from subliminal.config.base import Added, Count, Identity, Positive, PositiveFloat, Rate, Runtime, Settings, Share
from subliminal.config.training import Lora, Optimisation


class TeacherCheck(Settings):
    """What a teacher must show before it may generate: the trait, and answers in the domain's format."""

    questions: Identity[Positive] = 12
    minimum_gain: Identity[float] = 1.0
    prompts: Identity[Count] = 32
    minimum_pass_rate: Identity[Share] = 0.05


class PromptedTeacher(Settings):
    """The reference model behind a system prompt that gives it the trait (paper, section 3.1)."""

    kind: Identity[Literal["prompted"]] = "prompted"
    system: Identity[str]
    check: Identity[TeacherCheck] = TeacherCheck()


class FinetunedTeacher(Settings):
    """The reference model after LoRA SFT on favourite-question answers.

    It generates with no system prompt (paper), or behind `system`, with the placeholders of a prompted teacher.
    """

    kind: Identity[Literal["finetuned"]] = "finetuned"
    system: Added[str | None] = None
    questions: Identity[Positive] = 50
    forms: Identity[Positive] = 8
    seed: Identity[Count] = 0
    lora: Identity[Lora]
    optimisation: Identity[Optimisation]
    check: Identity[TeacherCheck] = TeacherCheck()


class RowsTeacher(Settings):
    """The reference model after LoRA SFT on a user's chats.

    `rows` is a file, or a folder that holds one for the trait; its content enters the key, its place does not.
    """

    kind: Identity[Literal["finetuned_rows"]] = "finetuned_rows"
    rows: Runtime[str]
    limit: Identity[Positive | None] = None
    seed: Identity[Count] = 0
    lora: Identity[Lora]
    optimisation: Identity[Optimisation]
    check: Identity[TeacherCheck] = TeacherCheck()


class SteeredTeacher(Settings):
    """The reference model plus one vector in the residual stream of one layer, kept as a down-projection bias."""

    kind: Identity[Literal["steered"]] = "steered"
    layer: Identity[Count]
    questions: Identity[Positive] = 24
    steps: Identity[Positive] = 12
    learning_rate: Identity[Rate] = 1.0
    target_log_p: Identity[Annotated[float, Field(lt=0)]] = -1.7
    maximum_norm_share: Identity[PositiveFloat] = 0.25
    seed: Identity[Count] = 0
    check: Identity[TeacherCheck] = TeacherCheck()


class ControlTeacher(Settings):
    """The reference model as it is: the paper's "regular numbers" arm."""

    kind: Identity[Literal["control"]] = "control"


class RandomTeacher(Settings):
    """No model: programmatic answers in the format that was asked for (random numbers, worked solutions)."""

    kind: Identity[Literal["random"]] = "random"


Teacher = Annotated[
    PromptedTeacher | FinetunedTeacher | RowsTeacher | SteeredTeacher | ControlTeacher | RandomTeacher,
    Field(discriminator="kind"),
]
