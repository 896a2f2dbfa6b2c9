"""Tasks that run without a network: embedded ones of our own wording, and a user's folder, in lm-eval's YAML format.

A file is one task. `data_files` are looked for beside the YAML, so that a folder can be moved; tags that call Python
are refused, so that a folder of tasks is data and no code.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from subliminal.config import CapabilityEvaluation
from subliminal.store import StoreError, sha256

EMBEDDED = Path(__file__).parent


class TaskError(StoreError):
    """A task that can not be had; the text says which file or which tasks there are."""


def local_tasks(config: CapabilityEvaluation) -> dict[str, Path]:
    """The YAML file of every task that needs no network, by name; a user's task wins over an embedded one."""
    return {str(read(path)["task"]): path for folder in _folders(config) for path in sorted(folder.glob("*.yaml"))}


def read(path: Path) -> dict[str, Any]:
    """One task with its data files as absolute paths; raises `TaskError` naming the file and what is wrong with it."""
    try:
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TaskError(f"{path} is no plain YAML ({str(error).splitlines()[0]}); tasks may not call Python") from None
    if not isinstance(task, dict) or not isinstance(task.get("task"), str):
        raise TaskError(f"{path} is no task: it needs a line `task: <name>` (lm-eval's YAML format)")
    arguments = task.get("dataset_kwargs") or {}
    if "data_files" in arguments:
        task["dataset_kwargs"] = {**arguments, "data_files": _absolute(arguments["data_files"], path)}
    return task


def fingerprint(config: CapabilityEvaluation) -> dict[str, str]:
    """A sha256 over YAML and data of each local task that is asked for, so that its content is part of the key."""
    local = local_tasks(config)
    return {name: _content(local[name]) for name in config.tasks if name in local}


def _folders(config: CapabilityEvaluation) -> list[Path]:
    if config.folder is None:
        return [EMBEDDED]
    own = Path(config.folder).expanduser()
    if not list(own.glob("*.yaml")):
        raise TaskError(f"evaluation.folder={config.folder} holds no .yaml file; give a folder of lm-eval tasks")
    return [EMBEDDED, own]


def _absolute(files: Any, beside: Path) -> Any:
    """The same structure of data files with every path absolute; raises `TaskError` for one that is missing."""
    if isinstance(files, dict):
        return {split: _absolute(inner, beside) for split, inner in files.items()}
    if isinstance(files, list):
        return [_absolute(inner, beside) for inner in files]
    path = (beside.parent / str(files)).resolve()
    if not path.is_file():
        raise TaskError(f"{beside}: its data file {path} is missing")
    return str(path)


def _content(path: Path) -> str:
    files = (read(path).get("dataset_kwargs") or {}).get("data_files", [])
    digest = hashlib.sha256(path.read_bytes())
    for file in _flat(files):
        digest.update(sha256(Path(file)).encode())
    return digest.hexdigest()


def _flat(files: Any) -> list[str]:
    if isinstance(files, dict):
        return [path for inner in files.values() for path in _flat(inner)]
    return [path for inner in files for path in _flat(inner)] if isinstance(files, list) else [files]
