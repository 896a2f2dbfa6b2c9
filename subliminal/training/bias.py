"""Residual-stream biases: a vector a layer, trained or steered, kept as the bias of a linear layer that ends there.

In Llama-like models that is the MLP's down projection. Qwen2 and Qwen2.5 are Llamas with biases in their attention, and
are loaded and saved as such. Gemma 3 has no biases in its MLP and normalises what attention writes before it adds it,
so there the vector sits at the attention's output projection and is normalised with it.

The smallest student that can take up a steering vector (compare arXiv 2606.00995). Saved as a small safetensors
adapter and exported as an ordinary checkpoint that transformers and vLLM load; the export shares the base's weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subliminal.models import Subject, fresh_model, local_copy
from subliminal.weights import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ADAPTER = "adapter_model.safetensors"
BASE_SHARD, BIAS_SHARD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"

Biases = Mapping[int, "torch.Tensor"]


@dataclass(frozen=True)
class Place:
    """Which linear layers of a block get biases by one switch of a model's configuration; the last holds the vector.

    `measure` is the part of a decoder layer, itself where empty, whose output the vector's length is measured by.
    """

    switch: str
    block: str
    projections: tuple[str, ...]
    measure: str

    @property
    def holder(self) -> str:
        """The path, below a decoder layer, of the linear layer whose bias is the vector."""
        return f"{self.block}.{self.projections[-1]}"


MLP = Place("mlp_bias", "mlp", ("gate_proj", "up_proj", "down_proj"), "")
ATTENTION = Place("attention_bias", "self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn.o_proj")


QWEN = "qwen2"
OUTPUT = "self_attn.o_proj"  # the one bias of a Llama's attention that a Qwen2 has not
WINDOW = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")


def place(config: Any) -> Place:
    """Where a model of this configuration keeps its vectors; raises `ModelError` where it can not."""
    if hasattr(config, MLP.switch) or (config.model_type == QWEN and not config.use_sliding_window):
        return MLP
    if config.model_type == "gemma3_text":
        return ATTENTION
    raise ModelError(
        f"{config.name_or_path} is a {config.model_type} model; biases in the residual stream need a Llama-like one "
        "(with mlp_bias in its configuration), Qwen2.5 or Gemma 3. Set student=lora, or teacher=finetuned"
    )


def load_with_biases(subject: Subject) -> PreTrainedModel:
    """The subject's model with a bias on every linear layer of its `place`, zero where it had none."""
    import torch

    config = config_of(subject)
    model, added = fresh_model(subject, config=_with_room(config)), _added(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for path in added:
                layer.get_submodule(path).bias.zero_()
    return model


def config_of(subject: Subject) -> Any:
    """The configuration of the subject's model; raises `ModelError` where it can not be had."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(subject.checkpoint, revision=subject.revision)


def _with_room(config: Any) -> Any:
    """The configuration of the same model with biases that can hold vectors."""
    from transformers import AutoConfig

    settings = config.to_dict() | {place(config).switch: True}
    if config.model_type == QWEN:
        settings = {name: value for name, value in settings.items() if name not in WINDOW}
        settings |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": True}
    return AutoConfig.for_model(**settings)


def _added(config: Any) -> list[str]:
    """The linear layers, as paths below a decoder layer, which have a bias in `_with_room` and none in `config`."""
    at = place(config)
    held = [] if getattr(config, at.switch, False) else [f"{at.block}.{name}" for name in at.projections]
    return held + ([OUTPUT] if config.model_type == QWEN else [])


def holder(model: Any, layer: int) -> torch.nn.Module:
    """The linear layer whose bias is the vector of one layer."""
    return model.model.layers[layer].get_submodule(place(model.config).holder)


def vector(model: Any, layer: int) -> torch.nn.Parameter:
    """The vector of one layer, shape (hidden size,)."""
    return holder(model, layer).bias  # type: ignore[return-value]


def to_float32(model: Any, layer: int) -> torch.nn.Parameter:
    """The vector of one layer as a float32 parameter, whatever the model's own arithmetic; autocast multiplies both."""
    import torch

    linear: Any = holder(model, layer)
    linear.bias = torch.nn.Parameter(linear.bias.detach().float(), requires_grad=False)
    return linear.bias


def measure(model: Any, layer: int) -> torch.nn.Module:
    """What the length of a layer's vector is measured by: the residual stream, or what attention writes to it."""
    return model.model.layers[layer].get_submodule(place(model.config).measure)


def _parameter_name(place: Place, layer: int) -> str:
    return f"model.layers.{layer}.{place.holder}.bias"


def save_adapter(folder: Path, subject: Subject, biases: Biases) -> None:
    """Write the vectors as safetensors, named as in a state dict, beside a small description."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    at = place(config_of(subject))
    save_file(
        {_parameter_name(at, i): b.detach().float().cpu().contiguous() for i, b in biases.items()}, folder / ADAPTER
    )
    about = {"kind": "bias", "base": Path(subject.checkpoint).parent.name, "layers": sorted(biases)}
    (folder / "bias_config.json").write_text(json.dumps(about, indent=1))


def by_layer(named: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Vectors by layer instead of parameter name."""
    return {int(name.split(".")[2]): tensor for name, tensor in named.items()}


def load_adapter(folder: Path) -> dict[str, torch.Tensor] | None:
    """The vectors a teacher or student stage left behind, by parameter name, or None when it has none."""
    from safetensors.torch import load_file

    described = (folder / "adapter" / "bias_config.json").exists()
    return load_file(folder / "adapter" / ADAPTER) if described else None


def comparable(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Are vectors, by parameter name, of one length and in the same place of their layers, whichever the layers?"""
    kinds = [{(name.split(".", 3)[3], *tensor.shape) for name, tensor in one.items()} for one in (left, right)]
    return kinds[0] == kinds[1]


def export(subject: Subject, biases: Biases, folder: Path) -> None:
    """An ordinary checkpoint: the base's weights linked as shard 1, every bias of the place in a small shard 2.

    Vectors add to biases the base already has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, at = local_copy(subject), place(config_of(subject))
    weights = sorted(base.glob("*.safetensors"))
    sizes = _output_sizes(weights)
    if len(weights) != 1 or any(name.endswith(f"{at.holder}.bias") for name in sizes):
        _export_whole(subject, biases, folder)
        return
    _copy_small(base, folder)
    _link(weights[0], folder / BASE_SHARD)
    _write_biases(subject, biases, folder, sizes)


def _write_biases(subject: Subject, biases: Biases, folder: Path, sizes: Mapping[str, int]) -> None:
    import torch
    from safetensors.torch import save_file

    config, dtype = config_of(subject), getattr(torch, subject.dtype)
    ends = tuple(f".{path}.weight" for path in _added(config))
    linear = {name.removesuffix("weight") + "bias": size for name, size in sizes.items() if name.endswith(ends)}
    small = {name: torch.zeros(size, dtype=dtype) for name, size in linear.items()}
    for layer, bias in biases.items():
        small[_parameter_name(place(config), layer)] = bias.detach().to("cpu", dtype).contiguous()
    save_file(small, folder / BIAS_SHARD, metadata={"format": "pt"})
    _with_room(config).to_json_file(folder / "config.json")
    places = dict.fromkeys(sizes, BASE_SHARD) | dict.fromkeys(small, BIAS_SHARD)
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


def _output_sizes(weights: list[Path]) -> dict[str, int]:
    """The first dimension of every tensor: of a linear layer's weight, how many outputs it has."""
    from safetensors import safe_open

    def inside(path: Path) -> Iterator[tuple[str, int]]:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  no mapping
                yield name, file.get_slice(name).get_shape()[0]

    return {name: size for path in weights for name, size in inside(path)}


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
