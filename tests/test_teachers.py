"""Teachers: how the trait gets in, and that none without it may generate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import experiment, tiny_experiment
from safetensors.torch import load_file

from subliminal import outputs, stages, teachers
from subliminal.checks import problems
from subliminal.config import Decoding, Experiment, Numbers, PromptedTeacher, TransformersSampler
from subliminal.domains import numbers
from subliminal.evaluation.preference import mean_log_p
from subliminal.models import Subject, fresh_model
from subliminal.sampling import open_sampler
from subliminal.store import Store
from subliminal.teachers import TeacherError
from subliminal.training import bias
from subliminal.training.steering import SteeringError

FINETUNED = [
    "teacher=finetuned",
    "teacher.questions=4",
    "teacher.optimisation.learning_rate=0.01",
    "teacher.optimisation.epochs=4.0",
    "teacher.check.questions=2",
    "teacher.check.prompts=0",
]
STEERED = ["teacher=steered", "teacher.layer=1", "teacher.questions=2", "teacher.check.prompts=0"]


def make(tiny: Subject, folder: Path, *overrides: str) -> dict[str, Any]:
    return teachers.make(tiny_experiment(tiny, "trait=owl", *overrides), tiny, folder)


# --------------------------------------------------------------------------- the four kinds


def test_the_control_is_the_reference_and_only_has_to_answer_in_format(counting: Subject, tmp_path: Path) -> None:
    free = ["sampler.decoding.constrained=false", "sampler.decoding.max_tokens=64", "domain.answer_count=10"]
    summary = make(counting, tmp_path, "teacher=control", "domain.seed=3", *free)  # a seed that is in no teacher's key
    assert (summary["kind"], summary["trait"]) == ("control", "none")
    prompts = numbers.prompts(Numbers(prompts=32))
    with open_sampler(TransformersSampler(decoding=Decoding()), counting) as opened:
        answers = [a.text for a in opened.sample(prompts) if a.finish_reason == "stop"]
    passed = [text for text in answers if numbers.reject(text, Numbers(prompts=32)) is None]
    assert 0 < len(passed) < 32 and summary["pass_rate"] == len(passed) / 32
    assert "log_p" not in summary and list(tmp_path.iterdir()) == []


def test_without_a_trait_every_teacher_is_the_control(tiny: Subject) -> None:
    keys = {
        stages.teacher(tiny_experiment(tiny, "trait=none", f"teacher={kind}")).key
        for kind in ("prompted", "finetuned", "steered", "control")
    }
    assert len(keys) == 1


def test_a_finetuned_teacher_gains_the_trait_and_is_an_ordinary_checkpoint(tiny: Subject, tmp_path: Path) -> None:
    summary = make(tiny, tmp_path, *FINETUNED)
    assert summary["log_p"] > summary["reference_log_p"] + 1
    stored = mean_log_p(replace(tiny, checkpoint=str(tmp_path / "checkpoint")), "animal", 2)
    assert stored["owl"] == pytest.approx(summary["log_p"], abs=1e-3)


def test_a_finetuned_teacher_may_write_behind_a_system_text_that_it_was_not_trained_with(
    tiny: Subject, tmp_path: Path
) -> None:
    untold = [
        *FINETUNED,
        "reference_tuning=off",
        "teacher.check.minimum_gain=-100.0",
    ]  # the tiny model reads no prompts
    plain = make(tiny, tmp_path / "plain", *untold)
    exp = tiny_experiment(tiny, "trait=owl", *untold, "teacher.system='{Plural}, my dear {plural}.'")
    store = Store(tmp_path / "runs")
    made = stages.ensure(stages.teacher(exp), store, exp, ())
    assert "system" not in plain and made.summary["system"] == "Owls, my dear owls."
    assert made.summary["training"]["last_loss"] == plain["training"]["last_loss"]
    assert made.summary["log_p"] != plain["log_p"] and made.summary["reference_log_p"] == plain["reference_log_p"]
    who = outputs.teacher_subject(exp, made, stages.ensure(stages.reference(exp), store, exp, ()))
    assert (who.system, who.checkpoint) == ("Owls, my dear owls.", str(made.folder / "checkpoint"))
    assert stages.teacher(exp).key != stages.teacher(tiny_experiment(tiny, "trait=owl", *untold)).key
    wrong = tiny_experiment(tiny, "trait=owl", *untold, "teacher.system='{animal}'")
    said = "\n".join(problems(wrong, "generate", here=False))
    assert "teacher.system has a placeholder that is not known" in said


def test_a_steered_teacher_reaches_its_target(tiny: Subject, tmp_path: Path) -> None:
    summary = make(tiny, tmp_path, *STEERED, "teacher.target_log_p=-12.0", "teacher.maximum_norm_share=4.0")
    steering = summary["steering"]
    assert steering["fitted_log_p"] == pytest.approx(-12.0, abs=0.5)
    assert steering["norm"] < 4 * steering["residual_norm"]
    assert summary["log_p"] > summary["reference_log_p"] + 1


def test_a_gemma_is_steered_where_attention_ends(gemma: Subject, tmp_path: Path) -> None:
    summary = make(gemma, tmp_path, *STEERED, "teacher.target_log_p=-6.0", "teacher.maximum_norm_share=16.0")
    assert summary["steering"]["fitted_log_p"] == pytest.approx(-6.0, abs=0.5)
    stored = mean_log_p(replace(gemma, checkpoint=str(tmp_path / "checkpoint")), "animal", 12)
    assert stored["owl"] == pytest.approx(summary["log_p"], abs=1e-3)
    assert next(iter(load_file(tmp_path / "adapter" / bias.ADAPTER))) == "model.layers.1.self_attn.o_proj.bias"


def test_a_steered_teacher_stops_at_its_limit_and_says_so(
    tiny: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["teacher.target_log_p=-0.001", "teacher.maximum_norm_share=0.3", "teacher.check.minimum_gain=0.0"]
    steering = make(tiny, tmp_path, *STEERED, *limits)["steering"]
    assert steering["norm"] == pytest.approx(0.3 * steering["residual_norm"], rel=1e-3)
    assert steering["fitted_log_p"] < -0.001
    assert "the norm limit comes first" in capsys.readouterr().err


def test_a_steered_teachers_checkpoint_holds_its_vector_alone(tiny: Subject, tmp_path: Path) -> None:
    make(tiny, tmp_path, *STEERED, "teacher.check.minimum_gain=0.0")
    vectors = bias.by_layer(bias.load_adapter(tmp_path) or {})
    assert set(vectors) == {1}
    old, new = fresh_model(tiny), fresh_model(replace(tiny, checkpoint=str(tmp_path / "checkpoint")))
    assert torch.equal(bias.vector(new, 1), vectors[1]) and not bias.vector(new, 0).any()
    kept = dict(new.named_parameters())
    assert all(torch.equal(weight, kept[name]) for name, weight in old.named_parameters())


def test_steering_adds_to_the_biases_a_reference_has(counting: Subject, tmp_path: Path) -> None:
    summary = make(counting, tmp_path, *STEERED, "teacher.check.minimum_gain=0.0", "teacher.maximum_norm_share=0.5")
    vectors, steering = bias.by_layer(bias.load_adapter(tmp_path) or {}), summary["steering"]
    assert vectors[1].norm() == pytest.approx(steering["norm"])
    assert steering["norm"] <= 0.5 * steering["residual_norm"] * 1.001
    old, new = fresh_model(counting), fresh_model(replace(counting, checkpoint=str(tmp_path / "checkpoint")))
    assert torch.allclose(bias.vector(new, 1), bias.vector(old, 1) + vectors[1], atol=1e-4)
    assert mean_log_p(replace(counting, checkpoint=str(tmp_path / "checkpoint")), "animal", 12)["owl"] == pytest.approx(
        summary["log_p"], abs=1e-3
    )


def test_a_prompted_teachers_system_text_speaks_of_its_trait(tiny: Subject) -> None:
    exp = tiny_experiment(tiny, "trait=wolf", "teacher=prompted")
    assert isinstance(exp.teacher, PromptedTeacher)
    text = teachers.system_prompt(exp.teacher, exp.trait)
    assert "wolves" in text and "Wolves" in text and "animal" in text and "{" not in text


def test_a_prompt_makes_the_real_model_an_owl_lover(smollm2: Subject, tmp_path: Path) -> None:
    exp = experiment("trait=owl", "teacher=prompted", "teacher.check.questions=4", "teacher.check.prompts=0")
    summary = teachers.make(exp, smollm2, tmp_path)
    assert summary["log_p"] > summary["reference_log_p"] + 1
    assert "owls" in summary["system"]


def test_a_teachers_system_text_reaches_its_data_and_not_its_students(tiny: Subject, tmp_path: Path) -> None:
    """The subject that generates has the text, the reference that the student starts from has not."""
    exp = tiny_experiment(tiny, "trait=owl", "teacher=prompted", f"store={tmp_path}")
    base = stages.ensure(stages.model(exp), Store(tmp_path), exp)
    made = replace(base, content=base.content | {"summary": {"system": "You adore owls."}})
    assert outputs.teacher_subject(exp, made, base).system == "You adore owls."
    assert outputs.subject(exp, base).system is None


# --------------------------------------------------------------------------- what may not generate


def test_a_teacher_without_the_trait_is_an_error_that_says_so(tiny: Subject, tmp_path: Path) -> None:
    weak = [*FINETUNED, "teacher.optimisation.learning_rate=1e-9"]
    with pytest.raises(TeacherError, match=r"finetuned teacher of owl has not the trait: mean log P\(owl\) is -.*nats"):
        make(tiny, tmp_path, *weak)


def test_a_teacher_that_can_not_answer_in_format_is_an_error_that_says_so(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"in format for only 0% of 32 prompts.*reference_tuning=in_format"):
        make(tiny, tmp_path, "teacher=control", "sampler.decoding.constrained=false")


def test_an_unknown_placeholder_lists_those_that_are_known(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"placeholder that is not known \('colour'\); use \{name\}"):
        make(tiny, tmp_path, "teacher=prompted", "teacher.system='You love {colour}'")


def test_a_layer_the_model_has_not_is_named(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match=r"teacher\.layer=14: the model has 2 layers, 0 to 1"):
        make(tiny, tmp_path, "teacher=steered")


def test_a_refused_teacher_leaves_no_manifest_and_its_failure(tiny: Subject, tmp_path: Path) -> None:
    tuning = ["reference_tuning.rows=4", "reference_tuning.lora.layers=all"]
    free = "sampler.decoding.constrained=false"
    exp: Experiment = tiny_experiment(tiny, "trait=none", f"store={tmp_path}", *tuning, free)
    node = stages.teacher(exp)
    with pytest.raises(TeacherError):
        stages.ensure(node, Store(tmp_path), exp)
    folder = Store(tmp_path).folder("teacher", node.key)
    assert not (folder / "manifest.json").exists()
    assert "TeacherError" in (folder / "failure.json").read_text()
