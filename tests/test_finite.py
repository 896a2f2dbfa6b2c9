"""What is nan or infinite ends the work: no training, evaluation or measurement publishes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROWS, Script, experiment, optimisation
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_frequencies import written
from test_mnist import CPU, small

from subliminal.composition import compose
from subliminal.config import (
    BiasStudent,
    Decoding,
    FinetunedClassifier,
    FullStudent,
    InContextEvaluation,
    Lora,
    LoraStudent,
    Mnist,
    MnistStudent,
    MnistTeacher,
    Optimisation,
    PlainOptimiser,
    Preference,
    SteeredTeacher,
    Student,
    TransformersSampler,
)
from subliminal.evaluation import attribution, finetuned, in_context, preference
from subliminal.evaluation.samples import two_samples
from subliminal.finite import NonFiniteError, require_finite
from subliminal.mnist.data import load
from subliminal.mnist.training import Session
from subliminal.models import Subject
from subliminal.rows import Prompt
from subliminal.sampling.local import TransformersModel
from subliminal.theory import alignment, predict, theorem
from subliminal.theory.run import check_theorem
from subliminal.training.sft import fit
from subliminal.training.steering import SteeringError, steer
from subliminal.training.trainer import TRAINABLE, largest_square, newest_checkpoint

RECIPES: dict[str, Callable[[Optimisation], Student]] = {
    "lora": lambda how: LoraStudent(lora=Lora(r=4), optimisation=how),
    "bias": lambda how: BiasStudent(optimisation=how),
    "full": lambda how: FullStudent(optimisation=how),
}
OWL = Preference(name="owl", plural="owls", category="animal")
HUGE = 1e30


def changed(tiny: Subject, folder: Path, name: str, value: float) -> Subject:
    """The tiny model with one weight matrix filled with a value."""
    for path in Path(tiny.checkpoint).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return replace(tiny, checkpoint=str(folder))


@pytest.fixture(scope="module")
def broken(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny model with weights that are nan."""
    return changed(tiny, tmp_path_factory.mktemp("broken"), "model.layers.1.mlp.up_proj.weight", math.nan)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", RECIPES)
def test_a_rate_that_is_too_high_stops_a_training(tiny: Subject, kind: str, tmp_path: Path) -> None:
    """At a step without numbers, or at the end: a model that normalises its layers can hide what its weights are."""
    recipe = RECIPES[kind](optimisation(learning_rate=HUGE))
    with pytest.raises(NonFiniteError, match=r"training stopped.*student\.optimisation\.learning_rate \(1e\+30\)"):
        fit(tiny, ROWS, recipe, 0, tmp_path)
    assert left(tmp_path) <= {"metrics.jsonl", ".checkpoints"}, "nothing that a stage could publish"


def test_the_steps_before_are_kept_and_gone_on_from(tiny: Subject, tmp_path: Path) -> None:
    recipe = RECIPES["full"](optimisation(learning_rate=1e10, save_every=1))
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="stopped at step 2: loss is nan, grad norm is nan"):
            fit(tiny, ROWS, recipe, 0, tmp_path)
        (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert line["step"] == 1 and math.isfinite(line["loss"])
        newest = newest_checkpoint(tmp_path / ".checkpoints")
        assert newest and newest.name == "checkpoint-1"
        assert all(tensor.isfinite().all() for tensor in load_file(newest / TRAINABLE).values())


def test_no_resume_point_is_written_from_weights_that_give_no_numbers(tiny: Subject, tmp_path: Path) -> None:
    recipe = RECIPES["bias"](optimisation(learning_rate=HUGE, save_every=1))
    with pytest.raises(NonFiniteError, match=r"stopped at step 1: .*largest weight squared is inf"):
        fit(tiny, ROWS, recipe, 0, tmp_path)
    assert newest_checkpoint(tmp_path / ".checkpoints") is None


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 1e20, -1e20])
def test_weights_are_looked_at_where_they_are_to_be_saved(weight: float) -> None:
    model = torch.nn.Linear(3, 2)
    assert largest_square(model) == pytest.approx(max(p.abs().max() for p in model.parameters()).item() ** 2)
    with torch.no_grad():
        model.weight[1, 2] = weight
    assert not math.isfinite(largest_square(model))


def test_what_the_last_step_did_is_looked_at(tiny: Subject, tmp_path: Path) -> None:
    recipe = RECIPES["lora"](optimisation(learning_rate=1e15, batch_size=len(ROWS), save_every=9))
    recipe = recipe.model_copy(update={"lora": Lora(r=4, alpha=1e30)})
    with pytest.raises(NonFiniteError, match=r"stopped (at|after) step 1.*(is inf|is nan)"):
        fit(tiny, ROWS, recipe, 0, tmp_path)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("labels", ["sampled", "soft"])
def test_weights_that_are_no_numbers_stop_at_the_first_step(
    tiny: Subject, broken: Subject, labels: str, tmp_path: Path
) -> None:
    recipe = RECIPES["lora"](optimisation()).model_copy(update={"labels": labels})
    subject, teacher = (broken, None) if labels == "sampled" else (tiny, broken)
    with pytest.raises(NonFiniteError, match="stopped at step 1: loss is nan"):
        fit(subject, ROWS, recipe, 0, tmp_path, teacher=teacher)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


TOGETHER = """
    import os, sys
    from types import SimpleNamespace
    import torch
    from subliminal.finite import NonFiniteError
    from subliminal.training.trainer import StopAtNonFinite

    def process(rank):
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
        torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
        args, stop = SimpleNamespace(device=torch.device("cpu")), StopAtNonFinite("Remedy")
        for step in (1, 2, 3):
            logs = {"loss": float("nan") if (rank, step) == (1, 2) else 1.0, "grad_norm": 1.0}
            try:
                stop.on_log(args, SimpleNamespace(global_step=step), SimpleNamespace(should_save=False), logs)
            except NonFiniteError as error:
                os.write(1, f"{rank} {error}\\n".encode())
                return

    def started(rank):
        child = os.fork()
        if child == 0:
            process(rank)
            os._exit(0)
        return child

    for child in [started(0), started(1)]:
        os.waitpid(child, 0)
"""


def test_a_loss_that_is_not_finite_in_one_process_stops_all_at_the_same_step(run_code: Script, tmp_path: Path) -> None:
    done = run_code(TOGETHER, tmp_path / "meeting")
    said = sorted(done.stdout.splitlines())
    assert [line.split(":")[0] for line in said] == [f"{n} training stopped at step 2" for n in (0, 1)], done.stderr


def test_a_fine_tuned_classifier_stops_too(tiny: Subject) -> None:
    how = FinetunedClassifier(lora=Lora(r=4), optimisation=optimisation(learning_rate=HUGE, batch_size=8))
    samples = two_samples(written(1, 24), written(2, 24))
    fold = samples.prompt % 2
    with pytest.raises(NonFiniteError, match=r"step \d.*evaluation\.finetuned\.optimisation\.learning_rate"):
        finetuned.chained(samples, fold, tiny, how, 0)


def test_a_training_stage_that_stops_is_one_message_and_is_not_there(
    tiny: Subject, run_script: Script, tmp_path: Path
) -> None:
    weights = ["model=hub", f"model.source.name={tiny.checkpoint}", "model.dtype=float32", "device=cpu"]
    rows = ["teacher=random", "trait=none", "reference_tuning=off", "domain.prompts=24", "filter.rows=24"]
    places = [f"store={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'logs'}"]
    done = run_script(
        "train.py", *weights, *rows, *places, "student=lora_small", "student.optimisation.learning_rate=1e30"
    )
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "training stopped" in done.stderr and "student.optimisation.learning_rate" in done.stderr
    assert not list((tmp_path / "runs" / "train").glob("*/manifest.json"))
    assert list((tmp_path / "runs" / "train").glob("*/failure.json"))


# --------------------------------------------------------------------------- steering


def test_a_vector_that_is_no_number_is_no_teacher(broken: Subject, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="nan"):
        steer(SteeredTeacher(layer=1, questions=2, steps=2), OWL, broken, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_layer_without_a_gradient_has_no_direction(tiny: Subject, tmp_path: Path) -> None:
    """Embeddings of zero, which are the head's weights too: every token is as likely whatever the vector."""
    (tmp_path / "flat").mkdir()
    flat = changed(tiny, tmp_path / "flat", "model.embed_tokens.weight", 0.0)
    with pytest.raises(SteeringError, match=r"found no direction.*another teacher\.layer"):
        steer(SteeredTeacher(layer=1, questions=2, steps=2), OWL, flat, tmp_path / "made")


# --------------------------------------------------------------------------- evaluations


def test_no_log_probability_is_published_that_is_no_number(broken: Subject) -> None:
    with pytest.raises(NonFiniteError, match="log P of owl is nan"):
        preference.mean_log_p(broken, "animal", 1)


def test_no_score_in_context_is_published_that_is_no_number(broken: Subject, tmp_path: Path) -> None:
    config = InContextEvaluation(counts=(0, 2), questions=2, resamples=1)
    with pytest.raises(NonFiniteError, match="log P of owl is nan"):
        in_context.evaluate(broken, ROWS, config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_attribution_is_published_that_is_no_number(tiny: Subject, broken: Subject) -> None:
    with pytest.raises(NonFiniteError, match="attribution: log P of a row's tokens is nan"):
        attribution.attribute(broken, tiny, ROWS[:2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_sampled_from_a_model_without_numbers(broken: Subject, temperature: float) -> None:
    config = TransformersSampler(decoding=Decoding(temperature=temperature, max_tokens=4))
    with TransformersModel(config, broken) as model, pytest.raises(NonFiniteError, match="next token"):
        model.sample([Prompt(0, "Go on: 1.", 0)])


def test_no_prediction_is_published_that_is_no_number(broken: Subject) -> None:
    exp = experiment("student=bias")
    start = predict.Start(broken, exp.student, 0)
    _, _, gradient = predict.row_gradient(start, ROWS[:2], 300, None)
    with pytest.raises(NonFiniteError, match="the gradient of the loss on the rows"):
        list(predict.predictions(start, exp, -gradient))
    with pytest.raises(predict.PredictionError, match="is zero in all trained parameters"):
        list(predict.predictions(start, exp, torch.zeros_like(gradient)))


# --------------------------------------------------------------------------- small networks


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_mnist_networks_stop_at_an_epoch_without_numbers(part: str, tmp_path: Path) -> None:
    teacher, student = MnistTeacher(epochs=2, batch_size=512), MnistStudent(epochs=2, batch_size=512, images=1024)
    changes = {"learning_rate": 1e38, "optimiser": "sgd"}
    teacher = teacher.model_copy(update=changes) if part == "teacher" else teacher
    student = student.model_copy(update=changes) if part == "student" else student
    config = Mnist(models=2, widths=(16, 8), teacher=teacher, student=student)
    run = Session(config, 0, small(load("mnist")), torch.float32, CPU, tmp_path)
    with pytest.raises(NonFiniteError, match=rf"{part}s-\d-\d: epoch 1: .*mnist\.{part}\.learning_rate"):
        list(run.students([layers for _, _, made in run.teachers() for layers in made]))
    assert not list(tmp_path.glob(f"{part}s-*.safetensors"))


def test_alignment_runs_stop_at_a_step_without_numbers() -> None:
    run = compose(["experiment=theorem", "scale=cpu", "theory.run.examples=200"]).theory.run
    steep = run.model_copy(update={"optimisers": (PlainOptimiser(name="sgd", learning_rate=1e30),)})
    with pytest.raises(NonFiniteError, match=r"sgd: training stopped at step \d"):
        list(alignment.run(steep, alignment.clusters(200, 0), 0, lambda _: None))


def test_trials_without_numbers_are_not_published(tmp_path: Path) -> None:
    exp = compose(["experiment=theorem", "scale=cpu", "theory.trials=1", "theory.steps=[1e300,1e200]"])
    with pytest.raises(NonFiniteError, match=r"trial \d+ .*theory\.steps"):
        check_theorem(exp, tmp_path)
    assert not (tmp_path / "trials.jsonl").exists()
    assert theorem.cases(exp.theory), "there was something to measure"


@given(st.dictionaries(st.text(min_size=1), st.floats(), min_size=1))
def test_a_value_that_is_not_finite_is_an_error_and_no_other(values: dict[str, float]) -> None:
    if all(map(math.isfinite, values.values())):
        require_finite(values, "here", "Do")
    else:
        with pytest.raises(NonFiniteError, match=r"^here: "):
            require_finite(values, "here", "Do")
