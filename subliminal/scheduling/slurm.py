"""A sweep as SLURM jobs through submitit: one job a stage run, chained by dependency, watched until all have ended.

Nothing holds a GPU while what it reads is still being made. A job that fails is FAILED for SLURM, and what depends on
it never starts; the store's manifests and failures say what happened, the queue only says what still may.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subliminal import inspect_store, stages
from subliminal.composition import launcher_settings
from subliminal.launch import QUIET
from subliminal.plan import Plan, SweepError
from subliminal.processes import join
from subliminal.progress import say
from subliminal.scheduling.jobs import Ident, Job, jobs, locate, wants_gpu
from subliminal.stopping import endings_noted
from subliminal.store import Json, Store, StoreError, record_failure, write_atomically

SUBMITTED = "submitted.json"
LOGS = "logs/slurm"
GPU_KEYS = ("gpus_per_node", "gpus_per_task", "gres", "mem_per_gpu", "cpus_per_gpu")
SHARED_KEYS = {
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "stderr_to_stdout",
}  # submitit's names for what all its executors have; the rest is SLURM's own
POLL_SECONDS = (0.5, 15.0)  # between looks at the store and the queue: at first, and at last
VISIBLE_SECONDS = 90.0  # after which one machine sees what another wrote; NFS keeps what it knows of a folder for 60
AWAY_SECONDS = (5.0, 15.0, 60.0, 120.0, 300.0)  # between questions to a controller that does not answer
SUCCESS = "COMPLETED"


class SlurmError(StoreError):
    """SLURM is not there or refuses a job; the text says what it said."""


@dataclass(frozen=True)
class StageJob:
    """What one SLURM job does: find its stage run again on the node it got, and make it; goes on after a requeue."""

    script: str
    wanted: Ident
    experiment: Any
    home: Path  # where the sweep was started: relative paths among the settings are meant from there

    def __call__(self) -> str:
        """Make the stage run; any error ends the job as failed."""
        os.environ.update(QUIET | os.environ)
        os.chdir(self.home)
        join()
        node = locate(self.script, self.experiment, self.wanted)
        with endings_noted():
            return str(stages.ensure(node, Store(Path(self.experiment.store)), self.experiment).folder)

    def checkpoint(self) -> Any:
        """The same again, for submitit to put back into the queue: the store has what was done so far."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run(planned: Plan) -> None:
    """Submit what is missing and wait until it is there; raises `SweepError` that names every run that failed."""
    store, every = Store(Path(planned.base.store)), jobs(planned)
    missing = [job for job in every if not store.find(*job.ident)]
    say(f"{len(every)} stage runs: {len(every) - len(missing)} reused, {len(missing)} to do")
    for job in [job for job in missing if job.node.definition.here_first]:
        stages.ensure(job.node, store, job.experiment)
    submitted = submit([job for job in missing if not job.node.definition.here_first], store, planned.overrides)
    wait(submitted, store)


def submit(missing: list[Job], store: Store, overrides: tuple[str, ...]) -> dict[Ident, tuple[Job, str]]:
    """Submit each stage run once, after those it reads; one that an earlier sweep has in the queue is left so."""
    settings = launcher_settings(overrides)
    limit = settings.pop("array_parallelism", None) or len(missing)
    queue, found = queued() if missing else set[str](), dict[Ident, tuple[Job, str]]()
    for job in missing:
        number = _earlier(store, job, queue)
        if number is None:
            after = [found[one][1] for one in job.reads if one in found]
            number = _send(settings, job, after, _place(found, job, limit))
            _note(store, job, number)
            say(f"  job {number}: {job.node.stage} {job.node.key} {job.node.label}")
        found[job.ident] = job, number
    return found


def _place(found: dict[Ident, tuple[Job, str]], job: Job, limit: int) -> list[str]:
    """The job of the same stage that must have ended before this one may start, so that `limit` run at a time."""
    same = [number for other, number in found.values() if other.node.stage == job.node.stage]
    return same[-limit:][:1] if len(same) >= limit else []


def queued() -> set[str]:
    """The numbers of all jobs that wait or run; raises `SlurmError` when there is no SLURM to ask."""
    if not shutil.which("squeue"):
        raise SlurmError(
            "hydra/launcher=slurm needs SLURM's commands (squeue, sbatch); log in to the cluster's submit host, or try "
            "it here with: make cluster-up"
        )
    asked = subprocess.run(["squeue", "--me", "-h", "-o", "%i"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise SlurmError(f"SLURM does not answer: {asked.stderr.strip()}")
    return set(asked.stdout.split())


def _earlier(store: Store, job: Job, queue: set[str]) -> str | None:
    """The number of a job that was submitted for this stage run before and is still in the queue."""
    try:
        number = json.loads((store.folder(*job.ident) / SUBMITTED).read_text(encoding="utf-8"))["job"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return number if number in queue else None


def _note(store: Store, job: Job, number: str) -> None:
    """Leave in the stage's folder which job will make it and what it waits for, for `status` and later sweeps."""
    folder = store.folder(*job.ident)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"job": number, "label": job.node.label, "reads": [list(one) for one in job.reads]}
    write_atomically(folder / SUBMITTED, json.dumps(record))
    (folder / "failure.json").unlink(missing_ok=True)


def _send(settings: Json, job: Job, after: list[str], before: list[str]) -> str:
    """Submit one job: after the success of what it reads, and after the end of the one whose place it takes."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = submitit.AutoExecutor(
        folder=Path.cwd() / LOGS / "%j", cluster="slurm", slurm_max_num_timeout=settings.get("max_num_timeout", 0)
    )
    executor.update_parameters(**_parameters(settings, job, _dependency(after, before)))
    exp = job.experiment.model_copy(update={"upstream": "require", "store": str(Path(job.experiment.store).absolute())})
    try:
        return str(executor.submit(StageJob(job.script, job.ident, exp, Path.cwd())).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise SlurmError(f"SLURM refuses the job of {job.node.stage} {job.node.key}: {error}") from None


def _dependency(after: list[str], before: list[str]) -> str | None:
    parts = [":".join(["afterok", *after])] if after else []
    return ",".join(parts + [f"afterany:{number}" for number in before]) or None


def _parameters(settings: Json, job: Job, dependency: str | None) -> Json:
    """submitit's parameters from the launcher's YAML; stages that need no GPU, or no further task, ask for none."""
    settings = settings if job.node.shares != "nothing" else _one_task(settings)
    dropped = {"_target_", "submitit_folder", "max_num_timeout", "name"}
    dropped |= set() if wants_gpu(job.node) else set(GPU_KEYS)
    given = {name: value for name, value in settings.items() if name not in dropped and value is not None}
    extra = {**given.pop("additional_parameters", {}), "kill-on-invalid-dep": "yes"}
    given |= {"additional_parameters": extra} | ({"dependency": dependency} if dependency else {})
    return {"name": f"{job.node.stage}-{job.node.key}"} | {
        name if name in SHARED_KEYS else f"slurm_{name}": value for name, value in given.items()
    }


def _one_task(settings: Json) -> Json:
    """The same request for a single task and its share of a node's GPUs."""
    tasks, gpus = settings.get("tasks_per_node") or 1, settings.get("gpus_per_node")
    share = {"gpus_per_node": max(1, gpus // tasks)} if isinstance(gpus, int) and gpus else {}
    return {**settings, "nodes": 1, "tasks_per_node": 1, **share}


# --------------------------------------------------------------------------- waiting


def wait(submitted: dict[Ident, tuple[Job, str]], store: Store) -> None:
    """Report every run as it ends; what left the queue without a manifest has failed: `SweepError` names it."""
    left, gone, failed, pause = dict(submitted), dict[str, float](), list[str](), POLL_SECONDS[0]
    try:
        while left:
            time.sleep(pause)
            pause = min(pause * 1.2, POLL_SECONDS[1])
            ended = list(_ended(left, store, gone))
            for one, text in ended:
                say(f"  {text}")
                failed += [text] if not store.find(*one) else []
                del left[one]
    except (KeyboardInterrupt, SlurmError):
        numbers = " ".join(number for _, number in left.values())
        say(f"the jobs stay in the queue; to take them out: scancel {numbers}")
        raise
    if failed:
        raise SweepError(_summary(failed))


def _summary(failed: list[str]) -> str:
    """What went wrong, without what merely did not run because of it."""
    causes = [text for text in failed if inspect_store.NOT_RUN not in text]
    behind = len(failed) - len(causes)
    head = f"{len(causes)} stage runs failed" + (f"; {behind} that read them were not run" if behind else "")
    return "\n".join([f"{head}:", *causes, "What is done is kept; to go on: the same command"])


def _ended(left: dict[Ident, tuple[Job, str]], store: Store, gone: dict[str, float]) -> Iterator[tuple[Ident, str]]:
    queue = _asked_again()  # before the store: a run that is neither queued now nor complete after that has failed
    for one, (job, number) in left.items():
        if store.find(*one):
            yield one, f"{one[0]} {one[1]} {job.node.label}: done"
        elif number not in queue and not _still_to_be_seen(number, gone):
            yield one, f"{one[0]} {one[1]} {job.node.label}: {_fate(store, one, number)}"


def _asked_again() -> set[str]:
    """The queue, asked for again as long as a controller may take to come back."""
    for pause in AWAY_SECONDS:
        with suppress(SlurmError):
            return queued()
        time.sleep(pause)
    return queued()


def _still_to_be_seen(number: str, gone: dict[str, float]) -> bool:
    """May what a job has written not be visible on this machine yet; `gone` is when each was first missed."""
    since = gone.setdefault(number, time.monotonic())
    return time.monotonic() - since < VISIBLE_SECONDS and _ending(number) == SUCCESS


def _fate(store: Store, one: Ident, number: str) -> str:
    folder = store.folder(*one)
    text = inspect_store.state(folder)
    if not text.startswith(("failed", inspect_store.NOT_RUN)):  # its process had no time to tell
        error = SlurmError(f"job {number} ended before its run was in {store.root}: {_ending(number)}")
        record_failure(folder, error)
        text = f"failed: {type(error).__name__}: {error}"
    return f"{text}; log: {LOGS}/{number}"


def _ending(number: str) -> str:
    """What SLURM says of a job that has ended: its state, and where there is one the reason, exit code or signal."""
    asked = subprocess.run(["scontrol", "-o", "show", "job", number], capture_output=True, text=True, check=False)
    said = dict(re.findall(r"\b(JobState|Reason|ExitCode)=(\S+)", asked.stdout))
    if not said:
        return "SLURM has forgotten it"
    more = [f"{name} {said[name]}" for name, none in (("Reason", "None"), ("ExitCode", "0:0")) if said[name] != none]
    return ", ".join([said["JobState"], *more])
