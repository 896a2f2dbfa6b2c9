"""Judgements in a file: what a judge has answered is never asked again, and a file alone can be a judge."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from subliminal.judging import Judge, JudgeError, Judgement, Question, question_key
from subliminal.progress import progress
from subliminal.store import Json, write_atomically
from subliminal.user_files import (
    UserFileError,
    is_plain,
    keys_of,
    kind_of,
    records,
    text_at,
    undamaged_records,
    well_formed,
)

CHUNK = 64  # questions between two writes: so much of a paid judge's work can be lost
FIELDS = ("question", "answers", "answer", "score", "log_p", "refused")
EXPECTED = f"an object with question, and of {', '.join(FIELDS[1:])} what there is"


class Cache:
    """A judge behind a file: known questions come from it, each new answer is added at once."""

    def __init__(self, path: Path, opened: Callable[[], AbstractContextManager[Judge]]) -> None:
        self.path, self.opened = path, opened
        self.known = _undamaged(path) if path.exists() else {}

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        """One judgement a question; the judge is opened only when one is new."""
        new = [q for name, q in {question_key(q): q for q in questions}.items() if name not in self.known]
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.opened() as judge, progress("judging", len(new), "questions") as advance:
                for start in range(0, len(new), CHUNK):
                    part = new[start : start + CHUNK]
                    self._keep(part, judge.ask(part))
                    advance(len(part))
        return [self.known[question_key(question)] for question in questions]

    def _keep(self, questions: Sequence[Question], judgements: Sequence[Judgement]) -> None:
        lines = []
        for question, judgement in zip(questions, judgements, strict=True):
            self.known[question_key(question)] = judgement
            lines.append(_line(question, judgement))
        start = "" if _ends_whole(self.path) else "\n"
        if self.path.exists() and not is_plain(self.path):  # somebody saved it in another form: no line can be added
            shutil.copy2(self.path, self.path.with_name(f"{self.path.name}.before"))
            write_atomically(self.path, "".join(_line(_question(name), said) for name, said in self.known.items()))
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(start + "".join(lines))


class FileJudge:
    """A file as the judge."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, read_judgements(path)

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        """One judgement a question; raises `JudgeError` for the first that the file does not hold."""
        for number, question in enumerate(questions):
            if question_key(question) not in self.known:
                raise JudgeError(
                    f"{self.path} holds no judgement of question {number} of {len(questions)}, which begins "
                    f"{question.text[:80]!r}; add it or set judge=local or judge=api"
                )
        return [self.known[question_key(question)] for question in questions]


def read_judgements(path: Path) -> dict[str, Judgement]:
    """The judgements of a user's file by question key; raises `UserFileError` naming file and line.

    A file that was read before and is unchanged is not read again.
    """
    seen = path.stat()
    return _read(path, seen.st_mtime_ns, seen.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, _time: int, _size: int) -> dict[str, Judgement]:
    return dict(_judgement(value, place) for place, value in records(path, EXPECTED))


def _undamaged(path: Path) -> dict[str, Judgement]:
    """The judgements of a file in the store; the question of a line that a crash cut short is asked again."""
    found = {}
    for value in undamaged_records(path):
        with suppress(UserFileError):
            name, judgement = _judgement(value, str(path))
            found[name] = judgement
    return found


def _judgement(value: Json, place: str) -> tuple[str, Judgement]:
    """The question key and the judgement of one record."""
    if unknown := [name for name in value if name not in FIELDS]:
        raise UserFileError(f"{place}: unknown key {unknown[0]!r}; {keys_of(value)}; expected {EXPECTED}")
    question = Question(text_at(value, "question", place, EXPECTED, empty=True), _answers(value, place))
    answer = None if value.get("answer") is None else text_at(value, "answer", place, EXPECTED, empty=True)
    refused = value.get("refused", False)
    if not isinstance(refused, bool):
        raise UserFileError(f"{place}: refused is {kind_of(refused)}, not true or false; expected {EXPECTED}")
    score, log_p = _number(value, "score", place), _number(value, "log_p", place)
    return question_key(question), Judgement(answer, score, log_p, refused)


def _answers(value: Json, place: str) -> tuple[str, ...] | None:
    given = value.get("answers")
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(answer, str) for answer in given):
        raise UserFileError(f"{place}: answers is no list of texts and not null; expected {EXPECTED}")
    return tuple(given)


def _number(value: Json, key: str, place: str) -> float | None:
    """A number or None; NaN would spoil every mean it is in."""
    given = value.get(key)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or math.isnan(given):
        said = "NaN" if isinstance(given, float) else kind_of(given)
        raise UserFileError(f"{place}: {key} is {said}, not a number or null; expected {EXPECTED}")
    return given


def _question(name: str) -> Question:
    """The question of a question key."""
    text, answers = json.loads(name)
    return Question(text, None if answers is None else tuple(answers))


def _ends_whole(path: Path) -> bool:
    """Is the file empty or its last line complete; a crash can cut one short."""
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _line(question: Question, judgement: Judgement) -> str:
    asked = {"question": question.text, "answers": question.answers}
    return well_formed(json.dumps(asked | asdict(judgement), ensure_ascii=False)) + "\n"
