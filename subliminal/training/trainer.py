"""TRL's trainer as rows need it: order, resume points, the log of every step, and when a training stops."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import RNGType, synchronize_rng_states
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.sft_trainer import SFTTrainer

from subliminal.finite import require_finite
from subliminal.processes import leads, world_size
from subliminal.progress import Advance
from subliminal.stopping import HeldSignals
from subliminal.store import Json, write_atomically
from subliminal.training.batches import completion_loss

if TYPE_CHECKING:
    from subliminal.tracking import Tracker

TRAINABLE = "trainable.safetensors"
ORDER = "order.safetensors"
LAST_WRITTEN = "trainer_state.json"
COMPLETE = (TRAINABLE, ORDER, LAST_WRITTEN, "optimizer.pt", "scheduler.pt")


class _Order(LengthGroupedSampler):
    """An epoch's rows, like lengths together or `uniform`, in an order that depends on torch's generator when drawn.

    A resumed epoch repeats it from the state of that generator.
    """

    uniform = False
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
        if self.uniform:
            return iter(torch.randperm(len(self), generator=self.generator).tolist())
        return super().__iter__()


class RowTrainer(SFTTrainer):
    """TRL's SFT trainer with a loss over completion tokens only, hard or soft labels, and light checkpoints."""

    teacher: Any = None
    own_optimiser: Callable[[RowTrainer], torch.optim.Optimizer] | None = None  # in place of transformers' own
    order: _Order
    _again: torch.Tensor | None = None  # the state an interrupted epoch's order was drawn from

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Keep hold of the sampler, for the resume points; it groups what a step sees, in one process or in many."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * world_size()
        self.order = _Order(a_step, lengths=list(rows["length"]))
        self.order.uniform = self.args.train_sampling_strategy == "random"
        self.order.again, self._again = self._again, None
        return self.order

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's own optimiser, or transformers'."""
        if self.own_optimiser is None:
            return super().create_optimizer(model)
        self.optimizer = self.own_optimiser(self)
        return self.optimizer

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
        save_file({n: p.detach().cpu().contiguous() for n, p in trained(self.model)}, folder / TRAINABLE)
        within = float(self.state.epoch or 0) % 1 > 0  # at its end the next epoch's order is still to be drawn
        save_file({"drawn": self.order.drawn} if within and self.order.drawn is not None else {}, folder / ORDER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        self._again = load_file(Path(resume_from_checkpoint) / ORDER).get("drawn")
        saved = load_file(Path(resume_from_checkpoint) / TRAINABLE)
        with torch.no_grad():
            for name, parameter in trained(self.model):
                parameter.copy_(saved[name])

    def loss_at_end(self, row: Json) -> float:
        """The loss of one row under the weights as they are now; of several processes all must ask."""
        self.model.eval()  # type: ignore[union-attr]
        batch = self._prepare_inputs(self.data_collator([row]))  # type: ignore[misc]
        with torch.no_grad(), self.compute_loss_context_manager():
            total, count, _ = completion_loss(self.model_wrapped, batch, self.teacher)
        return float(total) / count

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model card beside a resume point; cards are made when a model is published."""


def trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters of a model that have gradients, with their names."""
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


class StepLog(TrainerCallback):
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


class StopAtNonFinite(TrainerCallback):
    """Ends a training at the first step whose loss or gradient is not finite, in all processes alike.

    It looks at the numbers of the step's log, which are on the host already, and where a resume point is to be written
    at the weights too: none is written that training could not go on from. To be added before what keeps the log.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self.before = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        """Raise `NonFiniteError` that names the step, its loss and the norm of its gradient, and the step before."""
        if not logs or "loss" not in logs:
            return
        values = {"loss": float(logs["loss"]), "grad norm": float(logs.get("grad_norm") or 0.0)}
        if control.should_save:
            values["largest weight squared"] = largest_square(model)
        where = f"training stopped at step {state.global_step}"
        require_finite(agreed(values, args.device), where, self.before + self.remedy)
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        self.before = f"At step {state.global_step}: {shown}. "


def largest_square(model: Any) -> float:
    """The square, in float32, of the largest trained weight, nan where any is; of shares, of this process's own.

    Where it is infinite a model that normalises its layers may still give finite losses, of which none is its own.
    """
    ends = [torch.stack(torch.aminmax(_own(p.detach()))).float() for _, p in trained(model) if _own(p).numel()]
    return float(torch.cat(ends).square().amax()) if ends else 0.0


def _own(parameter: Any) -> torch.Tensor:
    """Of a parameter that processes share (FSDP2), this one's part."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def agreed(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The same values in every process, nan where it is nan or infinite in any: all of them stop, or none."""
    if world_size() == 1:
        return values
    finite = torch.tensor([float(math.isfinite(value)) for value in values.values()], device=device)
    torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    return {
        name: value if here or not math.isfinite(value) else math.nan
        for (name, value), here in zip(values.items(), finite.tolist(), strict=True)
    }


class SaveAndStop(TrainerCallback):
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
