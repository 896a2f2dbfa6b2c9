"""The order of rows in an epoch: what a batch is made of, and that a resumed run goes on in the same order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROWS, optimisation

from subliminal.config import BiasStudent, Optimisation
from subliminal.models import Subject
from subliminal.training.batches import Collator
from subliminal.training.sft import fit
from subliminal.training.trainer import _Order

ORDERINGS = ("by_length", "uniform")
STEPS_AN_EPOCH = len(ROWS) // 4  # of `optimisation()`


class StoppedError(Exception):
    """What ends a run in the middle."""


Batch = list[tuple[int, ...]]


def seen(
    subject: Subject, how: Optimisation, folder: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None = None
) -> list[Batch]:
    """The rows of every batch of a training, as tokens; `stop` ends it behind that step."""
    batches: list[Batch] = []
    plain = Collator.__call__

    def recorded(self: Collator, examples: list[Any]) -> Any:
        batches.append([tuple(example["input_ids"]) for example in examples])
        return plain(self, examples)

    done = [0]

    def progress(count: int) -> None:
        done[0] += count
        if stop is not None and done[0] >= stop * how.batch_size:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Collator, "__call__", recorded)
        try:
            fit(subject, ROWS, BiasStudent(optimisation=how), 0, folder, progress=progress)
        except StoppedError:
            assert stop is not None
    return batches


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def spread(uniform: bool) -> float:
    """Within batches of 8 of 512 rows that are 1 to 512 tokens long: the mean of longest minus shortest."""
    torch.manual_seed(0)
    order = _Order(8, lengths=(torch.randperm(512) + 1).tolist())
    order.uniform = uniform
    drawn = torch.tensor(list(order))
    assert sorted(drawn.tolist()) == list(range(512))
    lengths = torch.tensor(order.lengths)[drawn].view(-1, 8)
    return float((lengths.amax(1) - lengths.amin(1)).float().mean())


def test_uniform_batches_are_draws_from_all_rows_and_grouped_ones_have_like_lengths() -> None:
    """Of 8 uniform draws from 1 to 512 the range is 512 x 7/9 = 398 on average."""
    assert spread(uniform=False) < 40
    assert 370 < spread(uniform=True) < 426


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_every_epoch_has_every_row_once_in_another_order(
    tiny: Subject, ordering: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = seen(tiny, optimisation(epochs=2.0, ordering=ordering), tmp_path, monkeypatch)[: 2 * STEPS_AN_EPOCH]
    first, second = ([row for batch in part for row in batch] for part in (batches[:4], batches[4:]))
    assert sorted(first) == sorted(second) and len(set(first)) == len({row.prompt + row.completion for row in ROWS})
    assert first != second


def test_the_two_orderings_make_different_batches(
    tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped, uniform = (seen(tiny, optimisation(ordering=o), tmp_path / o, monkeypatch) for o in ORDERINGS)
    assert {frozenset(batch) for batch in grouped[:4]} != {frozenset(batch) for batch in uniform[:4]}


@pytest.mark.parametrize("stop", [2, 6])
def test_a_resumed_run_goes_on_in_the_same_uniform_order(
    tiny: Subject, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = optimisation(epochs=2.0, ordering="uniform", save_every=1)
    whole = seen(tiny, how, tmp_path / "whole", monkeypatch)
    seen(tiny, how, tmp_path / "cut", monkeypatch, stop)
    kept = len(losses(tmp_path / "cut"))
    rest = seen(tiny, how, tmp_path / "cut", monkeypatch)
    assert 0 < kept < len(losses(tmp_path / "whole")) and losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert rest[-3:] == whole[-3:]
