"""Students: what of the reference is trained (`conf/student`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from subliminal.config.base import Identity, ModuleName, Options, Runtime, Settings, require
from subliminal.config.training import Lora, Optimisation

Labels = Literal["sampled", "soft"]
Sharding = Literal["none", "fsdp"]


class LoraStudent(Settings):
    """A LoRA adapter on the reference model: the paper's open-weight student."""

    kind: Identity[Literal["lora"]] = "lora"
    lora: Identity[Lora]
    labels: Identity[Labels] = "sampled"
    optimisation: Identity[Optimisation]


class FullStudent(Settings):
    """Every weight of the reference model is trained."""

    kind: Identity[Literal["full"]] = "full"
    labels: Identity[Labels] = "sampled"
    optimisation: Identity[Optimisation]


class BiasStudent(Settings):
    """Only a bias on the down projection of the chosen layers is trained: one vector each in the residual stream.

    `cache_gib` of memory may hold what enters the lowest of these layers, which is the same in every epoch.
    """

    kind: Identity[Literal["bias"]] = "bias"
    layers: Identity[tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]] = "all"
    labels: Identity[Labels] = "sampled"
    optimisation: Identity[Optimisation]
    cache_gib: Runtime[Annotated[float, Field(ge=0)]] = 4.0

    @model_validator(mode="after")
    def _layers_once(self) -> Self:
        given = [] if self.layers == "all" else list(self.layers)
        require(bool(self.layers), "student.layers=[] trains nothing; name layers, from 0, or set student.layers=all")
        require(len(set(given)) == len(given), f"student.layers={given} names the same layer twice")
        return self


class ModuleStudent(Settings):
    """A student recipe of your own: a Python module that says what is trained, and its options as plain values."""

    kind: Identity[Literal["module"]] = "module"
    module: Identity[ModuleName]
    labels: Identity[Labels] = "sampled"
    optimisation: Identity[Optimisation]
    options: Identity[Options] = {}


Student = Annotated[LoraStudent | FullStudent | BiasStudent | ModuleStudent, Field(discriminator="kind")]
