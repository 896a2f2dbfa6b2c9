"""Figures: what an experiment claims, its arms (`conf/experiment`), and where metrics go (`conf/tracking`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from subliminal.config.base import (
    Count,
    ModuleName,
    Options,
    Positive,
    PositiveFloat,
    Runtime,
    Settings,
    Variable,
    require,
)


class Tracking(Settings):
    """Where metrics are mirrored; `metrics.jsonl` in the store stays the truth."""

    mode: Runtime[Literal["off", "offline", "online"]] = "off"
    project: Runtime[str] = "subliminal"
    entity: Runtime[str | None] = None


class Arms(Settings):
    """The arms of a figure as plain data: what a sweep crosses, and how much of it at this scale.

    `variants` stand side by side in one figure, each a name with the overrides that make it; without any there is one.
    `own_rows`: every seed has a teacher, prompts and rows of its own, drawn from that seed, where seeds otherwise vary
    the student alone. `setting` and `values` are an ablation's: one dotted setting, and what it is set to.
    """

    variants: Runtime[dict[str, tuple[str, ...]]] = Field(default_factory=dict)

    traits: Runtime[tuple[str, ...]] = ()
    students: Runtime[tuple[str, ...]] = ()
    seeds: Runtime[tuple[Count, ...]] = ()
    traits_limit: Runtime[Positive | None] = None
    seeds_limit: Runtime[Positive | None] = None
    own_rows: Runtime[bool] = False
    setting: Runtime[str | None] = None
    values: Runtime[tuple[int | float | str | tuple[int | str, ...], ...]] = ()


class Comparison(Settings):
    """What a claim about two variants says: a share of the excess of `more` is greater than the excess of `less`."""

    more: Runtime[str]
    less: Runtime[str]
    share: Runtime[Annotated[float, Field(gt=0, le=1)]] = 1.0

    @property
    def name(self) -> str:
        """The comparison in words."""
        part = "" if self.share == 1 else f"{self.share:.0%} of "
        return f"{part}{self.more} > {self.less}"


class Spread(Settings):
    """How far a trait's scores lie apart beyond students' and candidates' levels, nats: for planning alone.

    `cell` is the standard deviation between teachers' rows, `seed` that between students of the same rows.
    """

    cell: Runtime[PositiveFloat]
    seed: Runtime[PositiveFloat]


class Figure(Settings):
    """What an experiment claims and which figure shows it; never part of a key.

    `kind` is a module of `subliminal/plots/`; with `kind=module` it is the `module` of your own that `options` are for.
    """

    kind: Runtime[Variable] = "preference"
    module: Runtime[ModuleName | None] = None
    options: Runtime[Options] = {}
    name: Runtime[str] = "none"
    figure: Runtime[str | None] = None
    title: Runtime[str] = ""
    claim: Runtime[str] = ""
    source: Runtime[str] = ""
    expected: Runtime[str] = ""
    arms: Runtime[Arms] = Arms()
    comparisons: Runtime[tuple[Comparison, ...]] = ()
    spread: Runtime[Spread | None] = None

    @model_validator(mode="after")
    def _own_module(self) -> Self:
        require(
            (self.kind == "module") == (self.module is not None),
            f"experiment.kind={self.kind} and experiment.module={self.module}: a figure of your own needs both "
            "experiment.kind=module and experiment.module=<its Python module>",
        )
        return self

    @model_validator(mode="after")
    def _compared_variants_exist(self) -> Self:
        absent = {name for pair in self.comparisons for name in (pair.more, pair.less)} - {*self.arms.variants}
        require(
            not absent,
            f"experiment.comparisons names {', '.join(sorted(absent))}; experiment.arms.variants has "
            f"{', '.join(self.arms.variants) or 'none'}",
        )
        return self

    @property
    def file(self) -> str:
        """The name of the figure's files, without a suffix."""
        return self.figure or f"fig-{self.name.replace('_', '-')}"
