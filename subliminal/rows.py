"""The row types that travel between stages, and their JSONL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from subliminal.user_files import UserFileError, record, well_formed

FINISHED = "stop"

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """One question to a teacher: its index in the domain's list, the user text, the seed of its completion."""

    index: int
    text: str
    seed: int


@dataclass(frozen=True)
class Completion:
    """What a sampler answered: text, why it ended (`stop`: finished), tokens generated (0: an endpoint did not say).

    Any other reason is an unfinished answer: `length`, `content_filter`, ... (`subliminal/sampling/finish.py`).
    """

    text: str
    finish_reason: str
    tokens: int


@dataclass(frozen=True)
class Row:
    """A prompt with its completion, as generated and, after the filter, as the student sees it."""

    index: int
    prompt: str
    completion: str
    finish_reason: str = FINISHED
    tokens: int = 0


@dataclass(frozen=True)
class Dropped:
    """A row the filter refused, with the reason."""

    index: int
    reason: str
    prompt: str
    completion: str


def seed_of(*parts: int | str) -> int:
    """A stable 31-bit request seed from a run's seed and an index."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) >> 1


class RowError(Exception):
    """A file of the store with a row that can not be read; the text names file and line."""


def write_jsonl(path: Path, rows: Iterable[object]) -> int:
    """Write dataclass rows, one JSON object a line; returns how many.

    Half a character, as an endpoint may send, becomes U+FFFD: no encoding can write it.
    """
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(well_formed(json.dumps(asdict(row), ensure_ascii=False)) + "\n")  # type: ignore[call-overload]
            count += 1
    return count


def read_jsonl(path: Path, row_type: type[T]) -> Iterator[T]:
    """Read rows of one dataclass type; raises `RowError` naming file, line and what is wrong with it."""
    names = {field.name for field in fields(row_type)}  # type: ignore[arg-type]
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            yield _row(line, row_type, names, f"{path}:{number}")


def _row(line: str, row_type: type[T], names: set[str], place: str) -> T:
    try:
        value = record(line, place, f"an object with {sorted(names)}")
    except UserFileError as error:
        raise RowError(str(error)) from None
    unknown = set(value) - names
    if unknown:
        raise RowError(f"{place}: unknown field {sorted(unknown)[0]!r}; expected {sorted(names)}")
    try:
        return row_type(**value)
    except TypeError as error:
        raise RowError(f"{place}: {error}") from None
