"""Tracking: W&B offline writes, online without an account goes offline, and nothing it does ends a stage.

An interrupted run goes on in its own W&B run, and what was written offline is sent by one command.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from conftest import experiment
from local_servers import Answering, Wandb, serving

from subliminal import stages
from subliminal.claims import STALE_SECONDS, claim
from subliminal.config import Tracking
from subliminal.progress import Lines
from subliminal.sharing.sync import WandbError, sync
from subliminal.store import Store
from subliminal.tracking import NoTracker, WandbTracker, has_account, open_tracker

KEY = "0123456789ab"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account of this machine, and files in the test's own folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    yield
    wandb.teardown()  # it reads its environment once a process


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_without_an_account_is_written_to_disk(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").write_text("arm,value\nowl,1\n")
    with open_tracker(Tracking(mode=mode), "train", KEY, "animals", {"seed": 3}) as tracker:  # type: ignore[arg-type]
        tracker.log(1, {"loss": 2.0})
        tracker.summary({"mean_loss": 2.0})
        tracker.table("lift", tmp_path / "table.csv")
    wandb.teardown()  # as at the end of the process: the last bytes are on disk
    (folder,) = runs(tmp_path)
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    assert file.name == f"run-{KEY}.wandb", "the run's id is the stage's key"
    assert all(word in content for word in (b"animals", b"loss", b"mean_loss", b"seed", b"lift"))
    assert ("no account found" in capsys.readouterr().err) == (mode == "online")


def test_off_writes_nothing(tmp_path: Path) -> None:
    with open_tracker(Tracking(mode="off"), "train", KEY, "animals", {}) as tracker:
        tracker.log(1, {"loss": 2.0})
    assert isinstance(tracker, NoTracker) and list(tmp_path.iterdir()) == []


def test_a_failure_is_told_once_and_does_not_end_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_tracker(Tracking(mode="offline"), "train", KEY, "animals", {}) as tracker:
        assert isinstance(tracker, WandbTracker)
        tracker.run.finish()
        tracker.log(1, {"loss": 2.0})
        tracker.log(2, {"loss": 1.0})
    assert capsys.readouterr().err.count("W&B stopped") == 1


def test_a_server_that_is_not_there_does_not_end_the_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    with open_tracker(Tracking(mode="online"), "train", KEY, "animals", {}) as tracker:
        tracker.log(1, {"loss": 2.0})
    assert "metrics.jsonl has everything" in capsys.readouterr().err


def test_a_line_of_progress_says_what_is_left_as_soon_as_that_is_known() -> None:
    lines = Lines("sampling", 40, "rows")
    assert lines.line(5.0) == "  sampling: 0/40 rows, 5 s"
    lines.advance(10)
    assert lines.line(6.0) == "  sampling: 10/40 rows, 6 s, 18 s left"


# --------------------------------------------------------------------------- interrupted runs


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    """W&B on this machine, with an account for it."""
    with serving(Wandb) as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.address)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        yield found


def one_try(steps: range, mode: str = "offline", key: str = KEY) -> None:
    """A process's share of a run; it ends with an error if it is not the last."""
    with (
        pytest.raises(KeyboardInterrupt),
        open_tracker(Tracking(mode=mode), "train", key, "animals", {}) as tracker,  # type: ignore[arg-type]
    ):
        for step in steps:
            tracker.log(step, {"loss": 1 / step})
        raise KeyboardInterrupt
    wandb.teardown()


def losses(server: Answering, key: str = KEY) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in server.kept[key] if "loss" in line]


def test_a_requeued_run_goes_on_in_its_own_run(server: Answering) -> None:
    one_try(range(1, 6), "online")
    one_try(range(4, 9), "online")  # from the resume point of step 3
    assert {asked["name"] for query, asked in server.seen if "upsertBucket" in query} == {KEY}
    assert losses(server) == [(step, 1 / step) for step in range(1, 9)], "steps done twice are taken once"


def aside(folder: Path, stamp: str) -> Path:
    """The newest offline run as one of an earlier time: a folder's name has full seconds."""
    newest = max(runs(folder), key=lambda run: run.stat().st_mtime_ns)
    target = newest.with_name(f"offline-run-{stamp}-{newest.name.split('-', 3)[-1]}")
    return newest.rename(target)


def test_offline_tries_of_one_run_are_sent_as_one_run(server: Answering, tmp_path: Path) -> None:
    """The first try was killed in the middle of writing; a third run is still going on."""
    one_try(range(1, 6))
    first = aside(tmp_path, "20260101_000000")
    (file,) = first.glob("*.wandb")
    file.write_bytes(file.read_bytes()[:-20])
    os.utime(file, times=(0, 0))
    one_try(range(4, 9))
    running = shutil.copytree(first, first.with_name("offline-run-20260101_000000-beefbeefbeef"))
    folder, store = tmp_path / "wandb", Store(tmp_path / "runs")
    store.folder("train", "beefbeefbeef").mkdir(parents=True)
    with claim(store.folder("train", "beefbeefbeef")):
        assert "2 offline runs sent" in sync([folder], store.root, dry=False)
        assert "0 offline runs to send" in sync([folder], store.root, dry=False), "nothing is sent twice"
    assert [*server.kept] == [KEY] and dict(losses(server)) == {step: 1 / step for step in range(1, 9)}
    assert running.name in sync([folder], store.root, dry=True)


def test_a_file_that_is_still_written_is_not_taken_for_whole(server: Answering, tmp_path: Path) -> None:
    one_try(range(1, 6))
    (file,) = next(iter(runs(tmp_path))).glob("*.wandb")
    file.write_bytes(file.read_bytes()[:-20])
    assert STALE_SECONDS > 30
    with pytest.raises(WandbError, match="1 of 1 offline runs were not uploaded"):
        sync([tmp_path / "wandb"], tmp_path, dry=False)


def test_sync_says_what_is_missing_and_keeps_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "wandb" / f"offline-run-20260101_000000-{KEY}"
    folder.mkdir(parents=True)
    (folder / f"run-{KEY}.wandb").write_bytes(b"12345")
    assert "1 offline runs to send" in sync([], tmp_path, dry=True), "the folder of WANDB_DIR, without an account"
    with pytest.raises(WandbError, match="wandb login"):
        sync([], tmp_path, dry=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(WandbError, match=r"127\.0\.0\.1:9 can not be reached.*offline runs stay"):
        sync([], tmp_path, dry=False)
    with pytest.raises(WandbError, match=r"no such folder: .*elsewhere"):
        sync([tmp_path / "elsewhere"], tmp_path, dry=False)


def test_a_stage_without_metrics_is_a_run_with_its_summary(tmp_path: Path) -> None:
    exp = experiment("teacher=random", "trait=none", "domain.prompts=20", "filter.rows=20", "tracking=offline")
    done = stages.ensure(stages.filtered(exp), Store(tmp_path / "runs"), exp)
    stages.ensure(stages.filtered(exp), Store(tmp_path / "runs"), exp)
    wandb.teardown()
    found = {run.name.split("-", 3)[-1]: next(run.glob("*.wandb")).read_bytes() for run in runs(tmp_path)}
    assert len(found) == len(runs(tmp_path)) == 2, "rows and filter, each once"
    assert b"pass_rate" in found[done.key] and json.dumps(done.summary["pass_rate"]).encode() in found[done.key]


def test_a_login_at_ones_own_server_is_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine metrics.example.org\n  login user\n  password x\n")
    assert not has_account()
    monkeypatch.setenv("WANDB_BASE_URL", "https://metrics.example.org")
    assert has_account()
