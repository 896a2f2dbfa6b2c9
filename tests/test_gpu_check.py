"""The checks of a GPU run on a CPU at tiny sizes, one after the other, each with its line of results."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from subliminal.composition import ROOT
from subliminal.launch import script_environment
from subliminal.models import Subject

GPU = str(ROOT / "bench" / "gpu.py")


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def checked(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, GPU, "--device", "cpu", "--tiny", "--out", str(out), *arguments]
    return subprocess.run(
        command, env=script_environment(), capture_output=True, text=True, timeout=400, check=False, cwd=out.parent
    )


def test_checks_run_in_order_and_leave_a_line_each(counting: Subject, tmp_path: Path) -> None:
    """The kernels, a step, precisions, students and samplers, on a model of two layers in place of SmolLM2."""
    model = ["model=hub", f"model.source.name={counting.checkpoint}", "reference_tuning=off"]
    small = ["student.optimisation.learning_rate=1e-3", "teacher.layer=1", "domain.prompts=32", "filter.rows=16"]
    ended = checked(tmp_path / "out", "--only", "1,2,3,6,7,8", *model, *small)
    head, *results = lines(tmp_path / "out")
    assert head["check"] == "head" and head["device"] == "cpu" and head["versions"]
    assert [result["check"] for result in results] == [1, 2, 3, 6, 7, 8]
    failed = {result["name"]: result.get("error", result) for result in results if not result["passed"]}
    assert not failed and ended.returncode == 0, failed or ended.stderr
    (step,) = [result for result in results if result["check"] == 3]
    switches: Any = step["switches"]
    assert [case["finite"] for case in switches["checkpointing"]] == [True, True]
    assert "needs a GPU" in switches["liger"] and switches["compile"].startswith("NotHereError")
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        assert not [name for name in archive.getnames() if name.endswith((".safetensors", ".tmp"))]


def test_a_check_without_time_says_so_and_the_next_one_runs(tmp_path: Path) -> None:
    ended = checked(tmp_path / "out", "--only", "2,3", "--seconds", "1")
    _, *results = lines(tmp_path / "out")
    assert ended.returncode == 1 and len(results) == 2
    assert all("no time is left for it" in str(result["error"]) for result in results)


@pytest.mark.parametrize("given", ["0", "11", "a", ""])
def test_unknown_checks_are_refused(given: str, tmp_path: Path) -> None:
    ended = checked(tmp_path / "out", "--only", given)
    assert ended.returncode == 2 and "give numbers from 1 to 10" in ended.stderr
