"""Claims: one process of many makes a stage run, and another takes over from it when it is gone.

A claim is a file in the run's folder that only one process can create, on local disks and on NFS. Its process touches
it again and again, so that machines whose clocks differ see that it lives.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from subliminal.processes import meeting_point

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # of our own clock, without a new heartbeat
FORGOTTEN_SECONDS = 3600.0  # by the file's time: no two clocks of a cluster are that far apart
STEP_BACK_SECONDS = 0.001  # between tries to put a claim back
CLAIM = "claim.json"
BEGAN = time.time()  # of this process: older claims and failures are not those of the leader that it follows
_HEARTBEATS: dict[Path, tuple[tuple[int, int], float]] = {}  # the newest seen of a claim, and when it was first seen


@contextmanager
def claim(folder: Path, name: str = CLAIM) -> Iterator[bool]:
    """Hold a claim file of the folder with a heartbeat while the body runs; yields False when another process holds it.

    The folder's own claim is for the whole run; parts of it that several processes share out have names of their own.
    """
    path = folder / name
    ours = _create(path)
    if ours is None:
        yield False
        return
    stop = threading.Event()
    heartbeat = threading.Thread(target=_beat, args=(path, ours, stop), daemon=True)
    try:
        heartbeat.start()
        yield True
    finally:
        stop.set()
        _release(path, ours)
        if heartbeat.ident:
            heartbeat.join()


def leader_lives(folder: Path) -> bool | None:
    """Does our group's leader live, who claimed the run; None as long as the claim is nobody's, or another group's."""
    path = folder / CLAIM
    try:
        ours = json.loads(path.read_text(encoding="utf-8")).get("group") == meeting_point()
        fresh = path.stat().st_mtime > BEGAN  # the same ports may have been another group's before
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return live(path) if ours and fresh else None


def live(path: Path) -> bool:
    """Is the claim file held by a process that still lives: here by its pid, elsewhere by its heartbeat."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))  # opened first: NFS then asks the server for its time
    except FileNotFoundError:
        return False
    except json.JSONDecodeError:  # without hard links: created, not yet filled
        return not _heartbeat_stopped(path)
    if (holder["host"], holder.get("space")) == (socket.gethostname(), _space()):
        return _alive(holder["pid"], holder["started"])
    return not _heartbeat_stopped(path)


def _heartbeat_stopped(path: Path) -> bool:
    """Has a claim's file not changed while we looked on for `STALE_SECONDS`.

    Clocks of two machines differ, so the age of a heartbeat tells nothing; that it moves does. The first look can only
    go by age, and takes no claim for dead that a wrong clock may have dated.
    """
    try:
        now = path.stat()
    except FileNotFoundError:
        return True
    beat = (now.st_mtime_ns, now.st_ino)
    known, since = _HEARTBEATS.get(path, (None, 0.0))
    if known != beat:
        _HEARTBEATS[path] = beat, time.monotonic()
    forgotten = time.time() - now.st_mtime >= FORGOTTEN_SECONDS and known in {None, beat}
    return forgotten or (known == beat and time.monotonic() - since >= STALE_SECONDS)


def _create(path: Path) -> int | None:
    """Make the claim file; returns its inode, None when another process holds it."""
    if path.exists() and not live(path):
        _remove_stale(path)
    draft = _own_name(path, "new")
    try:
        draft.write_text(_this_process(), encoding="utf-8")
        ours = draft.stat().st_ino
        _publish(draft, path)
    except FileExistsError:
        return None
    finally:
        draft.unlink(missing_ok=True)
    if any(map(live, _moved_aside(path))):  # a live claim was moved aside, which made the place free: it comes back
        _release(path, ours)
    return ours if _inode(path) == ours else None


def _publish(file: Path, path: Path) -> None:
    """Give a written file a name that nobody holds, so that a claim says from its first moment whose it is."""
    try:
        os.link(file, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        file.replace(path)


def _own_name(path: Path, what: str) -> Path:
    return path.with_name(f".{what}-{path.name}-{os.getpid()}-{threading.get_ident()}")


def _this_process() -> str:
    who = {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "started": _started(os.getpid())}
    return json.dumps(who | {"group": meeting_point()})


@cache
def _space() -> str:
    """Where a pid means the same process: containers of one host name have process tables of their own."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no /proc: no such containers either
        return ""


def _release(path: Path, ours: int) -> None:
    """Remove our claim, wherever those who look for stale ones have moved it; by its inode, for names pass on."""
    while held := [place for place in (path, *_moved_aside(path)) if _inode(place) == ours]:
        for place in held:
            place.unlink(missing_ok=True)


def _moved_aside(path: Path) -> list[Path]:
    """Claims of this name that somebody has moved aside, to see whether they are stale."""
    return list(path.parent.glob(f".stale-{path.name}-*"))


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _remove_stale(path: Path) -> None:
    """Move a stale claim aside: of many that try, one rename succeeds, so no fresh claim is ever removed by name."""
    moved = _own_name(path, "stale")
    seen = _HEARTBEATS.pop(path, None)
    try:
        path.rename(moved)
    except FileNotFoundError:
        return
    if seen:
        _HEARTBEATS[moved] = seen
    while live(moved) and not _put_back(moved, path):
        time.sleep(STEP_BACK_SECONDS)
    moved.unlink(missing_ok=True)
    _HEARTBEATS.pop(moved, None)


def _put_back(moved: Path, path: Path) -> bool:
    """Return a claim that another process took between our look and our rename; not while a third holds its place."""
    try:
        _publish(moved, path)
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


def holder(folder: Path) -> str:
    """The process that holds a run's claim, in words."""
    try:
        claimed_by = json.loads((folder / CLAIM).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return "another process"
    return f"process {claimed_by['pid']} on {claimed_by['host']}"
