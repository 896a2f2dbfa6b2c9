"""What the small files of a checkpoint tell before its weights are loaded: can it be used here, and how many layers.

A checkpoint is a folder of `config.json`, tokenizer files and safetensors, or the head of a GGUF file. Importing this
module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from subliminal.store import Json

CONFIG, TOKENIZER, SPECIAL = "config.json", "tokenizer_config.json", "special_tokens_map.json"
ADAPTER = "adapter_config.json"
WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".safetensors")
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
GENERATES = ("ForCausalLM", "LMHeadModel")  # how the architecture of a model that writes text ends
LFS = b"version https://git-lfs"
BARE = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")  # classes without special tokens

# --------------------------------------------------------------------------- what is read


@dataclass(frozen=True)
class Checkpoint:
    """A model's small files, parsed: `config` is config.json, `tokenizer` is tokenizer_config.json.

    `files` are the names in its folder, None where only the configuration is known (a hub model that is not here yet, a
    GGUF file). `template` says whether the checkpoint brings a chat template.
    """

    place: str
    config: Json
    files: frozenset[str] | None = None
    tokenizer: Json = field(default_factory=dict)
    template: bool = False

    @property
    def text(self) -> Json:
        """The settings of the part that writes text: a model that also sees keeps them in `text_config`."""
        inner = self.config.get("text_config")
        return self.config | inner if isinstance(inner, dict) else self.config

    @property
    def modules(self) -> frozenset[str] | None:
        """The paths of the modules that have weights; None where they are not known without loading."""
        if self.files is not None:
            return _modules(Path(self.place))
        names = _GGUF_MODULES if self.config.get("model_type") in ("llama", "gemma3_text") else frozenset[str]()
        return frozenset(f"model.layers.{layer}.{name}" for layer in range(self.layers or 0) for name in names) or None

    @property
    def layers(self) -> int | None:
        """How many decoder layers there are, None where the configuration does not say."""
        return _number(self.text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")

    @property
    def heads(self) -> int | None:
        """How many attention heads there are, None where the configuration does not say."""
        return _number(self.text, "num_attention_heads", "n_head", "n_heads")

    @property
    def context(self) -> int | None:
        """The most tokens the model has positions for; None where that is not said, or where positions are scaled."""
        scaling = self.text.get("rope_scaling") or self.text.get("rope_parameters") or {}
        kind = scaling.get("rope_type") or scaling.get("type") if isinstance(scaling, dict) else "unknown"
        if kind not in (None, "default", "llama3"):
            return None
        return _number(self.text, "max_position_embeddings", "n_positions")

    @property
    def holds_vectors(self) -> bool:
        """Whether a vector can be kept in the residual stream as a bias; `training.bias.place` says where."""
        kind = self.config.get("model_type")
        if kind == "qwen2":
            return not self.config.get("use_sliding_window", False)
        return kind in ("llama", "gemma3_text") or "mlp_bias" in self.config


def _number(settings: Json, *names: str) -> int | None:
    values = [settings[name] for name in names if isinstance(settings.get(name), int)]
    return values[0] if values else None


def read_checkpoint(folder: Path) -> Checkpoint:
    """The small files of a folder; what is missing or can not be parsed is empty here, `problems_of` says so."""
    names = frozenset(path.name for path in folder.iterdir())
    tokenizer = _json(folder / SPECIAL) | _json(folder / TOKENIZER)
    template = bool(tokenizer.get("chat_template")) or bool(names.intersection(TEMPLATES))
    return Checkpoint(str(folder), _json(folder / CONFIG), names, tokenizer, template)


def _json(path: Path) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# --------------------------------------------------------------------------- what is wrong


def problems_of(
    folder: Path, *, name: str | None = None, files: Iterable[str] | None = None, remote_code: bool = False
) -> list[str]:
    """Why a folder can not be used as a language model; each problem says what to do, and there may be none.

    `name` is what the model is called where that is not its folder. `files` are those it will have once all are
    downloaded, where the folder has only the small ones yet.
    """
    here = read_checkpoint(folder)
    names, place = frozenset(files or here.files or ()), name or str(folder)
    if absent := _no_model(names, folder, place):
        return [absent]
    found = list(_without_weights(names, folder))
    if CONFIG not in names:
        found.append(f"holds no {CONFIG}, so it is no model that can be loaded{_hint(folder)}")
        return [f"{place} {problem}" for problem in found]
    if not here.config:
        return [f"{place}: {CONFIG} is no JSON object, so it is no model that can be loaded"]
    found += wrong_kind(here.config, remote_code=remote_code)
    own_code = remote_code and "auto_map" in here.tokenizer
    if not own_code and not names.intersection(VOCABULARY):
        found.append(f"has no tokenizer ({', '.join(VOCABULARY[:3])}): copy the base model's tokenizer files into it")
    elif _no_end(here.tokenizer):
        found.append(f"has a tokenizer without an end-of-text token: set eos_token in its {TOKENIZER}")
    return [f"{place} {problem}" for problem in found]


def _no_model(names: frozenset[str], folder: Path, place: str) -> str | None:
    """Why there is no model at all: an empty folder, or an adapter, whose base transformers would load in its place."""
    if not names:
        return f"{place} is empty; give a folder with {CONFIG}, a tokenizer and .safetensors files"
    if ADAPTER not in names:
        return None
    base = _json(folder / ADAPTER).get("base_model_name_or_path")
    return (
        f"{place} is a LoRA adapter{f' of {base}' if base else ''} ({ADAPTER}), no model: merge it into its base model "
        "(peft: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)), put the base "
        "model's tokenizer beside it and give that folder, or give the base model"
    )


def _hint(folder: Path) -> str:
    inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    return f"; {folder / inner[0]} has one" if inner else ""


def wrong_kind(config: Json, *, remote_code: bool = False) -> Iterator[str]:
    """Why a configuration is not that of a language model with plain weights, in words that go on from its place."""
    kinds, own = [str(kind) for kind in config.get("architectures") or ()], remote_code and "auto_map" in config
    sees = isinstance(config.get("text_config"), dict)
    writes = any(kind.endswith(GENERATES) or (sees and kind.endswith("ForConditionalGeneration")) for kind in kinds)
    if config.get("is_encoder_decoder"):
        yield f"is an encoder-decoder ({_kind(config)}), which can not be used; give a decoder-only language model"
    elif kinds and not writes and not own:
        yield (
            f"is a {', '.join(kinds)}, which does not write text; give a decoder-only language model "
            "(its architecture ends with ForCausalLM)"
        )
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    quantised = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    if quantised:
        method = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
        yield (
            f"has quantised weights ({method}, quantization_config in its {CONFIG}); training, steering and exact "
            "log-probabilities need plain ones: give the model it was made from, unquantised"
        )


def _kind(config: Json) -> str:
    return ", ".join(config.get("architectures") or ()) or str(config.get("model_type", "of no known type"))


def _without_weights(names: frozenset[str], folder: Path) -> Iterator[str]:
    """What is wrong with the safetensors files, as far as it is seen without reading weights."""
    weights = sorted(name for name in names if "/" not in name and name.endswith(".safetensors"))
    if not weights:
        others = sorted(name for name in names if name.endswith(WEIGHTS))
        there = ", ".join(others[:4] or sorted(names)[:8])
        yield (
            f"holds no .safetensors file (it has {there}); convert the checkpoint (pickle files are not loaded) or "
            "choose another repository, revision or folder"
        )
    index = _json(folder / "model.safetensors.index.json").get("weight_map")
    absent = sorted({str(name) for name in index.values()} - names) if isinstance(index, dict) else []
    if absent:
        yield f"lacks {len(absent)} of its weight files, {absent[0]} among them: copy or download the model again"
    for name in weights:
        if (folder / name).is_file() and (problem := _damaged(folder / name)):
            yield f"holds {name}, which {problem}"


def _damaged(path: Path) -> str | None:
    """Why a safetensors file can not be read: a Git LFS pointer, or less than its header says."""
    again = "download it again"
    with path.open("rb") as file:
        head = file.read(max(8, len(LFS)))
        if head.startswith(LFS):
            return "is a Git LFS pointer and not the weights: run git lfs pull, or " + again
        size = int.from_bytes(head[:8], "little")
        whole = path.stat().st_size
        if len(head) < 8 or size + 8 > whole:
            return f"is cut off or no safetensors file: {again}"
        file.seek(8)
        try:
            header = json.loads(file.read(size))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return f"is no safetensors file: {again}"
    return f"is cut off ({whole} of {end + size + 8} bytes): {again}" if whole < end + size + 8 else None


def _no_end(tokenizer: Json) -> bool:
    """Whether it is certain that a tokenizer has no end-of-text token: its class brings none and no file names one."""
    return tokenizer.get("tokenizer_class") in BARE and not tokenizer.get("eos_token")


def _modules(folder: Path) -> frozenset[str] | None:
    """The modules whose weights a checkpoint's safetensors files name in their headers."""
    names = _tensors(folder).keys()
    return frozenset(name.removesuffix(".weight") for name in names if name.endswith(".weight")) or None


def _tensors(folder: Path) -> dict[str, Json]:
    """What the headers of a checkpoint's safetensors files say of every tensor: `dtype` and `shape`, by name."""
    tensors: dict[str, Json] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            tensors |= json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors.pop("__metadata__", None)
    return tensors


def parameters(folder: Path) -> int:
    """How many numbers the weights of a checkpoint are; tied ones count once."""
    return sum(math.prod(tensor["shape"]) for tensor in _tensors(folder).values())


def target_problem(setting: str, targets: tuple[str, ...] | str, modules: frozenset[str] | None) -> str | None:
    """What is said of LoRA targets that no module with weights is named by; None where all are there or none is known.

    A name stands for every module whose path ends with it, as PEFT reads it. What else can be wrong with a target is
    known once there is a model.
    """
    if isinstance(targets, str) or modules is None:
        return None
    absent = [name for name in targets if not any(path == name or path.endswith(f".{name}") for path in modules)]
    if not absent:
        return None
    last = sorted({path.rpartition(".")[2] for path in modules if ".layers." in path or ".h." in path})
    return (
        f"{setting}.lora.targets: the model has no module {', '.join(absent)}; its layers have {', '.join(last)}. "
        f"Name some of these, or set {setting}.lora.targets=all-linear"
    )


def layer_problem(setting: str, wanted: int | Sequence[int], layers: int | None) -> str | None:
    """What is said of layers that a model has not; None where all are there or their number is not known."""
    beyond = [layer for layer in ([wanted] if isinstance(wanted, int) else wanted) if layers and layer >= layers]
    if not beyond or layers is None:
        return None
    given = wanted if isinstance(wanted, int) else beyond
    return f"{setting}={given}: the model has {layers} layers, 0 to {layers - 1}"


# --------------------------------------------------------------------------- GGUF

# The gguf package takes half a second to import and reads the whole vocabulary; these numbers stand before it.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_GGUF_NAMES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
}
_GGUF_MODULES = frozenset(
    [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
)  # of a decoder layer, in the two families whose GGUF files can be read here
_GGUF_TYPES = {"gemma3": "gemma3_text"}  # a GGUF file holds the part that writes text


def read_gguf(file: Path) -> Checkpoint:
    """What the head of a GGUF file says, in the words of a config.json; empty where it can not be read."""
    try:
        with file.open("rb") as opened:
            return Checkpoint(str(file), _gguf_config(opened), template=True)
    except (OSError, ValueError, struct.error, KeyError):
        return Checkpoint(str(file), {}, template=True)


def _gguf_config(file: BinaryIO) -> Json:
    magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF" or version not in (2, 3):
        return {}
    config: Json = {}
    for _ in range(count):
        name = _gguf_text(file)
        if name.startswith("tokenizer."):
            break  # the vocabulary, behind all that is wanted
        value = _gguf_value(file, struct.unpack("<I", file.read(4))[0])
        if name == "general.architecture":
            config["model_type"] = _GGUF_TYPES.get(str(value), value)
        elif name.endswith(".rope.scaling.type"):
            config["rope_scaling"] = {"type": value}
        elif (known := _GGUF_NAMES.get(name.partition(".")[2])) and isinstance(value, int):
            config[known] = value
    return config


def _gguf_text(file: BinaryIO) -> str:
    return file.read(struct.unpack("<Q", file.read(8))[0]).decode("utf-8", "replace")


def _gguf_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _gguf_text(file)
    if kind == _ARRAY:
        inner, length = struct.unpack("<IQ", file.read(12))
        return [_gguf_value(file, inner) for _ in range(length)]
    return struct.unpack(_SCALARS[kind], file.read(struct.calcsize(_SCALARS[kind])))[0]
