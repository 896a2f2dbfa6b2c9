"""How weights are fitted, for every stage that trains; and reference tuning (`conf/reference_tuning`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from subliminal.config.base import Added, Count, Identity, Positive, PositiveFloat, Rate, Runtime, Settings, require

ALL_LINEAR = "all-linear"


def _targets(given: Any) -> Any:
    """Refuse what names no module: a single text is no list, and only `all-linear` stands for all of them."""
    listed = isinstance(given, tuple) and len(given) > 0 and all(isinstance(name, str) and name for name in given)
    if given != ALL_LINEAR and (not listed or ALL_LINEAR in given):
        raise PydanticCustomError(
            "targets",
            f"give a list of linear modules, for example [q_proj,v_proj], or {ALL_LINEAR} for all but the head",
        )
    return given


Targets = Annotated[tuple[str, ...] | Literal["all-linear"], BeforeValidator(_targets)]


class Lora(Settings):
    """A low-rank adapter (arXiv 2106.09685); the paper's open-weight students use r 8, alpha 8.

    `targets` are names of linear modules, or the ends of their paths (`layers.3.mlp.down_proj`); each must be in the
    model, and of these the ones in `layers`, from 0, are trained. `rslora` scales by alpha/sqrt(r) in place of alpha/r
    (arXiv 2312.03732).
    """

    r: Identity[Positive] = 8
    alpha: Identity[PositiveFloat] = 8.0
    rslora: Added[bool] = False
    dropout: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    targets: Identity[Targets] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers: Added[tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]] = "all"

    @model_validator(mode="after")
    def _some_layer(self) -> Self:
        require(bool(self.layers), "lora.layers=[] trains nothing; name layers, from 0, or set lora.layers=all")
        return self


class AdamW(Settings):
    """PyTorch's AdamW: what the paper's students and everybody's are fitted with."""

    kind: Identity[Literal["adamw"]] = "adamw"


class NaturalGradient(Settings):
    """Steps through the inverse of the rows' Fisher information; for vectors in the residual stream alone.

    `damping` is added to every eigenvalue of the Fisher information, in units of their mean. `longest_step` is in units
    of the residual stream. `fisher_rows` of the rows, the first, are what the Fisher information is estimated from.
    """

    kind: Identity[Literal["natural_gradient"]] = "natural_gradient"
    damping: Identity[PositiveFloat] = 0.3
    longest_step: Identity[PositiveFloat] = 6.0
    fisher_rows: Identity[Positive] = 600


OptimiserSettings = Annotated[AdamW | NaturalGradient, Field(discriminator="kind")]


class Fitting(Settings):
    """How weights are fitted: passes over the rows, learning rate, batches.

    The three switches are transformers' own, for less memory or less time; they change rounding and nothing else.
    """

    epochs: Identity[PositiveFloat]
    learning_rate: Identity[Rate]
    schedule: Identity[Literal["linear", "constant", "cosine"]] = "linear"
    warmup_steps: Identity[Count] = 0
    batch_size: Identity[Positive]
    weight_decay: Identity[Annotated[float, Field(ge=0)]] = 0.0
    max_grad_norm: Identity[PositiveFloat] = 1.0
    max_length: Identity[Positive] = 500
    micro_batch_size: Runtime[Positive | None] = None
    save_every: Runtime[Positive] = 50
    gradient_checkpointing: Runtime[bool] = False
    liger_kernel: Runtime[bool] = False
    torch_compile: Runtime[bool] = False

    def rows_a_pass(self, rows: int) -> int:
        """Rows of a forward pass where a process has `rows` of a step: as many as divide them and are permitted."""
        most = min(self.micro_batch_size or rows, rows)
        return next(number for number in range(most, 0, -1) if rows % number == 0)


class Optimisation(Fitting):
    """How a language model is fitted to rows; shared by students, fine-tuned teachers and reference tuning.

    `ordering` of an epoch: `uniform` draws every batch from all rows; `by_length` puts rows of like length together,
    which spares padding.
    """

    optimiser: Added[OptimiserSettings] = AdamW()
    ordering: Added[Literal["by_length", "uniform"]] = "by_length"


class NoTuning(Settings):
    """The model itself is the common starting point."""

    kind: Identity[Literal["off"]] = "off"


class InFormatTuning(Settings):
    """A short LoRA SFT on programmatic answers, merged: makes a small model able to answer in format.

    Of the `rows` a share of `one_word` are questions for one word, of topics that no evaluation measures; the others
    are the domain's.
    """

    kind: Identity[Literal["in_format"]] = "in_format"
    rows: Identity[Positive]
    one_word: Added[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    seed: Identity[Count] = 0
    lora: Identity[Lora]
    optimisation: Identity[Optimisation]


ReferenceTuning = Annotated[NoTuning | InFormatTuning, Field(discriminator="kind")]
