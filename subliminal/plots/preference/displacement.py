"""How parallel students moved to every teacher: cosines of residual-stream biases, own teacher and others (theorem).

The theorem is about a student's displacement from the reference and its teacher's. A student of one-layer or all-layer
biases and a steered teacher moved the same parameters, so the cosine exists; other students and teachers have none.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from subliminal.plots.cells import Cell
from subliminal.plots.preference.data import Group
from subliminal.plots.samples import Sample, Seeds
from subliminal.progress import say
from subliminal.training.bias import comparable

if TYPE_CHECKING:
    from numpy.typing import NDArray

Biases = dict[str, "NDArray[np.float32]"]


def aligned(group: Group) -> dict[tuple[str, str], Sample]:
    """By (arm, trait): the cosine of every seed's student with that trait's teacher, shape (seeds, 1)."""
    teachers = {
        trait: biases
        for trait, cells in group.own.items()
        if (biases := _moved(next(iter(cells.values())), "teacher")) is not None
    }
    pairs = [(arm, trait) for arm in group.arms for trait in teachers]
    return {(a, t): sample for a, t in pairs if (sample := _sample(group.arms[a], teachers[t])) is not None}


def _moved(cell: Cell, stage: str) -> Biases | None:
    return _biases(cell.chain[stage].folder) if stage in cell.chain else None


def _sample(cells: Seeds, teacher: Biases) -> Sample | None:
    students = {seed: moved for seed, cell in cells.items() if (moved := _moved(cell, "train")) is not None}
    if len(students) < len(cells) or not all(comparable(moved, teacher) for moved in students.values()):
        return None
    if not all(moved.keys() & teacher.keys() for moved in students.values()):  # no layer in common: 0 in any case
        return None
    return Sample(tuple(students), np.array([[_cosine(moved, teacher)] for moved in students.values()]))


@cache
def _biases(folder: Path) -> Biases | None:
    """The vectors a stage left behind, by parameter name, or None when it moved something else.

    None too, with a line that says so, in a store that was copied without its weights: scores are all that the other
    panels need.
    """
    from safetensors.numpy import load_file

    weights = folder / "adapter" / "adapter_model.safetensors"
    if not (folder / "adapter" / "bias_config.json").exists():
        return None
    if not weights.exists():
        say(f"{weights} is not there: no cosine of displacements is drawn for it")
        return None
    return load_file(weights)


def _cosine(a: Biases, b: Biases) -> float:
    """The cosine over all layers as one vector; a layer that only one of both moved is zero in the other."""
    inner = sum(float(a[name] @ b[name]) for name in a.keys() & b.keys())
    norms = [float(np.sqrt(sum(float(v @ v) for v in biases.values()))) for biases in (a, b)]
    return inner / (norms[0] * norms[1]) if all(norms) else 0.0
