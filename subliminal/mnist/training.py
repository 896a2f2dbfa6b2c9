"""Teachers, then students, in groups of models; a killed run goes on at the last epoch it kept.

Every random number comes from a stream of the model's own, so how models are grouped changes how fast a result comes
and how much memory it takes, and the result in the last bits of sums alone. On a CPU each core trains groups of its own
with single-threaded products: nothing waits for the other cores, and a group stays in its core's cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from subliminal.config import Mnist, MnistStudent, MnistTeacher
from subliminal.finite import require_finite
from subliminal.mnist import losses
from subliminal.mnist.conditions import Condition, columns, conditions, derangement, sizes, student_start
from subliminal.mnist.data import CLASSES, PIXELS, Images
from subliminal.mnist.inputs import Inputs, Pictures, scaled, student_inputs
from subliminal.mnist.networks import Layer, Networks, initial
from subliminal.mnist.optimisers import Stepper
from subliminal.mnist.streams import Purpose
from subliminal.progress import Advance

CPU_MODELS = 1
TEST_ROWS = 2000
SAVE_SECONDS = 15.0
REMEDY = "Lower mnist.teacher.learning_rate or mnist.student.learning_rate, or set mnist.dtype=float32"

Step = Callable[[Tensor, int, int], Tensor]
T = TypeVar("T")


class _Stopped(Exception):  # noqa: N818
    """Another group failed or the run was interrupted."""


@dataclass(frozen=True)
class Trained:
    """What a group of networks has become: test accuracy (networks,) and mean loss (epochs, networks)."""

    accuracy: Tensor
    losses: Tensor


@dataclass
class Session:
    """One run of the experiment: settings, images on the device, and where progress is kept."""

    config: Mnist
    seed: int
    images: Images
    dtype: torch.dtype
    device: torch.device
    progress: Path
    other: Images | None = None
    advance: Advance = lambda _: None
    save_seconds: float = SAVE_SECONDS
    _train: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._train = scaled(self.images.train, self.dtype, self.device)
        self._labels = _labels(self.images.train_labels, self.device)
        self._test = scaled(self.images.test, self.dtype, self.device)
        self._test_labels = _labels(self.images.test_labels, self.device)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.sizes = sizes(self.config)
        self.conditions = conditions(self.config)
        self.pairs = derangement(self.config.models, self.seed)

    @property
    def groups(self) -> list[range]:
        """Which models are trained together."""
        count = self.config.models
        size = self.config.models_at_once or (CPU_MODELS if self.device.type == "cpu" else count)
        return [range(at, min(at + size, count)) for at in range(0, count, size)]

    @property
    def steps(self) -> int:
        """Optimiser steps of all groups and phases, for the progress bar."""
        config = self.config
        students = config.student.epochs * -(-config.student.images // config.student.batch_size)
        teachers = config.teacher.epochs * -(-len(self._train) // config.teacher.batch_size)
        return len(self.groups) * (teachers + students)

    def networks(self, starts: Sequence[Sequence[Layer]], groups: int) -> Networks:
        """Networks with these first weights, as many in each group."""
        made = Networks(self.sizes, groups, len(starts) // groups, self.dtype, self.device)
        for network, layers in enumerate(starts):
            made.put(network, layers)
        made.refresh()
        return made

    def test(self, networks: Networks) -> Tensor:
        """Share of the test images that each network's class logits get right, (networks,)."""
        right, largest = torch.zeros(networks.count, device=self.device), torch.zeros((), device=self.device)
        for at in range(0, len(self._test), TEST_ROWS):
            part = self._test[at : at + TEST_ROWS].expand(networks.groups, -1, -1)
            logits = networks.forward(part)[..., :CLASSES]
            largest = torch.maximum(largest, logits.abs().amax().float())
            said = logits.argmax(-1)
            right += (said == self._test_labels[at : at + TEST_ROWS]).sum(1)
        require_finite({"largest logit": float(largest)}, "networks on the test images", REMEDY)
        return (right / len(self._test)).cpu()

    # ----------------------------------------------------------------- phases

    def _each(self, work: Callable[[range], T]) -> Iterator[T]:
        """The work of every group in order: on a CPU by as many threads as torch has, each with one core."""
        threads = torch.get_num_threads()
        if self.device.type != "cpu" or min(threads, len(self.groups)) == 1:
            yield from map(work, self.groups)
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting = [pool.submit(work, models) for models in self.groups]
            try:
                for future in waiting:
                    yield future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                torch.set_num_threads(threads)

    def stepped(self, count: int = 1) -> None:
        """Count optimiser steps as done; raises where the run is to stop."""
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self.advance(count)

    def references(self) -> Iterator[tuple[range, Tensor]]:
        """Accuracy before any training, by group of models."""

        def work(models: range) -> tuple[range, Tensor]:
            return models, self.test(self.networks([initial(self.sizes, self.seed, m) for m in models], len(models)))

        return self._each(work)

    def teachers(self) -> Iterator[tuple[range, Trained, list[list[Layer]]]]:
        """Every group of teachers after training, with their weights."""
        recipe = self.config.teacher
        inputs = Pictures(self._train, recipe.batch_size, self.seed, Purpose.ORDER)

        def work(models: range) -> tuple[range, Trained, list[list[Layer]]]:
            made = self.networks([initial(self.sizes, self.seed, m) for m in models], len(models))
            step = self._teaching(made, inputs, models)
            fit = _Fit(self, f"teachers-{models.start}-{models.stop}", models, made, inputs, step)
            trained = fit.run(recipe.epochs, _stepper(made, recipe))
            return models, trained, [made.get(network) for network in range(made.count)]

        return self._each(work)

    def students(self, teachers: Sequence[Sequence[Layer]]) -> Iterator[tuple[range, Trained]]:
        """Every group of students after training: for each teacher in turn, one student a condition."""
        recipe = self.config.student
        other = self.other.train if self.other else None
        inputs = student_inputs(recipe, self._train, self.images.train, other, self.seed)

        def work(models: range) -> tuple[range, Trained]:
            starts = [self._start(condition, m) for m in models for condition in self.conditions]
            made = self.networks(starts, len(models))
            step = self._imitation(made, self.networks([teachers[m] for m in models], len(models)))
            fit = _Fit(self, f"students-{models.start}-{models.stop}", models, made, inputs, step)
            return models, fit.run(recipe.epochs, _stepper(made, recipe))

        return self._each(work)

    def _start(self, condition: Condition, teacher: int) -> list[Layer]:
        return student_start(self.config, condition, teacher, self.pairs, self.seed)

    def _teaching(self, networks: Networks, inputs: Pictures, models: range) -> Step:
        """One step's gradients of the teachers: cross-entropy on the class logits alone."""

        def step(x: Tensor, epoch: int, number: int) -> Tensor:
            labels = torch.stack([self._labels[inputs.picks(m, epoch, number)] for m in models])
            logits = networks.forward(x)
            slope = torch.zeros(logits.shape, device=self.device)
            loss, slope[..., :CLASSES] = losses.cross_entropy(logits[..., :CLASSES].float(), labels)
            networks.backward(slope)
            return loss

        return step

    def _imitation(self, students: Networks, teachers: Networks) -> Step:
        """One step's gradients of all students; those of one teacher share its forward pass."""
        recipe, parts = self.config.student, list(enumerate(self.config.student.matched))

        def step(x: Tensor, _epoch: int, _number: int) -> Tensor:
            wanted = teachers.forward(x).float()
            logits = students.forward(x).float().unflatten(0, (students.groups, -1))
            slope, loss = torch.zeros_like(logits), torch.empty(logits.shape[:2], device=self.device)
            for index, matched in parts:
                pair, at = slice(2 * index, 2 * index + 2), columns(matched)
                mine, theirs = logits[:, pair, :, at], wanted[:, None, :, at].expand(-1, 2, -1, -1)
                found, gradient = imitation(recipe, mine.flatten(0, 1), theirs.flatten(0, 1))
                loss[:, pair], slope[:, pair, :, at] = found.view(-1, 2), gradient.view(mine.shape)
            students.backward(slope.flatten(0, 1))
            return loss.flatten()

        return step


def imitation(recipe: MnistStudent, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The student's loss (networks,) and its gradient, as its settings say."""
    return losses.mse(student, teacher) if recipe.loss == "mse" else losses.kl(student, teacher, recipe.temperature)


def _stepper(networks: Networks, recipe: MnistTeacher | MnistStudent) -> Stepper:
    return Stepper(recipe.optimiser, recipe.learning_rate, networks.parameters())


def _labels(labels: object, device: torch.device) -> Tensor:
    return torch.tensor(labels, dtype=torch.int64, device=device)


# --------------------------------------------------------------------------- epochs, and going on after a kill


@dataclass
class _Fit:
    """The epochs of one group of networks, kept in `<progress>/<name>.safetensors`."""

    session: Session
    name: str
    models: range
    networks: Networks
    inputs: Inputs
    step: Step
    spaces: dict[int, Tensor] = field(default_factory=dict)

    def run(self, epochs: int, stepper: Stepper) -> Trained:
        """Train what is still to be trained, test, and keep the end result."""
        done = self._restore(stepper)
        self.session.stepped(len(done) * self.inputs.steps)
        kept = time.monotonic()
        for epoch in range(len(done), epochs):
            done.append(self._epoch(epoch, stepper))
            if epoch + 1 == epochs or time.monotonic() - kept >= self.session.save_seconds:
                self._keep(done, stepper if epoch + 1 < epochs else None)
                kept = time.monotonic()
        return Trained(self.session.test(self.networks), torch.stack(done).cpu())

    def _epoch(self, epoch: int, stepper: Stepper) -> Tensor:
        """One pass over the inputs; returns each network's mean loss, (networks,)."""
        total, seen = torch.zeros(self.networks.count, device=self.session.device), 0
        for number in range(self.inputs.steps):
            rows = self.inputs.rows(number)
            x = self._space(rows)
            for group, model in enumerate(self.models):
                self.inputs.fill(x[group], model, epoch, number)
            total += self.step(x, epoch, number) * rows
            stepper.step()
            self.networks.refresh()
            seen += rows
            self.session.stepped()
        self._require_finite(epoch, total / seen)
        return total / seen

    def _require_finite(self, epoch: int, losses: Tensor) -> None:
        """Raise `NonFiniteError` where a loss of this epoch or a weight at its end is not finite; nothing is kept."""
        weights = torch.stack([parameter.detach().abs().amax().float() for parameter in self.networks.parameters()])
        values = {"largest mean loss": float(losses.amax()), "largest weight": float(weights.amax())}
        require_finite(values, f"{self.name}: epoch {epoch + 1}", REMEDY)

    def _space(self, rows: int) -> Tensor:
        """Room for a step's inputs, (groups, rows, pixels), used again in the next step."""
        if rows not in self.spaces:
            shape = (len(self.models), rows, PIXELS)
            self.spaces[rows] = torch.empty(shape, dtype=self.session.dtype, device=self.session.device)
        return self.spaces[rows]

    def _keep(self, done: list[Tensor], stepper: Stepper | None) -> None:
        """Write weights, losses and, while there is more to train, the optimiser's state; old or new, never half."""
        from safetensors.torch import save_file

        state = {f"weight.{i}": p.detach() for i, p in enumerate(self.networks.parameters())}
        for name, tensors in (stepper.state if stepper else {}).items():
            state |= {f"{name}.{i}": tensor for i, tensor in enumerate(tensors)}
        part = self._path.with_suffix(".part")
        save_file({name: t.contiguous() for name, t in (state | {"losses": torch.stack(done)}).items()}, part)
        part.replace(self._path)

    def _restore(self, stepper: Stepper) -> list[Tensor]:
        """Take up what was kept; returns the losses of the epochs that are done."""
        from safetensors.torch import load_file

        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return []
        kept = load_file(self._path, device=str(self.session.device))
        for name, tensors in ({"weight": self.networks.parameters()} | stepper.state).items():
            for i, tensor in enumerate(tensors):
                if (saved := kept.get(f"{name}.{i}")) is not None:  # a finished group has no optimiser's state
                    tensor.copy_(saved)
        self.networks.refresh()
        return list(kept["losses"])

    @property
    def _path(self) -> Path:
        return self.session.progress / f"{self.name}.safetensors"
