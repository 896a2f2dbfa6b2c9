"""Tracking: W&B offline writes, online without an account goes offline, and nothing it does ends a stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from subliminal.config import Tracking
from subliminal.progress import Lines
from subliminal.tracking import NoTracker, WandbTracker, open_tracker

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
