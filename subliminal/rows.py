"""The row types that travel between stages, and their JSONL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

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
    """A JSONL file with a row that can not be read; the text names file and line."""


def well_formed(text: str) -> str:
    """The text as it can be written: halves of a surrogate pair are joined, one without the other becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def write_jsonl(path: Path, rows: Iterable[object]) -> int:
    """Write dataclass rows, one JSON object a line; returns how many. Texts are written `well_formed`."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            line = json.dumps(asdict(row), ensure_ascii=False)  # type: ignore[call-overload]
            file.write(f"{well_formed(line)}\n")
            count += 1
    return count


def read_jsonl(path: Path, row_type: type[T]) -> Iterator[T]:
    """Read rows of one dataclass type; raises `RowError` naming file, line and what is wrong with it."""
    names = {field.name for field in fields(row_type)}  # type: ignore[arg-type]
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            yield _row(line, row_type, names, f"{path}:{number}")


def _row(line: str, row_type: type[T], names: set[str], place: str) -> T:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise RowError(f"{place}: not a JSON object ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise RowError(f"{place}: expected a JSON object, got {type(value).__name__}")
    unknown = set(value) - names
    if unknown:
        raise RowError(f"{place}: unknown field {sorted(unknown)[0]!r}; expected {sorted(names)}")
    try:
        return row_type(**value)
    except TypeError as error:
        raise RowError(f"{place}: {error}") from None


def read_chats(path: Path, limit: int | None = None) -> list[Row]:
    """The first `limit` chats of a JSONL file as rows: one `{"messages": [...]}` a line, a user's turn and an answer.

    The format of the emergent-misalignment files (arXiv 2502.17424). Raises `RowError` naming file and line.
    """
    rows: list[Row] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and len(rows) != limit:
                rows.append(_chat(line, len(rows), f"{path}:{number}"))
    if not rows:
        raise RowError(f"{path} holds no chat")
    return rows


def _chat(line: str, index: int, place: str) -> Row:
    try:
        user, assistant = json.loads(line)["messages"]
        turns = (user["role"], assistant["role"])
        row = Row(index, user["content"], assistant["content"])
    except (ValueError, TypeError, KeyError):
        turns, row = (), Row(index, "", "")
    if turns != ("user", "assistant") or not all(isinstance(t, str) and t for t in (row.prompt, row.completion)):
        expected = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
        raise RowError(f"{place}: expected {expected}")
    return row
