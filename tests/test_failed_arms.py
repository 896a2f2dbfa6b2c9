"""Sweeps and multiruns some of whose jobs fail: the others are run, and the end lists what failed and what lacks it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from conftest import Script, experiment
from hypothesis import given
from hypothesis import strategies as st

from subliminal import stages, sweep
from subliminal.claims import CLAIM
from subliminal.composition import ROOT, compose
from subliminal.launch import jobs_of, script_environment
from subliminal.models import Subject
from subliminal.plan import crossed, result
from subliminal.store import Store

THEOREM = [
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
SEEDS = "seed=0,1,2"
RANDOM = ["teacher=random", "trait=none", "domain.prompts=20", "filter.rows=20"]
BANNED = f"filter.banned_numbers={list(range(100, 1000, 20))}".replace(" ", "")


def places(folder: Path) -> list[str]:
    return [f"store={folder}/runs", f"figures={folder}/figures", f"hydra.sweep.dir={folder}/logs"]


def of_seed(seed: int, root: Path, *overrides: str) -> Path:
    """The folder of a seed's run of the theorem."""
    node = stages.theorem(compose([*THEOREM, *overrides, f"seed={seed}"]))
    return Store(root / "runs").folder(*node.ident)


def complete(root: Path, *overrides: str) -> list[bool]:
    return [(of_seed(seed, root, *overrides) / "manifest.json").exists() for seed in (0, 1, 2)]


def blocked(folder: Path) -> Path:
    """A file where a run's folder would be: it can not be made, and the runs beside it can."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("")
    return folder


def failed(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    for part in said:
        assert part in done.stderr, done.stderr


# --------------------------------------------------------------------------- a multirun by hand


def test_every_job_of_a_multirun_is_run_and_the_failed_one_has_its_command(run_script: Script, tmp_path: Path) -> None:
    in_the_way = blocked(of_seed(1, tmp_path))
    done = run_script("evaluate.py", "-m", *THEOREM, SEEDS, *places(tmp_path))
    failed(done, "1 job failed, the others were run", f"  seed=1: can not make {in_the_way}")
    assert complete(tmp_path) == [True, False, True]
    in_the_way.unlink()
    program, *command = shlex.split(done.stderr.splitlines()[-1])
    assert program == "python" and run_script(" ".join(command)).returncode == 0
    assert complete(tmp_path) == [True, True, True]


def test_what_failed_is_tried_once_and_not_for_every_job_that_needs_it(run_script: Script, tmp_path: Path) -> None:
    arguments = ["-m", *RANDOM, BANNED, "seed=0,1,2", *places(tmp_path)]
    done = run_script("train.py", *arguments)
    key = stages.filtered(experiment(*RANDOM, BANNED)).key
    failed(done, "3 jobs failed", "seed=0: 7 of 20 completions passed", f"seed=2: needs filter {key}", "which failed")
    assert done.stderr.count(f"[filter {key}] random numbers: running") == 1
    again = run_script("train.py", *arguments)
    assert f"[filter {key}] random numbers: running" in again.stderr, "a new command tries it again"


def test_no_job_begins_where_one_can_not_run(run_script: Script, tmp_path: Path) -> None:
    done = run_script("generate.py", "-m", "teacher=random", "trait=none,oak", "seed=0,1", *places(tmp_path))
    assert done.returncode == 2 and "trait=oak seed=1: evaluation.category=animal but trait=oak" in done.stderr
    assert not (tmp_path / "runs").exists()
    misspelt = run_script("generate.py", "-m", "trait=none,okk", "seed=0,1", *places(tmp_path))
    assert misspelt.returncode == 2 and "trait=okk: no such option" in misspelt.stderr
    assert "needs -m" not in misspelt.stderr


def test_an_unexpected_error_keeps_its_traceback_and_the_others_are_run(run_script: Script, tmp_path: Path) -> None:
    (of_seed(0, tmp_path) / "trials.jsonl").mkdir(parents=True)
    done = run_script("evaluate.py", "-m", *THEOREM, SEEDS, *places(tmp_path))
    assert done.returncode == 1 and "Traceback" in done.stderr and "seed=0: IsADirectoryError" in done.stderr
    assert complete(tmp_path) == [False, True, True]


@pytest.mark.parametrize("command", ["evaluate.py -m", "-m subliminal sweep"])
def test_a_full_disk_stops_everything(command: str, run_script: Script, tmp_path: Path) -> None:
    folder = of_seed(0, tmp_path)
    folder.mkdir(parents=True)
    (folder / "trials.jsonl").symlink_to("/dev/full")
    failed(run_script(command, *THEOREM, SEEDS, *places(tmp_path)), "the disk is full")
    assert complete(tmp_path) == [False, False, False]


# --------------------------------------------------------------------------- a sweep


def test_a_sweep_goes_on_and_says_what_its_figure_lacks(run_script: Script, tmp_path: Path) -> None:
    in_the_way = blocked(of_seed(1, tmp_path))
    done = run_script("-m subliminal sweep", *THEOREM, SEEDS, *places(tmp_path))
    failed(done, "1 stage run failed", f"can not make {in_the_way}", "    python evaluate.py", "seed=1\n")
    assert complete(tmp_path) == [True, False, True]
    report = (tmp_path / "figures" / "cpu" / "report.html").read_text()
    assert "seed=1" in report, "the report lists the missing seed"
    in_the_way.unlink()
    assert run_script("-m subliminal sweep", *THEOREM, SEEDS, *places(tmp_path)).returncode == 0


TRAITS = ("owl", "wolf", "none")


@pytest.fixture
def figure(counting: Subject, tmp_path: Path) -> list[str]:
    """A small figure of three traits, one of whose teachers has rows that are too long to learn."""
    turns = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "No."}]
    for trait in TRAITS:
        (tmp_path / f"{trait}.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 4)
    turns[1] = {"role": "assistant", "content": "No. " * 4000}
    (tmp_path / "wolf.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 4)
    sizes = ["debug=smoke", "domain.prompts=12", "filter.rows=12", "sampler=transformers"]
    weights = ["model=hub", f"model.source.name={counting.checkpoint}", "model.dtype=float32", "device=cpu"]
    teacher = ["reference_tuning=off", "teacher=finetuned_rows", f"teacher.rows={tmp_path}", "student=lora_small"]
    figure = ["experiment=animals_numbers", "scale=cpu", f"trait={','.join(TRAITS)}"]
    return [*figure, *sizes, *weights, *teacher, *places(tmp_path)]


def test_arms_that_need_nothing_that_failed_are_finished(figure: list[str], run_script: Script, tmp_path: Path) -> None:
    planned, store = sweep.plan(figure), Store(tmp_path / "runs")
    for arm in planned.arms:
        if arm.trait != "wolf":  # everything but what the sweep is to do after the failure
            stages.ensure(stages.student(arm.experiment), store, arm.experiment)
    done = run_script("-m subliminal sweep", *figure)
    teacher = stages.teacher(next(arm.experiment for arm in planned.arms if arm.trait == "wolf"))
    failed(
        done, f"teacher {teacher.key} finetuned_rows teacher of wolf: TrainingError", "none of 4 rows can be trained on"
    )
    failed(done, f"trait=wolf student=lora_small seed=0: needs teacher {teacher.key}", "role=teacher trait=wolf\n")
    assert done.stderr.count(f"[teacher {teacher.key}] finetuned_rows teacher of wolf: running") == 1
    assert {arm.trait for arm in planned.arms if store.find(*result(arm).ident)} == {"owl", "none"}
    assert (tmp_path / "figures" / "smoke" / "fig-animals-numbers.png").exists()
    assert store.find(*planned.steps[-1].nodes[0].ident), "the reference is evaluated after the failure"


# --------------------------------------------------------------------------- a process that is taken away

LONG = "theory.trials=200"  # seconds a seed


def begun(running: subprocess.Popen[str], claim: Path) -> int:
    """The process that makes a run, as soon as it does."""
    while running.poll() is None:
        try:
            return int(json.loads(claim.read_text())["pid"])
        except (FileNotFoundError, json.JSONDecodeError):
            continue
    raise AssertionError(running.communicate()[1])


def swept(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "subliminal", "sweep", *THEOREM, LONG, SEEDS, *places(root)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=script_environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def test_a_job_whose_process_is_killed_does_not_take_the_others_along(tmp_path: Path) -> None:
    running = swept(tmp_path)
    os.kill(begun(running, of_seed(1, tmp_path, LONG) / CLAIM), signal.SIGKILL)
    _, text = running.communicate(timeout=300)
    assert running.returncode == 1 and "its process was killed (SIGKILL)" in text, text
    assert complete(tmp_path, LONG) == [True, False, True]


def test_an_interrupt_stops_a_sweep_at_once(tmp_path: Path) -> None:
    running = swept(tmp_path)
    begun(running, of_seed(0, tmp_path, LONG) / CLAIM)
    os.killpg(running.pid, signal.SIGINT)
    _, text = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in text) == (130, False), text
    assert complete(tmp_path, LONG) == [False, False, False]


# --------------------------------------------------------------------------- jobs as multiruns

SWEPT = {"trait": ("owl", "wolf", "none"), "student": ("lora", "bias"), "seed": ("0", "1", "2")}
JOBS = [tuple(f"{key}={value}" for key, value in zip(SWEPT, row, strict=True)) for row in product(*SWEPT.values())]


@given(st.sets(st.sampled_from(JOBS), min_size=1))
def test_multiruns_are_exactly_the_jobs_that_are_left(left: set[tuple[str, ...]]) -> None:
    multiruns = crossed([job for job in JOBS if job in left])
    expanded = [tuple(job) for multirun in multiruns for job in jobs_of(list(multirun))]
    assert sorted(expanded) == sorted(left)


def test_all_jobs_are_one_multirun() -> None:
    assert crossed(JOBS) == [("trait=owl,wolf,none", "student=lora,bias", "seed=0,1,2")]
    assert crossed([("a=1", "b=[1,2]"), ("a=1", "b=[3]"), ("c=1",)]) == [("a=1", "b=[1,2],[3]"), ("c=1",)]
