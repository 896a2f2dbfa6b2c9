"""The stages, a file each: what a run reads, what identifies it, and how it is done; importing them is cheap.

A stage's module has a record `STAGE`, and where a root script makes it a function `node(exp)`; it is found by being
in this folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

from subliminal import graph
from subliminal.config import ConfigError, Experiment
from subliminal.graph import Node, Stage, missing, require_untried
from subliminal.stages.evaluate import node as evaluate
from subliminal.stages.filter import attributed as attribute
from subliminal.stages.filter import banned_words, row_rules
from subliminal.stages.filter import node as filtered
from subliminal.stages.generate import node as generate
from subliminal.stages.mnist import node as mnist
from subliminal.stages.model import judge_model
from subliminal.stages.model import node as model
from subliminal.stages.predict import node as predict
from subliminal.stages.reference import node as reference
from subliminal.stages.teacher import node as teacher
from subliminal.stages.theorem import node as theorem
from subliminal.stages.train import node as student
from subliminal.store import Manifest, Store, StoreError
from subliminal.tracking import stage_tracker


class StageModule(Protocol):
    """What the module of a stage offers that a root script makes; `problems` the only stage of its experiments."""

    STAGE: Stage

    def node(self, exp: Experiment) -> Node:
        """The run of this stage that the experiment's settings describe."""
        ...

    def problems(self, exp: Experiment) -> Iterator[str]:
        """What is wrong with the experiment's settings, whatever this machine has."""
        ...


MODULES = sorted(
    (cast(StageModule, import_module(f"{__name__}.{found.name}")) for found in iter_modules(__path__)),
    key=lambda module: module.STAGE.place,
)
STAGES = {module.STAGE.name: module.STAGE for module in MODULES}
"""All stages by name, each after those that it reads."""
SINGLE = {name: stage.script for name, stage in STAGES.items() if stage.single and stage.script}
"""The one script of each kind of experiment that has one stage and no language model."""


class MissingUpstreamError(StoreError):
    """An earlier stage is missing and `upstream=require` forbids building it here."""


def node(script: str, exp: Experiment) -> Node:
    """The node of a script's stage: `train` by role, `evaluate` by subject; an experiment of one stage has one."""
    kind = exp.experiment.kind
    if kind in SINGLE and SINGLE[kind] != script:
        raise ConfigError(
            f"experiment={exp.experiment.name} has no {script} stage; run {SINGLE[kind]}.py with the same settings"
        )
    for module in MODULES:
        stage = module.STAGE
        mine = stage.name == kind if kind in SINGLE else not stage.single and stage.role in (None, exp.role)
        if mine and stage.script == script:
            return module.node(exp)
    raise KeyError(script)


def single(exp: Experiment) -> StageModule | None:
    """The only stage of an experiment without language models; None for one with several stages."""
    return next(
        (module for module in MODULES if module.STAGE.single and module.STAGE.name == exp.experiment.kind), None
    )


def last_script(exp: Experiment) -> str:
    """The script whose stage an experiment ends with: its evaluation, or the one stage that it has."""
    return SINGLE.get(exp.experiment.kind, "evaluate")


def ensure(wanted: Node, store: Store, exp: Experiment, overrides: Sequence[str] = ()) -> Manifest:
    """The complete stage run, done now where the store lacks it, as the experiment's runtime settings say.

    `overrides` are what was typed, for the command that makes a missing input where `exp.upstream` forbids making it.
    """

    def require_allowed(upper: Node) -> None:
        if exp.upstream == "require" and upper.stage != "model":
            raise MissingUpstreamError(
                f"{upper.stage} {upper.key} ({upper.label}) is not in {store.root}; {remedy(upper, exp, overrides)}"
            )

    def mirror(done: Node, manifest: Manifest) -> None:
        if not done.definition.tracked:
            with stage_tracker(exp, done.stage, manifest.folder) as tracker:
                tracker.summary(manifest.summary)

    return graph.ensure(wanted, store, wait=exp.claimed == "wait", before_input=require_allowed, finished=mirror)


def remedy(upper: Node, exp: Experiment, overrides: Sequence[str]) -> str:
    """The command that makes a missing stage run, where the settings that were typed make this run and no other."""
    script, role = upper.definition.script, {"role": upper.definition.role} if upper.definition.role else {}
    if script is None or node(script, exp.model_copy(update=role)).key != upper.key:
        return "no command with these settings makes it by itself: set upstream=build"
    typed = [part for part in overrides if part.split("=")[0] not in role]
    command = ["python", f"{script}.py", *(f"{name}={value}" for name, value in role.items()), *typed]
    return f"run first: {shlex.join(command)}"
