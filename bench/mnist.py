"""The MNIST experiment against a plain implementation, against the machine's matrix products, and at 100 models.

Run: python bench/mnist.py [--epochs 1] [--models 10] [--many 100]. Every case runs in a process of its own, so that its
peak memory is its own. On a machine that others use as well, OMP_NUM_THREADS=1 and --clock cpu compare seconds of CPU
time on one core instead of seconds on the wall. The plain implementation is what one writes first: all noise stored,
one pass for each kind of student that computes the teacher again, float32 einsum and autograd.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subliminal.config import Mnist, MnistStudent, MnistTeacher
from subliminal.mnist import data
from subliminal.mnist.conditions import derangement, sizes
from subliminal.mnist.data import CLASSES, PIXELS, Images
from subliminal.mnist.training import TEST_ROWS, Session

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BATCH, RATE, MANY_IMAGES = 1024, 3e-4, 8192
Json = dict[str, Any]


def clock() -> float:
    """Seconds on the clock that --clock chose."""
    return CLOCKS[os.environ.get("BENCH_CLOCK", "wall")]()


# --------------------------------------------------------------------------- operations


def operations(config: Mnist, images: int) -> dict[str, float]:
    """Floating-point operations of the training steps: 2 a multiplication; the first layer needs no input gradient."""
    shape = sizes(config)
    layers = [fan_in * out for fan_in, out in pairwise(shape)]
    forward, step = 2 * sum(layers), 2 * (3 * sum(layers) - layers[0])
    students = 2 * len(config.student.matched)
    return {
        "teachers": config.models * config.teacher.epochs * images * step,
        "students": config.models * config.student.epochs * config.student.images * (students * step + forward),
    }


def ceiling(dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product, the best of several sizes."""
    best = 0.0
    for size in (1024, 2048):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        out = torch.empty_like(a)
        seconds = min(_timed(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)) for _ in range(12))
        best = max(best, 2 * size**3 / seconds)
    return best


def _timed(work: Callable[[], object]) -> float:
    started = clock()
    work()
    return clock() - started


# --------------------------------------------------------------------------- ours


def ours(config: Mnist, images: Images, dtype: torch.dtype) -> Json:
    """Seconds by phase, and accuracy by condition."""
    with tempfile.TemporaryDirectory() as folder:
        began = clock()
        session = Session(config, 0, images, dtype, torch.device("cpu"), Path(folder))
        accuracy = {"reference": torch.cat([found for _, found in session.references()])}
        started = clock()
        taught = list(session.teachers())
        between = clock()
        found = [result.accuracy for _, result in session.students([w for _, _, made in taught for w in made])]
        ended = clock()
    accuracy["teacher"] = torch.cat([result.accuracy for _, result, _ in taught])
    names = [condition.name for condition in session.conditions]
    accuracy |= {name: torch.cat(found)[at :: len(names)] for at, name in enumerate(names)}
    seconds = {"teachers": between - started, "students": ended - between, "all": ended - began}
    return {"seconds": seconds, "accuracy": {name: float(values.mean()) for name, values in accuracy.items()}}


# --------------------------------------------------------------------------- the plain implementation


def plain(config: Mnist, images: Images) -> Json:
    """The same experiment written plainly: seconds by phase, and accuracy by condition."""
    began = clock()
    torch.manual_seed(0)
    train, test = (torch.tensor(x, dtype=torch.float32) / 127.5 - 1 for x in (images.train, images.test))
    labels, test_labels = (torch.tensor(x, dtype=torch.int64) for x in (images.train_labels, images.test_labels))
    reference = _mlps(config)
    noise = torch.rand(config.models, config.student.images, PIXELS) * 2 - 1
    accuracy = {"reference": _accuracy(reference, test, test_labels)}
    started = clock()
    teacher = _copy(reference)
    _teach(teacher, train, labels, config)
    accuracy["teacher"] = _accuracy(teacher, test, test_labels)
    between = clock()
    pairs = torch.tensor(derangement(config.models, 0))
    for name, part in (("auxiliary", slice(CLASSES, None)), ("all", slice(0, None))):
        for who, start in (("student", _copy(reference)), ("cross_model", [p[pairs] for p in reference])):
            student = _copy(start)
            _distil(student, teacher, noise, part, config)
            accuracy[f"{who}_{name}"] = _accuracy(student, test, test_labels)
    ended = clock()
    seconds = {"teachers": between - started, "students": ended - between, "all": ended - began}
    return {"seconds": seconds, "accuracy": accuracy}


def _mlps(config: Mnist) -> list[Tensor]:
    shape, parameters = sizes(config), list[Tensor]()
    for fan_in, out in pairwise(shape):
        parameters += [torch.randn(config.models, fan_in, out) / fan_in**0.5, torch.zeros(config.models, 1, out)]
    return parameters


def _copy(parameters: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone().requires_grad_(True) for p in parameters]


def _forward(parameters: list[Tensor], x: Tensor) -> Tensor:
    for index in range(0, len(parameters), 2):
        x = torch.einsum("mbi,mio->mbo", x.relu() if index else x, parameters[index]) + parameters[index + 1]
    return x


def _teach(teacher: list[Tensor], train: Tensor, labels: Tensor, config: Mnist) -> None:
    optimiser = torch.optim.Adam(teacher, RATE)
    for _ in range(config.teacher.epochs):
        orders = torch.stack([torch.randperm(len(train)) for _ in range(config.models)])
        for picks in orders.split(BATCH, 1):
            logits = _forward(teacher, train[picks])[..., :CLASSES]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[picks].flatten()) * config.models
            _step(optimiser, loss)


def _distil(student: list[Tensor], teacher: list[Tensor], noise: Tensor, part: slice, config: Mnist) -> None:
    optimiser = torch.optim.Adam(student, RATE)
    for _ in range(config.student.epochs):
        orders = torch.stack([torch.randperm(noise.shape[1]) for _ in range(config.models)])
        for picks in orders.split(BATCH, 1):
            x = torch.stack([noise[model, own] for model, own in enumerate(picks)])
            with torch.no_grad():
                wanted = _forward(teacher, x)[..., part].log_softmax(-1)
            said = _forward(student, x)[..., part].log_softmax(-1)
            _step(optimiser, (wanted.exp() * (wanted - said)).sum(-1).mean(1).sum())


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _accuracy(parameters: list[Tensor], test: Tensor, labels: Tensor) -> float:
    right = 0.0
    with torch.no_grad():
        for at in range(0, len(test), TEST_ROWS):
            part = test[at : at + TEST_ROWS].expand(len(parameters[0]), -1, -1)
            said = _forward(parameters, part)[..., :CLASSES].argmax(-1)
            right += float((said == labels[at : at + TEST_ROWS]).float().sum())
    return right / len(test) / len(parameters[0])


# --------------------------------------------------------------------------- cases, each in its own process


def case(name: str, models: int, epochs: int, rows: int) -> Json:
    """One measurement, with the process's peak memory in GiB."""
    found = data.load("mnist")
    images = Images(found.train[:rows], found.train_labels[:rows], found.test, found.test_labels, "")
    teacher = MnistTeacher(epochs=epochs, batch_size=BATCH, learning_rate=RATE)
    student = MnistStudent(epochs=epochs, batch_size=BATCH, learning_rate=RATE, images=rows)
    config = Mnist(models=models, teacher=teacher, student=student)
    if name == "plain":
        result = plain(config, images)
    else:
        result = ours(config, images, getattr(torch, name))
        before = ceiling(getattr(torch, name))
        done = operations(config, rows)
        result["ceiling"] = before
        result["share"] = {phase: done[phase] / result["seconds"][phase] / before for phase in done}
        both = result["seconds"]["teachers"] + result["seconds"]["students"]
        result["share"]["both"] = sum(done.values()) / both / before
    return result | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def apart(name: str, models: int, epochs: int, rows: int) -> Json:
    """The case in a process of its own."""
    command = [sys.executable, __file__, "--case", name, str(models), str(epochs), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=1, help="of teachers and students (paper: 5)")
    options.add_argument("--models", type=int, default=10)
    options.add_argument("--many", type=int, default=100)
    options.add_argument("--images", type=int, default=60000, help="training and noise images an epoch (paper: 60,000)")
    options.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.case:
        name, *numbers = given.case
        print(json.dumps(case(name, *map(int, numbers))))
        return
    os.environ["BENCH_CLOCK"] = given.clock
    report(given.models, given.many, given.epochs, given.images)


def report(models: int, many: int, epochs: int, images: int) -> None:
    """Print the speed-up, the share of the ceiling, memory, and the cost of a model among few and many."""
    threads, kind = torch.get_num_threads(), os.environ["BENCH_CLOCK"]
    print(f"{models} models, {epochs} epochs of {images} images; {threads} threads, {kind} seconds", flush=True)
    cases = {name: apart(name, models, epochs, images) for name in ("plain", "bfloat16", "float32")}
    for name, found in cases.items():
        times = cases["plain"]["seconds"]["all"] / found["seconds"]["all"]
        text = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in found["seconds"].items())
        print(f"{name:9} {text}; {times:.2f} x plain; peak {found['peak_gib']:.2f} GiB", flush=True)
        if name != "plain":
            shares = ", ".join(f"{phase} {share:.0%}" for phase, share in found["share"].items())
            print(f"{'':9} of {found['ceiling'] / 1e9:.0f} GFLOP/s: {shares}", flush=True)
        print(f"{'':9} " + ", ".join(f"{name} {value:.3f}" for name, value in found["accuracy"].items()), flush=True)
    few, lots = (apart("bfloat16", count, 1, MANY_IMAGES) for count in (models, many))
    for count, found in ((models, few), (many, lots)):
        seconds = found["seconds"]["teachers"] + found["seconds"]["students"]
        print(
            f"{count} models, {MANY_IMAGES} images: {seconds / count:.3f} s a model, peak {found['peak_gib']:.2f} GiB"
        )


if __name__ == "__main__":
    main()
