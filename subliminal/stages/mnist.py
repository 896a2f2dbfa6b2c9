"""Teachers and students of the MNIST experiment, trained and tested in one stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from subliminal.config import MNIST_IMAGES, Experiment, identity
from subliminal.device import resolve_device, resolve_dtype
from subliminal.graph import Inputs, Node, Stage
from subliminal.store import Json

STAGE = Stage("mnist", version=1, place=100, script="train", single=True, tracked=True, charted=True, result=True)


def problems(exp: Experiment) -> Iterator[str]:
    """More images than there are, and a folder of data that is not there."""
    student, folder = exp.mnist.student, exp.mnist.data_dir
    if student.inputs in ("digits", "other") and student.images > MNIST_IMAGES:
        yield f"mnist.student.images={student.images}: there are {MNIST_IMAGES} with inputs={student.inputs}"
    if folder is not None and not Path(folder).is_dir():
        yield f"mnist.data_dir={folder}: no such folder"


def node(exp: Experiment) -> Node:
    """Teachers and students of the MNIST experiment, trained and tested in one stage."""
    device = resolve_device(exp.device)
    dtype = resolve_dtype(exp.mnist.dtype, device)
    settings = {"mnist": identity(exp.mnist) | {"dtype": dtype}, "seed": exp.seed}
    settings |= {"noise": device} if device != "cpu" else {}  # which draws its own; keys of a CPU stay as they were

    def work(_: Inputs, folder: Path) -> Json:
        from subliminal.mnist.run import run_mnist

        return run_mnist(exp, folder, dtype, device)

    return STAGE.node(settings, {}, work, f"{exp.mnist.models} {exp.mnist.dataset} teachers, seed {exp.seed}")
