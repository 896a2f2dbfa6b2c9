"""The run store: `runs/<stage>/<key>/`, complete exactly when its manifest exists.

A key is a hash of everything that can change a stage's output, so that two people who ask for the same thing find the
same folder. Work is claimed first (one file made with O_EXCL), done once, and published by writing the manifest last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from subliminal.claims import BEGAN, claim, holder, leader_lives
from subliminal.processes import MULTIRUN, alone
from subliminal.provenance import Json, manifest_of, sha256
from subliminal.stopping import ending

POLL_SECONDS = 0.2
SHARED = ".shared"  # what the processes of a run hand each other; gone once the run is published
# Names of environment variables that hold one: AWS_SECRET_ACCESS_KEY, github_token, GATEWAY_KEY_2, GITHUB_PAT.
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(^|_)PAT)(_|\d|$)", re.IGNORECASE)
SECRET_LENGTH = 8  # characters: what is shorter is no key, and replacing it would spoil the text

SECRETS: set[str] = set()  # further variables that hold a key, by any name: those that a setting names


class StoreError(Exception):
    """A stage that can not be had: the text says why and which command comes next."""


class ClaimedError(StoreError):
    """Another live process is already making this stage and we were asked not to wait."""


@dataclass(frozen=True)
class Recipe:
    """What identifies a stage run: its name and version, its resolved settings, and the keys of what it reads."""

    stage: str
    settings: Json
    upstream: dict[str, str] = field(default_factory=dict)
    version: int = 1

    @property
    def key(self) -> str:
        """First 12 hex digits of the sha256 of the canonical recipe."""
        canonical = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def as_json(self) -> Json:
        """The recipe as plain data, as hashed and as written to `recipe.yaml`."""
        return {"schema": self.version, "stage": self.stage, "settings": self.settings, "upstream": self.upstream}


@dataclass(frozen=True)
class Manifest:
    """What a complete stage says of itself: files with sha256, upstream keys, its summary, where and how long."""

    stage: str
    key: str
    folder: Path
    content: Json

    @property
    def summary(self) -> Json:
        """The stage's own results in brief (counts, rates, losses)."""
        return self.content["summary"]

    @property
    def recipe(self) -> Json:
        """The recipe the key was made from."""
        return self.content["recipe"]

    def damage(self) -> list[str]:
        """What no longer matches the manifest: one line for each missing or changed file."""
        problems = []
        for name, entry in self.content["files"].items():
            path = self.folder / name
            if not path.exists():
                problems.append(f"{path}: missing")
            elif sha256(path) != entry["sha256"]:
                problems.append(f"{path}: changed since it was written")
        return problems


class Store:
    """A folder of stage runs that any number of processes share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: str, key: str) -> Path:
        """Where a stage run lives, whether or not it exists."""
        return self.root / stage / key

    def find(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a complete stage run, or None."""
        folder = self.folder(stage, key)
        try:
            content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except json.JSONDecodeError:
            raise StoreError(f"{folder}/manifest.json is damaged; remove the folder and run the stage again") from None
        return Manifest(stage, key, folder, content)

    def failure(self, stage: str, key: str) -> Json | None:
        """What `record_failure` left of the last try of a stage run, or None."""
        try:
            return json.loads((self.folder(stage, key) / "failure.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None

    def manifests(self, stage: str = "*") -> Iterator[Manifest]:
        """Every complete stage run, by stage and key."""
        for path in sorted(self.root.glob(f"{stage}/*/manifest.json")):
            manifest = self.find(path.parent.parent.name, path.parent.name)
            if manifest:
                yield manifest

    def run(self, recipe: Recipe, work: Callable[[Path], Json], *, wait: bool = True) -> tuple[Manifest, bool]:
        """Return the stage run, doing `work(folder) -> summary` if nobody has; the flag says if it was reused."""
        done = self.find(recipe.stage, recipe.key)
        if done:
            return done, True
        folder = self.folder(recipe.stage, recipe.key)
        while True:
            _make(folder)  # again after waiting: gc may have held the claim, and the folder is gone
            with claim(folder) as taken:
                done = self.find(recipe.stage, recipe.key)
                if done:
                    return done, True
                if taken:
                    return self._work(recipe, folder, work), False
            if not wait:
                raise ClaimedError(f"{folder} is being made by {holder(folder)}; run again when it is done")
            time.sleep(POLL_SECONDS)

    def follow(self, recipe: Recipe, share: Callable[[Path], object], whole: Callable[[Path], Json] | None) -> Manifest:
        """Do a `share` of a run that the leader of these processes makes, in its folder; return what it publishes.

        When the leader is gone, this process does the `whole` work; where that is None, it is a `StoreError`.
        """
        folder = self.folder(recipe.stage, recipe.key)
        while not (done := self.find(recipe.stage, recipe.key)) and leader_lives(folder) is None:
            _look_for_failure(folder)
            time.sleep(POLL_SECONDS)
        if done:
            return done
        if leader_lives(folder):
            share(folder)
        while leader_lives(folder):
            time.sleep(POLL_SECONDS)
        if done := self.find(recipe.stage, recipe.key):
            return done
        if whole is None:
            raise StoreError(f"the leading process did not finish {folder}; its own message says why")
        with alone():
            return self.run(recipe, whole)[0]

    def _work(self, recipe: Recipe, folder: Path, work: Callable[[Path], Json]) -> Manifest:
        write_atomically(folder / "recipe.yaml", yaml.safe_dump(recipe.as_json(), sort_keys=False, allow_unicode=True))
        started = time.time()
        try:
            summary = work(folder)
            content = manifest_of(recipe.as_json(), folder, summary, time.time() - started)
            write_atomically(folder / "manifest.json", json.dumps(content, indent=1, ensure_ascii=False))
        except SystemExit:  # the process is to stop and the run to go on later: no failure
            raise
        except BaseException as error:
            if not ending():
                record_failure(folder, error)
            raise
        for name in ("failure.json", "submitted.json"):
            (folder / name).unlink(missing_ok=True)
        _remove_at_once(folder / SHARED)
        return Manifest(recipe.stage, recipe.key, folder, content)


def _remove_at_once(folder: Path) -> None:
    """Nobody may find a part of the folder gone and the rest still there: it would be made again."""
    moved = folder.with_name(f"{folder.name}-{os.getpid()}")
    try:
        folder.rename(moved)
    except FileNotFoundError:
        return
    shutil.rmtree(moved, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old content or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _look_for_failure(folder: Path) -> None:
    try:
        failed = (folder / "failure.json").stat().st_mtime > BEGAN
    except FileNotFoundError:
        return
    if failed:
        raise StoreError(f"the leading process failed to make {folder}; its own message says why")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"can not make {folder}: {error.strerror}; set store= to a folder you can write to") from None


def record_failure(folder: Path, error: BaseException) -> None:
    """Leave in a run's folder why it is not complete, for `status` and for those who read the run."""
    trace = "".join(traceback.format_exception(error))[-4000:]
    record = {"error": type(error).__name__, "message": str(error), "trace": trace, "host": socket.gethostname()}
    record["multirun"] = os.environ.get(MULTIRUN, "")
    safe = {name: without_secrets(text) for name, text in record.items()}
    try:
        write_atomically(folder / "failure.json", json.dumps(safe, indent=1))
    except OSError:
        return  # a full disk must not hide the error that filled it


def without_secrets(text: str) -> str:
    """The text with *** for every value of an environment variable that is named like a key or in `SECRETS`."""
    names = [name for name in os.environ if name in SECRETS or SECRET.search(name)]
    for value in sorted((os.environ[name] for name in names), key=len, reverse=True):
        text = text.replace(value, "***") if len(value) >= SECRET_LENGTH else text
    return text
