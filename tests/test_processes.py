"""One student trained by two processes: the same batches, the same losses, one writer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import tiny_experiment

from subliminal import inspect_store, stages
from subliminal.launch import ROOT, script_environment
from subliminal.models import Subject
from subliminal.store import Manifest, Store

SIZES = ["trait=owl", "teacher=random", "reference_tuning=off", "domain.prompts=24", "filter.rows=24"]
RECIPE = ["student=lora_small", "student.optimisation.batch_size=8", "student.optimisation.epochs=2"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@dataclass(frozen=True)
class Trained:
    """A finished student and its losses, step by step."""

    made: Manifest
    losses: list[float]

    @classmethod
    def of(cls, store: Store, key: str) -> Trained:
        made = store.find("train", key)
        assert made is not None
        lines = (made.folder / "metrics.jsonl").read_text().splitlines()
        return cls(made, [json.loads(line)["loss"] for line in lines])


def settings(tiny: Subject, store: Path) -> list[str]:
    weights = ["model=hub", f"model.source.name={tiny.checkpoint}", "model.dtype=float32", "device=cpu"]
    return ["experiment=animals_numbers", "scale=cpu", *weights, *SIZES, *RECIPE, f"store={store}"]


def together(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCH, "train.py", *arguments, f"hydra.run.dir={folder}"],
        cwd=ROOT, env=script_environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trained, Trained]]:
    """The student of one process, and of two."""
    runs = []
    for name in ("one", "two"):
        root = tmp_path_factory.mktemp(name)
        exp = tiny_experiment(tiny, *SIZES, *RECIPE, f"store={root}")
        student, store = stages.student(exp), Store(root)
        if name == "one":
            stages.ensure(student, store, exp)
        else:
            stages.ensure(stages.filtered(exp), store, exp)
            stages.ensure(stages.reference(exp), store, exp)
            done = together(settings(tiny, root), root / "logs")
            assert done.returncode == 0, done.stderr[-3000:]
        runs.append(Trained.of(store, student.key))
    yield runs[0], runs[1]


def test_two_processes_see_the_batches_of_one_and_have_its_losses(both: tuple[Trained, Trained]) -> None:
    one, two = both
    assert (one.made.summary["processes"], two.made.summary["processes"]) == (1, 2)
    assert len(one.losses) == 6
    assert two.losses == pytest.approx(one.losses, abs=1e-3)


def test_only_one_process_writes_and_its_files_are_whole(both: tuple[Trained, Trained]) -> None:
    made = both[1].made
    assert made.summary["steps"] == 6
    assert inspect_store.verify(made.folder.parent.parent) == []
    assert not (made.folder / "claim.json").exists() and not list(made.folder.glob(".checkpoints*"))


def test_two_processes_name_what_one_must_do_first(tiny: Subject, tmp_path: Path) -> None:
    done = together(settings(tiny, tmp_path), tmp_path / "logs")
    assert done.returncode != 0
    assert "run first: python filter.py" in done.stderr


def test_a_batch_that_can_not_be_shared_out_is_one_message(
    tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from subliminal.training.sft import TrainingError, _shared_out

    exp = tiny_experiment(tiny, *RECIPE, "student.optimisation.batch_size=9")
    assert _shared_out(exp.student.optimisation) == (9, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="9 can not be shared out evenly to 2 processes"):
        _shared_out(exp.student.optimisation)
