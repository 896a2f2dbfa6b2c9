"""Sweeps through a real SLURM: chained jobs, failures it sees, requeued jobs that go on. `make test-cluster`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from subliminal import inspect_store
from subliminal.launch import ROOT, script_environment
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
    "sampler.decoding.max_tokens=8",
    "filter.rows=8",
    "filter.shortfall=keep",
    "student=lora_small",
    "student.optimisation.batch_size=4",
    "evaluation.questions=1",
    "hydra/launcher=slurm",
]


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM of this module's own; without the packages the tests fail, for they were asked for."""
    folder = tmp_path_factory.mktemp("cluster") / "slurm"
    os.environ["CLUSTER_DIR"], os.environ["SLURM_CONF"] = str(folder), str(folder / "slurm.conf")
    started = subprocess.run([SCRIPT, "up"], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    yield
    subprocess.run([SCRIPT, "down"], check=True)


def slurm_job(number: str) -> dict[str, str]:
    shown = subprocess.run(["scontrol", "-o", "show", "job", number], capture_output=True, text=True, check=True)
    return dict(re.findall(r"(\w+)=(\S+)", shown.stdout))


class Sweep:
    """One sweep in a store of its own, and what SLURM says of its jobs."""

    def __init__(self, model: Subject, place: Path, *extra: str) -> None:
        self.place, self.store = place, Store(place / "runs")
        own = [f"model.source.name={model.checkpoint}", f"store={self.store.root}", f"figures={place}/figures"]
        self.overrides = [*SMALL, *own, *extra]
        self.text = ""

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "subliminal", "sweep", *self.overrides]
        return subprocess.Popen(
            command, cwd=ROOT, env=script_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self) -> int:
        return self.finish(self.start())

    def finish(self, process: subprocess.Popen[str]) -> int:
        self.text = process.communicate(timeout=400)[0]
        return process.returncode

    @property
    def submitted(self) -> dict[str, list[str]]:
        """The jobs that were sent: numbers by stage."""
        found: dict[str, list[str]] = {}
        for number, stage in re.findall(r"job (\d+): (\w+)", self.text):
            found.setdefault(stage, []).append(number)
        return found

    def folder(self, stage: str) -> Path:
        (only,) = (self.store.root / stage).iterdir()
        return only


@pytest.fixture(scope="module")
def swept(counting: Subject, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = Sweep(counting, tmp_path_factory.mktemp("swept"), "trait=owl,dolphin", "seed=0,1")
    assert sweep.run() == 0, sweep.text
    return sweep


def test_two_traits_and_two_seeds_are_one_job_a_stage_run(swept: Sweep) -> None:
    sent = {stage: len(numbers) for stage, numbers in swept.submitted.items()}
    assert sent == {"teacher": 2, "generate": 2, "filter": 2, "train": 4, "evaluate": 5}
    assert {stage: len(list(swept.store.manifests(stage))) for stage in sent} == sent
    assert inspect_store.verify(swept.store.root) == []
    assert (swept.place / "figures" / "cpu" / "fig-animals-numbers.png").exists()


def test_jobs_wait_for_what_they_read_and_slurm_calls_them_completed(swept: Sweep) -> None:
    starts = {n: slurm_job(n)["StartTime"] for numbers in swept.submitted.values() for n in numbers}
    ends = {n: slurm_job(n)["EndTime"] for n in starts}
    assert {slurm_job(n)["JobState"] for n in starts} == {"COMPLETED"}
    teachers, filters, students = (swept.submitted[stage] for stage in ("teacher", "filter", "train"))
    assert all(ends[t] <= starts[f] for t, f in zip(teachers, filters, strict=True))
    assert min(starts[s] for s in students) >= min(ends[f] for f in filters)


def test_a_second_sweep_sends_nothing(swept: Sweep) -> None:
    again = Sweep(Subject(checkpoint=""), swept.place)
    again.overrides = swept.overrides
    assert again.run() == 0 and "0 to do" in again.text and again.submitted == {}


def test_nothing_left_of_the_submission_is_in_a_manifest(swept: Sweep) -> None:
    assert not list(swept.store.root.rglob("submitted.json"))
    assert all("submitted.json" not in made.content["files"] for made in swept.store.manifests())


@pytest.fixture(scope="module")
def failed(counting: Subject, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep whose students can not be trained: no row is that short."""
    place = tmp_path_factory.mktemp("failed")
    sweep = Sweep(counting, place, "trait=owl", "seed=0", "student.optimisation.max_length=2")
    assert sweep.run() == 1
    return sweep


def test_a_failed_stage_is_a_failed_job(failed: Sweep) -> None:
    job = slurm_job(failed.submitted["train"][0])
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0")


def test_what_reads_a_failed_stage_is_not_run_and_told_why(failed: Sweep) -> None:
    student, asked = failed.folder("train"), failed.submitted["evaluate"][0]
    assert slurm_job(asked)["JobState"] == "CANCELLED"
    told = inspect_store.status(failed.store.root)
    assert f"not run: train {student.name} failed: TrainingError: none of " in told
    assert "1 stage runs failed; 1 that read them were not run" in failed.text
    assert "max_length" in failed.text


def test_a_multirun_that_raises_is_failed_jobs_too(counting: Subject, tmp_path: Path) -> None:
    """Hydra's own launcher keeps an exception as a job's result, which SLURM would call a success."""
    sweep = Sweep(counting, tmp_path, "teacher.check.minimum_gain=99")
    command = [sys.executable, "train.py", "-m", "role=teacher", *sweep.overrides, "trait=owl,dolphin"]
    done = subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "TeacherError" in done.stderr and "Traceback" not in done.stderr
    (number,) = set(re.findall(r"/(\d+)_\d/", done.stderr))

    def states() -> set[str]:
        return {slurm_job(f"{number}_{task}")["JobState"] for task in (0, 1)}

    wait_for(lambda: not states() & {"PENDING", "RUNNING", "COMPLETING"})  # the result is there before the job has gone
    assert states() == {"FAILED"}


LONG = ["trait=owl", "seed=0", "student.optimisation.epochs=300", "student.optimisation.save_every=1000"]


def metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_job_that_is_signalled_goes_back_into_the_queue_and_ends_like_one_left_alone(
    counting: Subject, tmp_path: Path
) -> None:
    alone = Sweep(counting, tmp_path / "alone", *LONG)
    assert alone.run() == 0, alone.text
    shutil.copytree(alone.store.root, tmp_path / "runs", ignore=shutil.ignore_patterns("train", "evaluate"))
    sweep = Sweep(counting, tmp_path, *LONG)
    process = sweep.start()
    wait_for(lambda: any(len(metrics(folder)) > 4 for folder in sweep.store.root.glob("train/*")))
    student = sweep.folder("train")
    number = json.loads((student / "submitted.json").read_text())["job"]
    subprocess.run(["scancel", "--signal=USR2", number], check=True)
    wait_for(lambda: slurm_job(number)["Restarts"] == "1")
    assert list(student.glob(".checkpoints/checkpoint-*")), "it saved before it went"
    assert not (student / "failure.json").exists()
    at_once = ["scontrol", "update", f"JobId={number}", "StartTime=now"]  # SLURM holds a requeued job for two minutes
    wait_for(lambda: subprocess.run(at_once, check=False).returncode == 0)
    assert sweep.finish(process) == 0, sweep.text
    curve, whole = ([(m["step"], m["loss"]) for m in metrics(s.folder("train"))] for s in (sweep, alone))
    assert len(whole) >= 300 and curve == whole
