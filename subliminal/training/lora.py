"""LoRA on exactly the modules that the settings name: a name without a module is an error, never a smaller adapter.

Names are PEFT's: `q_proj` is every module of that name, `layers.3.mlp.down_proj` the one whose path ends so, and
`all-linear` every linear module but the head. What would be trained is known from a model's configuration alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from subliminal.config import Lora
from subliminal.models import Subject, empty_model, fresh_model, load_tokenizer
from subliminal.training import TrainingError
from subliminal.weights import ModelError

Task = Literal["CAUSAL_LM", "SEQ_CLS"]


def with_lora(model: Any, lora: Lora, group: str, task: Task = "CAUSAL_LM") -> Any:
    """The model under a new LoRA adapter, alone trainable with, for a classifier ("SEQ_CLS"), the head.

    Raises `TrainingError`, in which `group` is where the settings stand ("student"), when not exactly the modules that
    `lora.targets` names would be trained.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    if problem := target_problem(model, lora, group):
        raise TrainingError(problem)
    modules, wanted = dict(model.named_modules()), targeted(model, lora)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        layers_to_transform=None if lora.layers == "all" else list(lora.layers),
        fan_in_fan_out=any(isinstance(modules[path], Conv1D) for path in wanted),
        task_type=task,
    )
    try:
        adapted: Any = get_peft_model(model, config)
    except ValueError as error:
        raise TrainingError(f"{group}.lora.targets={_shown(lora)} do not fit this model: {error}") from None
    given = {*adapted.base_model.targeted_module_names, *adapted.base_model.targeted_parameter_names}
    if differing := sorted(given ^ set(wanted)):
        raise TrainingError(
            f"{group}.lora.targets={_shown(lora)}: PEFT trains other modules of this {model.config.model_type} model "
            f"than these names say ({', '.join(differing[:4])}); leave their names out"
        )
    return adapted


def target_problem(model: Any, lora: Lora, group: str) -> str | None:
    """Why not exactly the modules that `lora.targets` names could be trained, with the remedy; None where they can.

    `model` may be one without weights (`models.empty_model`).
    """
    targets = lora.targets
    problem = next(_experts_in_the_way(model) if isinstance(targets, str) else _problems(model, targets), None)
    if problem is None:
        return _layer_problem(model, lora, group)
    names = _trainable_names(model)
    remedy = f"set {group}.lora.targets to some of them: [{','.join(names)}]"
    if not _fused(model):
        remedy = f"set {group}.lora.targets=all-linear for all of these, or name some of them"
    return (
        f"{group}.lora.targets={_shown(lora)}: {problem}. The linear modules of this {model.config.model_type} model, "
        f"but for its head, are {', '.join(names)}; {remedy}"
    )


def _layer_problem(model: Any, lora: Lora, group: str) -> str | None:
    """Why `lora.layers` does not fit a model, with the remedy; None where it does."""
    if lora.layers == "all":
        return None
    there = {layer for path in _named_modules(model, lora) if (layer := layer_of(path)) is not None}
    absent = sorted({*lora.layers} - there)
    if not absent:
        return None
    shown = ",".join(map(str, absent))
    return (
        f"{group}.lora.layers: {_shown(lora)} are not in layers [{shown}] of this {model.config.model_type} model; "
        f"name some of {min(there)} to {max(there)}, or set {group}.lora.layers=all"
    )


def layer_of(path: str) -> int | None:
    """The layer that a module is in, by PEFT's rule: the first number in its path; None outside all layers."""
    number = next((part for part in path.split(".")[2:-1] if part.isdigit()), None)
    return None if number is None else int(number)


def _trainable_names(model: Any) -> list[str]:
    """The names of linear modules that are neither the head's nor those of fused experts too."""
    paths = [path for path, module in _linear(model).items() if not _is_head(model, path, module)]
    return sorted({_last(path) for path in paths} - {_last(path) for path in _fused(model)})


def _experts_in_the_way(model: Any) -> Iterator[str]:
    """What all-linear would leave out of a mixture of experts."""
    for path in _fused(model)[:1]:
        yield f"{path} holds the weights of several experts, which are no linear modules, and there is no LoRA on it"


def _problems(model: Any, targets: tuple[str, ...]) -> Iterator[str]:
    """What names say that can not be trained."""
    if unmatched := unmatched_targets(model, targets):
        yield f"the model has no module {', '.join(unmatched)}"
    linear, head = _linear(model), model.get_output_embeddings()
    for path in (path for path in _fused(model) if _matches(path, targets)):
        yield f"{path} holds the weights of several experts, and there is no LoRA on it"
    for path, module in model.named_modules():
        if _matches(path, targets) and path not in linear:
            yield f"{path} ({type(module).__name__}) is no linear module"
        if _matches(path, targets) and module is head:
            yield (
                f"{path} is the model's head, on which TRL trains no adapter; often it has the weights of the "
                "embeddings too, and an adapter that is merged into it would change both"
            )


def unmatched_targets(model: Any, targets: tuple[str, ...] | str) -> list[str]:
    """The names among `targets` that are no module of a model, by PEFT's rule for lists: a path, or a path's end."""
    if isinstance(targets, str):
        return []
    paths = [path for path, _ in model.named_modules()]
    return [name for name in targets if not any(_matches(path, (name,)) for path in paths)]


def targeted(model: Any, lora: Lora) -> list[str]:
    """The paths of the modules that `lora.targets` and `lora.layers` name in a model without an adapter."""
    named = _named_modules(model, lora)
    return named if lora.layers == "all" else [path for path in named if layer_of(path) in lora.layers]


def _named_modules(model: Any, lora: Lora) -> list[str]:
    """The paths of the modules that `lora.targets` names, whatever their layer."""
    if not isinstance(lora.targets, str):
        return [path for path, _ in model.named_modules() if _matches(path, lora.targets)]
    return [path for path, module in _linear(model).items() if not _is_head(model, path, module)]


def trained_modules(model: Any) -> dict[str, int]:
    """How many modules of each name are trained under an adapter, {"q_proj": 30}; a classifier's head among them."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    kinds = (BaseTunerLayer, ModulesToSaveWrapper)
    return dict(Counter(_last(path) for path, module in model.named_modules() if isinstance(module, kinds)))


def planned_modules(subject: Subject, lora: Lora, group: str, task: Task = "CAUSAL_LM") -> dict[str, int]:
    """`trained_modules` of the subject under such an adapter, from its configuration alone: no weights are loaded.

    Raises `TrainingError` as `with_lora` does.
    """
    import torch

    with torch.device("meta"):
        return trained_modules(with_lora(empty_model(subject, classifies=task == "SEQ_CLS"), lora, group, task))


def merge(subject: Subject, adapter: Path, folder: Path) -> None:
    """Fold a LoRA adapter into an ordinary checkpoint with its tokenizer."""
    from peft import PeftModel

    if not (adapter / "adapter_config.json").exists():
        raise ModelError(f"{adapter} holds no LoRA adapter")
    merged: Any = PeftModel.from_pretrained(fresh_model(subject), str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)
    load_tokenizer(subject).save_pretrained(folder)


def _matches(path: str, targets: tuple[str, ...]) -> bool:
    """Does one of several names stand for a module, by PEFT's rule for lists."""
    return path in targets or path.endswith(tuple(f".{name}" for name in targets))


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _shown(lora: Lora) -> str:
    return lora.targets if isinstance(lora.targets, str) else f"[{','.join(lora.targets)}]"


def _linear(model: Any) -> dict[str, Any]:
    """Linear modules by path: torch's, and those of GPT-2 (`Conv1D`)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return {path: part for path, part in model.named_modules() if isinstance(part, torch.nn.Linear | Conv1D)}


def _fused(model: Any) -> list[str]:
    """Parameters that hold the weights of several experts at once, (experts, out, in)."""
    return [path for path, parameter in _parameters_of_no_convolution(model) if parameter.ndim == 3]


def _parameters_of_no_convolution(model: Any) -> Iterator[tuple[str, Any]]:
    import torch

    for path, module in model.named_modules():
        if not isinstance(module, torch.nn.Conv1d):
            yield from module.named_parameters(path, recurse=False)


def _is_head(model: Any, path: str, module: Any) -> bool:
    """Is a module the one that all-linear leaves out: the output embeddings, or a classifier's head."""
    from peft.utils.constants import SEQ_CLS_HEAD_NAMES

    head = model.get_output_embeddings()
    return module is head if head is not None else path in SEQ_CLS_HEAD_NAMES
