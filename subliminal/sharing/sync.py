"""Offline W&B runs, sent later: what is not uploaded yet is found here, the sending is wandb's own command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from subliminal.claims import STALE_SECONDS, live
from subliminal.progress import say
from subliminal.store import StoreError
from subliminal.tracking import has_account

AGAIN = "then run the same command again"
CUT_OFF = "ends with an incomplete record"  # what wandb says of the file of a process that was killed
CONNECT_SECONDS = 10.0


class WandbError(StoreError):
    """What W&B can not do now; the text says why and what to do."""


def sync(folders: Sequence[Path], store: Path, *, dry: bool) -> str:
    """Upload every offline run below `folders` (none given: the wandb folder) that is not uploaded yet.

    What a live process of the store is still writing waits for the next time. With `dry` nothing is sent and no account
    is needed. Returns what was, or would be, sent; raises `WandbError` when W&B has not taken all of it.
    """
    if gone := [str(folder) for folder in [*folders, *([store] if folders else [])] if not folder.is_dir()]:
        raise WandbError(f"no such folder: {', '.join(gone)}; give those that hold offline-run-*, and --store")
    found = [run for folder in folders or wandb_folders() for run in waiting(folder)]
    ready = [run for run in found if not _being_made(store, key_of(run))]
    lines = [
        *map(_line, ready),
        *(f"{key_of(run)}  still running, left for later" for run in found if run not in ready),
    ]
    if dry or not ready:
        return "\n".join([*lines, f"{len(ready)} offline runs to send"])
    require_wandb(f"{len(ready)} offline runs stay where they are")
    _send(ready)
    return "\n".join([*lines, f"{len(ready)} offline runs sent"])


def wandb_folders() -> list[Path]:
    """Where wandb writes runs from here: its folder below WANDB_DIR or the current one."""
    base = Path(os.environ.get("WANDB_DIR", "."))
    return [base / "wandb", base / ".wandb"]


def waiting(folder: Path) -> list[Path]:
    """The offline runs of a wandb folder that are not uploaded yet, in order of time."""
    files = sorted(folder.glob("offline-run-*/run-*.wandb"))
    return [file.parent for file in files if not file.with_suffix(".wandb.synced").exists()]


def key_of(run: Path) -> str:
    """The W&B id of an offline run's folder: of a stage, its key."""
    return run.name.split("-", 3)[-1]


def require_wandb(otherwise: str) -> None:
    """Stop with one message when there is no account or no way to W&B; `otherwise` says what is not lost."""
    if not has_account():
        raise WandbError(
            f"W&B has no account here; {otherwise}. Log in with `wandb login` or set WANDB_API_KEY, {AGAIN}"
        )
    import requests
    import wandb

    address = wandb.setup().settings.base_url
    try:
        requests.head(address, timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        raise WandbError(
            f"W&B at {address} can not be reached ({type(error).__name__}); {otherwise}. Check the network, {AGAIN}"
        ) from None


def _send(runs: Sequence[Path]) -> None:
    """Upload until nothing is left: wandb leaves later tries of a run whose earlier one is cut off for another time."""
    left = [*runs]
    while left:
        said, code = _wandb_sync(left)
        settled = _settle_cut_off(left, [line for line in said if CUT_OFF in line])
        left = [run for run in left if run in waiting(run.parent)]
        if code or (left and not settled):
            raise WandbError(f"{len(left)} of {len(runs)} offline runs were not uploaded, W&B says why above; {AGAIN}")


def _wandb_sync(runs: Sequence[Path]) -> tuple[list[str], int]:
    """wandb's own command, which sends several tries of one run in order of time: what it says, and its exit code."""
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
    said: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as sending:
        for line in sending.stdout or ():
            said.append(line.rstrip())
            say(said[-1])
    return said, sending.returncode


def _settle_cut_off(runs: Sequence[Path], said: Sequence[str]) -> list[Path]:
    """Mark as uploaded what was sent as far as it goes: wandb would append the same rows each time anew."""
    settled = []
    for run in runs:
        (file,) = run.glob("run-*.wandb")
        if any(run.name in line for line in said) and time.time() - file.stat().st_mtime > STALE_SECONDS:
            file.with_suffix(".wandb.synced").touch()
            settled.append(run)
            say(f"{run.name} ends where its process was killed; all that is in it was sent")
    return settled


def _being_made(store: Path, key: str) -> bool:
    return any(live(path) for path in store.glob(f"*/{key}/claim.json"))


def _line(run: Path) -> str:
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return f"{key_of(run)}  {size / 1e6:8.2f} MB  {run}"
