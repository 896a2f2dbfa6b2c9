"""Sweeps through Ray and through a pool of processes, as on one machine. `make test-cluster`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_slurm import wait_for

from subliminal import stages
from subliminal.claims import CLAIM
from subliminal.composition import ROOT, compose
from subliminal.launch import script_environment
from subliminal.store import Store

TINY = [
    "experiment=theorem",
    "scale=cpu",
    "device=cpu",
    "theory.trials=1",
    "theory.architectures=[mlp]",
    "theory.losses=[squared_error]",
    "theory.matched=[all]",
    "theory.run.examples=40",
    "theory.run.width=8",
    "theory.run.teacher_steps=2",
    "theory.run.student_steps=2",
    "theory.run.points=2",
]
SEEDS = "seed=0,1"
ADDRESS = "hydra.launcher.ray.init.address"
PATIENT = {"RAY_raylet_start_wait_time_s": "600", "RAY_TMPDIR": "/tmp"}  # sockets want a short path


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = script_environment() | PATIENT
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1500
    )


def sweep(store: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """A sweep of the seeds 0 and 1, where the settings name no others."""
    seeds = [] if any(part.startswith("seed=") for part in settings) else [SEEDS]
    return run(["-m", "subliminal", "sweep", *TINY, *seeds, f"store={store}", f"figures={store}/figures", *settings])


def trials(store: Path) -> dict[int, list[str]]:
    """The trials of every seed's run."""
    made = list(Store(store).manifests("theorem"))
    return {one.recipe["settings"]["seed"]: (one.folder / "trials.jsonl").read_text().splitlines() for one in made}


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """The same sweep with Hydra's own launcher, one run after the other."""
    store = tmp_path_factory.mktemp("basic")
    done = sweep(store)
    assert done.returncode == 0, done.stderr
    return trials(store)


LAUNCHERS = {
    "ray": ["hydra/launcher=ray"],
    "local_pool": ["hydra/launcher=local_pool", "hydra.launcher.n_jobs=2"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_makes_the_runs_of_a_sweep_and_they_are_those_of_one_process(
    launcher: str, one_by_one: dict[int, list[str]], tmp_path: Path
) -> None:
    done = sweep(tmp_path, *LAUNCHERS[launcher])
    assert done.returncode == 0, done.stderr
    assert trials(tmp_path) == one_by_one and len(one_by_one) == 2
    assert (tmp_path / "figures" / "cpu" / "fig-theorem.png").exists()
    assert "validated against ConfigStore" not in done.stderr
    again = sweep(tmp_path, *LAUNCHERS[launcher])
    assert again.returncode == 0 and "all 2 reused" in again.stderr


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster that was started in another folder, by the name under which this machine finds it."""
    log = tmp_path_factory.mktemp("ray") / "log"
    command = [Path(sys.executable).with_name("ray"), "start", "--head", f"--port={free_port()}", "--block"]
    command += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    with log.open("w") as written:
        started = subprocess.Popen(
            command, cwd=log.parent, env=script_environment() | PATIENT, stdout=written, stderr=subprocess.STDOUT
        )
    wait_for(lambda: started.poll() is not None or "Ray runtime started" in log.read_text())
    assert started.poll() is None, log.read_text()
    yield "auto"
    started.terminate()
    started.wait(timeout=300)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_ray_cluster_started_elsewhere_takes_paths_from_where_the_sweep_started(
    ray_cluster: str, one_by_one: dict[int, list[str]], tmp_path: Path
) -> None:
    done = sweep(Path(os.path.relpath(tmp_path, ROOT)), "hydra/launcher=ray", f"{ADDRESS}={ray_cluster}")
    assert done.returncode == 0, done.stderr
    assert trials(tmp_path) == one_by_one


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_that_fails_in_a_launchers_process_is_told_and_is_an_exit_code(
    launcher: str, ray_cluster: str, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    chosen = [*LAUNCHERS[launcher], *([f"{ADDRESS}={ray_cluster}"] if launcher == "ray" else [])]
    done = run(["evaluate.py", "-m", *TINY, SEEDS, f"store={blocked}", f"hydra.sweep.dir={tmp_path}/logs", *chosen])
    assert done.returncode == 1 and "set store= to a folder you can write to" in done.stderr
    assert "Traceback" not in done.stderr


def folder_of(seed: int, store: Path, *overrides: str) -> Path:
    node = stages.theorem(compose([*TINY, *overrides, f"seed={seed}"]))
    return Store(store).folder(*node.ident)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_job_is_run_whatever_the_others_did(launcher: str, tmp_path: Path) -> None:
    in_the_way = folder_of(0, tmp_path)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("")
    done = sweep(tmp_path, "seed=0,1,2", *LAUNCHERS[launcher])
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert f"can not make {in_the_way}" in done.stderr and "1 stage run failed" in done.stderr
    assert {*trials(tmp_path)} == {1, 2}


def test_a_process_of_the_pool_that_is_killed_takes_the_others_along_until_they_are_run_again(tmp_path: Path) -> None:
    long = "theory.trials=200"
    command = ["-m", "subliminal", "sweep", *TINY, long, "seed=0,1,2", f"store={tmp_path}", f"figures={tmp_path}"]
    command += [*LAUNCHERS["local_pool"], f"hydra.sweep.dir={tmp_path}/logs"]
    running = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=script_environment(), stderr=subprocess.PIPE, text=True
    )
    claims = [folder_of(seed, tmp_path, long) / CLAIM for seed in (0, 1)]
    wait_for(lambda: running.poll() is not None or all(claim.exists() and claim.read_text() for claim in claims))
    os.kill(json.loads(claims[0].read_text())["pid"], signal.SIGKILL)
    _, text = running.communicate(timeout=600)
    assert (running.returncode, "Traceback" in text) == (0, False), text
    assert "was killed" in text and "each of the 2 stage runs that ended with it is run again by itself" in text
    assert {*trials(tmp_path)} == {0, 1, 2}, text
