"""Several tasks of one SLURM job at a stage run: students trained together, rows shared out. `make test-cluster`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_experiment
from local_slurm import SMALL, Sweep, slurm, slurm_job  # noqa: F401 (slurm: this module's own)

from subliminal import stages
from subliminal.composition import ROOT
from subliminal.launch import script_environment
from subliminal.models import Subject
from subliminal.store import Manifest, Store

SHARDS = ["trait=owl", "seed=0", "sampler.shard_size=2"]


def losses(made: Manifest | None) -> list[float]:
    assert made is not None
    return [json.loads(line)["loss"] for line in (made.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def swept(counting: Subject, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = Sweep(counting, tmp_path_factory.mktemp("tasks"), *SHARDS, "hydra.launcher.tasks_per_node=2")
    assert sweep.run() == 0, sweep.text
    return sweep


def test_students_and_shards_are_the_work_of_all_tasks(swept: Sweep) -> None:
    made = {each.stage: each.summary.get("processes") for each in swept.store.manifests()}
    assert (made["generate"], made["train"]) == (2, 2)


def test_a_stage_that_is_the_work_of_one_asks_for_one_task(swept: Sweep) -> None:
    tasks = {stage: slurm_job(numbers[0])["NumTasks"] for stage, numbers in swept.submitted.items()}
    assert tasks == {"teacher": "1", "generate": "2", "filter": "1", "train": "2", "evaluate": "1"}


def test_tasks_have_the_losses_of_one_process(swept: Sweep, counting: Subject, tmp_path: Path) -> None:
    own = [part for part in SMALL if not part.startswith(("hydra", "experiment", "scale", "model", "device"))]
    exp = tiny_experiment(counting, *own, *SHARDS, f"store={tmp_path}")
    node = stages.student(exp)
    alone = stages.ensure(node, Store(tmp_path), exp)
    assert losses(swept.store.find(node.stage, node.key)) == pytest.approx(losses(alone), abs=1e-3)


def test_srun_starts_what_torchrun_starts(counting: Subject, tmp_path: Path) -> None:
    sweep = Sweep(counting, tmp_path, *SHARDS)
    own = [part for part in sweep.overrides if not part.startswith("hydra/")]
    command = ["srun", "-n", "2", sys.executable, "train.py", *own, f"hydra.run.dir={tmp_path}/logs"]
    done = subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = sweep.store.manifests("train")
    assert made.summary["processes"] == 2
    assert done.stderr.count("running") == len(list(sweep.store.manifests())), "one of the tasks speaks"
