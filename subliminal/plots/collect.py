"""Which stored runs a figure shows, and the commands for those that are missing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from subliminal import stages
from subliminal.graph import Node
from subliminal.plots.cells import Cell
from subliminal.plots.figure import Collected
from subliminal.plots.words import arm_name
from subliminal.store import Manifest, Store

if TYPE_CHECKING:
    from subliminal.plan import Plan


def evaluated(planned: Plan, store: Store, data: Callable[[list[Cell]], Any]) -> Collected:
    """The references and students that the store has, given to `data`; nothing without any student."""
    references, students, missing = [], [], []
    for variant, arm in {arm.variant: arm for arm in reversed(planned.arms)}.items():
        node = stages.evaluate(arm.experiment.model_copy(update={"subject": "reference"}))
        if manifest := stored(node, store):
            references.append(Cell("reference", "none", "", "", 0, manifest, _chain(node, store), variant))
    for arm in planned.arms:
        node = stages.evaluate(arm.experiment)
        if manifest := stored(node, store):
            kind, chain = arm.experiment.active_teacher.kind, _chain(node, store)
            students.append(Cell("student", arm.name, kind, arm.student, arm.seed, manifest, chain, arm.variant))
        else:
            missing.append(f"python evaluate.py {typed(planned, *arm.overrides)}")
    return Collected(data([*references, *students]) if students else None, missing)


def stored(node: Node, store: Store) -> Manifest | None:
    """The manifest of a complete stage run, or None."""
    return store.find(node.stage, node.key)


def _chain(node: Node, store: Store) -> dict[str, Manifest]:
    """Every complete stage a node was made from, by stage name."""
    chain: dict[str, Manifest] = {}
    for name, upper in node.inputs.items():
        if name == "judge":
            continue  # its weights are a model stage too, but not what teacher and student start from
        manifest = stored(upper, store)
        chain |= _chain(upper, store) | ({upper.stage: manifest} if manifest else {})
    return chain


def typed(planned: Plan, *more: str) -> str:
    """What was typed, and more of it, as it can be typed again in a shell."""
    return shlex.join((*planned.overrides, *more))


def manifests(cells: Sequence[Cell]) -> Iterator[tuple[Manifest, str]]:
    """Every manifest with the arm it belongs to; what several arms share comes last and so belongs to none."""
    shared = []
    for cell in cells:
        label = f"{arm_name(cell.arm)}{f', {cell.student}, seed {cell.seed}' if cell.role == 'student' else ''}"
        yield cell.evaluate, label
        for stage, manifest in cell.chain.items():
            if stage in {"model", "reference"}:
                shared.append((manifest, "every arm"))
            else:
                yield manifest, label if stage == "train" else arm_name(cell.arm)
    yield from shared
