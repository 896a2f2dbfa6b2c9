"""A figure's plan as data: its arms, and the steps, of one script and many jobs each, that make them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from subliminal import stages
from subliminal.composition import ROOT, is_hydras
from subliminal.config import Experiment
from subliminal.graph import Ident, Node
from subliminal.store import StoreError


class SweepError(StoreError):
    """A stage of a sweep failed; the text says which command to run again."""


class IncompleteError(SweepError):
    """Some stage runs of a sweep failed, the others are done; the text lists them and the arms that are missing."""


@dataclass(frozen=True)
class Arm:
    """One student of a figure: its experiment, the names the figure shows, and what is typed to get it.

    `trait` is the option that is typed (`polar_bear`); the figure shows its `name` ("polar bear").
    """

    trait: str
    student: str
    seed: int
    experiment: Experiment
    variant: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The trait's name as people spell it; "" for experiments without traits."""
        return self.experiment.trait.name if self.trait else ""


@dataclass(frozen=True)
class Job:
    """One job of a multirun: what is typed to get it alone, its experiment, and the stage run it makes."""

    overrides: tuple[str, ...]
    experiment: Experiment
    node: Node


@dataclass(frozen=True)
class Step:
    """Multiruns of one script: one, unless some jobs are left out because what they read failed."""

    script: str
    jobs: tuple[Job, ...]

    @cached_property
    def overrides(self) -> tuple[str, ...]:
        """What is typed to run all jobs as one multirun."""
        (whole,) = crossed([job.overrides for job in self.jobs])
        return whole

    @cached_property
    def unique(self) -> tuple[Job, ...]:
        """The first job of each stage run."""
        first: dict[Ident, Job] = {}
        for job in self.jobs:
            first.setdefault(job.node.ident, job)
        return tuple(first.values())

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The stage runs that are there when the step has ended, each once."""
        return tuple(job.node for job in self.unique)

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The experiment of each of the `nodes`."""
        return tuple(job.experiment for job in self.unique)

    @property
    def path(self) -> str:
        """The script from where we are: results, like every relative path, lie where the sweep was started."""
        return os.path.relpath(ROOT / self.script)


@dataclass(frozen=True)
class Plan:
    """A figure's experiment, its arms, what a sentence calls them, and the steps that make them."""

    base: Experiment
    overrides: tuple[str, ...]
    arms: tuple[Arm, ...]
    steps: tuple[Step, ...]
    noun: str = "students"

    @property
    def trains_students(self) -> bool:
        """Whether language models are trained on rows."""
        return any(node.stage == "train" for step in self.steps for node in step.nodes)


def crossed(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Few multiruns that are, together, exactly these jobs: values that the same others go with stand behind commas."""
    left = list(dict.fromkeys(rows))
    for place in reversed(range(max(map(len, left), default=0))):
        alike: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[str]] = {}
        for row in left:
            here = row[place] if place < len(row) else ""
            alike.setdefault((row[:place], here.partition("=")[0], row[place + 1 :]), []).append(here)
        left = [(*before, *_listed(parts), *after) for (before, _, after), parts in alike.items()]
    return left


def _listed(parts: list[str]) -> list[str]:
    """`key=a` and `key=b` as `key=a,b`."""
    return [",".join([parts[0], *(part.partition("=")[2] for part in parts[1:])])] if parts[0] else []


def result(arm: Arm) -> Node:
    """The stage run of an arm that the figure reads."""
    return stages.node(stages.last_script(arm.experiment), arm.experiment)


def shown(step: Step, overrides: tuple[str, ...] | None = None) -> str:
    """The step's command, or that of one of several multiruns, as a person would type it in a shell."""
    return shlex.join(["python", step.path, "-m", *(step.overrides if overrides is None else overrides)])


def shown_alone(step: Step, job: Job) -> str:
    """The command that makes one job of a step."""
    return shlex.join(["python", step.path, *(part for part in job.overrides if not is_hydras(part))])
