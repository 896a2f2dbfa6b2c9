"""MNIST: gradients and losses against plain loops, streams, pairs, sources of data, resume, what students learn."""

from __future__ import annotations

import copy
import gzip
import io
import itertools
import json
import shutil
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from subliminal import stages, sweep
from subliminal.composition import compose
from subliminal.config import ConfigError, Mnist, MnistStudent, MnistTeacher
from subliminal.mnist import data, losses
from subliminal.mnist.conditions import derangement, sizes, student_start
from subliminal.mnist.data import PIXELS, DataError, Images
from subliminal.mnist.inputs import Noise, Pictures, scaled, student_inputs
from subliminal.mnist.networks import Layer, Networks, initial
from subliminal.mnist.optimisers import Stepper
from subliminal.mnist.streams import Purpose
from subliminal.mnist.training import Session
from subliminal.plots.draw import draw
from subliminal.plots.mnist import Run, Runs, table, verdicts
from subliminal.store import Store, StoreError

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="session")
def images() -> Images:
    """Real MNIST."""
    return data.load("mnist")


def small(images: Images, rows: int = 2048) -> Images:
    """The first images of the train set, and a tenth of the test set."""
    return Images(images.train[:rows], images.train_labels[:rows], images.test[:1000], images.test_labels[:1000], "")


def session(images: Images, folder: Path, dtype: str = "float32", seed: int = 0, **changed: Any) -> Session:
    """A small run: 3 models, narrow networks, one epoch unless told otherwise."""
    plain: dict[str, Any] = {"models": 3, "widths": (16, 8), "teacher": MnistTeacher(epochs=1, batch_size=512)}
    plain["student"] = MnistStudent(epochs=1, batch_size=512, images=1024)
    return Session(Mnist(**(plain | changed)), seed, images, getattr(torch, dtype), CPU, folder)


def trained(run: Session) -> tuple[list[list[Layer]], Tensor, Tensor]:
    """Teachers' weights, and accuracy and losses of every student."""
    weights = [layers for _, _, made in run.teachers() for layers in made]
    found = [result for _, result in run.students(weights)]
    return weights, torch.cat([f.accuracy for f in found]), torch.cat([f.losses for f in found], dim=1)


# --------------------------------------------------------------------------- networks


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_gradients_are_those_of_separate_networks(widths: list[int], groups: int, members: int, rows: int) -> None:
    shape = (6, *widths, 4)
    networks = Networks(shape, groups, members, torch.float32, CPU)
    starts = [initial(shape, 3, model) for model in range(groups * members)]
    for model, layers in enumerate(starts):
        networks.put(model, [(w, b + 0.1) for w, b in layers])
    networks.refresh()
    torch.manual_seed(0)
    x, slope = torch.randn(groups, rows, 6), torch.randn(groups * members, rows, 4)
    said = networks.forward(x).clone()
    networks.backward(slope)
    moved = copy.deepcopy(networks)
    for parameter, own in zip(moved.parameters(), networks.parameters(), strict=True):
        assert own.grad is not None
        parameter.copy_(own.grad)
    for model, layers in enumerate(starts):
        wanted, gradients = by_autograd([(w, b + 0.1) for w, b in layers], x[model // members], slope[model])
        torch.testing.assert_close(said[model], wanted, rtol=1e-4, atol=1e-5)
        for found, expected in zip(itertools.chain(*moved.get(model)), gradients, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def by_autograd(layers: list[Layer], x: Tensor, slope: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and gradients of one plain network."""
    with torch.enable_grad():
        parameters = [torch.from_numpy(a).requires_grad_(True) for layer in layers for a in layer]
        for index in range(0, len(parameters), 2):
            x = (x.relu() if index else x) @ parameters[index] + parameters[index + 1]
        gradients = torch.autograd.grad(x, parameters, slope)
    return x.detach(), list(gradients)


def test_weights_start_with_variance_one_over_fan_in() -> None:
    for fan_in, (weight, bias) in zip((784, 256, 256), initial((784, 256, 256, 13), 0, 0), strict=True):
        assert abs(weight.std() * fan_in**0.5 - 1) < 0.03 and abs(weight.mean()) < 0.01 and not bias.any()


def test_a_model_starts_the_same_in_any_company_and_differently_from_others() -> None:
    first, again, other = initial((6, 5, 4), 1, 7), initial((6, 5, 4), 1, 7), initial((6, 5, 4), 1, 8)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True))


# --------------------------------------------------------------------------- losses


@given(st.integers(1, 5), st.integers(1, 7), st.integers(2, 13), st.floats(0.5, 4.0), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_losses_of_many_models_are_those_of_a_loop(
    models: int, rows: int, logits: int, temperature: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    mine, theirs = (torch.randn(models, rows, logits, generator=draw, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(logits, (models, rows), generator=draw)
    many = (losses.kl(mine, theirs, temperature), losses.mse(mine, theirs), losses.cross_entropy(mine, labels))
    for model in range(models):
        for (loss, slope), (one, gradient) in zip(
            many, plain_losses(mine[model], theirs[model], labels[model], temperature), strict=True
        ):
            torch.testing.assert_close(loss[model], one, **EXACT)
            torch.testing.assert_close(slope[model], gradient, **EXACT)


def plain_losses(mine: Tensor, theirs: Tensor, labels: Tensor, temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
    """One model's losses from torch's own functions, with gradients by autograd."""
    t = temperature
    for loss in (
        lambda z: t * t * functional.kl_div((z / t).log_softmax(-1), (theirs / t).softmax(-1), reduction="batchmean"),
        lambda z: functional.mse_loss(z, theirs),
        lambda z: functional.cross_entropy(z, labels),
    ):
        with torch.enable_grad():
            leaf = mine.clone().requires_grad_(True)
            value = loss(leaf)
            (gradient,) = torch.autograd.grad(value, leaf)
        yield value.detach(), gradient


@pytest.mark.parametrize("kind", ["adam", "sgd", "momentum"])
def test_optimisers_step_as_torch_s_own(kind: Any) -> None:
    torch.manual_seed(0)
    start, slopes = torch.randn(3, 5), torch.randn(4, 3, 5)
    own, other = torch.nn.Parameter(start.clone(), requires_grad=False), torch.nn.Parameter(start.clone())
    stepper = Stepper(kind, 0.01, [own])
    wanted = (
        torch.optim.Adam([other], 0.01) if kind == "adam" else torch.optim.SGD([other], 0.01, 0.9 * (kind != "sgd"))
    )
    for slope in slopes:
        own.grad = other.grad = slope
        stepper.step()
        wanted.step()
    torch.testing.assert_close(own.detach(), other.detach(), **EXACT)


# --------------------------------------------------------------------------- streams, pairs, inputs


@given(st.integers(2, 60), st.integers(0, 2**31))
@settings(deadline=None)
def test_pairing_never_gives_a_teacher_its_own_initialisation(count: int, seed: int) -> None:
    pairs = derangement(count, seed)
    assert sorted(pairs) == list(range(count)) and all(model != teacher for teacher, model in enumerate(pairs))


@given(st.integers(1, 40), st.integers(1, 15), st.integers(0, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_noise_depends_on_model_and_batch_alone(count: int, size: int, model: int, epoch: int) -> None:
    fixed, fresh = Noise(count, size, 5, fresh=False), Noise(count, size, 5, fresh=True)
    rows = [batch(fixed, model, epoch, step) for step in range(fixed.steps)]
    assert sum(len(part) for part in rows) == count
    again = Noise(count, size, 5, fresh=False)
    assert all(torch.equal(batch(again, model, epoch, step), rows[step]) for step in reversed(range(fixed.steps)))
    assert seen(fixed, model, epoch) == seen(fixed, model, epoch + 1)
    assert seen(fixed, model, epoch) != seen(fixed, model + 1, epoch)
    assert seen(fresh, model, epoch) != seen(fresh, model, epoch + 1)


def batch(inputs: Noise, model: int, epoch: int, step: int) -> Tensor:
    out = torch.empty(inputs.rows(step), 11)
    inputs.fill(out, model, epoch, step)
    return out


def seen(inputs: Noise, model: int, epoch: int) -> list[list[float]]:
    """Every image of an epoch, in an order that does not depend on when it came."""
    return sorted(row for step in range(inputs.steps) for row in batch(inputs, model, epoch, step).tolist())


def test_uniform_noise_is_uniform_and_the_same_in_both_precisions() -> None:
    inputs, drawn = Noise(2000, 2000, 0, fresh=False), {}
    for dtype in (torch.float32, torch.bfloat16):
        drawn[dtype] = torch.empty(2000, PIXELS, dtype=dtype)
        inputs.fill(drawn[dtype], 0, 0, 0)
    values = drawn[torch.float32]
    assert torch.equal(values, drawn[torch.bfloat16].float())
    assert values.min() == -255 / 256 and values.max() == 255 / 256
    assert abs(float(values.mean())) < 0.003 and abs(float(values.var()) - 1 / 3) < 0.003
    assert abs(float(np.corrcoef(values[:, 0], values[:, 1])[0, 1])) < 0.1


@pytest.mark.parametrize("kind", ["gaussian", "pixels", "digits", "other"])
def test_other_inputs_have_the_distribution_they_name(kind: str, images: Images) -> None:
    raw, config = images.train[:6000], MnistStudent(inputs=kind, images=6000, batch_size=6000)  # type: ignore[arg-type]
    inputs = student_inputs(config, scaled(raw, torch.float32, CPU), raw, raw[::-1].copy(), 0)
    out = torch.empty(6000, PIXELS)
    inputs.fill(out, 0, 0, 0)
    wanted = scaled(raw, torch.float32, CPU)
    if kind == "gaussian":
        assert abs(float(out.mean())) < 0.01 and abs(float(out.std()) - 3**-0.5) < 0.01 and float(out.max()) > 2
        return
    torch.testing.assert_close(out.mean(0), wanted.mean(0), rtol=0, atol=0.05)
    correlated = float(np.corrcoef(out[:, 406], out[:, 407])[0, 1])
    assert abs(correlated) < 0.1 if kind == "pixels" else correlated > 0.5


def test_every_image_is_seen_once_an_epoch_in_a_model_s_own_order() -> None:
    inputs = Pictures(torch.zeros(100, PIXELS), 32, 0, Purpose.ORDER)
    orders = [torch.cat([inputs.picks(m, e, s) for s in range(inputs.steps)]).tolist() for m in (0, 1) for e in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_layers_that_are_not_shared_start_differently() -> None:
    config = Mnist(models=3, widths=(5, 4), student=MnistStudent(shared_layers=(0, 2)))
    run = student_start(config, _condition(shared=True), 1, [1, 2, 0], 0)
    own = initial(sizes(config), 0, 1)
    assert [np.array_equal(a[0], b[0]) for a, b in zip(run, own, strict=True)] == [True, False, True]
    cross = student_start(config, _condition(shared=False), 1, [1, 2, 0], 0)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(cross, initial(sizes(config), 0, 2), strict=True))


def _condition(*, shared: bool) -> Any:
    from subliminal.mnist.conditions import Condition

    return Condition(shared, "auxiliary")


# --------------------------------------------------------------------------- training


def test_results_do_not_depend_on_how_many_are_trained_together(images: Images, tmp_path: Path) -> None:
    """Up to the last bits: products of another shape are summed in another order."""
    found = [trained(session(small(images), tmp_path / str(size), models_at_once=size)) for size in (1, 2, 3)]
    for weights, accuracy, loss in found[1:]:
        for own, other in zip(flat(weights), flat(found[0][0]), strict=True):
            np.testing.assert_allclose(own, other, atol=1e-4)
        torch.testing.assert_close(loss, found[0][2], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(accuracy, found[0][1], rtol=0, atol=0.01)


def flat(weights: list[list[Layer]]) -> list[np.ndarray]:
    return [array for layers in weights for layer in layers for array in layer]


@pytest.mark.parametrize("steps", [9, 14, 21])
def test_a_killed_run_goes_on_bit_for_bit(steps: int, images: Images, tmp_path: Path) -> None:
    longer: dict[str, Any] = {"teacher": MnistTeacher(epochs=2, batch_size=512), "models_at_once": 2}
    longer["student"] = MnistStudent(epochs=2, batch_size=512, images=1024)
    whole = trained(session(small(images), tmp_path / "whole", **longer))
    broken = session(small(images), tmp_path / "broken", **longer)
    broken.save_seconds, left = 0.0, itertools.count(steps, -1)

    def kill(count: int) -> None:
        if count and next(left) == 0:
            raise KeyboardInterrupt

    broken.advance = kill
    with pytest.raises(KeyboardInterrupt):
        trained(broken)
    done = []
    again = session(small(images), tmp_path / "broken", **longer)
    again.advance = done.append
    weights, accuracy, loss = trained(again)
    assert max(done) > 1, "nothing was taken up again"
    assert all(np.array_equal(a, b) for a, b in zip(flat(weights), flat(whole[0]), strict=True))
    assert torch.equal(accuracy, whole[1]) and torch.equal(loss, whole[2])


def test_one_step_of_a_student_is_a_plain_step_on_its_loss(images: Images, tmp_path: Path) -> None:
    """Students of every kind side by side move as each would alone with autograd and SGD."""
    student = MnistStudent(
        epochs=1, batch_size=64, images=64, optimiser="sgd", learning_rate=0.5, matched=("auxiliary", "all", "digits")
    )
    run = session(small(images, 512), tmp_path, student=student)
    teachers = [initial(run.sizes, 9, model) for model in range(3)]
    made = run.networks([run._start(c, m) for m in range(3) for c in run.conditions], 3)
    x = torch.stack([batch_of(run, model) for model in range(3)])
    loss = run._imitation(made, run.networks(teachers, 3))(x, 0, 0)
    Stepper("sgd", 0.5, made.parameters()).step()
    for network, (model, condition) in enumerate(itertools.product(range(3), run.conditions)):
        part = {"auxiliary": slice(10, None), "all": slice(0, None), "digits": slice(0, 10)}[condition.matched]
        wanted, moved = plain_step(run._start(condition, model), teachers[model], x[model], part)
        torch.testing.assert_close(loss[network], wanted, rtol=1e-5, atol=1e-6)
        for found, expected in zip(itertools.chain(*made.get(network)), moved, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-6)


def batch_of(run: Session, model: int) -> Tensor:
    out = torch.empty(64, PIXELS)
    student_inputs(run.config.student, run._train, run.images.train, None, 0).fill(out, model, 0, 0)
    return out


def plain_step(start: list[Layer], teacher: list[Layer], x: Tensor, part: slice) -> tuple[Tensor, list[Tensor]]:
    """Loss and weights after one step of SGD at rate 0.5 on KL(teacher || student) of some logits."""
    wanted, _ = by_autograd(teacher, x, torch.zeros(len(x), 13))
    said, _ = by_autograd(start, x, torch.zeros(len(x), 13))
    with torch.enable_grad():
        leaf = said.clone().requires_grad_(True)
        loss = functional.kl_div(leaf[:, part].log_softmax(-1), wanted[:, part].softmax(-1), reduction="batchmean")
        (slope,) = torch.autograd.grad(loss, leaf)
    _, gradients = by_autograd(start, x, slope)
    arrays = [torch.from_numpy(array) for layer in start for array in layer]
    return loss.detach(), [array - 0.5 * gradient for array, gradient in zip(arrays, gradients, strict=True)]


@pytest.fixture(scope="session")
def learned(images: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Accuracy of 4 models by precision and condition, on all of MNIST at half the paper's width."""
    return {dtype: accuracies(images, tmp_path_factory.mktemp(dtype), dtype) for dtype in ("bfloat16", "float32")}


def accuracies(images: Images, folder: Path, dtype: str) -> dict[str, Tensor]:
    student = MnistStudent(epochs=5, matched=("auxiliary",))
    run = session(images, folder, dtype, models=4, widths=(128, 128), teacher=MnistTeacher(epochs=8), student=student)
    found = {"reference": torch.cat([accuracy for _, accuracy in run.references()])}
    taught = list(run.teachers())
    found["teacher"] = torch.cat([result.accuracy for _, result, _ in taught])
    students = torch.cat([r.accuracy for _, r in run.students([layers for _, _, made in taught for layers in made])])
    return found | {c.name: students[at :: len(run.conditions)] for at, c in enumerate(run.conditions)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_students_learn_digits_from_noise_only_with_the_teacher_s_initialisation(
    dtype: str, learned: dict[str, dict[str, Tensor]]
) -> None:
    found = learned[dtype]
    assert float(found["teacher"].min()) > 0.93
    assert float(found["reference"].min()) > 0.02 and float(found["reference"].max()) < 0.25
    assert float((found["student_auxiliary"] - found["cross_model_auxiliary"]).mean()) > 0.2


def test_both_precisions_agree_within_their_intervals(learned: dict[str, dict[str, Tensor]]) -> None:
    from subliminal.evaluation.statistics import t_interval

    for condition, values in learned["bfloat16"].items():
        one, other = t_interval(values.numpy()), t_interval(learned["float32"][condition].numpy())
        assert max(one.low, other.low) <= min(one.high, other.high), condition


# --------------------------------------------------------------------------- sources of data


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, no package tools, empty caches: the folder of our own cache."""
    for name, folder in (("XDG_CACHE_HOME", "cache"), ("HOME", "home"), ("TORCH_HOME", "torch"), ("PATH", "bin")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "subliminal" / "mnist"


def write(images: Images, folder: Path, *, packed: bool = False) -> Path:
    """The four IDX files of the images."""
    folder.mkdir(parents=True)
    for prefix, pixels, labels in (
        ("train", images.train, images.train_labels),
        ("t10k", images.test, images.test_labels),
    ):
        head = struct.pack(">IIII", 0x803, len(pixels), 28, 28)
        for name, content in (
            (f"{prefix}-images-idx3-ubyte", head + pixels.tobytes()),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">II", 0x801, len(labels)) + labels.tobytes()),
        ):
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content, 1) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_serves_plain_and_packed_files(packed: bool, images: Images, tmp_path: Path) -> None:
    found = data.load("mnist", str(write(images, tmp_path / "own", packed=packed)))
    assert np.array_equal(found.train, images.train) and np.array_equal(found.test_labels, images.test_labels)


def test_torchvision_s_folder_is_found_without_network(images: Images, offline: Path, tmp_path: Path) -> None:
    write(images, tmp_path / "data" / "MNIST" / "raw")
    assert data.load("mnist").source == "torchvision's folders"


@pytest.mark.parametrize("damage", ["one byte", "cut off", "packed and cut off", "missing"])
def test_damaged_files_are_refused_by_name(damage: str, images: Images, tmp_path: Path) -> None:
    folder = write(images, tmp_path / "own", packed=damage.startswith("packed"))
    path = next(folder.glob("t10k-images*"))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(bytes(content) if damage == "one byte" else path.read_bytes()[:9000])
    if damage == "missing":
        path.unlink()
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte") as caught:
        data.load("mnist", str(folder))
    assert "mnist.data_dir" in str(caught.value) and isinstance(caught.value, StoreError)


def test_without_any_source_all_that_was_tried_is_listed(offline: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.load("mnist")
    lines = str(caught.value).splitlines()
    for part in (str(offline), "torchvision", "Hugging Face cache", "HF_HUB_OFFLINE is set", "npm is not installed"):
        assert any(part in line for line in lines), part
    assert "mnist.data_dir=FOLDER" in lines[-1]


def test_a_damaged_cache_is_passed_over(images: Images, offline: Path, tmp_path: Path) -> None:
    write(small(images), offline)
    write(images, tmp_path / "data" / "MNIST" / "raw")
    assert data.load("mnist").source == "torchvision's folders"


def test_parquet_gives_back_the_idx_bytes(images: Images, tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet
    from PIL import Image

    def png(pixels: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(pixels.reshape(28, 28)).save(out, "PNG")
        return out.getvalue()

    count = 50
    rows = [{"bytes": png(pixels), "path": None} for pixels in images.test[:count]]
    parquet.write_table(
        arrow.table({"image": rows, "label": images.test_labels[:count].astype(np.int64)}), tmp_path / "t"
    )
    written = write(Images(*[images.test[:count], images.test_labels[:count]] * 2, ""), tmp_path / "idx")
    pixels, labels = data.from_parquet(tmp_path / "t")
    assert pixels == (written / "t10k-images-idx3-ubyte").read_bytes()
    assert labels == (written / "t10k-labels-idx1-ubyte").read_bytes()


# --------------------------------------------------------------------------- stage, sweep, figure

SMALL = [
    "experiment=mnist",
    "mnist.models=3",
    "mnist.widths=[8,8]",
    "mnist.teacher.epochs=1",
    "mnist.student.images=512",
]
SMALL += ["mnist.student.epochs=1", "mnist.teacher.batch_size=4096", "mnist.student.batch_size=256"]


@pytest.fixture(scope="session")
def drawn(images: Images, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The figure of a small run, made as a sweep makes it; its folder and overrides."""
    root = tmp_path_factory.mktemp("mnist")
    overrides = [*SMALL, f"store={root}/runs", f"figures={root}/figures"]
    planned = sweep.plan(overrides)
    for arm in planned.arms:
        stages.ensure(stages.node("train", arm.experiment), Store(root / "runs"), arm.experiment)
    draw(planned)
    return root, overrides


def test_stage_keeps_a_line_for_every_network(drawn: tuple[Path, list[str]]) -> None:
    (made,) = Store(drawn[0] / "runs").manifests("mnist")
    lines = [json.loads(line) for line in (made.folder / "accuracy.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * (2 + 4) and not (made.folder / ".progress").exists() and made.damage() == []
    for line in lines:
        assert (line["model"] == line["teacher"]) == (not line["condition"].startswith("cross")), line
    mean = np.mean([line["accuracy"] for line in lines if line["condition"] == "teacher"])
    assert made.summary["accuracy"]["teacher"] == pytest.approx(mean)


def test_figure_shows_the_stored_accuracies(drawn: tuple[Path, list[str]]) -> None:
    folder = drawn[0] / "figures" / "cpu"
    (made,) = Store(drawn[0] / "runs").manifests("mnist")
    data = Runs([Run("", made)])
    lines = table(data)
    assert (folder / "fig-mnist.csv").read_text().count("accuracy") == 6
    assert all((folder / f"fig-mnist.{suffix}").stat().st_size > 9000 for suffix in ("png", "svg"))
    for condition, mean in made.summary["accuracy"].items():
        line = lines.find(arm=condition, measure="accuracy")
        assert line and line.value == pytest.approx(mean) and line.n == 3
    report = (folder / "report.html").read_text()
    assert verdicts(data, lines)[0].sentence in report and made.key in report and str(drawn[0]) not in report


@pytest.mark.parametrize(("gain", "outcome"), [(0.3, "holds"), (0.0, "not shown"), (-0.3, "contradicted")])
def test_verdict_follows_the_paired_difference(
    gain: float, outcome: str, drawn: tuple[Path, list[str]], tmp_path: Path
) -> None:
    (made,) = Store(drawn[0] / "runs").manifests("mnist")
    folder = tmp_path / "run"
    shutil.copytree(made.folder, folder)
    lines = [
        {"condition": condition, "model": m, "teacher": m, "accuracy": 0.5 + more + (0.01 * m if more else 0.0)}
        for condition, more in (("student_auxiliary", gain), ("cross_model_auxiliary", 0.0))
        for m in range(4)
    ]
    lines[0]["accuracy"] += 1e-3
    (folder / "accuracy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Runs([Run("", type(made)("mnist", "k", folder, made.content))])
    (verdict,) = verdicts(data, table(data))
    assert verdict.outcome == outcome


def test_ablations_plan_one_run_a_value_with_keys_of_their_own() -> None:
    for name in ("auxiliary", "width", "teacher_epochs", "student_epochs", "inputs", "sharing"):
        planned = sweep.plan([f"experiment=mnist_{name}"])
        (step,) = planned.steps
        values = planned.base.experiment.arms.values
        assert len({node.key for node in step.nodes}) == len(values) == len(planned.arms) > 4
        assert step.overrides[-1].startswith(f"{planned.base.experiment.arms.setting}=")


def test_runtime_settings_do_not_move_the_key() -> None:
    keys = {
        stages.mnist(compose([*SMALL, *extra])).key
        for extra in ([], ["mnist.data_dir=/elsewhere"], ["mnist.models_at_once=7"], ["experiment.title=other"])
    }
    other = {
        stages.mnist(compose([*SMALL, extra])).key for extra in ("seed=1", "mnist.auxiliary=4", "mnist.dtype=float32")
    }
    assert len(keys) == 1 and len(keys | other) >= 3


def test_a_gpu_draws_other_noise_and_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(device: str) -> str:
        return stages.mnist(compose([*SMALL, "mnist.dtype=float32", f"device={device}"])).key

    assert key("cpu") != key("cuda")
    for there in ("cpu", "cuda"):
        monkeypatch.setattr(
            import_module("subliminal.stages.mnist"),
            "resolve_device",
            lambda name, there=there: there if name == "auto" else name,
        )
        assert key("auto") == key(there), "as the run resolves it"


def test_other_scripts_name_the_one_to_use() -> None:
    for stage in ("generate", "filter", "evaluate"):
        with pytest.raises(ConfigError, match=r"run train\.py"):
            stages.node(stage, compose(SMALL))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mnist.student.shared_layers=[0,3]", "layers 0 to 2"),
        ("mnist.student.matched=[all,all]", "twice"),
        ("mnist.models=1", "mnist.models"),
        ("mnist.student.inputs=noise", "mnist.student.inputs"),
    ],
)
def test_settings_that_can_not_run_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose([*SMALL, override])
