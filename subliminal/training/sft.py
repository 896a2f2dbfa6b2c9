"""Supervised fine-tuning on a teacher's rows: TRL's trainer, with the language-model head on completion tokens only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

import torch
from datasets import Dataset
from torch.optim import Optimizer
from transformers import PrinterCallback, TrainingArguments
from trl.trainer.sft_config import SFTConfig

from subliminal.config import AdamW, BiasStudent, Fitting, InFormatTuning, NaturalGradient, Optimisation, Sharding
from subliminal.finite import require_finite
from subliminal.gpu import room_for_training
from subliminal.models import Subject, fresh_model, load_tokenizer
from subliminal.processes import leads, uses_deepspeed, world_size
from subliminal.progress import Advance
from subliminal.rows import Row
from subliminal.stopping import held_signals
from subliminal.store import Json
from subliminal.training import TrainingError
from subliminal.training.batches import IGNORED, Collator, tokenise
from subliminal.training.layer_inputs import kept_layer_inputs
from subliminal.training.lora import merge
from subliminal.training.natural_gradient import NaturalGradientOptimiser, fisher_information
from subliminal.training.recipes import (
    Recipe,
    biases,
    group_of,
    keep,
    parts_trained,
    require_trainable,
    shares,
    trainable,
)
from subliminal.training.speed import quick_training
from subliminal.training.trainer import (
    RowTrainer,
    SaveAndStop,
    StepLog,
    StopAtNonFinite,
    agreed,
    largest_square,
    newest_checkpoint,
)

if TYPE_CHECKING:
    from subliminal.tracking import Tracker


def fit(
    subject: Subject,
    rows: Sequence[Row],
    recipe: Recipe,
    seed: int,
    folder: Path,
    *,
    teacher: Subject | None = None,
    tracker: Tracker | None = None,
    progress: Advance = lambda _: None,
    sharding: Sharding = "none",
) -> Json:
    """Train `subject` on `rows` into `folder` (adapter/ or checkpoint/, metrics.jsonl); goes on where a killed run was.

    `teacher` turns on soft labels: the loss is KL(teacher || student) on the completion tokens of the same rows, each
    model behind its own system text. By `sharding` each of several processes holds all weights, or a share of them.
    Returns steps, token counts, losses, speed and what was trained. Raises `TrainingError` for what can not be trained,
    first of all before any weights are loaded, and `NonFiniteError` at the step whose loss or gradient is not finite.
    """
    require_trainable(subject, recipe)
    room_for_training(subject.device)
    tokenizer, group = load_tokenizer(subject), group_of(recipe)
    data = tokenise(tokenizer, rows, subject.system, recipe.optimisation.max_length, teacher, group)
    torch.manual_seed(seed)
    args = _arguments(recipe.optimisation, seed, folder, subject, group)  # brings several processes together
    sharded = shares(recipe, sharding, args)
    model = trainable(subject, recipe, **sharded)
    start = {i: b.detach().clone() for i, b in biases(model, recipe).items()}
    log, remedy = StepLog(folder / "metrics.jsonl", tracker, progress, len(data)), remedy_of(recipe, subject)
    trainer = RowTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        data_collator=Collator(int(tokenizer.pad_token_id)),  # type: ignore[arg-type]
        callbacks=[StopAtNonFinite(remedy), log],
    )
    trainer.teacher = fresh_model(teacher) if teacher else None
    trainer.remove_callback(PrinterCallback)
    newest = newest_checkpoint(folder / ".checkpoints")
    trainer.own_optimiser = _optimiser(recipe, data, resumes=newest is not None)
    log.resume(newest)
    started = time.monotonic()
    width = max(row["length"] for row in data)
    with held_signals() as held, quick_training(trainer, width), _frozen_layers_once(model, recipe, data):
        trainer.add_callback(SaveAndStop(held))
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        seconds = time.monotonic() - started
        _require_sound(trainer, data, remedy)
    keep(trainer, recipe, subject, start, folder)
    if leads():
        shutil.rmtree(folder / ".checkpoints", ignore_errors=True)
    held = "deepspeed" if uses_deepspeed() else "fsdp" if sharded else "none"
    counts = _counts(data, len(rows), recipe.optimisation.epochs, seconds)
    return log.summary() | counts | parts_trained(model, recipe) | {"sharding": held}


def _frozen_layers_once(model: Any, recipe: Recipe, data: list[Json]) -> AbstractContextManager[None]:
    """Layers below the lowest trained vector compute each row once, where rows are seen more than once."""
    how = recipe.optimisation
    again = how.epochs > 1 or isinstance(how.optimiser, NaturalGradient)
    if not isinstance(recipe, BiasStudent) or not again or how.torch_compile:
        return nullcontext()
    return kept_layer_inputs(model, min(biases(model, recipe)), data, recipe.cache_gib)


def _optimiser(recipe: Recipe, data: list[Json], *, resumes: bool) -> Callable[[RowTrainer], Optimizer] | None:
    """What makes the recipe's optimiser once its model is in place; None for AdamW, which is transformers' own."""
    settings = recipe.optimisation.optimiser
    match settings:
        case AdamW():
            return None
        case NaturalGradient():
            seen = data[: settings.fisher_rows]
        case _:
            assert_never(settings)

    def make(trainer: RowTrainer) -> Optimizer:
        vectors = biases(trainer.model, recipe)
        if resumes:  # the resume point has the inverse of F
            fishers = [torch.eye(len(vector)) for vector in vectors.values()]
        else:
            fishers = fisher_information(trainer, list(vectors), seen)
        rate = recipe.optimisation.learning_rate
        return NaturalGradientOptimiser([*vectors.values()], fishers, settings, rate)

    return make


def _require_sound(trainer: RowTrainer, data: list[Json], remedy: str) -> None:
    """Look at what the last step left: its log is from before it."""
    loss = trainer.loss_at_end(min(data, key=lambda row: row["length"]))
    values = {"largest weight squared": largest_square(trainer.model), "loss of the shortest row": loss}
    require_finite(
        agreed(values, trainer.args.device),
        f"training stopped after step {trainer.state.global_step}, the last",
        remedy,
    )


def remedy_of(recipe: Recipe, subject: Subject) -> str:
    """What helps where a training has left the numbers."""
    return remedy_for(recipe.optimisation, subject, group_of(recipe))


def remedy_for(how: Fitting, subject: Subject, group: str) -> str:
    """The same for settings that stand in `group`."""
    precision = "" if subject.dtype == "float32" else f", set model.dtype=float32 (it is {subject.dtype})"
    return (
        f"Lower {group}.optimisation.learning_rate ({how.learning_rate:g}){precision}; where the very first step is "
        "not finite, look at the model's weights and try device=cpu, which computes attention in another way. "
        "Nothing is published; metrics.jsonl and the resume points from before stay"
    )


def shared_out(recipe: Optimisation, group: str = "student") -> tuple[int, int]:
    """Rows a forward pass of each process and passes a step, so that a step sees one batch however many there are."""
    share, rest = divmod(recipe.batch_size, world_size())
    if rest:
        raise TrainingError(
            f"batch_size={recipe.batch_size} can not be shared out evenly to {world_size()} processes; start a number "
            f"of them that divides it, or set {group}.optimisation.batch_size"
        )
    rows = recipe.rows_a_pass(share)
    return rows, share // rows


def _arguments(recipe: Optimisation, seed: int, folder: Path, subject: Subject, group: str) -> SFTConfig:
    rows, passes = shared_out(recipe, group)
    return on_one_gpu(
        SFTConfig(
            output_dir=str(folder / ".checkpoints"),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=passes,
            train_sampling_strategy="group_by_length" if recipe.ordering == "by_length" else "random",
            save_steps=recipe.save_every,
            save_total_limit=2,
            max_length=None,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            **trainer_settings(recipe, seed, subject),
        )
    )


A = TypeVar("A", bound=TrainingArguments)


def on_one_gpu(args: A) -> A:
    """The arguments with one GPU for this process, however many it sees.

    transformers' trainer would spread a single process's batches over all of them (DataParallel), TRL's refuses to.
    """
    args._n_gpu = min(args.n_gpu, 1)
    return args


def trainer_settings(recipe: Fitting, seed: int, subject: Subject) -> dict[str, Any]:
    """What all our trainings tell their trainer: the recipe, the arithmetic, the seeds, and to be quiet."""
    return {
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": subject.dtype == "bfloat16",  # adapters stay float32, their products are not
        "use_cpu": subject.device == "cpu",
        "seed": seed,
        "data_seed": seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},  # frozen weights below an adapter have no gradients
        "use_liger_kernel": recipe.liger_kernel,
        "liger_kernel_config": {"fused_linear_cross_entropy": False, "cross_entropy": False},  # the loss is our own
        "torch_compile": recipe.torch_compile,
        "dataloader_pin_memory": subject.device != "cpu",
    }


def _counts(data: list[Json], given: int, epochs: float, seconds: float) -> Json:
    tokens = sum(example["length"] for example in data)
    return {
        "rows": len(data),
        "rows_too_long": given - len(data),
        "processes": world_size(),
        "tokens": tokens,
        "completion_tokens": sum(label != IGNORED for example in data for label in example["labels"]),
        "training_seconds": round(seconds, 2),
        "tokens_per_second": round(tokens * epochs / max(seconds, 1e-9), 1),
    }


def tune_reference(
    subject: Subject, tuning: InFormatTuning, rows: Sequence[Row], folder: Path, *, progress: Advance
) -> Json:
    """Make a model able to answer in format: LoRA SFT on programmatic answers, merged into `checkpoint/`."""
    report = fit(subject, rows, tuning, tuning.seed, folder, progress=progress)
    merge(subject, folder / "adapter", folder / "checkpoint")
    return report
