"""Layers below the lowest trained vector: each row goes through them once, and the losses stay the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROWS, optimisation

from subliminal.config import BiasStudent, NaturalGradient, Optimisation
from subliminal.models import Subject
from subliminal.training.sft import fit

HOWS = {
    "adamw": optimisation(epochs=3.0, learning_rate=0.1, batch_size=8),
    "another width each epoch": optimisation(epochs=3.0, learning_rate=0.1, batch_size=3, ordering="uniform"),
    "natural_gradient": optimisation(epochs=2.0, learning_rate=0.3, batch_size=8, optimiser=NaturalGradient()),
}


@pytest.fixture
def lowest_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass of a model's first layer computed."""
    from transformers.models.llama import modeling_llama as library

    seen: list[int] = []
    plain = library.LlamaAttention.forward

    def counted(self: Any, hidden_states: Any, *given: Any, **named: Any) -> Any:
        if self.layer_idx == 0:
            seen.append(len(hidden_states))
        return plain(self, hidden_states, *given, **named)

    monkeypatch.setattr(library.LlamaAttention, "forward", counted)
    return seen


def losses(subject: Subject, how: Optimisation, gib: float, folder: Path) -> list[float]:
    fit(subject, ROWS, BiasStudent(layers=(1,), optimisation=how, cache_gib=gib), 0, folder)
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", HOWS)
def test_rows_go_once_through_frozen_layers_and_losses_stay(
    name: str, tiny: Subject, tmp_path: Path, lowest_rows: list[int]
) -> None:
    plain = losses(tiny, HOWS[name], 0.0, tmp_path / "plain")
    before = sum(lowest_rows)
    assert before > 2 * len(ROWS)
    kept = losses(tiny, HOWS[name], 1.0, tmp_path / "kept")
    assert kept == pytest.approx(plain, rel=1e-5)
    again = sum(lowest_rows) - before - len(ROWS)
    # a batch with one row that was not seen yet is computed whole: only where rows are drawn in another order
    assert again == 0 if name != "another width each epoch" else again < before - len(ROWS)


def test_one_pass_keeps_nothing_and_too_little_memory_is_said(
    tiny: Subject, tmp_path: Path, lowest_rows: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    losses(tiny, optimisation(epochs=1.0, batch_size=8), 1e-9, tmp_path / "once")
    assert "student.cache_gib" not in capsys.readouterr().err
    how = HOWS["adamw"]
    plain = losses(tiny, how, 0.0, tmp_path / "plain")
    before = sum(lowest_rows)
    assert losses(tiny, how, 1e-9, tmp_path / "little") == plain
    assert sum(lowest_rows) - before > 2 * len(ROWS)
    assert "takes student.cache_gib=" in capsys.readouterr().err
