"""Sweeps through a real SLURM: chained jobs, and failures it sees. `make test-cluster`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from local_slurm import Sweep, ended_job, slurm  # noqa: F401 (slurm: this module's own)

from subliminal import inspect_store
from subliminal.composition import ROOT
from subliminal.launch import script_environment
from subliminal.models import Subject


@pytest.fixture(scope="module")
def swept(counting: Subject, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = Sweep(counting, tmp_path_factory.mktemp("swept"), "trait=owl", "seed=0,1")
    assert sweep.run() == 0, sweep.text
    return sweep


def test_every_stage_run_is_one_job(swept: Sweep) -> None:
    sent = {stage: len(numbers) for stage, numbers in swept.submitted.items()}
    assert sent == {"teacher": 1, "generate": 1, "filter": 1, "train": 2, "evaluate": 3}
    assert {stage: len(list(swept.store.manifests(stage))) for stage in sent} == sent
    assert inspect_store.verify(swept.store.root) == []
    assert (swept.place / "figures" / "cpu" / "fig-animals-numbers.png").exists()


def test_jobs_wait_for_what_they_read_and_slurm_calls_them_completed(swept: Sweep) -> None:
    jobs = {n: ended_job(n) for numbers in swept.submitted.values() for n in numbers}
    starts, ends = ({n: job[when] for n, job in jobs.items()} for when in ("StartTime", "EndTime"))
    assert {job["JobState"] for job in jobs.values()} == {"COMPLETED"}
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
def failed(swept: Sweep, counting: Subject, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep whose student can not be trained: no row is that short. What it reads is there."""
    place = tmp_path_factory.mktemp("failed")
    shutil.copytree(swept.store.root, place / "runs", ignore=shutil.ignore_patterns("train"))
    sweep = Sweep(counting, place, "trait=owl", "seed=0", "student.optimisation.max_length=2")
    assert sweep.run() == 1
    return sweep


def test_a_failed_stage_is_a_failed_job(failed: Sweep) -> None:
    job = ended_job(failed.submitted["train"][0])
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0")


def test_what_reads_a_failed_stage_is_not_run_and_told_why(failed: Sweep) -> None:
    (student,), (asked,) = (failed.store.root / "train").iterdir(), failed.submitted["evaluate"]
    assert ended_job(asked)["JobState"] == "CANCELLED"
    told = inspect_store.status(failed.store.root)
    assert f"not run: train {student.name} failed: TrainingError: none of " in told
    assert "1 stage runs failed; 1 that read them were not run" in failed.text
    assert "max_length" in failed.text


def test_a_multirun_that_raises_is_failed_jobs_too(counting: Subject, tmp_path: Path) -> None:
    """Hydra's own launcher keeps an exception as a job's result, which SLURM would call a success."""
    sweep = Sweep(counting, tmp_path, "teacher.check.minimum_gain=99")
    command = [sys.executable, "train.py", "-m", "role=teacher", *sweep.overrides, "trait=owl"]
    done = subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "TeacherError" in done.stderr and "Traceback" not in done.stderr
    numbers = set(re.findall(r"\.submitit/(\d+)", done.stderr))
    assert len(numbers) == 1, done.stderr
    (number,) = numbers
    assert ended_job(number)["JobState"] == "FAILED"
