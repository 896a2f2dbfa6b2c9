"""Student training against TRL's `SFTTrainer` with its defaults: the same tokens, LoRA, batch size and learning rate.

Speed is tokens of the rows over the wall time of `train()`. The loss is compared where both see the same batches: one
batch of rows, several steps, the same adapter to begin with. The goal is set in float32, where the two can differ only
by what they compute; in bfloat16 each is also as far from that as its rounding takes it, which is printed beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from side_by_side import Way, compare, options, report, starting_point, timed

from subliminal.composition import compose
from subliminal.config import Experiment, LoraStudent, Student
from subliminal.domains import domain
from subliminal.models import Subject, fresh_model, load_tokenizer
from subliminal.rows import Row
from subliminal.store import Json

GOAL, LOSS_GOAL = 2.0, 1e-3


def number_rows(exp: Experiment, count: int) -> list[Row]:
    """Rows in the numbers domain with programmatic answers: their lengths are those of a teacher's rows."""
    writer = domain(exp.domain)
    prompts = writer.prompts(exp.domain.model_copy(update={"prompts": count}))
    return [Row(p.index, p.text, writer.random_answer(p, exp.domain)) for p in prompts]


def ours(who: Subject, rows: Sequence[Row], student: Student, seed: int) -> tuple[Json, list[float]]:
    """Our stage's training; returns its summary and the loss of every step."""
    from subliminal.training.sft import fit

    with TemporaryDirectory() as place:
        summary = fit(who, rows, student, seed, Path(place))
        lines = (Path(place) / "metrics.jsonl").read_text().splitlines()
    return summary, [json.loads(line)["loss"] for line in lines]


def trl_defaults(who: Subject, rows: Sequence[Row], student: LoraStudent, seed: int) -> tuple[Json, list[float]]:
    """TRL's trainer on the same token ids; everything a user need not set is left at its default."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from subliminal.training.batches import tokenise

    tokenizer, recipe = load_tokenizer(who), student.optimisation
    data = tokenise(tokenizer, rows, who.system, recipe.max_length)
    torch.manual_seed(seed)
    with TemporaryDirectory() as place:
        trainer = SFTTrainer(
            model=fresh_model(who),
            args=SFTConfig(
                output_dir=place,
                per_device_train_batch_size=recipe.batch_size,
                num_train_epochs=recipe.epochs,
                learning_rate=recipe.learning_rate,
                lr_scheduler_type=recipe.schedule,
                warmup_steps=recipe.warmup_steps,
                weight_decay=recipe.weight_decay,
                max_grad_norm=recipe.max_grad_norm,
                use_cpu=who.device == "cpu",
                bf16=None if who.dtype == "bfloat16" else False,
                seed=seed,
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
            ),
            train_dataset=Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in data]),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=student.lora.r,
                lora_alpha=student.lora.alpha,  # type: ignore[arg-type]
                target_modules=list(student.lora.targets),
                task_type="CAUSAL_LM",
            ),
        )
        trainer.remove_callback(_printer())
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
    return {"training_seconds": seconds}, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback


def with_steps(student: Student, epochs: float, batch: int) -> Any:
    """The recipe with other sizes."""
    sizes = {"epochs": epochs, "batch_size": batch, "micro_batch_size": None}
    return student.model_copy(update={"optimisation": student.optimisation.model_copy(update=sizes)})


def speeds(who: Subject, rows: list[Row], students: dict[str, Student], batch: int, rounds: int) -> dict[str, Any]:
    """Amount (tokens) and `train()` seconds by way; loading the model and writing the result are left out."""
    from subliminal.training.batches import tokenise

    lora: Any = with_steps(students["lora"], 1.0, batch)
    tokens = sum(row["length"] for row in tokenise(load_tokenizer(who), rows, who.system, lora.optimisation.max_length))
    spent: dict[str, float] = {}

    def way(name: str, train: Any, student: Any) -> Way:
        def run() -> float:
            spent[name] = spent.get(name, 0.0) + train(who, rows, student, 0)[0]["training_seconds"]
            return tokens

        return run

    ways = {"TRL SFTTrainer, LoRA": way("TRL SFTTrainer, LoRA", trl_defaults, lora)}
    for kind, student in students.items():
        ways[f"train stage, {kind}"] = way(f"train stage, {kind}", ours, with_steps(student, 1.0, batch))
    return {name: (amount, spent[name]) for name, (amount, _) in timed(ways, rounds).items()}


def compare_losses(who: Subject, rows: list[Row], lora: Any) -> None:
    """Print the losses of both trainers over the same steps, and the largest relative difference by arithmetic."""
    apart: dict[str, float] = {}
    told: dict[str, dict[str, list[float]]] = {}
    for dtype in ("float32", who.dtype):
        each = replace(who, dtype=dtype)
        told[dtype] = {"TRL": trl_defaults(each, rows, lora, 0)[1], "stage": ours(each, rows, lora, 0)[1]}
        apart[dtype] = difference(*told[dtype].values())
        for name, losses in told[dtype].items():
            print(f"{name:<6}{dtype:<9}", *(f"{loss:.6f}" for loss in losses))
        print(f"largest relative difference in {dtype} {apart[dtype]:.1e}")
    met = "met" if apart["float32"] < LOSS_GOAL else "NOT met"
    print(f"goal in float32 below {LOSS_GOAL:g}: {met}")
    rounding = {name: difference(told["float32"][name], losses) for name, losses in told[who.dtype].items()}
    print(f"what rounding to {who.dtype} changes:", *(f"{name} {far:.1e}" for name, far in rounding.items()))
    print(json.dumps({"benchmark": "training_loss", **told, "relative_difference": apart, "rounding": rounding}))


def difference(losses: list[float], others: list[float]) -> float:
    """The largest of any step, over the first one's loss."""
    return max(abs(a - b) / abs(a) for a, b in zip(losses, others, strict=True))


def main() -> None:
    chosen = options(__doc__, rows=64, batch=16, steps=3, rounds=2).parse_args()
    exp, who = starting_point(chosen.overrides)
    students = {
        kind: compose(["scale=cpu", *chosen.overrides, f"student={option}"]).student
        for kind, option in (("lora", "lora_small"), ("bias", "bias"))
    }
    compare_losses(who, number_rows(exp, chosen.batch), with_steps(students["lora"], float(chosen.steps), chosen.batch))
    totals = speeds(who, number_rows(exp, chosen.rows), students, chosen.batch, chosen.rounds)
    report(compare("training", "tokens", totals, "TRL SFTTrainer, LoRA", {"train stage, lora": GOAL}))


if __name__ == "__main__":
    main()
