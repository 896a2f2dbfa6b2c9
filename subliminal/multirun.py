"""The jobs of one multirun (`-m`): each is run, whatever the others did, and those that failed are listed at the end.

A launcher may run jobs in processes of their own, so a job that fails leaves a file in the multirun's folder, where the
process that waits for all of them reads it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback

from subliminal.errors import FAILED, clear_errors, disk_is_full, explanation
from subliminal.processes import MULTIRUN
from subliminal.progress import say
from subliminal.store import without_secrets, write_atomically

REPORT = "SUBLIMINAL_REPORT"  # the file in which a multirun tells the sweep that started it how it ended
ERROR_LENGTH = 500  # characters of an error in the list; all of it is said when the job fails
KILLED = ("TerminatedWorkerError", "BrokenProcessPool", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError")


@dataclass(frozen=True)
class FailedJob:
    """One job that failed: its overrides, without Hydra's own, and the error in one line."""

    overrides: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class Report:
    """How a multirun ended: the jobs that failed, and whether a launcher lost a process, with no word about its job."""

    failed: tuple[FailedJob, ...]
    lost: bool = False


class Begun(Callback):
    """Hydra's word that a multirun begins, and each of its jobs (`hydra.callbacks` in conf/config.yaml)."""

    folder: Path | None = None  # of the multirun that this process waits for
    typed: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.name = ""  # of the multirun; goes with this object to the processes of a launcher

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Give the multirun a name and keep where its folder is."""
        self.name = os.environ[MULTIRUN] = uuid.uuid4().hex
        Begun.folder, Begun.typed = Path(config.hydra.sweep.dir).absolute(), tuple(config.hydra.overrides.task)

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        """Let the process that does a job know the multirun's name."""
        if self.name:
            os.environ[MULTIRUN] = self.name


def is_a_job() -> bool:
    """Does this process do a job of a multirun now?"""
    if not HydraConfig.initialized():  # no script of ours, or before Hydra has begun
        return False
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


@contextmanager
def noted(*, launched: bool) -> Iterator[None]:
    """Say and note what makes a job fail, so that the next is run; a full disk ends all of them.

    `launched` jobs have a process of their own: there an error that ends all is passed on to the one that waits.
    """
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            if launched:
                raise
            with clear_errors():
                raise
        settings, message = HydraConfig.get(), _said(error)
        job = FailedJob(tuple(settings.overrides.task), without_secrets(_one_line(message)))
        path = Path(settings.runtime.cwd) / settings.sweep.dir / _file_name(str(settings.job.num))
        write_atomically(path, json.dumps(asdict(job)))


def _said(error: Exception) -> str:
    """Say what made a job fail, of an unexpected error the traceback too; returns the message."""
    explained = explanation(error)
    if explained:
        say(explained[0])
        return explained[0]
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def _one_line(text: str) -> str:
    return textwrap.shorten(text, ERROR_LENGTH)


@contextmanager
def listed(script: Path) -> Iterator[None]:
    """At the end of a multirun some of whose jobs failed, list them with their commands and exit with 1.

    A sweep that started the multirun gets the list instead, and shows it with those of its other steps.
    """
    lost = False
    try:
        yield
    except Exception as error:
        if Begun.folder is None or type(error).__name__ not in KILLED:
            raise
        say(f"a job's process was killed, which a machine does that is out of memory ({_one_line(str(error))})")
        lost = True
    report = Report(_failed_jobs(), lost)
    if not report.failed and not lost:
        return
    if path := os.environ.get(REPORT):
        write_atomically(Path(path), json.dumps(asdict(report)))
    else:
        say(_list(script, report))
    sys.exit(FAILED)


def read_report(path: Path) -> Report | None:
    """What a multirun left for its sweep; None where it ended before it could say how."""
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    failed = tuple(FailedJob(tuple(job["overrides"]), job["error"]) for job in content["failed"])
    return Report(failed, content["lost"])


def _failed_jobs() -> tuple[FailedJob, ...]:
    paths = [*Begun.folder.glob(_file_name("*"))] if Begun.folder else []
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths, key=_number)]
    return tuple(FailedJob(tuple(record["overrides"]), record["error"]) for record in records)


def _file_name(job: str) -> str:
    return f"failed-{os.environ[MULTIRUN]}-{job}.json"


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _list(script: Path, report: Report) -> str:
    count, lines = len(report.failed), list[str]()
    if count:
        lines.append(f"{count} {'job' if count == 1 else 'jobs'} failed, the others were run:")
    for job in report.failed:
        own = " ".join(part for part in job.overrides if part not in Begun.typed)  # what differs from job to job
        lines.append(f"  {own}: {job.error}" if own else f"  {job.error}")
        lines.append(f"    {shlex.join(['python', str(script), *job.overrides])}")
    if report.lost:
        lines.append("jobs were lost with their process: the same command runs them again")
    return "\n".join(lines)
