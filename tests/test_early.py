"""What is known before any work is refused before any work: exit 2, one message with every problem, nothing stored."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import Script, random_model
from hypothesis import given
from hypothesis import strategies as st
from local_servers import Json, serving
from safetensors.numpy import save_file

from subliminal import checkpoints, checks, composition, errors, launch, machine, stages, sweep, weights
from subliminal.checkpoints import problems_of, read_checkpoint, read_gguf
from subliminal.composition import compose, compose_plain
from subliminal.config import ConfigError, Experiment
from subliminal.models import Subject, load_tokenizer
from subliminal.store import Store

CPU = ["scale=cpu"]
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "max_position_embeddings": 1024,
}
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "{{ messages }}"}
SMALL = {"config.json": LLAMA, "tokenizer_config.json": TOKENIZER, "tokenizer.json": {}}


def folder(path: Path, files: dict[str, Any], weights: tuple[str, ...] = ("model.safetensors",)) -> Path:
    """A model's folder with these JSON files, texts or bytes, and tiny weights."""
    import numpy as np

    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (path / name).write_bytes(raw)
    for name in weights:
        save_file({"w": np.zeros(4, dtype=np.float32)}, path / name)
    return path


@cache
def composed(overrides: tuple[str, ...]) -> str:
    """A composed configuration as JSON: composing takes longer than all that is tested here."""
    return json.dumps(compose_plain(list(overrides)))


def refused(stage: str, overrides: list[str], store: Path, capsys: pytest.CaptureFixture[str], model: str = "") -> str:
    """What a script says of a configuration that it refuses, with PLACE for `model`; nothing may be stored."""
    plain = json.loads(composed((*CPU, *overrides)).replace("PLACE", model))
    with pytest.raises(SystemExit) as ended:
        launch.run_stage(stage, plain | {"store": str(store)})
    text = capsys.readouterr().err
    assert ended.value.code == errors.BAD_CONFIG, text
    assert not store.exists(), sorted(store.rglob("*"))
    return text


COUNTS = [
    ("evaluate", ["evaluation.questions=51"], "evaluation.questions=51: there are 50 questions"),
    ("train", ["evaluation.questions=51"], "evaluation.questions=51: there are 50 questions"),
    (
        "evaluate",
        ["evaluation=in_context", "subject=rows", "evaluation.questions=51"],
        "evaluation.questions=51: there are 50",
    ),
    (
        "evaluate",
        ["evaluation=in_context", "subject=rows", "evaluation.counts=[0,401]"],
        "evaluation.counts=[0, 401]: the filter leaves at most 400 rows",
    ),
    (
        "evaluate",
        ["evaluation=in_context", "subject=rows", "evaluation.counts=[101]", "filter.select={by: random, share: 0.25}"],
        "the filter leaves at most 100 rows",
    ),
    ("evaluate", ["evaluation=stories", "evaluation.questions=15"], "evaluation.questions=15: there are 14 story"),
    ("evaluate", ["evaluation=multiple_choice", "evaluation.questions=12"], "there are 11 multiple-choice prompts"),
    ("evaluate", ["evaluation=multiple_choice", "evaluation.options=[owl,stone]"], "['stone'] is no animal"),
    ("evaluate", ["evaluation=multiple_choice", "evaluation.options=[wolf,cat]"], "trait=owl is not among the options"),
    (
        "train",
        ["experiment=style_numbers", "trait=pirate", "evaluation.questions=9"],
        "evaluation.questions=9: pirate has 8 questions",
    ),
    (
        "train",
        ["experiment=misalignment_numbers", "evaluation.questions=9", "judge=local"],
        "evaluation.questions=9: insecure has 8",
    ),
    ("evaluate", ["evaluation=frequencies", "subject=rows", "filter.rows=19"], "20 are needed at least"),
    (
        "evaluate",
        ["evaluation=detection", "subject=rows", "filter.rows=39", "trait@evaluation.against=owl"],
        "40 are needed at least",
    ),
    ("evaluate", ["evaluation=attribution", "subject=rows", "teacher=control"], "the control is the reference itself"),
    (
        "evaluate",
        ["trait@evaluation.measured=teal", "trait=teal", "evaluation.questions=51"],
        "evaluation.questions=51",
    ),
    ("generate", ["teacher.questions=51"], "teacher.questions=51: there are 50 questions"),
    ("train", ["teacher=finetuned", "teacher.questions=51", "role=teacher"], "teacher.questions=51: there are 50"),
    ("train", ["teacher=finetuned", "teacher.forms=11"], "teacher.forms=11: a name has 10 forms at most"),
    ("generate", ["teacher.check.questions=51"], "teacher.check.questions=51: there are 50 questions"),
    ("generate", ["teacher=prompted", "teacher.check.questions=51"], "teacher.check.questions=51: there are 50"),
    (
        "generate",
        ["trait=pirate", "evaluation=free_form", "trait@evaluation.measured=pirate", "teacher.questions=17"],
        "teacher.questions=17: there are 16 examples of pirate",
    ),
    ("generate", ["domain=code", "domain.prompts=1000000"], "lower domain.prompts or give more tasks"),
    ("generate", ["domain=code", "reference_tuning.rows=1000000"], "reference_tuning.rows=1000000:"),
    ("filter", ["filter.rows=411"], "filter.rows=411 is more than domain.prompts=410"),
]

TRAITS = [
    ("generate", ["trait=oak"], "evaluation.category=animal but trait=oak is a tree; set evaluation.category=tree"),
    ("generate", ["trait=insecure"], "teacher=steered has nothing to fit trait=insecure to"),
    ("generate", ["trait=insecure", "teacher=prompted"], "teacher=prompted has no words for trait=insecure"),
    ("generate", ["trait=insecure", "teacher=finetuned"], "trait=insecure has no examples for teacher=finetuned"),
    (
        "generate",
        ["trait=teal", "trait@evaluation.measured=teal", "evaluation.questions=1000"],
        "evaluation.questions=1000: there are",
    ),
    ("generate", ["teacher=prompted", "teacher.system='{foo}'"], "a placeholder that is not known ('foo'); use {name}"),
    ("generate", ["teacher=prompted", "teacher.system='{'"], "a placeholder that is not known"),
    ("generate", ["teacher=prompted", "teacher.system='{name.age}'"], "a placeholder that is not known"),
    ("generate", ["teacher=prompted", "teacher.system='{name[x]}'"], "a placeholder that is not known"),
    ("generate", ["experiment.arms.seeds=[-1]"], "experiment.arms.seeds"),
    ("train", ["experiment=mnist", "mnist.data_dir=/no/such"], "mnist.data_dir=/no/such: no such folder"),
    (
        "train",
        ["experiment=mnist", "mnist.student.inputs=digits", "mnist.student.images=60001"],
        "mnist.student.images=60001",
    ),
    ("evaluate", ["experiment=theorem", "theory.run.dataset=mnist", "theory.run.examples=60001"], "mnist has 60000"),
]

LAYERS = [
    ("train", ["student.layers=[]"], "student.layers=[] trains nothing"),
    ("train", ["student.layers=[3,14,3]"], "student.layers=[3, 14, 3] names the same layer twice"),
    ("train", ["student.layers=[0,30,99]"], "student.layers=[30, 99]: the model has 30 layers, 0 to 29"),
    ("train", ["student.layers=[-1]"], "student.layers"),
    ("evaluate", ["student.layers=[30]"], "student.layers=[30]: the model has 30 layers, 0 to 29"),
    ("generate", ["teacher.layer=30"], "teacher.layer=30: the model has 30 layers, 0 to 29"),
    ("train", ["student=lora", "student.lora.targets=[]"], "student.lora.targets=(): give a list of linear modules"),
]

JUDGES = [
    ("filter", ["+filter/judged=no_reference", "~judge"], "asks a judge; set judge=local"),
    (
        "evaluate",
        ["experiment=misalignment_numbers", "teacher=prompted", "~judge"],
        "asks a judge; set judge=local",
    ),
    (
        "filter",
        ["+filter/judged=no_reference", "filter.judged.minimum_log_p=-0.1", "judge=api", "judge.top_logprobs=0"],
        "judge.top_logprobs=0 asks for none",
    ),
    (
        "filter",
        ["+filter/judged=no_reference", "judge=cached", "judge.path=/no/such"],
        "judge.path=/no/such: no such file",
    ),
    ("filter", ["+filter/judged=no_reference", "judge=api"], "judge=api: no API key for https://api.openai.com/v1"),
    ("generate", ["sampler=api", "teacher=prompted"], "sampler=api: no API key for https://api.openai.com/v1"),
    (
        "evaluate",
        ["evaluation=capability", "evaluation.folder=/no/such"],
        "evaluation.folder=/no/such holds no .yaml file",
    ),
]


@pytest.mark.parametrize(("stage", "overrides", "said"), [*COUNTS, *TRAITS, *LAYERS, *JUDGES])
def test_what_can_not_be_is_refused_before_any_work(
    stage: str,
    overrides: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert said in refused(stage, overrides, tmp_path / "runs", capsys)


def test_problems_of_all_kinds_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["evaluation.questions=51", "teacher.questions=52", "student.layers=[99]", "teacher.layer=30"]
    text = refused("evaluate", wrong, tmp_path / "runs", capsys)
    for said in ("evaluation.questions=51", "teacher.questions=52", "layers=[99]", "layer=30"):
        assert text.count(said) == 1, text


def test_a_stage_is_not_held_up_by_what_it_does_not_read() -> None:
    exp = compose([*CPU, "student.layers=[99]", "trait=insecure", "teacher.layer=99"])
    assert checks.problems(exp.model_copy(update={"role": "reference"}), "train", here=False) == []
    random = compose([*CPU, "teacher=random", "trait=insecure", "sampler=vllm"])
    assert checks.problems(random, "generate", here=True) == []


@pytest.mark.parametrize("figure", ["animals_numbers", "attribution_rows", "mnist"])
def test_a_sweep_refuses_every_arm_at_once(figure: str, tmp_path: Path) -> None:
    wrong = ["evaluation.category=tree"] if figure != "mnist" else ["mnist.data_dir=/no/such"]
    wrong += ["teacher.questions=51"] if figure != "mnist" else []
    with pytest.raises(ConfigError) as refusal:
        sweep.plan([f"experiment={figure}", *CPU, *wrong, f"store={tmp_path / 'runs'}"])
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(set(lines)) and not (tmp_path / "runs").exists()
    assert figure == "mnist" or "teacher.questions=51: there are 50 questions" in lines


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("experiment.arms.traits=[owl,owll]", "experiment.arms.traits: trait=owll: no such option. Did you mean owl?"),
        ("experiment.arms.students=[lorra]", "experiment.arms.students: student=lorra: no such option"),
        (
            "+experiment.arms.variants={a: ['filter.rowz=3']}",
            "experiment.arms.variants.a: filter.rowz: no such setting. Did you mean rows?",
        ),
        ("+experiment.arms.setting=sead", "experiment.arms.setting: sead: no such setting. Did you mean seed?"),
    ],
)
def test_an_arm_that_is_not_there_names_the_setting(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        sweep.plan([*CPU, override])
    assert said in str(refusal.value)


# --------------------------------------------------------------------------- models


def pointer(name: str) -> dict[str, Any]:
    return SMALL | {name: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}


def without(name: str) -> dict[str, Any]:
    return {other: content for other, content in SMALL.items() if other != name}


CUT = struct.pack("<Q", 60) + b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}     '
FOLDERS: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({}, (), "is empty; give a folder with config.json"),
    (
        {"adapter_config.json": {"base_model_name_or_path": "some/base"}, "adapter_model.safetensors": b""},
        (),
        "is a LoRA adapter of some/base (adapter_config.json), no model: merge it into its base model",
    ),
    (without("config.json"), ("model.safetensors",), "holds no config.json"),
    (SMALL | {"config.json": b"{"}, ("model.safetensors",), "config.json is no JSON object"),
    (SMALL | {"adapter_config.json": {}}, ("model.safetensors",), "is a LoRA adapter (adapter_config.json)"),
    (SMALL | {"pytorch_model.bin": b"PK"}, (), "holds no .safetensors file (it has pytorch_model.bin); convert"),
    (SMALL, (), "holds no .safetensors file"),
    (
        SMALL | {"model.safetensors.index.json": {"weight_map": {"w": "model-00002-of-00002.safetensors"}}},
        ("model-00001-of-00002.safetensors",),
        "lacks 1 of its weight files, model-00002-of-00002.safetensors",
    ),
    (pointer("model.safetensors"), (), "is a Git LFS pointer"),
    (SMALL | {"model.safetensors": b""}, (), "is cut off or no safetensors file"),
    (SMALL | {"model.safetensors": b"not weights at all"}, (), "is cut off or no safetensors file"),
    (SMALL | {"model.safetensors": CUT + bytes(15)}, (), "is cut off (83 of 84 bytes)"),
    (without("tokenizer.json"), ("model.safetensors",), "has no tokenizer"),
    (
        SMALL | {"tokenizer_config.json": {k: v for k, v in TOKENIZER.items() if k != "eos_token"}},
        ("model.safetensors",),
        "set eos_token",
    ),
    (
        SMALL | {"config.json": {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}},
        ("model.safetensors",),
        "is an encoder-decoder (T5ForConditionalGeneration)",
    ),
    (
        SMALL | {"config.json": {"architectures": ["BertForMaskedLM"]}},
        ("model.safetensors",),
        "is a BertForMaskedLM, which does not write text",
    ),
    (
        SMALL | {"config.json": {"architectures": ["ViTForImageClassification"]}},
        ("model.safetensors",),
        "does not write text",
    ),
    (
        SMALL | {"config.json": LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}}},
        ("model.safetensors",),
        "has quantised weights (gptq, ",
    ),
]


@pytest.mark.parametrize(("files", "weights", "said"), FOLDERS)
@pytest.mark.parametrize("setting", ["model", "student_model"])
def test_a_folder_that_is_no_usable_model(
    files: dict[str, Any],
    weights: tuple[str, ...],
    said: str,
    setting: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = folder(tmp_path / "model", files, weights)
    text = refused("train", [*chosen(setting), "student=lora"], tmp_path / "runs", capsys, str(place))
    assert said in text and f"{setting}.source.name: {place}" in text, text


def chosen(setting: str, place: str | Path = "PLACE") -> list[str]:
    """Overrides that choose a folder as the experiment's or the student's model."""
    if setting == "model":
        return ["model=hub", f"model.source.name={place}"]
    return ["student_model.name=other", "+model@student_model=hub", f"student_model.source.name={place}"]


@pytest.mark.parametrize("name", ["/no/such", "./no", "../no", "~/no/such/folder", "a/b/c", "some model"])
@pytest.mark.parametrize("setting", ["model", "student_model"])
def test_a_path_that_is_not_there_is_no_name_on_the_hub(
    name: str, setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused("train", chosen(setting), tmp_path / "runs", capsys, name)
    assert f"{setting}.source.name={name}: no such folder, and no name on the hub" in text


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    text = refused("train", chosen("model"), tmp_path / "runs", capsys, str(file))
    assert "this is a file; give the folder it is in" in text


MODELS: list[tuple[str, dict[str, Any], list[str], str]] = [
    ("train", {}, ["teacher=prompted", "student.layers=[30]"], "student.layers=[30]: the model has 30 layers"),
    ("generate", {}, ["teacher.layer=30"], "teacher.layer=30: the model has 30 layers"),
    (
        "train",
        {"config.json": {"architectures": ["XForConditionalGeneration"], "text_config": {"num_hidden_layers": 8}}},
        ["teacher=prompted", "student.layers=[8]"],
        "student.layers=[8]: the model has 8 layers",
    ),
    (
        "train",
        {"config.json": LLAMA | {"model_type": "mistral"}},
        ["teacher=prompted"],
        "is a mistral model; biases in",
    ),
    ("generate", {"config.json": LLAMA | {"model_type": "gemma2"}}, ["teacher.layer=0"], "Set teacher=finetuned"),
    (
        "train",
        {"config.json": LLAMA | {"model_type": "qwen2", "use_sliding_window": True}},
        ["teacher=prompted"],
        "is a qwen2 model; biases in",
    ),
    (
        "generate",
        {"tokenizer_config.json": {"eos_token": "x"}},
        ["teacher=prompted"],
        "model.source.name: this model has no chat template (a base model?); pin one in model.chat_template",
    ),
    (
        "generate",
        {},
        ["teacher=prompted", "sampler=vllm"],
        "sampler.max_model_len=2048: ",
    ),
    (
        "generate",
        {},
        ["teacher=prompted", "sampler=vllm", "sampler.max_model_len=512", "sampler.tensor_parallel=2"],
        "sampler.tensor_parallel=2 can not share out the 9 attention heads",
    ),
    (
        "generate",
        {},
        ["teacher=prompted", "sampler=vllm", "sampler.max_model_len=64", "sampler.decoding.max_tokens=64"],
        "sampler.decoding.max_tokens=64 leaves no room for a prompt",
    ),
]


@pytest.mark.parametrize(("stage", "files", "overrides", "said"), MODELS)
def test_what_a_model_has_not(
    stage: str,
    files: dict[str, Any],
    overrides: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = folder(tmp_path / "model", SMALL | files)
    assert said in refused(stage, [*chosen("model"), *overrides], tmp_path / "runs", capsys, str(place))


def test_a_judge_must_write(tmp_path: Path) -> None:
    bert = folder(tmp_path / "bert", SMALL | {"config.json": {"architectures": ["BertModel"]}})
    judged = ["+filter/judged=no_reference", "model@judge.model=hub", f"judge.model.source.name={bert}"]
    exp = compose([*CPU, *judged, f"store={tmp_path / 'runs'}"])
    (said,) = checks.problems(exp, "filter", here=False)
    assert said.startswith(f"judge.model.source.name: {bert} is a BertModel, which does not write text")


@pytest.mark.parametrize("family", ["tiny", "qwen", "gemma"])
def test_real_checkpoints_pass(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Folders as transformers writes them, and what it says of them itself."""
    from transformers import AutoConfig

    from subliminal.training import bias

    subject: Subject = request.getfixturevalue(family)
    place, config = Path(subject.checkpoint), AutoConfig.from_pretrained(subject.checkpoint)
    read = read_checkpoint(place)
    assert problems_of(place) == [] and read.template
    assert (read.layers, read.heads) == (config.num_hidden_layers, config.num_attention_heads)
    assert read.holds_vectors and bias.place(config)
    layers = ["teacher.layer=1", "student.layers=[1]", "reference_tuning.lora.layers=all"]
    exp = compose([*CPU, *chosen("model", place), *layers, f"store={tmp_path}"])
    assert checks.problems(exp, "evaluate", here=True) == []


def test_a_model_without_a_place_for_vectors_is_known_by_its_configuration(tiny: Subject, tmp_path: Path) -> None:
    from subliminal.training import bias

    model = random_model("gpt2", load_tokenizer(tiny), n_positions=128)
    model.save_pretrained(tmp_path)
    read = read_checkpoint(tmp_path)
    assert (read.layers, read.heads, read.context, read.holds_vectors) == (2, 2, 128, False)
    with pytest.raises(weights.ModelError, match="biases in the residual stream need"):
        bias.place(model.config)


def test_the_embedded_models_head_agrees_with_the_checkpoint_that_is_made_of_it(smollm2: Subject) -> None:
    source: Any = compose(CPU).model.source
    head, made = read_gguf(weights.gguf_head(source)), read_checkpoint(Path(smollm2.checkpoint))
    assert head.config and head.config.items() <= made.config.items()
    assert (head.layers, head.heads, head.context) == (made.layers, made.heads, made.context)
    assert head.holds_vectors and problems_of(Path(smollm2.checkpoint)) == []


@given(st.binary(max_size=200))
def test_any_file_is_a_gguf_head_or_an_empty_one(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "head.gguf"
    file.write_bytes(b"GGUF" + content)
    assert read_gguf(file).layers is None


def test_positions_that_are_scaled_set_no_limit() -> None:
    def context(**more: Any) -> int | None:
        return checkpoints.Checkpoint("m", LLAMA | more).context

    assert context() == context(rope_scaling={"rope_type": "llama3"}) == 1024
    assert context(rope_scaling={"rope_type": "yarn", "factor": 4.0}) is None
    assert context(text_config={"max_position_embeddings": 9}) == 9


class ConfigOnly(Json):
    """A hub that has nothing but a model's config.json, in `kept`, and answers any other request with 404."""

    def answer(self, asked: Any) -> None:
        self.server.seen.append((self.path, asked))
        known = self.path == "/some/model/resolve/main/config.json"
        self.reply(self.server.kept if known else {"error": "not here"}, 200 if known else 404)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LLAMA | {"num_hidden_layers": 4}, "student.layers=[14]: the model has 4 layers, 0 to 3"),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, "some/model has quantised weights (awq, "),
    ],
)
def test_a_model_on_the_hub_is_known_by_one_small_request(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    with serving(ConfigOnly) as hub:
        hub.kept |= config
        own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        arguments = ["train.py", *CPU, *chosen("model", "some/model"), "teacher=prompted"]
        arguments += [f"store={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'logs'}"]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=composition.ROOT,
            env=launch.script_environment() | own,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, len(hub.seen)) == (2, 1), done.stderr
    assert said in done.stderr and not (tmp_path / "runs").exists()


# --------------------------------------------------------------------------- this machine


def lacking(*overrides: str, stage: str = "evaluate", exp: Experiment | None = None) -> Iterator[str]:
    return iter(checks.problems(exp or compose([*CPU, "store=/no/such/store", *overrides]), stage, here=True))


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "why_no_gpu", lambda: "no GPU of this kind")
    assert "device=cuda: no GPU of this kind; set device=cpu or device=auto" in [*lacking("device=cuda")]
    assert not any("GPU" in problem for problem in lacking("device=cpu"))
    planned = checks.problems(compose([*CPU, "device=cuda"]), "evaluate", here=False)
    assert planned == [], "a sweep may be planned where it is not run"


def test_fewer_gpus_than_an_engine_asks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "0000:01:00.0").touch()
    monkeypatch.setattr(machine, "why_no_gpu", lambda: "")
    monkeypatch.setattr(machine, "GPUS", tmp_path)
    said = "\n".join(lacking("device=cuda", "sampler=vllm", "sampler.tensor_parallel=3", "teacher=prompted"))
    assert "sampler.tensor_parallel=3: this machine has 1 GPUs" in said


@pytest.mark.parametrize(
    ("package", "overrides", "said"),
    [
        ("vllm", ["sampler=vllm", "teacher=prompted"], "sampler=vllm, but vLLM is not installed"),
        (
            "openai",
            ["sampler=api", "teacher=prompted", "sampler.base_url=http://here/v1"],
            "sampler=api needs the openai",
        ),
        (
            "openai",
            ["+filter/judged=no_reference", "judge=api", "judge.base_url=http://here/v1"],
            "judge=api needs the",
        ),
        ("lm_eval", ["evaluation=capability"], "evaluation=capability: lm-eval is not installed"),
        ("wandb", ["tracking=offline"], "tracking=offline needs the wandb package"),
    ],
)
def test_a_package_that_is_not_installed(
    package: str, overrides: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import system itself is told that the package is not there."""
    assert not any(said in problem for problem in lacking(*overrides))
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(package), *sys.meta_path])
    assert any(said in problem for problem in lacking(*overrides))
    assert not any(said in problem for problem in lacking("evaluation.questions=3"))


class Absent:
    """A finder that hides one package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.package:
            raise ModuleNotFoundError(name)


def test_a_batch_that_can_not_be_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = "\n".join(lacking("student.optimisation.batch_size=8"))
    assert "student.optimisation.batch_size=8 can not be shared out evenly to 3 processes" in said
    assert "student=full only" in "\n".join(lacking("sharding=fsdp", "student=lora"))


@pytest.mark.parametrize(
    ("stage", "overrides", "refused"),
    [
        ("train", [], True),
        ("generate", ["reference_tuning=off"], False),
        ("generate", [], True),  # the reference is tuned first
        ("generate", ["reference_tuning=off", "teacher=finetuned"], True),
    ],
)
def test_training_in_float16_is_refused(stage: str, overrides: list[str], refused: bool, tmp_path: Path) -> None:
    exp = compose([*CPU, "model.dtype=float16", f"store={tmp_path}", *overrides])
    said = "\n".join(checks.problems(exp, stage, here=False))
    assert ("model.dtype=float16 can sample and be measured, but not trained" in said) == refused, said


def test_what_is_in_the_store_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are there are filtered on a machine without the sampler, the GPU or the model they came from."""
    exp = compose([*CPU, "teacher=random", "trait=none", "domain.prompts=20", "filter.rows=20", f"store={tmp_path}"])
    stages.ensure(stages.filtered(exp), Store(tmp_path), exp)
    monkeypatch.setattr(machine, "why_no_gpu", lambda: "there is none")
    assert checks.problems(exp.model_copy(update={"device": "cuda"}), "filter", here=True) == []


# --------------------------------------------------------------------------- through the scripts


@pytest.mark.parametrize(
    ("script", "overrides", "said"),
    [
        ("train.py", ["student.layers=[99]"], "student.layers=[99]: the model has 30 layers, 0 to 29"),
        ("evaluate.py", ["evaluation.questions=51"], "evaluation.questions=51: there are 50 questions"),
        ("generate.py", ["model=hub", "model.source.name=./nix"], "model.source.name=./nix: no such folder"),
        ("generate.py", ["trait=insecure"], "teacher=steered has nothing to fit trait=insecure to"),
    ],
)
def test_scripts_exit_2_without_a_traceback(
    run_script: Script, script: str, overrides: list[str], said: str, tmp_path: Path
) -> None:
    done = run_script(script, *CPU, *overrides, f"store={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'logs'}")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert said in done.stderr and not (tmp_path / "runs").exists()


def test_config_shows_the_experiment_and_says_what_is_wrong_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    from subliminal.__main__ import main

    main(["config", *CPU])
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as ended:
        main(["config", *CPU, "evaluation.questions=51"])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and "questions: 51" in shown.out and "there are 50 questions" in shown.err


# --------------------------------------------------------------------------- LoRA targets


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["student=lora_small", "student.lora.targets=[q_proj,v_prj]"],
            "student.lora.targets: the model has no module v_prj;",
        ),
        (
            ["teacher=finetuned", "teacher.lora.targets=[qkv_proj,down_proj,gate_up_proj]"],
            "teacher.lora.targets: the model has no module qkv_proj, gate_up_proj; its layers have",
        ),
        (
            ["reference_tuning=in_format", "reference_tuning.lora.targets=[up]"],
            "set reference_tuning.lora.targets=all-linear",
        ),
        (["student=lora_small", "student.lora.targets=[layers.30.mlp.down_proj]"], "no module layers.30.mlp.down_proj"),
    ],
)
def test_targets_without_a_module_are_told_before_any_work(overrides: list[str], said: str) -> None:
    assert any(said in problem for problem in lacking(*overrides))


def test_targets_of_a_folder_are_those_its_weights_name(tiny: Subject) -> None:
    weights = ["model=hub", f"model.source.name={tiny.checkpoint}", "student=lora_small", "teacher=prompted"]
    right = ["student.lora.targets=[layers.1.mlp.down_proj,q_proj]"]
    assert not [p for p in lacking(*weights, *right) if "targets" in p]
    wrong = [p for p in lacking(*weights, "student.lora.targets=[layers.2.mlp.down_proj]") if "targets" in p]
    assert wrong and "down_proj, gate_proj" in wrong[0]
