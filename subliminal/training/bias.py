"""Residual-stream biases: a vector a layer, trained or steered, kept as the bias of that layer's down projection.

The smallest student that can take up a steering vector (compare arXiv 2606.00995). Saved as a small safetensors
adapter and exported as an ordinary checkpoint that transformers and vLLM load; the export shares the base's weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subliminal.models import ModelError, Subject, fresh_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ADAPTER = "adapter_model.safetensors"
BASE_SHARD, BIAS_SHARD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

Biases = Mapping[int, "torch.Tensor"]


def load_with_biases(subject: Subject) -> PreTrainedModel:
    """The subject's model with a bias on every MLP projection, zero where it had none; Llama-like models only."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(subject.checkpoint, revision=subject.revision)
    if not hasattr(config, "mlp_bias"):
        raise ModelError(
            f"{subject.checkpoint} is a {config.model_type} model; biases in the residual stream need a Llama-like one "
            "(with mlp_bias in its configuration). Set student=lora, or teacher=finetuned"
        )
    had = bool(config.mlp_bias)
    model = fresh_model(subject, mlp_bias=True)
    if not had:
        with torch.no_grad():
            for layer in range(len(model.model.layers)):
                for projection in PROJECTIONS:
                    getattr(model.model.layers[layer].mlp, projection).bias.zero_()
    return model


def vector(model: Any, layer: int) -> torch.nn.Parameter:
    """The vector one layer adds to the residual stream, shape (hidden size,)."""
    return model.model.layers[layer].mlp.down_proj.bias


def parameter_name(layer: int) -> str:
    """The name of a layer's vector in a state dict."""
    return f"model.layers.{layer}.mlp.down_proj.bias"


def save_adapter(folder: Path, subject: Subject, biases: Biases) -> None:
    """Write the vectors as safetensors beside a small description."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({parameter_name(i): b.detach().float().cpu().contiguous() for i, b in biases.items()}, folder / ADAPTER)
    about = {"kind": "bias", "base": Path(subject.checkpoint).parent.name, "layers": sorted(biases)}
    (folder / "bias_config.json").write_text(json.dumps(about, indent=1))


def find_adapter(folder: Path) -> dict[int, torch.Tensor] | None:
    """The vectors a teacher or student stage left behind, by layer, or None when it has none."""
    from safetensors.torch import load_file

    if not (folder / "adapter" / "bias_config.json").exists():
        return None
    return {int(name.split(".")[2]): tensor for name, tensor in load_file(folder / "adapter" / ADAPTER).items()}


def export(subject: Subject, biases: Biases, folder: Path) -> None:
    """An ordinary checkpoint: the base's weights linked as shard 1, every MLP bias in a small shard 2.

    Vectors add to biases the base already has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = _local(subject)
    weights = sorted(base.glob("*.safetensors"))
    known = _names(weights)
    if any(name.endswith("down_proj.bias") for name in known):
        _export_whole(subject, biases, folder)
        return
    if len(weights) != 1:
        _export_whole(subject, biases, folder)
        return
    _copy_small(base, folder)
    _link(weights[0], folder / BASE_SHARD)
    _write_biases(subject, biases, folder, known)


def _write_biases(subject: Subject, biases: Biases, folder: Path, known: list[str]) -> None:
    import torch
    from safetensors.torch import save_file

    config = json.loads((folder / "config.json").read_text())
    dtype = getattr(torch, subject.dtype)
    small = {}
    for layer in range(config["num_hidden_layers"]):
        for name, size in (
            ("gate_proj", "intermediate_size"),
            ("up_proj", "intermediate_size"),
            ("down_proj", "hidden_size"),
        ):
            small[f"model.layers.{layer}.mlp.{name}.bias"] = torch.zeros(config[size], dtype=dtype)
    for layer, bias in biases.items():
        small[parameter_name(layer)] = bias.detach().to("cpu", dtype).contiguous()
    save_file(small, folder / BIAS_SHARD, metadata={"format": "pt"})
    config["mlp_bias"] = True
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    places = dict.fromkeys(known, BASE_SHARD) | dict.fromkeys(small, BIAS_SHARD)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=1))


def _export_whole(subject: Subject, biases: Biases, folder: Path) -> None:
    """The general way: load, add, save; used when the base is in several shards or has biases already."""
    import torch

    from subliminal.models import load_tokenizer

    model = load_with_biases(subject)
    with torch.no_grad():
        for layer, bias in biases.items():
            vector(model, layer).add_(bias.to(model.device, model.dtype))
    model.save_pretrained(folder)
    load_tokenizer(subject).save_pretrained(folder)


def _local(subject: Subject) -> Path:
    if Path(subject.checkpoint).is_dir():
        return Path(subject.checkpoint)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(subject.checkpoint, revision=subject.revision, local_files_only=True))


def _names(weights: list[Path]) -> list[str]:
    from safetensors import safe_open

    def inside(path: Path) -> Iterator[str]:
        with safe_open(path, framework="pt") as file:
            yield from file.keys()

    return [name for path in weights for name in inside(path)]


def _copy_small(base: Path, folder: Path) -> None:
    for path in base.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != INDEX:
            shutil.copy(path, folder / path.name)


def _link(source: Path, target: Path) -> None:
    """Share the weights by a hard link; on file systems without them, copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy(source, target)
