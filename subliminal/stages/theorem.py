"""Trials of the theorem and training runs on small networks, for one seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from subliminal.config import MNIST_IMAGES, Experiment, identity
from subliminal.graph import Inputs, Node, Stage
from subliminal.store import Json

STAGE = Stage(
    "theorem",
    version=1,
    place=110,
    script="evaluate",
    single=True,
    gpu=False,
    tracked=True,
    charted=True,
    result=True,
)


def problems(exp: Experiment) -> Iterator[str]:
    """More examples than there are images."""
    run = exp.theory.run
    if run.dataset != "clusters" and run.examples > MNIST_IMAGES:
        yield f"theory.run.examples={run.examples}: {run.dataset} has {MNIST_IMAGES}; lower it, or set dataset=clusters"


def node(exp: Experiment) -> Node:
    """Trials of the theorem and training runs on small networks, for one seed; reads no other stage."""
    settings = {"theory": identity(exp.theory), "seed": exp.seed}

    def work(_: Inputs, folder: Path) -> Json:
        from subliminal.theory.run import check_theorem

        return check_theorem(exp, folder)

    return STAGE.node(settings, {}, work, f"trials and training runs, seed {exp.seed}")
