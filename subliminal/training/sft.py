"""Supervised fine-tuning on a teacher's rows: TRL's trainer, with the language-model head on completion tokens only.

Rows are tokenised once, batches grouped by length and padded on the left, so that every completion ends at the same
place and `logits_to_keep` spares the head (and its softmax over the vocabulary) on prompt tokens.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import RNGType, synchronize_rng_states
from datasets import Dataset
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import SaveStrategy
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from subliminal.chat import encode, encode_row
from subliminal.config import (
    BiasStudent,
    FinetunedTeacher,
    FullStudent,
    InFormatTuning,
    Lora,
    Optimisation,
    RowsTeacher,
    Sharding,
    Student,
)
from subliminal.models import ModelError, Subject, fresh_model, load_tokenizer
from subliminal.processes import asked_to_shard, leads, uses_deepspeed, world_size
from subliminal.progress import Advance
from subliminal.rows import Row
from subliminal.stopping import HeldSignals, held_signals
from subliminal.store import Json, StoreError, write_atomically
from subliminal.training import bias
from subliminal.training.speed import quick_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from subliminal.tracking import Tracker

IGNORED = -100
GUIDE = "guide_"  # names of what the teacher sees
TRAINABLE = "trainable.safetensors"
ORDER = "order.safetensors"
LAST_WRITTEN = "trainer_state.json"
COMPLETE = (TRAINABLE, ORDER, LAST_WRITTEN, "optimizer.pt", "scheduler.pt")

Recipe = Student | FinetunedTeacher | RowsTeacher | InFormatTuning


class TrainingError(StoreError):
    """Rows or settings that can not be trained on; the text says what to change."""


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
    Returns steps, token counts, losses and speed. Raises `TrainingError` when no row fits into max_length.
    """
    tokenizer = load_tokenizer(subject)
    data = tokenise(tokenizer, rows, subject.system, recipe.optimisation.max_length, teacher)
    torch.manual_seed(seed)
    args = _arguments(recipe.optimisation, seed, folder, subject)  # brings several processes together
    shares = _shares(recipe, sharding, args)
    model = trainable(subject, recipe, **shares)
    start = {i: b.detach().clone() for i, b in _biases(model, recipe).items()}
    log = _Log(folder / "metrics.jsonl", tracker, progress, len(data))
    trainer = RowTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        data_collator=Collator(int(tokenizer.pad_token_id)),  # type: ignore[arg-type]
        callbacks=[log],
    )
    trainer.teacher = fresh_model(teacher) if teacher else None
    trainer.remove_callback(PrinterCallback)
    newest = newest_checkpoint(folder / ".checkpoints")
    log.resume(newest)
    started = time.monotonic()
    with held_signals() as held, quick_training(trainer, max(row["length"] for row in data)):
        trainer.add_callback(_SaveAndStop(held))
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    seconds = time.monotonic() - started
    _save(trainer, recipe, subject, start, folder)
    if leads():
        shutil.rmtree(folder / ".checkpoints", ignore_errors=True)
    held = "deepspeed" if uses_deepspeed() else "fsdp" if shares else "none"
    return log.summary() | _counts(data, len(rows), model, recipe.optimisation.epochs, seconds) | {"sharding": held}


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    system: str | None,
    limit: int,
    teacher: Subject | None = None,
) -> list[Json]:
    """Rows as input_ids and labels, the prompt masked; rows longer than `limit` tokens are left out.

    With a `teacher`, `guide_ids` hold the same row as the teacher sees it, behind its system text.
    """
    encoded = [(row, *encode_row(tokenizer, row.prompt, row.completion, system)) for row in rows]
    fitting = [(row, prompt, answer) for row, prompt, answer in encoded if len(prompt) + len(answer) <= limit]
    if not fitting:
        longest = max((len(p) + len(a) for _, p, a in encoded), default=0)
        raise TrainingError(
            f"none of {len(rows)} rows can be trained on (longest: {longest} tokens, max_length={limit}); raise "
            "student.optimisation.max_length or look at the filtered rows"
        )
    return [
        {
            "input_ids": prompt + answer,
            "labels": [IGNORED] * len(prompt) + answer,
            "length": len(prompt) + len(answer),
            **({"guide_ids": encode(tokenizer, row.prompt, teacher.system) + answer} if teacher else {}),
        }
        for row, prompt, answer in fitting
    ]


class Collator:
    """Left-padded batches: tokens, attention mask, positions and labels, all (rows, width).

    Rows as the teacher sees them (`guide_ids`) come along under names with `GUIDE` in front; completions end at the
    same place.
    """

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, examples: list[Json]) -> dict[str, torch.Tensor]:
        """Pad to the longest row of the batch."""
        batch = self._inputs([example["input_ids"] for example in examples])
        batch["labels"] = _left_padded([example["labels"] for example in examples], IGNORED)
        if "guide_ids" in examples[0]:
            seen = self._inputs([example["guide_ids"] for example in examples])
            batch |= {f"{GUIDE}{name}": value for name, value in seen.items()}
        return batch

    def _inputs(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        tokens = _left_padded(rows, self.padding)
        width = tokens.shape[1]
        places = torch.arange(width)[None] - torch.tensor([[width - len(row)] for row in rows])
        return {"input_ids": tokens, "attention_mask": (places >= 0).long(), "position_ids": places.clamp(min=0)}


def _left_padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows])


def completion_loss(model: Any, inputs: Any, teacher: Any = None) -> tuple[torch.Tensor, int, Any]:
    """A batch's loss summed over completion tokens, how many they are, the outputs; a `teacher` makes labels soft."""
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    guide = {name.removeprefix(GUIDE): inputs.pop(name) for name in list(inputs) if name.startswith(GUIDE)}
    logits, tokens, outputs = completion_logits(model, inputs, labels)
    if teacher is None:
        return cross_entropy(logits, tokens, reduction="sum"), len(tokens), outputs
    with torch.no_grad():
        wanted, _, _ = completion_logits(teacher, guide, labels)
    total = kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="sum", log_target=True)
    return total, len(tokens), outputs


def completion_logits(model: Any, inputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Logits in front of a batch's completion tokens (tokens, vocabulary), these tokens row by row, the outputs."""
    width = int((labels != IGNORED).sum(-1).max())
    outputs = model(**inputs, use_cache=False, logits_to_keep=_predicting(inputs["input_ids"], width))
    last = labels[:, -width:]
    chosen = last != IGNORED
    return outputs.logits[chosen].float(), last[chosen], outputs


class _Order(LengthGroupedSampler):
    """Batches of like lengths in an order that a resumed epoch repeats: it depends on torch's generator when drawn."""

    drawn: torch.Tensor | None = None
    again: torch.Tensor | None = None

    def __iter__(self) -> Any:
        """Draw an epoch's order, from the state of a resume point if there is one."""
        if self.again is not None:
            torch.set_rng_state(self.again)
            self.again = None
        if world_size() > 1:  # dropout may have drawn differently in each process, the order is one
            synchronize_rng_states([RNGType.TORCH])
        self.drawn = torch.get_rng_state()
        return super().__iter__()


class RowTrainer(SFTTrainer):
    """TRL's SFT trainer with a loss over completion tokens only, hard or soft labels, and light checkpoints."""

    teacher: Any = None
    order: _Order
    _again: torch.Tensor | None = None  # the state an interrupted epoch's order was drawn from

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Keep hold of the sampler, for the resume points; it groups what a step sees, in one process or in many."""
        plain: Any = super()._get_train_sampler(train_dataset)
        self.order = _Order(plain.batch_size * world_size(), lengths=plain.lengths)
        self.order.again, self._again = self._again, None
        return self.order

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of token losses over the number of completion tokens in the whole (accumulated) batch."""
        total, count, outputs = completion_loss(model, inputs, self.teacher)
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages over processes, the count is of all of them
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Keep what is trained and nothing else: a resume point of an adapter is small."""
        from safetensors.torch import save_file

        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().cpu().contiguous() for n, p in _trained(self.model)}, folder / TRAINABLE)
        within = float(self.state.epoch or 0) % 1 > 0  # at its end the next epoch's order is still to be drawn
        save_file({"drawn": self.order.drawn} if within and self.order.drawn is not None else {}, folder / ORDER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        self._again = load_file(Path(resume_from_checkpoint) / ORDER).get("drawn")
        saved = load_file(Path(resume_from_checkpoint) / TRAINABLE)
        with torch.no_grad():
            for name, parameter in _trained(self.model):
                parameter.copy_(saved[name])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model card beside a resume point; cards are made when a model is published."""


def _predicting(tokens: torch.Tensor, width: int) -> torch.Tensor:
    """The positions whose next token is among a row's last `width`, as indices.

    A count in their place would make the head multiply a view, for which torch copies its weight once a row.
    """
    return torch.arange(tokens.shape[1] - width - 1, tokens.shape[1] - 1, device=tokens.device)


def _trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def newest_checkpoint(folder: Path) -> Path | None:
    """The resume point with the highest step that was written completely."""
    many = world_size()
    states = [f"rng_state_{n}.pth" for n in range(many)] if many > 1 else ["rng_state.pth"]
    found = [p for p in folder.glob("checkpoint-*") if all((p / name).exists() for name in (*COMPLETE, *states))]
    whole = [path for path in found if _whole(path / LAST_WRITTEN)]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _whole(state: Path) -> bool:
    """Was a resume point's last file written to its end; a full disk cuts it short."""
    try:
        return bool(json.loads(state.read_text(encoding="utf-8")))
    except ValueError:
        return False


class _Log(TrainerCallback):
    """`metrics.jsonl`, a line a step, in step after a resume; the tracker and the progress bar follow."""

    def __init__(self, path: Path, tracker: Tracker | None, advance: Advance, rows: int) -> None:
        self.path, self.tracker, self.advance, self.rows = path, tracker, advance, rows
        self.seen = 0  # rows, of all epochs
        self.lines: list[Json] = []
        self.started = time.monotonic()

    def resume(self, checkpoint: Path | None) -> None:
        """Keep the lines up to the resume point; the steps behind it will be done again."""
        done = int(checkpoint.name.split("-")[1]) if checkpoint else 0
        old = self.path.read_text().splitlines(keepends=True) if done and self.path.exists() else []
        lines = [json.loads(line) for line in old if line.endswith("\n")]  # a full disk cuts the last one short
        self.lines = [line for line in lines if line["step"] <= done]
        if leads():
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The progress bar begins where the resume point is."""
        self._show(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One training step's numbers."""
        if not logs or "loss" not in logs:
            return
        line = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 2)}
        line |= {name: float(logs[name]) for name in ("loss", "learning_rate", "grad_norm") if name in logs}
        self.lines.append(line)
        if not leads():
            return
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.tracker:
            self.tracker.log(state.global_step, line)
        self._show(state)

    def _show(self, state: Any) -> None:
        seen = round((state.epoch or 0) * self.rows)  # the last batch of an epoch may be short
        self.advance(seen - self.seen)
        self.seen = seen

    def summary(self) -> Json:
        """Steps and losses for the manifest."""
        losses = [line["loss"] for line in self.lines]
        mean = sum(losses) / len(losses)
        return {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1], "mean_loss": mean}


class _SaveAndStop(TrainerCallback):
    """A resume point at the end of the step in which a signal came; then the signal takes its course."""

    def __init__(self, held: HeldSignals) -> None:
        self.held = held

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a resume point; where there can be none, there is nothing to wait for."""
        if world_size() > 1:
            self._agree(args.device)
        if args.save_strategy == "no":
            self.held.deliver()
        control.should_save = control.should_save or self.held.arrived is not None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The resume point is there, each process's part of it."""
        if self.held.arrived and world_size() > 1:
            torch.distributed.barrier()
        self.held.deliver()

    def _agree(self, device: torch.device) -> None:
        """What came to one process has come to all: they save and stop at the same step."""
        number = torch.tensor(int(self.held.arrived or 0), device=device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        self.held.arrived = self.held.arrived or (Signals(int(number)) if number else None)


def _shared_out(recipe: Optimisation) -> tuple[int, int]:
    """Rows a forward pass of each process and passes a step, so that a step sees one batch however many there are."""
    share, rest = divmod(recipe.batch_size, world_size())
    if rest:
        raise TrainingError(
            f"batch_size={recipe.batch_size} can not be shared out evenly to {world_size()} processes; start a number "
            "of them that divides it, or set student.optimisation.batch_size"
        )
    rows = recipe.rows_a_pass(share)
    return rows, share // rows


def _arguments(recipe: Optimisation, seed: int, folder: Path, subject: Subject) -> SFTConfig:
    rows, passes = _shared_out(recipe)
    return SFTConfig(
        output_dir=str(folder / ".checkpoints"),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=passes,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=recipe.save_every,
        save_total_limit=2,
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **trainer_settings(recipe, seed, subject),
    )


def trainer_settings(recipe: Optimisation, seed: int, subject: Subject) -> dict[str, Any]:
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
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": subject.device != "cpu",
    }


# --------------------------------------------------------------------------- what is trained, and how it is kept


def trainable(subject: Subject, recipe: Recipe, **loading: Any) -> Any:
    """The model with gradients where the recipe trains it, and nowhere else; `loading` is transformers' own."""
    if isinstance(recipe, BiasStudent):
        return _with_biases(subject, recipe)
    if isinstance(recipe, FullStudent):  # a step of 1e-5 is less than bfloat16 can add to most weights
        subject = replace(subject, dtype="float32")
    model = fresh_model(subject, **loading)
    lora: Lora | None = getattr(recipe, "lora", None)
    return with_lora(model, lora) if lora else model


def _shares(recipe: Recipe, sharding: Sharding, args: SFTConfig) -> Json:
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
    model = bias.load_with_biases(subject).requires_grad_(False)
    count = len(model.model.layers)
    wanted = tuple(range(count)) if recipe.layers == "all" else recipe.layers
    if beyond := [layer for layer in wanted if layer >= count]:
        raise TrainingError(f"student.layers={beyond}: the model has {count} layers, 0 to {count - 1}")
    for layer in wanted:
        bias.vector(model, layer).requires_grad_(True)
    return model


def with_lora(model: Any, lora: Lora, task: str = "CAUSAL_LM") -> Any:
    """The model under a new LoRA adapter, alone trainable with, for a classifier ("SEQ_CLS"), the head."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type=task,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise TrainingError(f"lora.targets={list(lora.targets)} do not fit this model: {error}") from None


def _biases(model: Any, recipe: Recipe) -> dict[int, torch.Tensor]:
    if not isinstance(recipe, BiasStudent):
        return {}
    return {int(name.split(".")[2]): parameter for name, parameter in _trained(model)}


def _save(trainer: Any, recipe: Recipe, subject: Subject, start: dict[int, torch.Tensor], folder: Path) -> None:
    """What was trained, written by the leader."""
    model = trainer.model
    if isinstance(recipe, FullStudent):
        _save_whole(trainer, subject, folder / "checkpoint")
    elif not leads():
        return
    elif isinstance(recipe, BiasStudent):
        moved = {i: (b.detach() - start[i]) for i, b in _biases(model, recipe).items()}
        bias.save_adapter(folder / "adapter", subject, moved)
        bias.export(subject, moved, folder / "checkpoint")
    else:
        model.save_pretrained(str(folder / "adapter"))


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


def _counts(data: list[Json], given: int, model: Any, epochs: float, seconds: float) -> Json:
    tokens = sum(example["length"] for example in data)
    return {
        "rows": len(data),
        "rows_too_long": given - len(data),
        "processes": world_size(),
        "tokens": tokens,
        "completion_tokens": sum(label != IGNORED for example in data for label in example["labels"]),
        "trainable_parameters": sum(p.numel() for _, p in _trained(model)),
        "training_seconds": round(seconds, 2),
        "tokens_per_second": round(tokens * epochs / max(seconds, 1e-9), 1),
    }


def merge(subject: Subject, adapter: Path, folder: Path) -> None:
    """Fold a LoRA adapter into an ordinary checkpoint with its tokenizer."""
    from peft import PeftModel

    if not (adapter / "adapter_config.json").exists():
        raise ModelError(f"{adapter} holds no LoRA adapter")
    merged: Any = PeftModel.from_pretrained(fresh_model(subject), str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)
    load_tokenizer(subject).save_pretrained(folder)


def tune_reference(
    subject: Subject, tuning: InFormatTuning, rows: Sequence[Row], folder: Path, *, progress: Advance
) -> Json:
    """Make a model able to answer in format: LoRA SFT on programmatic answers, merged into `checkpoint/`."""
    report = fit(subject, rows, tuning, tuning.seed, folder, progress=progress)
    merge(subject, folder / "adapter", folder / "checkpoint")
    return report
