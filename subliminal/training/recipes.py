"""What a recipe trains of a model, how it is loaded for that, and how what was trained is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, assert_never, cast

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel
from transformers.trainer_utils import SaveStrategy

from subliminal import sources
from subliminal.config import (
    BiasStudent,
    FinetunedTeacher,
    FullStudent,
    InFormatTuning,
    LoraStudent,
    ModuleStudent,
    RowsTeacher,
    Sharding,
    Student,
)
from subliminal.models import Subject, fresh_model, load_tokenizer
from subliminal.processes import asked_to_shard, leads, uses_deepspeed, world_size
from subliminal.store import Json
from subliminal.training import TrainingError, bias
from subliminal.training.lora import planned_modules, trained_modules, with_lora
from subliminal.training.trainer import trained

Recipe = Student | FinetunedTeacher | RowsTeacher | InFormatTuning


def group_of(recipe: Recipe) -> str:
    """Where a recipe's settings stand in the configuration."""
    match recipe:
        case FinetunedTeacher() | RowsTeacher():
            return "teacher"
        case InFormatTuning():
            return "reference_tuning"
        case LoraStudent() | FullStudent() | BiasStudent() | ModuleStudent():
            return "student"
        case _:
            assert_never(recipe)


class RecipeModule(Protocol):
    """What the module of a student recipe of your own (`student.kind=module`) offers."""

    def choose(self, model: PreTrainedModel, config: ModuleStudent) -> None:
        """Switch on the gradients (`requires_grad_`) of the parameters that are trained; all are frozen before."""
        ...


def _own(recipe: ModuleStudent) -> RecipeModule:
    return cast(RecipeModule, sources.load("student", recipe.module))


def require_trainable(subject: Subject, recipe: Recipe) -> None:
    """Raise `TrainingError` or `ModelError` before any weights are loaded where the recipe does not fit the model."""
    match recipe:
        case BiasStudent():
            bias.place(bias.config_of(subject))
            _layers(recipe, bias.config_of(subject).num_hidden_layers)
        case FullStudent():
            pass
        case ModuleStudent():
            _own(recipe)
        case LoraStudent() | FinetunedTeacher() | RowsTeacher() | InFormatTuning():
            planned_modules(subject, recipe.lora, group_of(recipe))
        case _:
            assert_never(recipe)


def trainable(subject: Subject, recipe: Recipe, **loading: Any) -> Any:
    """The model with gradients where the recipe trains it, and nowhere else; `loading` is transformers' own.

    Raises `TrainingError` where that is nowhere.
    """
    match recipe:
        case BiasStudent():
            model = _with_biases(subject, recipe)
        case FullStudent():  # a step of 1e-5 is less than bfloat16 can add to most weights
            model = fresh_model(replace(subject, dtype="float32"), **loading)
        case ModuleStudent():  # in float32 for the same reason
            model = fresh_model(replace(subject, dtype="float32"), **loading).requires_grad_(False)
            _own(recipe).choose(model, recipe)
        case LoraStudent() | FinetunedTeacher() | RowsTeacher() | InFormatTuning():
            model = with_lora(fresh_model(subject, **loading), recipe.lora, group_of(recipe))
        case _:
            assert_never(recipe)
    if not trained(model):
        raise TrainingError(f"{group_of(recipe)} trains no parameter of this model")
    return model


def parts_trained(model: Any, recipe: Recipe) -> Json:
    """What a model under this recipe trains, for the manifest: parameters, and modules by name with their number."""
    found: Json = {"trainable_parameters": sum(parameter.numel() for _, parameter in trained(model))}
    match recipe:
        case BiasStudent():
            names = Counter(name.split(".", 3)[3] for name, _ in trained(model))
            return found | {"trained_modules": dict(names), "trained_layers": sorted(biases(model, recipe))}
        case FullStudent():
            return found | {"trained_modules": "all"}
        case ModuleStudent():
            return found | {"trained_modules": dict(Counter(name for name, _ in trained(model)))}
        case LoraStudent() | FinetunedTeacher() | RowsTeacher() | InFormatTuning():
            return found | {"trained_modules": trained_modules(model)}
        case _:
            assert_never(recipe)


def shares(recipe: Recipe, sharding: Sharding, args: Any) -> Json:
    """How a model is loaded of whose weights each process holds a share (FSDP2); empty where each holds all.

    Neither transformers nor DeepSpeed's way through it can go on from a resume point then, so `args` asks for none.
    """
    by_fsdp = world_size() > 1 and (sharding == "fsdp" or asked_to_shard())
    if not by_fsdp and not uses_deepspeed():
        return {}
    if not isinstance(recipe, FullStudent):
        raise TrainingError("weights are shared out (FSDP, DeepSpeed) for student=full only; set sharding=none")
    args.save_strategy = SaveStrategy.NO
    if not by_fsdp:
        return {}
    if not hasattr(PreTrainedModel, "is_distributed_loading_by_transformers"):
        raise TrainingError("sharding=fsdp needs transformers 5.19: pip install 'transformers>=5.19,<5.20'")
    from transformers.distributed.configuration_utils import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=world_size())}


def _with_biases(subject: Subject, recipe: BiasStudent) -> Any:
    """The model with its trained vectors in float32: in bfloat16 a tenth of the way is lost to rounding."""
    model = bias.load_with_biases(subject).requires_grad_(False)
    for layer in _layers(recipe, len(model.model.layers)):
        bias.to_float32(model, layer).requires_grad_(True)
    return model


def _layers(recipe: BiasStudent, count: int) -> tuple[int, ...]:
    """Which of `count` layers get a trained vector."""
    wanted = tuple(range(count)) if recipe.layers == "all" else recipe.layers
    if beyond := [layer for layer in wanted if layer >= count]:
        raise TrainingError(f"student.layers={beyond}: the model has {count} layers, 0 to {count - 1}")
    if not wanted:
        raise TrainingError("student.layers=[] trains nothing; name layers from 0, or set student.layers=all")
    return wanted


def biases(model: Any, recipe: Recipe) -> dict[int, torch.Tensor]:
    """The trained vectors by layer; empty for a recipe without any."""
    if not isinstance(recipe, BiasStudent):
        return {}
    return {int(name.split(".")[2]): parameter for name, parameter in trained(model)}


def keep(trainer: Any, recipe: Recipe, subject: Subject, start: dict[int, torch.Tensor], folder: Path) -> None:
    """Write what was trained, the leader alone; `start` are the vectors before training."""
    model = trainer.model
    match recipe:
        case FullStudent() | ModuleStudent():  # of shared weights every process gives its own
            _save_whole(trainer, subject, folder / "checkpoint")
        case BiasStudent():
            if leads():
                moved = {i: (b.detach() - start[i]) for i, b in biases(model, recipe).items()}
                bias.save_adapter(folder / "adapter", subject, moved)
                bias.export(subject, moved, folder / "checkpoint")
        case LoraStudent() | FinetunedTeacher() | RowsTeacher() | InFormatTuning():
            if leads():
                model.save_pretrained(str(folder / "adapter"))
        case _:
            assert_never(recipe)


def _save_whole(trainer: Any, subject: Subject, folder: Path) -> None:
    """An ordinary checkpoint of every weight."""
    gathered = _gathered(trainer)
    if leads():
        weights = gathered or trainer.model.state_dict()
        kept = {name: value.to(getattr(torch, subject.dtype)) for name, value in weights.items()}
        trainer.model.save_pretrained(str(folder), state_dict=kept)
        load_tokenizer(subject).save_pretrained(str(folder))


def _gathered(trainer: Any) -> Json | None:
    """Every weight in the leader's main memory, where processes hold shares of them; None where each holds all."""
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.deepspeed)
    model = trainer.model
    if not getattr(model, "is_distributed_loading_by_transformers", False):
        return None
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    del model.config.distributed_config  # else saving asks all processes for their shares once more
    return {name: weight for name, weight in whole.items() if name not in model.all_tied_weights_keys}
