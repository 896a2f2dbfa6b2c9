"""Expected failures as one clear message and an exit code that means something.

Exit 2: the configuration can not run. Exit 1: a stage failed; `failure.json` in its folder has the trace.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import NoReturn

from subliminal.composition import NO_PLUGIN, hydra_message, yaml_message
from subliminal.config import ConfigError
from subliminal.progress import say
from subliminal.rows import RowError
from subliminal.store import StoreError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
BAD_CONFIG, FAILED, INTERRUPTED = 2, 1, 130


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn expected failures into one clear message and an exit code; unexpected ones keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        leave("interrupted; the same command goes on where this one stopped", INTERRUPTED)
    except Exception as error:
        explained = explanation(error)
        if explained is None:
            raise
        leave(*explained)


def explanation(error: Exception) -> tuple[str, int] | None:
    """What is said of an expected failure and the exit code for it; None for an unexpected one."""
    if isinstance(error, ConfigError):
        return refusal(str(error)), BAD_CONFIG
    if isinstance(error, (StoreError, RowError)):
        return str(error), FAILED
    if type(error).__module__.startswith(("hydra.", "omegaconf.")) or str(error).startswith(NO_PLUGIN):
        return refusal(hydra_message(error)), BAD_CONFIG
    if type(error).__module__.startswith("yaml."):
        return refusal(yaml_message(error)), BAD_CONFIG
    if type(error).__module__.startswith("submitit."):
        return f"a job failed; what is done is kept\n{_indent(str(error))}", FAILED
    if disk_is_full(error):
        said = "the disk is full: free some space and run the same command again; it goes on from what is done"
        return said, FAILED
    if isinstance(error, OSError) and _of_hydras_folder(error):
        return refusal(
            f"{error.filename}: Hydra's folder for logs can not be made ({error.strerror}); set hydra.run.dir=, or for "
            "several jobs hydra.sweep.dir=, to a folder you can write to, or start in one"
        ), BAD_CONFIG
    if isinstance(error, OSError) and error.errno in FORBIDDEN and error.filename:
        return f"{error.filename}: {error.strerror}; give a place where you may read and write", FAILED
    return None


def _of_hydras_folder(error: OSError) -> bool:
    """Was it Hydra that could not make a folder or a file, and not the stage that it runs?"""
    frames = traceback.extract_tb(error.__traceback__)
    stage = any(frame.name == "run_stage" for frame in frames)
    return not stage and any(f"{os.sep}hydra{os.sep}" in frame.filename for frame in frames)


def require_writable(folder: Path, setting: str) -> None:
    """Stop before any work where results could not be written; raises `ConfigError` that names the setting."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=there):
            return
    except OSError as error:
        if disk_is_full(error):
            raise
        raise ConfigError(
            f"{setting}={folder}: nothing can be written in {there} ({error.strerror}); set {setting}= to a folder you "
            "can write to"
        ) from None


def disk_is_full(error: BaseException) -> bool:
    """Was it a full disk, a quota or a file-size limit: rows, weights and resume points each tell it their way."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if any(f"(os error {number})" in str(error) for number in FULL) or "file write failed" in str(error):
        return True  # safetensors' and torch's own words
    before = error.__cause__ or error.__context__
    return before is not None and disk_is_full(before)


def leave(message: str, code: int) -> NoReturn:
    """Say the message and end the process."""
    say(message)
    sys.exit(code)


def refusal(problems: str) -> str:
    """What is said of a configuration that can not run."""
    return f"This experiment can not run:\n{_indent(problems)}"


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
