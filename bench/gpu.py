"""Does everything hold on this machine's GPU: ten checks in order, each with its own limit of seconds.

    python bench/gpu.py --out gpu-check --mnist <folder of the four IDX files>
    python bench/gpu.py --only 1,2,3 --seconds 120
    python bench/gpu.py --only 10 experiment=animals_numbers student=lora_small      # overrides change the recipe

A check that fails or runs out of time does not keep the others from running. After each one a JSON line is added to
`OUT/results.jsonl`; `OUT/results.tar.gz` has all but weights and is written again every minute. Neither a network nor
vLLM is needed. `--device cpu --tiny` runs every check at tiny sizes, which proves nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tarfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpu_checks
from gpu_checks import CHECKS, Check, OutOfTimeError, Session

from subliminal.launch import QUIET
from subliminal.provenance import commit, versions
from subliminal.store import without_secrets

ARCHIVE_SECONDS = 60.0
ARCHIVE_BYTES = 16_000_000  # the largest file that goes into the archive, and about the most that it holds
WEIGHTS = {".safetensors", ".pt", ".pth", ".gguf", ".bin"}
ADAPTER_BYTES = 200_000  # the adapter of a student with one vector is smaller, and is kept


def main(argv: list[str] | None = None) -> int:
    """Run the checks; returns how many of them failed."""
    options = _options(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.update(QUIET | os.environ)  # before torch is imported
    session = Session(options.device, options.tiny, options.out.resolve(), options.mnist, tuple(options.overrides))
    ends = time.monotonic() + options.seconds
    done = threading.Event()
    threading.Thread(target=_archive_every_minute, args=(options.out, done), daemon=True).start()
    failed = 0
    _write(options.out, {"check": "head", "command": [*sys.orig_argv[1:]], "device": options.device, **_head()})
    for number, check in enumerate(CHECKS, 1):
        if not options.only or number in options.only:
            result = _run(number, check, session, min(check.seconds, ends - time.monotonic()))
            failed += not result["passed"]
            _write(options.out, result)
    done.set()
    _archive(options.out)
    return failed


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = "\n".join(f"{number}: {check.name}" for number, check in enumerate(CHECKS, 1))
    parser.epilog = f"checks\n{names}"
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-check"), help="folder of results and of the checks' store"
    )
    parser.add_argument("--mnist", type=Path, help="folder of the four MNIST files, gzipped or not (check 4)")
    parser.add_argument("--seconds", type=float, default=900.0, help="of all checks together")
    parser.add_argument("--only", type=_numbers, default=frozenset(), help="checks by number, for example 1,2,5")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does every check run")
    parser.add_argument("overrides", nargs="*", help="of the recipe, as for the root scripts: student=... model=...")
    return parser.parse_args(argv)


def _numbers(text: str) -> frozenset[int]:
    numbers = frozenset(int(part) for part in text.split(",") if part.strip().isdecimal())
    if not numbers or max(numbers) > len(CHECKS) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers from 1 to {len(CHECKS)} with commas between them")
    return numbers


def _run(number: int, check: Check, session: Session, seconds: float) -> dict[str, Any]:
    """One check's JSON line: what it measured and whether it passed, or the error that ended it."""
    print(f"[{number}/{len(CHECKS)}] {check.name}", flush=True)
    started = time.monotonic()
    measured: dict[str, Any] = {}
    try:
        if seconds <= 1:
            raise OutOfTimeError("no time is left for it")
        if check.reference:
            session.reference()
            started = time.monotonic()
        with _limit(seconds):
            check.work(session, measured)
    except Exception as error:
        measured["error"] = without_secrets(f"{type(error).__name__}: {error}")[:2000]
        measured["trace"] = without_secrets(traceback.format_exc())[-2000:]
        measured["passed"] = False
    took = round(time.monotonic() - started, 1)
    return {"check": number, "name": check.name, "seconds": took, "passed": False} | measured


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in the body after so many seconds."""

    def stop(*_: object) -> None:
        raise OutOfTimeError(f"stopped after its limit of {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _head() -> dict[str, Any]:
    """When, with which code and which libraries."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
        "versions": versions(),
        "python": sys.version.split()[0],
    }


def _write(out: Path, result: dict[str, Any]) -> None:
    line = json.dumps(gpu_checks.plain(result))
    print(line, flush=True)
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _archive_every_minute(out: Path, done: threading.Event) -> None:
    while not done.wait(ARCHIVE_SECONDS):
        _archive(out)


_ARCHIVING = threading.Lock()


def _archive(out: Path) -> None:
    """Everything in the folder but weights (small adapters stay), as one file that is replaced at once."""
    draft, total = out / ".results.tar.gz.tmp", 0
    with _ARCHIVING:
        with tarfile.open(draft, "w:gz") as tar:
            for path in sorted(p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".results")):
                try:
                    size = path.stat().st_size
                    small = size <= (ADAPTER_BYTES if path.suffix in WEIGHTS else ARCHIVE_BYTES)
                    if small and path.name != "results.tar.gz" and total + size < 8 * ARCHIVE_BYTES:
                        tar.add(path, str(path.relative_to(out)), recursive=False)
                        total += size
                except FileNotFoundError:  # a stage's temporary file
                    continue
        draft.replace(out / "results.tar.gz")


if __name__ == "__main__":
    sys.exit(min(main(), 1))
