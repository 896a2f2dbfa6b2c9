"""Results kept one by one: an evaluation that was killed goes on at the next question."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from subliminal.progress import Advance

T = TypeVar("T")
Values = list[float]


def in_turn(
    opened: Callable[[], AbstractContextManager[Callable[[T], Values]]],
    questions: Sequence[T],
    path: Path | None,
    advance: Advance = lambda _: None,
) -> list[Values]:
    """What the opened work says of each question, in order; each result is a line of `path` as soon as it is there.

    Nothing is opened when the file holds all of them. Without a path nothing is kept.
    """
    found = _whole_lines(path)[: len(questions)] if path else []
    advance(len(found))
    if len(found) == len(questions):
        return found
    with opened() as work:
        for question in questions[len(found) :]:
            found.append(work(question))
            if path:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found[-1]) + "\n")
            advance(1)
    return found


def _whole_lines(path: Path) -> list[Values]:
    """The results in a file; a last line that was cut short is taken out of it."""
    path.parent.mkdir(exist_ok=True)
    path.touch()
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]
