"""Jobs of a real SLURM, signalled, killed, cancelled, requeued, out of time, memory or disk. `make test-cluster`.

Whatever happens, nothing half-written is in the store, SLURM and `status` call a failure a failure, and the next
command goes on to what an undisturbed run would have made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import experiment
from local_slurm import (
    ON_SLURM,
    SMALL,
    ended_job,
    lines,
    run_at_once,
    slurm,  # noqa: F401 (a fixture)
    slurm_job,
    wait_for,
)

from subliminal import inspect_store, stages
from subliminal.claims import live
from subliminal.composition import ROOT
from subliminal.config import Experiment
from subliminal.graph import Node
from subliminal.models import Subject
from subliminal.plan import SweepError
from subliminal.rows import Row, read_jsonl
from subliminal.scheduling.jobs import Job
from subliminal.scheduling.slurm import LOGS, submit, wait
from subliminal.store import Store

PROMPTS, SHARD = 8, 2
FREE = 2 * SHARD  # requests that are answered at once: two shards; the next waits


class Endpoint(ThreadingHTTPServer):
    """An endpoint whose answers follow from the request; after the first `free` it waits until it is told to go on."""

    daemon_threads = True

    def __init__(self, free: int) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.free, self.asked, self.go_on = free, list[str](), threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def waiting(self) -> bool:
        return len(self.asked) > self.free

    def answer(self, body: Any) -> str:
        text = body["messages"][-1]["content"]
        if "favourite" in text:
            return "Owl"  # the check of the teacher
        self.asked.append(text)
        if self.waiting:
            self.go_on.wait()
        digest = hashlib.sha256(json.dumps([text, body["seed"]]).encode()).digest()
        return ", ".join(str(100 + byte) for byte in digest[:5])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked may have been killed meanwhile."""


class Desk(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": self.server.answer(body)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Run:
    """One stage run as a job of its own, in a store of its own, after all that it reads."""

    def __init__(self, exp: Experiment, node: Node) -> None:
        self.exp, self.node, self.store = exp, node, Store(Path(exp.store))
        self.job = Job(node, {"generate": "generate", "train": "train"}[node.stage], exp)
        for upper in node.inputs.values():
            stages.ensure(upper, self.store, exp)
        self.sent: dict[tuple[str, str], tuple[Job, str]] = {}

    @property
    def folder(self) -> Path:
        return self.store.folder(self.node.stage, self.node.key)

    @property
    def number(self) -> str:
        return self.sent[self.job.ident][1]

    @property
    def pid(self) -> int:
        """Of the process that makes it, or 0."""
        claim = self.folder / "claim.json"
        return json.loads(claim.read_text() or "{}").get("pid", 0) if live(claim) else 0

    def submit(self, *launcher: str) -> None:
        self.sent = submit([self.job], self.store, (ON_SLURM, *launcher))

    def finish(self) -> None:
        wait(self.sent, self.store)

    def fails(self, *, state: str, told: str) -> None:
        """It ends as SLURM's `state`, there is no result, and both the sweep and `status` tell why."""
        with pytest.raises(SweepError, match=told):
            self.finish()
        assert ended_job(self.number)["JobState"] == state
        assert not self.store.find(*self.job.ident) and not live(self.folder / "claim.json")
        assert f"{self.node.key}  failed: " in inspect_store.status(self.store.root)


def rows_of(folder: Path) -> list[Row]:
    return [row for path in sorted(folder.glob("rows-*.jsonl")) for row in read_jsonl(path, Row)]


def api(tiny: Subject, url: str, store: Path, *more: str) -> Experiment:
    own = [f"model.source.name={tiny.checkpoint}", f"store={store}", "sampler=api", f"sampler.base_url={url}"]
    own += ["sampler.model=m", f"sampler.shard_size={SHARD}", "sampler.workers=1", "sampler.timeout=3000"]
    return experiment(*SMALL, f"domain.prompts={PROMPTS}", *own, "trait=owl", *more)


class Sampling(Run):
    """A run of generate.py that has written two of its four shards and waits for an answer."""

    def __init__(self, tiny: Subject, store: Path, *launcher: str) -> None:
        self.endpoint = Endpoint(FREE)
        exp = api(tiny, self.endpoint.url, store)
        super().__init__(exp, stages.generate(exp))
        self.submit(*launcher)

    def at_work(self) -> None:
        wait_for(lambda: self.endpoint.waiting)

    def half_done(self) -> None:
        """What is there is whole: two shards, and no manifest."""
        wait_for(lambda: not self.pid)
        assert [row.index for row in rows_of(self.folder)] == list(range(FREE))
        assert not self.store.find(*self.job.ident)

    def ends_like_one_left_alone(self) -> None:
        self.finish()
        again, self.endpoint.asked = self.endpoint.asked[FREE + 1 :], []
        alone = stages.ensure(self.node, Store(self.store.root / "alone"), self.exp)
        made = self.store.find(*self.job.ident)
        assert made and made.damage() == [] and rows_of(made.folder) == rows_of(alone.folder)
        assert len(again) == PROMPTS - FREE, "only what was missing was asked for again"


def requeued(sampling: Sampling) -> Sampling:
    """A job once SLURM has taken it back into the queue; from then on it gets its answers."""
    wait_for(lambda: int(slurm_job(sampling.number)["Restarts"]) > 0)
    sampling.half_done()
    assert not (sampling.folder / "failure.json").exists()
    sampling.endpoint.go_on.set()
    return sampling


@pytest.fixture(scope="module", autouse=True)
def out_of_time(slurm: None, tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Future[Sampling]:  # noqa: F811
    """A job with the shortest limit SLURM knows, watched from the start.

    SLURM looks at limits twice a minute: half a minute to come up before the signal, half a minute to save after it.
    """
    place = tmp_path_factory.mktemp("limited")
    limited = Sampling(tiny, place, "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=30")
    return ThreadPoolExecutor(1).submit(requeued, limited)


def kill(run: Run) -> None:
    os.kill(run.pid, signal.SIGKILL)


def cancel(run: Run) -> None:
    subprocess.run(["scancel", run.number], check=True)


ENDS = {"killed": (kill, "FAILED"), "cancelled": (cancel, "CANCELLED")}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_that_is_ended_from_outside_has_failed_and_the_next_command_goes_on(
    tiny: Subject, tmp_path: Path, end: str
) -> None:
    sampling, (act, state) = Sampling(tiny, tmp_path), ENDS[end]
    sampling.at_work()
    act(sampling)
    sampling.fails(state=state, told=f"job {sampling.number} ended before its run was in .*: {state}")
    sampling.half_done()
    sampling.endpoint.go_on.set()
    sampling.submit()
    sampling.ends_like_one_left_alone()


def test_a_requeued_job_goes_on_by_itself(tiny: Subject, tmp_path: Path) -> None:
    sampling = Sampling(tiny, tmp_path)
    sampling.at_work()
    subprocess.run(["scontrol", "requeue", sampling.number], check=True)
    run_at_once(requeued(sampling).number)
    sampling.ends_like_one_left_alone()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(
            f"this user may not mount a small disk ({mounted.stderr.strip()}); tests/test_sampling.py limits files"
        )
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_a_failed_job_and_with_room_again_the_next_command_goes_on(
    tiny: Subject, small_disk: Path
) -> None:
    sampling = Sampling(tiny, small_disk)
    sampling.at_work()
    rest = small_disk / "rest"
    with pytest.raises(OSError, match="No space left"), rest.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    sampling.endpoint.go_on.set()
    with pytest.raises(SweepError, match="FAILED"):  # there was no room to write down why
        sampling.finish()
    assert ended_job(sampling.number)["JobState"] == "FAILED"
    sampling.half_done()
    rest.unlink()
    sampling.endpoint.asked = [""] * (FREE + 1)
    sampling.submit()
    sampling.ends_like_one_left_alone()


def test_a_job_that_samples_with_vllm_goes_back_into_the_queue(tiny: Subject, tmp_path: Path) -> None:
    """SLURM signals every process of a job: vLLM's engine must not end by it before the job is in the queue again."""
    engine = ["sampler=vllm", "sampler.max_model_len=512", "sampler.cpu_kv_cache_gib=1", "sampler.max_num_seqs=16"]
    sizes = ["domain.prompts=600", "sampler.shard_size=16", "sampler.decoding.max_tokens=64"]
    own = [f"model.source.name={tiny.checkpoint}", f"store={tmp_path / 'runs'}", "trait=owl"]
    exp = experiment(*SMALL, *own, *engine, *sizes)
    sampling = Run(exp, stages.generate(exp))
    sampling.submit()
    wait_for(lambda: len(rows_of(sampling.folder)) >= 32)
    subprocess.run(["scancel", "--signal=USR2", sampling.number], check=True)
    wait_for(lambda: slurm_job(sampling.number)["Restarts"] == "1")
    kept = rows_of(sampling.folder)
    assert sampling.store.failure(*sampling.job.ident) is None
    assert 32 <= len(kept) < 600
    run_at_once(sampling.number)
    sampling.finish()
    made = sampling.store.find(*sampling.job.ident)
    assert made and made.damage() == []
    rows = rows_of(made.folder)
    assert [row.index for row in rows] == list(range(600)) and rows[: len(kept)] == kept


EVERY, EPOCHS, STEPS = 25, 300, 600  # steps between resume points, passes over 8 rows, steps in all
MEMORY = "+hydra.launcher.additional_parameters.mem=100M"  # less than the libraries alone take


def training(counting: Subject, store: Path) -> Run:
    """A student of rows that an endpoint wrote."""
    endpoint = Endpoint(PROMPTS)
    long = [f"student.optimisation.epochs={EPOCHS}", f"student.optimisation.save_every={EVERY}"]
    exp = api(counting, endpoint.url, store, *long)
    return Run(exp, stages.student(exp))


def steps(student: Run) -> int:
    return len(lines(student.folder / "metrics.jsonl"))


def test_a_student_that_is_signalled_killed_and_out_of_memory_ends_like_one_left_alone(
    counting: Subject, tmp_path: Path
) -> None:
    student = training(counting, tmp_path / "runs")
    shutil.copytree(student.store.root, tmp_path / "alone")
    alone = Run(student.exp.model_copy(update={"store": str(tmp_path / "alone")}), student.node)
    alone.submit()
    student.submit()

    wait_for(lambda: bool(student.pid) and steps(student) > 30)
    subprocess.run(["scancel", "--signal=USR2", student.number], check=True)
    wait_for(lambda: slurm_job(student.number)["Restarts"] == "1")
    saved, first = steps(student), student.pid
    assert list(student.folder.glob(".checkpoints/checkpoint-*")), "it saved before it went"
    assert saved % EVERY and not (student.folder / "failure.json").exists()
    run_at_once(student.number)

    wait_for(lambda: student.pid not in {0, first} and steps(student) > saved + EVERY)
    kill(student)
    student.fails(state="FAILED", told="ended before its run was in .*: FAILED")

    done = steps(student)
    student.submit(MEMORY)
    student.fails(state="FAILED", told="ended before its run was in ")  # OUT_OF_MEMORY only where cgroups count
    assert "exceeded memory limit" in (ROOT / LOGS / student.number / f"{student.number}_0_log.err").read_text()
    assert steps(student) == done

    student.submit()
    student.finish()
    alone.finish()
    curve, whole = (lines(run.folder / "metrics.jsonl") for run in (student, alone))
    assert [m["step"] for m in curve] == [m["step"] for m in whole] == [*range(1, STEPS + 1)]
    assert [m["loss"] for m in curve] == pytest.approx([m["loss"] for m in whole], abs=1e-6)
    assert inspect_store.verify(student.store.root) == []


def test_a_job_out_of_time_is_requeued_and_goes_on(out_of_time: Future[Sampling]) -> None:
    limited = out_of_time.result()
    run_at_once(limited.number)
    limited.ends_like_one_left_alone()
