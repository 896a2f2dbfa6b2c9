"""A sweep as Hydra multiruns, step by step: on this machine, in a pool of processes, or through Ray.

What fails takes with it only what reads it: every other stage run is made, and the end names what failed and which arms
are missing.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from subliminal import inspect_store, stages
from subliminal.claims import CLAIM, live
from subliminal.errors import BAD_CONFIG, FAILED, INTERRUPTED
from subliminal.graph import Ident, Node
from subliminal.launch import script_environment
from subliminal.multirun import REPORT, FailedJob, Report, read_report
from subliminal.plan import IncompleteError, Job, Plan, Step, SweepError, crossed, result, shown, shown_alone
from subliminal.progress import say
from subliminal.store import Store, StoreError, record_failure

STOPPED = {BAD_CONFIG, INTERRUPTED, *(code for sign in (signal.SIGINT, signal.SIGTERM) for code in (-sign, 128 + sign))}


@dataclass(frozen=True)
class Failure:
    """A stage run that failed: why, in one line, and the command that makes it."""

    node: Node
    error: str
    command: str


@dataclass
class Sweep:
    """The state of a sweep: its store and the stage runs that failed in it."""

    store: Store
    failures: dict[Ident, Failure] = field(default_factory=dict)

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs whose stage run is not there and needs nothing that failed."""
        return [job for job in jobs if not self.done(job.node) and not self.blocked(job.node)]

    def done(self, node: Node) -> bool:
        """Is the stage run in the store?"""
        return self.store.find(*node.ident) is not None

    def blocked(self, node: Node) -> bool:
        """Has the stage run, or one that it reads, failed in this sweep?"""
        return self.cause(node) is not None

    def cause(self, node: Node) -> Ident | None:
        """The stage run that failed in this sweep without which the node can not be made."""
        absent = (node.ident for node in stages.missing(node, self.store))
        return next((ident for ident in absent if ident in self.failures), None)


@dataclass(frozen=True)
class Ended:
    """How the multiruns of some jobs ended: the jobs they reported as failed, and what took a process away, if any."""

    failed: tuple[FailedJob, ...]
    lost: str = ""


def run(planned: Plan) -> None:
    """Run every step whose results are not all in the store.

    Raises `IncompleteError` that lists what failed when everything else is done, `SweepError` where it can not go on.
    """
    state = Sweep(Store(Path(planned.base.store)))
    for number, step in enumerate(planned.steps, 1):
        head = f"step {number}/{len(planned.steps)} {step.script}"
        try:
            _run_step(head, step, state)
        except SweepError as error:
            earlier = ["", *_failed_lines(state)] if state.failures else []
            raise SweepError("\n".join([str(error), *earlier])) from None
    if state.failures:
        raise IncompleteError(summary(planned, state))


def _run_step(head: str, step: Step, state: Sweep) -> None:
    """Run the jobs of a step but those whose input failed, again while a process that dies leaves some untried."""
    absent = [node for node in step.nodes if not state.done(node)]
    if not absent:
        say(f"{head}: all {len(step.nodes)} reused")
        return
    blocked = sum(state.blocked(node) for node in absent)
    reused = len(step.nodes) - len(absent)
    left_out = f", {blocked} left out: what they read failed" if blocked else ""
    say(f"{head}: {len(absent) - blocked} to do, {reused} reused{left_out}")
    jobs = [job for job in step.jobs if not state.blocked(job.node)]
    while state.missing(jobs):
        before = _failed_at(jobs, state)
        ended = _run_multiruns(head, step, jobs)
        dead = [job for job in jobs if _left_claims(job, state)] if ended.lost else []
        if len(dead) > 1:  # a pool that loses a process ends the others: which one was at fault shows by itself
            say(f"  {ended.lost}; each of the {len(dead)} stage runs that ended with it is run again by itself")
            for job in dead:
                earlier = _failed_at([job], state)
                _note_failures(step, state, [job], earlier, _run_multiruns(head, step, [job]))
        else:
            _note_failures(step, state, jobs, before, ended)
        jobs = state.missing(jobs)


def _run_multiruns(head: str, step: Step, jobs: Sequence[Job]) -> Ended:
    """Run jobs of a step as few multiruns; raises `SweepError` where one ended in a way that would end all others."""
    failed, lost = list[FailedJob](), ""
    for overrides in crossed(job.overrides for job in jobs):
        say(f"  {shown(step, overrides)}")
        code, report = _run_multirun([sys.executable, step.path, "-m", *overrides])
        if report:
            failed += report.failed
        if code in STOPPED or (code == FAILED and report is None):
            raise SweepError(f"{head} failed; what is done is kept. To go on: {shown(step)}")
        if (report and report.lost) or (code and report is None):
            lost = f"its process was killed ({_signal(code)}), which a machine does that is out of memory"
    return Ended(tuple(failed), lost)


def _run_multirun(command: list[str]) -> tuple[int, Report | None]:
    """Exit code and the report of one multirun, which is None where it ended before it could write one."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        code = subprocess.run(command, env=script_environment() | {REPORT: str(path)}, check=False).returncode
        return code, read_report(path)


def _signal(code: int) -> str:
    number = -code if code < 0 else code - 128
    return signal.Signals(number).name if number in {*signal.Signals} else "a process of its launcher"


def _failed_at(jobs: Sequence[Job], state: Sweep) -> dict[Ident, int]:
    """When what the jobs still need has last failed, by the time of its file: a new time means a new failure."""
    absent = {node.ident: node for job in jobs for node in stages.missing(job.node, state.store)}
    return {ident: path.stat().st_mtime_ns for ident in absent if (path := _failure_file(state, ident)).exists()}


def _failure_file(state: Sweep, ident: Ident) -> Path:
    return state.store.folder(*ident) / "failure.json"


def _note_failures(step: Step, state: Sweep, jobs: Sequence[Job], before: dict[Ident, int], ended: Ended) -> None:
    """Keep which stage runs failed in a step: those that say so, and of a lost process the one it was making."""
    if ended.lost:
        _record_dead(state, jobs, ended.lost)
    after, already = _failed_at(jobs, state), len(state.failures)
    for job in jobs:
        for node in stages.missing(job.node, state.store):
            if after.get(node.ident, 0) != before.get(node.ident, 0) and not state.blocked(node):
                reason = inspect_store.state(state.store.folder(*node.ident)).removeprefix("failed: ")
                state.failures[node.ident] = Failure(node, reason, shown_alone(step, job))
    if ended.lost and len(state.failures) > already:
        return  # who was at fault is known: the others are run again
    for job in state.missing(jobs):
        reason = _reported(job, step, ended.failed) or ended.lost or "it ended without a result; its message is above"
        state.failures[job.node.ident] = Failure(job.node, reason, shown_alone(step, job))


def _record_dead(state: Sweep, jobs: Sequence[Job], reason: str) -> None:
    """Leave a failure in the folder of each stage run whose claim is held by a process that is gone."""
    for job in jobs:
        for folder in _left_claims(job, state):
            record_failure(folder, StoreError(reason))


def _left_claims(job: Job, state: Sweep) -> list[Path]:
    """The folders of the stage runs, of the job or of what it reads, that a process claimed which is gone."""
    folders = [state.store.folder(*node.ident) for node in stages.missing(job.node, state.store)]
    return [folder for folder in folders if (folder / CLAIM).exists() and not live(folder / CLAIM)]


def _reported(job: Job, step: Step, failed: Sequence[FailedJob]) -> str:
    """What a multirun said of a job that failed before its stage run began; "" where it said nothing."""
    own = [part for part in job.overrides if part not in step.overrides]
    return next((ended.error for ended in failed if {*own} <= {*ended.overrides}), "")


def summary(planned: Plan, state: Sweep) -> str:
    """What failed, why, and the command for it; then the arms that the figure lacks for that reason."""
    count = len(state.failures)
    lines = [f"{count} stage {'run' if count == 1 else 'runs'} failed; all that does not read them is done:"]
    lines += _failed_lines(state)
    behind: dict[Ident, list[tuple[str, ...]]] = {}
    for arm in planned.arms:
        cause = state.cause(result(arm))
        if cause and arm.overrides:
            behind.setdefault(cause, []).append(arm.overrides)
    lines += ["missing in the figure:"] if behind else []
    for (stage, key), arms in behind.items():
        lines += [f"  {shlex.join(row)}: needs {stage} {key}" for row in crossed(arms)]
    return "\n".join([*lines, "what is done is kept; to go on: the same command"])


def _failed_lines(state: Sweep) -> Iterator[str]:
    for failure in state.failures.values():
        yield f"  {failure.node.stage} {failure.node.key} {failure.node.label}: {failure.error}"
        yield f"    {failure.command}"
