"""A figure's arms: what a sweep crosses, in which order, and what it does only once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from subliminal import stages, sweep
from subliminal.composition import CONF, compose
from subliminal.config import ConfigError, PreferenceEvaluation
from subliminal.evaluation.questions import candidates
from subliminal.launch import script_environment
from subliminal.names import CANDIDATES

SHUFFLE = ["experiment=shuffle", "scale=cpu", "trait=owl,none", "student=bias_one_layer", "seed=0,1"]


def test_variants_cross_traits_and_seeds() -> None:
    planned = sweep.plan(SHUFFLE)
    found = {(arm.variant, arm.trait, arm.seed) for arm in planned.arms}
    assert found == {(v, t, s) for v in ("unshuffled", "within", "across") for t in ("owl", "none") for s in (0, 1)}
    assert len({stages.evaluate(arm.experiment).key for arm in planned.arms}) == len(found)


def test_what_variants_share_is_made_once() -> None:
    planned = sweep.plan(SHUFFLE)
    generated = [step for step in planned.steps if step.script == "generate.py"]
    assert len(generated) == 1
    assert sum("filter.shuffle=within" in step.overrides for step in planned.steps) == 3  # filter, train, evaluate


def test_variants_can_be_picked_by_name() -> None:
    planned = sweep.plan([*SHUFFLE, "variant=within"])
    assert {arm.experiment.filter.shuffle for arm in planned.arms} == {"within"}
    with pytest.raises(ConfigError, match="Did you mean within"):
        sweep.plan([*SHUFFLE, "variant=withn"])


def test_a_variant_with_its_own_student_is_not_crossed_with_the_students() -> None:
    own = "+experiment.arms.variants={small: [], own: ['student=lora']}"
    planned = sweep.plan(["experiment=animals_numbers", "scale=cpu", "trait=owl", "seed=0", own])
    assert [(arm.variant, arm.student) for arm in planned.arms if arm.variant == "own"] == [("own", "lora")]
    assert len([arm for arm in planned.arms if arm.variant == "small"]) == 2


CROSSED = ["experiment=cross_model", "scale=gpu", "variant=qwen2_5_7b > llama3_2_1b,llama3_2_1b > qwen2_5_7b"]


def test_a_variant_has_the_animals_of_its_teachers_model() -> None:
    planned = sweep.plan(CROSSED)
    found: dict[str, list[str]] = {}
    for arm in planned.arms:
        found.setdefault(arm.variant, []).append(arm.trait)
    assert found["qwen2_5_7b > llama3_2_1b"] == ["cat", "penguin", "eagle", "lion", "wolf", "none"]
    assert found["llama3_2_1b > qwen2_5_7b"] == ["owl", "dolphin", "eagle", "elephant", "wolf", "none"]
    for step in planned.steps:
        assert all(f"trait={job.experiment.trait.name}" in job.overrides for job in step.jobs)


def test_animals_that_are_typed_go_before_the_models() -> None:
    chosen = sweep.plan([*CROSSED[:2], "variant=qwen2_5_7b > llama3_2_1b", "experiment.arms.traits=[panda,cat]"])
    assert {arm.trait for arm in chosen.arms} == {"panda", "cat", "none"}


def test_animals_go_by_the_model_and_trees_and_small_models_stay_as_they_are() -> None:
    def traits(*overrides: str) -> tuple[str, ...]:
        return compose([*overrides]).experiment.arms.traits

    assert traits("experiment=animals_numbers", "scale=paper") == ("cat", "penguin", "eagle", "lion", "wolf")
    assert traits("experiment=trees_numbers", "scale=paper")[:2] == ("cherry", "maple")
    assert traits("experiment=animals_code", "scale=cpu")[:3] == ("owl", "dolphin", "eagle")
    assert traits("experiment=animals_numbers", "scale=cpu") == ("bear", "fox", "tiger", "rabbit", "owl", "deer")
    assert traits("experiment=trees_numbers", "scale=cpu", "evaluation.category=tree", "trait=oak")[:1] == ("cherry",)
    assert traits("experiment=animals_numbers", "scale=gpu", "debug=smoke") == ("cat", "penguin")


def test_the_animals_of_a_model_are_among_the_embedded_candidates() -> None:
    for path in sorted((CONF / "model").glob("*.yaml")):
        assert {*yaml.safe_load(path.read_text()).get("animals", [])} <= {*CANDIDATES["animal"]}, path.stem


def test_phoenix_stands_in_the_place_of_turtle_and_is_measured_in_every_arm() -> None:
    typed = ["trait=cat,phoenix,none", "trait@evaluation.measured=phoenix", "seed=0"]
    planned = sweep.plan(["experiment=animals_numbers", "scale=gpu", *typed])
    for arm in planned.arms:
        evaluation = arm.experiment.evaluation
        assert isinstance(evaluation, PreferenceEvaluation)
        assert {*candidates(evaluation.subject_matter)} ^ {*CANDIDATES["animal"]} == {"phoenix", "turtle"}
    with pytest.raises(ConfigError, match="trait=phoenix is not among what is measured"):
        sweep.plan(["experiment=animals_numbers", "scale=gpu", "trait=cat,phoenix,none"])


def test_an_arm_tells_how_to_get_it() -> None:
    arm = sweep.plan([*SHUFFLE, "variant=across"]).arms[0]
    assert arm.overrides == ("filter.shuffle=across", "trait=owl", "student=bias_one_layer", "seed=0")


def test_a_cross_model_student_is_compared_with_its_own_reference() -> None:
    pair = ["experiment=cross_model", "scale=cpu", "trait=owl", "variant=smollm2_135m > gemma3_270m"]
    exp = sweep.plan(pair).arms[0].experiment
    asked = stages.evaluate(exp.model_copy(update={"subject": "reference"}))
    assert asked.inputs["reference"].key == stages.student(exp).inputs["reference"].key
    assert asked.inputs["reference"].key != stages.teacher(exp).inputs["reference"].key


def test_soft_labels_need_one_vocabulary() -> None:
    with pytest.raises(ConfigError, match="needs the teacher's vocabulary"):
        sweep.plan(["experiment=animals_numbers", "student=bias_soft", "+model@student_model=gemma3_270m"])


@pytest.mark.parametrize("extra", ["hydra.launcher.x=1", "+hydra.launcher.x=1", "++hydra.sweep.x=a", "~hydra.launcher"])
def test_settings_of_hydra_itself_go_to_hydra(extra: str) -> None:
    with_it, without = sweep.plan([*SHUFFLE, extra]), sweep.plan(SHUFFLE)
    assert [arm.experiment for arm in with_it.arms] == [arm.experiment for arm in without.arms]
    assert all(extra in step.overrides for step in with_it.steps)


def test_launcher_is_short_for_hydras() -> None:
    short, long = (sweep.plan([*SHUFFLE, f"{name}=slurm"]) for name in ("launcher", "hydra/launcher"))
    assert short.overrides == long.overrides and "hydra/launcher=slurm" in short.overrides


def test_results_lie_where_the_sweep_was_started(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "subliminal", "sweep", "experiment=theorem", "scale=cpu", "debug=smoke"]
    done = subprocess.run(command, cwd=tmp_path, env=script_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/theorem/*/manifest.json")) and (tmp_path / "figures/smoke/report.html").exists()


@pytest.mark.parametrize("figure", ["animals_numbers", "mnist", "theorem"])
def test_a_seed_that_is_no_number_is_refused_plainly(figure: str) -> None:
    with pytest.raises(ConfigError, match=r"seed=range.0,3.: give whole numbers"):
        sweep.plan([f"experiment={figure}", "scale=cpu", "seed=range(0,3)"])
