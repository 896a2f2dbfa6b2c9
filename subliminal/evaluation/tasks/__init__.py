"""Tasks that run without a network: embedded ones of our own wording, and a user's folder, in lm-eval's YAML format.

A file is one task. `data_files` are looked for beside the YAML, so that a folder can be moved; tags that call Python
are refused, so that a folder of tasks is data and no code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from subliminal.config import CapabilityEvaluation
from subliminal.store import StoreError
from subliminal.user_files import UserFileError, content, is_plain, records, text_of

EMBEDDED = Path(__file__).parent
EXPECTED = "an object with the keys that the task's YAML names"


class TaskError(StoreError):
    """A task that can not be had; the text says which file or which tasks there are."""


def local_tasks(config: CapabilityEvaluation) -> dict[str, Path]:
    """The YAML file of every task that needs no network, by name; a user's task wins over an embedded one."""
    return {str(read(path)["task"]): path for folder in _folders(config) for path in sorted(folder.glob("*.yaml"))}


def read(path: Path) -> dict[str, Any]:
    """One task with its data files as absolute paths; raises `TaskError` naming the file and what is wrong with it."""
    try:
        task = yaml.safe_load(text_of(path))
    except yaml.YAMLError as error:
        raise TaskError(f"{path} is no plain YAML ({str(error).splitlines()[0]}); tasks may not call Python") from None
    if not isinstance(task, dict) or not isinstance(task.get("task"), str):
        raise TaskError(f"{path} is no task: it needs a line `task: <name>` (lm-eval's YAML format)")
    arguments = task.get("dataset_kwargs") or {}
    if "data_files" in arguments:
        task["dataset_kwargs"] = {**arguments, "data_files": _absolute(arguments["data_files"], path)}
    return task


def fingerprint(config: CapabilityEvaluation) -> dict[str, str]:
    """A sha256 over YAML and data of each local task that is asked for, so that its content is part of the key.

    Raises `UserFileError` for JSON data that can not be read, so before any work.
    """
    local = local_tasks(config)
    return {name: _content(local[name]) for name in config.tasks if name in local}


def _folders(config: CapabilityEvaluation) -> list[Path]:
    if config.folder is None:
        return [EMBEDDED]
    own = Path(config.folder).expanduser()
    if not list(own.glob("*.yaml")):
        raise TaskError(f"evaluation.folder={config.folder} holds no .yaml file; give a folder of lm-eval tasks")
    return [EMBEDDED, own]


def plain_copies(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The task with copies of those JSON data files that `datasets` can not read as they are, in UTF-8, in the folder.

    `datasets` knows no UTF-16 and refuses half a character.
    """
    if not _is_json(task):
        return task
    arguments, copies = task["dataset_kwargs"], dict[str, str]()
    for number, file in enumerate(_flat(arguments["data_files"])):
        if not is_plain(Path(file)) or "\\u" in text_of(Path(file)):
            copy = folder / f"{number}.jsonl"
            copy.write_text(
                "".join(json.dumps(value, ensure_ascii=False) + "\n" for _, value in records(Path(file), EXPECTED)),
                encoding="utf-8",
            )
            copies[file] = str(copy)
    return {**task, "dataset_kwargs": {**arguments, "data_files": _replaced(arguments["data_files"], copies)}}


def _is_json(task: dict[str, Any]) -> bool:
    arguments = task.get("dataset_kwargs") or {}
    return task.get("dataset_path") == "json" and "data_files" in arguments and "field" not in arguments


def _replaced(files: Any, copies: dict[str, str]) -> Any:
    if isinstance(files, dict):
        return {split: _replaced(inner, copies) for split, inner in files.items()}
    return [_replaced(inner, copies) for inner in files] if isinstance(files, list) else copies.get(files, files)


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
    task = read(path)
    digest = hashlib.sha256(path.read_bytes())
    for file in _flat((task.get("dataset_kwargs") or {}).get("data_files", [])):
        digest.update(content(Path(file)).encode())
        if _is_json(task) and not sum(1 for _ in records(Path(file), EXPECTED)):
            raise UserFileError(f"{file} holds no question; expected {EXPECTED}")
    return digest.hexdigest()


def _flat(files: Any) -> list[str]:
    if isinstance(files, dict):
        return [path for inner in files.values() for path in _flat(inner)]
    return [path for inner in files for path in _flat(inner)] if isinstance(files, list) else [files]
