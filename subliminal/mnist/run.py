"""The MNIST stage: data, teachers, students, and one line of accuracy for every network."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch

from subliminal.config import Experiment, Mnist
from subliminal.mnist import data
from subliminal.mnist.conditions import sizes
from subliminal.mnist.training import Session
from subliminal.progress import progress
from subliminal.store import Json
from subliminal.tracking import Tracker, stage_tracker


def run_mnist(exp: Experiment, folder: Path, dtype: str, device: str) -> Json:
    """Train and test every network; writes `accuracy.jsonl` and `losses.jsonl`, returns means by condition.

    Raises `DataError` when the images can not be had.
    """
    images = data.load(exp.mnist.dataset, exp.mnist.data_dir)
    session = Session(exp.mnist, exp.seed, images, getattr(torch, dtype), torch.device(device), folder / ".progress")
    session.other = _other(exp.mnist)
    with (
        stage_tracker(exp, "mnist", folder) as tracker,
        progress(f"{exp.mnist.models} teachers and their students", session.steps, "steps") as advance,
    ):
        session.advance = advance
        summary = _train(session, folder, tracker)
        tracker.summary(summary)
    shutil.rmtree(session.progress)
    return summary | {"images": images.source}


def _other(config: Mnist) -> data.Images | None:
    if config.student.inputs != "other":
        return None
    return data.load("fashion" if config.dataset == "mnist" else "mnist")


def _train(session: Session, folder: Path, tracker: Tracker) -> Json:
    started = time.monotonic()
    accuracy, losses, weights = list(_references(session)), list[Json](), []
    for models, trained, made in session.teachers():
        weights += made
        names = [("teacher", model, model) for model in models]
        accuracy += _accuracy(names, trained.accuracy)
        losses += _losses(names, trained.losses)
    taught = time.monotonic()
    for models, trained in session.students(weights):
        names = [(c.name, m if c.shared else session.pairs[m], m) for m in models for c in session.conditions]
        accuracy += _accuracy(names, trained.accuracy)
        losses += _losses(names, trained.losses)
    _write(folder / "accuracy.jsonl", accuracy)
    _write(folder / "losses.jsonl", losses)
    _mirror(losses, tracker)
    ended = time.monotonic()
    seconds = {"teachers": round(taught - started, 2), "students": round(ended - taught, 2)}
    return _summary(session, accuracy) | {"training_seconds": seconds}


def _references(session: Session) -> Iterator[Json]:
    for models, found in session.references():
        yield from _accuracy([("reference", model, model) for model in models], found)


def _accuracy(names: list[tuple[str, int, int]], found: torch.Tensor) -> list[Json]:
    """One line a network: condition, whose initialisation it has, its teacher, accuracy on the test images."""
    return [
        {"condition": condition, "model": model, "teacher": teacher, "accuracy": value}
        for (condition, model, teacher), value in zip(names, found.double().tolist(), strict=True)
    ]


def _losses(names: list[tuple[str, int, int]], found: torch.Tensor) -> list[Json]:
    """One line a network: its mean loss by epoch."""
    return [
        {"condition": condition, "model": model, "teacher": teacher, "losses": values}
        for (condition, model, teacher), values in zip(names, found.T.double().tolist(), strict=True)
    ]


def _summary(session: Session, accuracy: list[Json]) -> Json:
    found: dict[str, list[float]] = {}
    for line in accuracy:
        found.setdefault(line["condition"], []).append(line["accuracy"])
    return {
        "models": session.config.models,
        "sizes": list(sizes(session.config)),
        "dtype": str(session.dtype).removeprefix("torch."),
        "accuracy": {condition: fmean(values) for condition, values in found.items()},
    }


def _mirror(losses: list[Json], tracker: Tracker) -> None:
    """Every condition's mean loss by epoch, as the tracker's steps."""
    for condition in dict.fromkeys(line["condition"] for line in losses):
        curves = [line["losses"] for line in losses if line["condition"] == condition]
        for epoch, values in enumerate(zip(*curves, strict=True), 1):
            tracker.log(epoch, {f"loss/{condition}": fmean(values)})


def _write(path: Path, lines: list[Json]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
