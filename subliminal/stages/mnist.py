"""Teachers and students of the MNIST experiment, trained and tested in one stage."""

from __future__ import annotations

from pathlib import Path

from subliminal.config import Experiment, identity
from subliminal.device import resolve_device, resolve_dtype
from subliminal.graph import Inputs, Node, Stage
from subliminal.store import Json

STAGE = Stage("mnist", version=1, place=100, script="train", single=True, tracked=True, charted=True, result=True)


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
