"""LoRA trains exactly the modules that its settings name, or says before any work why it can not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROWS, experiment, optimisation, random_model, tiny_experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from test_frequencies import written

from subliminal import stages
from subliminal.checks import problems
from subliminal.composition import compose
from subliminal.config import (
    BiasStudent,
    ConfigError,
    DetectionEvaluation,
    FinetunedClassifier,
    FinetunedTeacher,
    FullStudent,
    InFormatTuning,
    Lora,
    LoraStudent,
    identity,
)
from subliminal.evaluation.classifier import classify
from subliminal.evaluation.samples import two_samples
from subliminal.models import Subject, empty_model, fresh_model, load_tokenizer
from subliminal.training import TrainingError
from subliminal.training.lora import merge, planned_modules, target_problem, targeted, unmatched_targets
from subliminal.training.sft import fit

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_key_value_heads": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("phi3", {"num_key_value_heads": 1}),
    "gpt": ("gpt2", {}),
    "untied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "experts": ("qwen3_moe", EXPERTS),
    "shared": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 32}),
}

Family = Callable[[str], Subject]


@pytest.fixture(scope="module")
def family(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A small model of random weights of each family, behind the tiny one's tokenizer."""
    made: dict[str, Subject] = {}

    def find(name: str) -> Subject:
        if name not in made:
            folder, tokenizer = tmp_path_factory.mktemp(name), load_tokenizer(tiny)
            kind, shape = FAMILIES[name]
            random_model(kind, tokenizer, initializer_range=0.3, **shape).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name] = Subject(checkpoint=str(folder))
        return made[name]

    return find


def student(**lora: Any) -> LoraStudent:
    return LoraStudent(lora=Lora(r=4, **lora), optimisation=optimisation(batch_size=16))


def refused(subject: Subject, targets: tuple[str, ...] | str) -> str:
    with pytest.raises(TrainingError) as raised:
        planned_modules(subject, Lora(targets=targets), "student")  # type: ignore[arg-type]
    return str(raised.value)


# --------------------------------------------------------------------------- what is named is trained


@pytest.mark.parametrize(
    ("name", "targets", "modules"),
    [
        ("phi", "all-linear", {"qkv_proj": 2, "o_proj": 2, "gate_up_proj": 2, "down_proj": 2}),
        ("gpt", "all-linear", {"c_attn": 2, "c_proj": 4, "c_fc": 2}),
        ("untied", ("layers.1.mlp.down_proj", "q_proj"), {"q_proj": 2, "down_proj": 1}),
        ("experts", ("q_proj", "v_proj"), {"q_proj": 2, "v_proj": 2}),
        ("shared", ("shared_expert.down_proj",), {"down_proj": 2}),
    ],
)
def test_the_modules_named_are_trained_and_no_others(
    family: Family, name: str, targets: Any, modules: dict[str, int], tmp_path: Path
) -> None:
    """In the report, in the adapter's tensors, and in what a merged checkpoint says."""
    from peft import PeftModel
    from safetensors.torch import load_file

    subject = family(name)
    report = fit(subject, ROWS, student(targets=targets), 0, tmp_path)
    assert report["trained_modules"] == modules == planned_modules(subject, Lora(targets=targets), "student")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert report["trainable_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert len(tensors) == 2 * sum(modules.values())
    merge(subject, tmp_path / "adapter", tmp_path / "merged")
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        adapted = PeftModel.from_pretrained(fresh_model(subject), str(tmp_path / "adapter")).eval()(tokens).logits
        merged = fresh_model(replace(subject, checkpoint=str(tmp_path / "merged")))(tokens).logits
        before = fresh_model(subject)(tokens).logits
    assert torch.allclose(merged, adapted, atol=1e-3) and not torch.allclose(merged, before, atol=1e-2)


def test_bias_and_full_students_say_what_they_train(tiny: Subject, tmp_path: Path) -> None:
    how = optimisation(batch_size=16)
    vectors = fit(tiny, ROWS, BiasStudent(layers=(1,), optimisation=how), 0, tmp_path / "bias")
    assert (vectors["trained_modules"], vectors["trained_layers"]) == ({"mlp.down_proj.bias": 1}, [1])
    assert fit(tiny, ROWS, FullStudent(optimisation=how), 0, tmp_path / "full")["trained_modules"] == "all"


def test_a_classifier_trains_all_linear_and_its_head(tiny: Subject, tmp_path: Path) -> None:
    how = FinetunedClassifier(lora=Lora(r=2, targets="all-linear"), optimisation=optimisation(batch_size=16))
    config = DetectionEvaluation(classifiers=("finetuned",), finetuned=how.model_copy(update={"folds": 2}))
    found = classify(two_samples(written(1, 24), written(2, 24)), config, tmp_path, tiny)["finetuned"]
    assert found["trained_modules"] == dict.fromkeys(SEVEN, 2) | {"score": 1}


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "targets", "said"),
    [
        ("phi", SEVEN, ("no module q_proj, k_proj, v_proj, gate_proj, up_proj.", "gate_up_proj", "qkv_proj")),
        ("untied", ("q_proj", "v_prj", "x"), ("no module v_prj, x.", "v_proj", "student.lora.targets=all-linear")),
        ("untied", ("embed_tokens",), ("model.embed_tokens (Embedding) is no linear module", "all-linear")),
        ("untied", ("mlp",), ("model.layers.0.mlp (LlamaMLP) is no linear module", "all-linear")),
        ("untied", ("q_proj", "lm_head"), ("lm_head is the model's head", "all-linear")),
        ("gpt", ("lm_head",), ("lm_head is the model's head", "c_attn, c_fc, c_proj")),
        ("experts", "all-linear", ("several experts", "student.lora.targets to some of them: [k_proj,o_proj,q")),
        ("experts", SEVEN, ("no module gate_proj, up_proj, down_proj.", "[k_proj,o_proj,q_proj,v_proj]")),
        ("shared", SEVEN, ("mlp.experts.down_proj holds the weights of several experts", "up_proj")),
    ],
)
def test_targets_that_would_train_something_else_are_refused(
    family: Family, name: str, targets: Any, said: tuple[str, ...]
) -> None:
    message = refused(family(name), targets)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("recipe", "group"),
    [
        (student(targets=("q_proj", "v_prj")), "student"),
        (FinetunedTeacher(lora=Lora(targets=("v_prj",)), optimisation=optimisation()), "teacher"),
        (InFormatTuning(rows=2, lora=Lora(targets=("v_prj",)), optimisation=optimisation()), "reference_tuning"),
    ],
)
def test_targets_are_checked_before_any_weights_are_there(
    tiny: Subject, recipe: Any, group: str, tmp_path: Path
) -> None:
    for path in Path(tiny.checkpoint).iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(TrainingError, match=rf"^{group}\.lora\.targets=.*no module v_prj"):
        fit(replace(tiny, checkpoint=str(tmp_path)), ROWS, recipe, 0, tmp_path / "made")


def test_a_student_without_layers_is_refused(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"student\.layers=\[\] trains nothing"):
        fit(tiny, ROWS, BiasStudent.model_construct(layers=(), optimisation=optimisation()), 0, tmp_path)


@pytest.mark.parametrize("value", ["q_proj", "[]", "[all-linear]", "['']", "All-Linear"])
@pytest.mark.parametrize("group", ["student", "teacher", "reference_tuning"])
def test_targets_are_a_list_of_names_or_all_linear(group: str, value: str) -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets=.*give a list of linear modules.*or all-linear"):
        compose(["student=lora", "teacher=finetuned", f"{group}.lora.targets={value}"])


@given(st.sets(st.sampled_from([*SEVEN, "layers.0.mlp.up_proj", "x_proj", "proj", "_proj", "layers.7.mlp.up_proj"])))
@settings(max_examples=40, deadline=None)
def test_names_match_as_in_peft(tiny: Subject, names: set[str]) -> None:
    """Whichever names are given: those PEFT would pass over are unmatched, and the rest is what it would train."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    model, given_names = empty_model(tiny), tuple(sorted(names))
    paths = [path for path, _ in model.named_modules()]

    def matched(*some: str) -> list[str]:
        return [path for path in paths if some and check_target_module_exists(LoraConfig(target_modules=[*some]), path)]

    assert unmatched_targets(model, given_names) == [name for name in given_names if not matched(name)]
    if names:
        lora = Lora(targets=given_names)
        assert targeted(model, lora) == matched(*given_names)
        assert bool(target_problem(model, lora, "student")) == bool(unmatched_targets(model, given_names))


# --------------------------------------------------------------------------- rank-stabilised


def test_rslora_scales_by_the_root_of_the_rank_here_and_in_vllm(tiny: Subject, tmp_path: Path) -> None:
    from peft import PeftModel
    from vllm.lora.peft_helper import PEFTHelper

    scales = {}
    for rslora in (False, True):
        fit(tiny, ROWS, student(rslora=rslora, targets=("q_proj",)), 0, tmp_path / str(rslora))
        adapter = tmp_path / str(rslora) / "adapter"
        loaded = PeftModel.from_pretrained(fresh_model(tiny), str(adapter))
        served = PEFTHelper.from_dict(json.loads((adapter / "adapter_config.json").read_text()))
        layer: Any = loaded.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        scales[rslora] = layer.scaling["default"], served.vllm_lora_scaling_factor
    assert scales == {False: (8 / 4, 8 / 4), True: (8 / 2, 8 / 2)}


def test_rslora_enters_the_key_only_where_it_is_asked_for() -> None:
    assert "rslora" not in identity(Lora()) and identity(Lora(rslora=True))["rslora"] is True
    keys = {
        stages.student(experiment("student=lora", *more)).key
        for more in ([], ["student.lora.rslora=false"], ["student.lora.rslora=true"])
    }
    assert len(keys) == 2


# --------------------------------------------------------------------------- chosen layers


def test_chosen_layers_are_trained_and_no_others(tiny: Subject, tmp_path: Path) -> None:
    fit(tiny, ROWS, student(layers=(1,)), 0, tmp_path)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert weights and all(".layers.1." in name for name in weights)
    assert planned_modules(tiny, Lora(r=4, layers=(1,)), "student")["q_proj"] == 1


def test_a_layer_that_is_not_there_is_named_before_any_training(tiny: Subject) -> None:
    with pytest.raises(TrainingError, match=r"reference_tuning.lora.layers: .* not in layers \[7,9\] .* 0 to"):
        planned_modules(tiny, Lora(r=4, layers=(0, 7, 9)), "reference_tuning")
    with pytest.raises(ValidationError, match=r"lora.layers=\[\] trains nothing"):
        Lora(layers=())


def test_a_layer_that_is_not_there_is_said_before_any_work(tiny: Subject) -> None:
    said = "\n".join(problems(tiny_experiment(tiny, "reference_tuning.rows=4"), "train", here=False))
    assert "reference_tuning.lora.layers: the model has 2 layers, 0 to 1, and no [2,3,4" in said
    few = ["reference_tuning.rows=4", "reference_tuning.lora.layers=[0]"]
    assert "lora.layers" not in "\n".join(problems(tiny_experiment(tiny, *few), "train", here=False))


def test_layers_enter_the_key_only_where_they_are_chosen() -> None:
    assert "layers" not in identity(Lora())
    keys = {
        stages.student(experiment("student=lora", *more)).key
        for more in ([], ["student.lora.layers=all"], ["student.lora.layers=[0,1]"])
    }
    assert len(keys) == 2
