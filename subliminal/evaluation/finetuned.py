"""A language model told to tell two sets of rows apart: the reference, fine-tuned as a sequence classifier.

Like the other classifiers it sees a row's completion alone and is judged on prompts it has not seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

from subliminal.config import FinetunedClassifier, Fitting
from subliminal.evaluation.samples import TwoSamples
from subliminal.finite import require_finite
from subliminal.models import Subject, fresh_classifier, load_tokenizer
from subliminal.progress import progress
from subliminal.training.lora import planned_modules, with_lora
from subliminal.training.sft import on_one_gpu, remedy_for, trainer_settings
from subliminal.training.speed import quick_training
from subliminal.training.trainer import StopAtNonFinite

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP = "evaluation.finetuned"  # where the settings stand


def cross_validated(
    samples: TwoSamples, fold: NDArray[np.int64], reference: Subject, config: FinetunedClassifier, seed: int
) -> NDArray[np.float64]:
    """Log-odds of being own (rows,), each from a model that was fitted to the other folds' prompts.

    Raises `TrainingError` before any weights are loaded where `config.lora` does not fit the reference, and
    `NonFiniteError` at a step or a score that is not finite.
    """
    parts_trained(reference, config)
    tokenizer: Any = load_tokenizer(reference)
    tokenizer.padding_side = "right"  # padding in front would shift positions, which a classifier counts from 0
    tokens = [
        tokenizer.encode(row.completion, add_special_tokens=False)[: config.optimisation.max_length]
        for row in samples.rows
    ]
    scores, count = np.zeros(len(tokens)), int(fold.max()) + 1
    with progress("fine-tuning classifiers", count, "folds") as advance:
        for number in range(count):
            seen = np.flatnonzero(fold != number)
            trainer = _trainer(reference, tokenizer, _labelled(tokens, samples.own, seen), config, seed + number)
            with quick_training(trainer, max(map(len, tokens))):
                trainer.train()
            tested = np.flatnonzero(fold == number)
            scores[tested] = _log_odds(trainer, [tokens[place] for place in tested])
            require_finite({"a score": float(scores[tested].sum())}, f"fold {number}", _remedy(config, reference))
            advance(1)
    return scores


def parts_trained(reference: Subject, config: FinetunedClassifier) -> dict[str, int]:
    """How many modules of each name a fold's model trains, the new head among them; no weights are loaded."""
    return planned_modules(reference, config.lora, GROUP, "SEQ_CLS")


def _remedy(config: FinetunedClassifier, reference: Subject) -> str:
    return remedy_for(config.optimisation, reference, GROUP)


def _labelled(tokens: list[list[int]], own: NDArray[np.bool_], places: NDArray[np.int64]) -> Dataset:
    return Dataset.from_list([{"input_ids": tokens[place], "labels": int(own[place])} for place in places])


def _trainer(reference: Subject, tokenizer: Any, data: Dataset, config: FinetunedClassifier, seed: int) -> Trainer:
    """A new head and a new adapter on the reference, and what fits them to `data`."""
    torch.manual_seed(seed)
    model = with_lora(fresh_classifier(reference, tokenizer.pad_token_id), config.lora, GROUP, "SEQ_CLS")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # a bfloat16 head would lose most of its steps to rounding
    recipe = config.optimisation
    trainer = Trainer(
        model=model,
        args=_arguments(recipe, trainer_settings(recipe, seed, reference)),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=balanced_loss(data["labels"]),
        callbacks=[StopAtNonFinite(_remedy(config, reference))],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(recipe: Fitting, settings: dict[str, Any]) -> TrainingArguments:
    rows = recipe.rows_a_pass(recipe.batch_size)
    return on_one_gpu(
        TrainingArguments(
            output_dir=tempfile.gettempdir(),  # nothing is written: a fold is short, and its model is not kept
            save_strategy="no",
            per_device_train_batch_size=rows,
            per_device_eval_batch_size=rows,
            gradient_accumulation_steps=recipe.batch_size // rows,
            **settings,
        )
    )


def balanced_loss(labels: Any) -> Callable[..., torch.Tensor]:
    """Cross-entropy in which both sides weigh the same, however many rows each has."""
    sizes = torch.bincount(torch.tensor(list(labels)), minlength=2)
    weight = len(labels) / (2 * sizes.clamp(min=1).float())

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs.logits.float()
        total = cross_entropy(logits, labels, weight.to(logits.device), reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def _log_odds(trainer: Trainer, tokens: list[list[int]]) -> NDArray[np.float64]:
    logits: Any = trainer.predict(Dataset.from_list([{"input_ids": one} for one in tokens])).predictions  # type: ignore[arg-type]
    return logits[:, 1].astype(np.float64) - logits[:, 0]
