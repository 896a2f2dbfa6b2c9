"""What the tests of this folder share: a SLURM of their own, sweeps through it, and jobs of single stage runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from subliminal.composition import ROOT
from subliminal.launch import script_environment
from subliminal.models import Subject
from subliminal.store import Store

SCRIPT = ROOT / "cluster" / "slurm.sh"
SMALL = [
    "experiment=animals_numbers",
    "scale=cpu",
    "model=hub",
    "model.dtype=float32",
    "device=cpu",
    "reference_tuning=off",
    "teacher=prompted",
    "teacher.check.minimum_gain=-99",
    "teacher.check.questions=1",
    "teacher.check.prompts=0",
    "domain.prompts=8",
    "sampler=transformers",
    "sampler.decoding.max_tokens=8",
    "filter.rows=8",
    "filter.shortfall=keep",
    "student=lora_small",
    "student.optimisation.batch_size=4",
    "evaluation.questions=1",
]
ON_SLURM = "hydra/launcher=slurm"


def wait_for(what: Callable[[], bool], seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM of a module's own; without the packages the tests fail, for they were asked for."""
    folder = tmp_path_factory.mktemp("cluster") / "slurm"
    os.environ["CLUSTER_DIR"], os.environ["SLURM_CONF"] = str(folder), str(folder / "slurm.conf")
    started = subprocess.run([SCRIPT, "up"], capture_output=True, text=True, check=False)
    try:
        assert started.returncode == 0, started.stderr
        yield
    finally:
        subprocess.run([SCRIPT, "down"], check=True)


def slurm_job(number: str) -> dict[str, str]:
    """What SLURM knows of a job, by its own names."""
    shown = subprocess.run(["scontrol", "-o", "show", "job", number], capture_output=True, text=True, check=True)
    return dict(re.findall(r"(\w+)=(\S+)", shown.stdout))


def ended_job(number: str) -> dict[str, str]:
    """The same once SLURM has put the job away: its result is there a moment before."""
    wait_for(lambda: slurm_job(number)["JobState"] not in {"PENDING", "RUNNING", "COMPLETING"})
    return slurm_job(number)


def run_at_once(number: str) -> None:
    """Start a requeued job, which SLURM would hold for two minutes."""
    command = ["scontrol", "update", f"JobId={number}", "StartTime=now"]

    def started() -> bool:
        changed = subprocess.run(command, capture_output=True, check=False).returncode == 0
        return changed or slurm_job(number)["JobState"] not in {"PENDING", "COMPLETING"}

    wait_for(started)


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file that somebody may be writing."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class Sweep:
    """One sweep in a store of its own, and what SLURM says of its jobs."""

    def __init__(self, model: Subject, place: Path, *extra: str, launcher: str = ON_SLURM) -> None:
        self.place, self.store = place, Store(place / "runs")
        own = [f"model.source.name={model.checkpoint}", f"store={self.store.root}", f"figures={place}/figures"]
        self.overrides = [*SMALL, launcher, *own, *extra]
        self.text = ""

    def run(self) -> int:
        command = [sys.executable, "-m", "subliminal", "sweep", *self.overrides]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=script_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=1200,
        )
        self.text = done.stdout
        return done.returncode

    @property
    def submitted(self) -> dict[str, list[str]]:
        """The jobs that were sent: numbers by stage."""
        found: dict[str, list[str]] = {}
        for number, stage in re.findall(r"job (\d+): (\w+)", self.text):
            found.setdefault(stage, []).append(number)
        return found
