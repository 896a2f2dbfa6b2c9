"""The unique stage runs of a sweep, each after everything it reads: what is planned, estimated and submitted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from subliminal import stages
from subliminal.config import Experiment
from subliminal.graph import Ident, Node
from subliminal.plan import Plan
from subliminal.store import StoreError


class PlannedElsewhereError(StoreError):
    """A stage run has another key here than where it was planned; the text says which settings to fix."""


@dataclass(frozen=True)
class Job:
    """One stage run: its node, and the script and experiment in whose tree it stands."""

    node: Node
    script: str
    experiment: Experiment

    @property
    def ident(self) -> Ident:
        """Stage and key."""
        return self.node.ident

    @property
    def reads(self) -> tuple[Ident, ...]:
        """The stage runs this one reads."""
        return tuple(upper.ident for upper in self.node.inputs.values())


def wants_gpu(node: Node) -> bool:
    """Whether a stage run computes with a model: its own, or the weights of a local judge."""
    return node.definition.gpu or "judge" in node.inputs


def jobs(planned: Plan) -> list[Job]:
    """Every stage run of a sweep once, in an order in which each comes after what it reads."""
    found: dict[Ident, Job] = {}
    for script, exp, root in _roots(planned):
        for node in _tree(root):
            found.setdefault(node.ident, Job(node, script, exp))
    return list(found.values())


def locate(script: str, exp: Experiment, wanted: Ident) -> Node:
    """The node of a planned stage run, looked for again where it is about to be done."""
    root = stages.node(script, exp)
    for node in _tree(root):
        if node.ident == wanted:
            return node
    raise PlannedElsewhereError(
        f"{wanted[0]} {wanted[1]} was planned on a machine that resolves device=auto or dtype=auto in another way "
        f"(here the last stage is {root.stage} {root.key}); name what the jobs have, for example: device=cuda"
    )


def _tree(root: Node) -> Iterator[Node]:
    """The node and all it reads, directly or not, inputs first."""
    for upper in root.inputs.values():
        yield from _tree(upper)
    yield root


def _roots(planned: Plan) -> Iterator[tuple[str, Experiment, Node]]:
    """Script, experiment and node of every run a sweep's steps name."""
    for step in planned.steps:
        script = Path(step.script).stem
        chosen = dict(part.split("=", 1) for part in step.overrides if part.startswith(("role=", "subject=")))
        for node, exp in zip(step.nodes, step.experiments, strict=True):
            yield script, exp.model_copy(update=chosen), node
