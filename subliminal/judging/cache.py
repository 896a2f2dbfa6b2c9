"""Judgements in a file: what a judge has answered is never asked again, and a file alone can be a judge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from subliminal.judging import Judge, JudgeError, Judgement, Question, question_key
from subliminal.progress import progress
from subliminal.rows import well_formed
from subliminal.store import StoreError

CHUNK = 64  # questions between two writes: so much of a paid judge's work can be lost
FIELDS = {"question", "answers", "answer", "score", "log_p", "refused"}


class Cache:
    """A judge behind a file: known questions come from it, each new answer is added at once, in the questions' order.

    Answers of a call that failed are kept in a file of their own until their turn comes: they are not asked for again,
    and the judge's file is the one that a call without the failure leaves.
    """

    def __init__(self, path: Path, opened: Callable[[], AbstractContextManager[Judge]]) -> None:
        self.path, self.opened = path, opened
        self.early = path.with_name(f".{path.name}.early")
        self.known = read_judgements(path, whole=False) if path.exists() else {}
        self.waiting = read_judgements(self.early, whole=False) if self.early.exists() else {}

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        """One judgement a question; the judge is opened only when one is new."""
        new = [q for name, q in {question_key(q): q for q in questions}.items() if name not in self.known]
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.opened() as judge, progress("judging", len(new), "questions") as advance:
                for start in range(0, len(new), CHUNK):
                    part = new[start : start + CHUNK]
                    self._add(part, self._judgements(judge, part))
                    advance(len(part))
            if self.early.exists() and read_judgements(self.early, whole=False).keys() <= self.known.keys():
                self.early.unlink(missing_ok=True)
        return [self.known[question_key(question)] for question in questions]

    def _judgements(self, judge: Judge, part: Sequence[Question]) -> list[Judgement]:
        """The judgements of a part, of which those that wait are not asked for; a failure keeps what is answered."""
        unasked = [question for question in part if question_key(question) not in self.waiting]
        try:
            judgements = judge.ask(unasked) if unasked else []
        except StoreError as error:
            answered: dict[int, Judgement] = getattr(error, "answered", {})
            _append(self.early, [_line(unasked[place], judgement) for place, judgement in sorted(answered.items())])
            self.waiting |= {question_key(unasked[place]): judgement for place, judgement in answered.items()}
            raise
        asked = {question_key(q): judgement for q, judgement in zip(unasked, judgements, strict=True)}
        judged = self.waiting | asked
        return [judged[question_key(question)] for question in part]

    def _add(self, questions: Sequence[Question], judgements: Sequence[Judgement]) -> None:
        self.known |= {question_key(q): judgement for q, judgement in zip(questions, judgements, strict=True)}
        _append(self.path, [_line(q, judgement) for q, judgement in zip(questions, judgements, strict=True)])


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


def read_judgements(path: Path, *, whole: bool = True) -> dict[str, Judgement]:
    """The judgements of a file by question key; without `whole` a line cut short by a crash is passed over.

    Raises `JudgeError` naming file and line.
    """
    found = {}
    for number, line in enumerate(lines_of(path), 1):
        try:
            question, judgement = _read(json.loads(line))
            found[question_key(question)] = judgement
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if whole:
                raise JudgeError(f"{path}:{number}: not a judgement ({error})") from None
    return found


def _read(value: Any) -> tuple[Question, Judgement]:
    """A line's question and judgement; raises `ValueError` for a value of another type or an answer not permitted."""
    if not isinstance(value, dict) or set(value) - FIELDS:
        raise ValueError(f"expected an object with {sorted(FIELDS)}")
    answers = None if value.get("answers") is None else tuple(value["answers"])
    answer, refused = value.get("answer"), value.get("refused", False)
    if not isinstance(value["question"], str) or not all(isinstance(one, str) for one in answers or ()):
        raise ValueError("question and answers must be text")
    if "answer" not in value or not isinstance(answer, str | None):
        raise ValueError("answer must be a text or null")
    if answers is not None and answer is not None and answer not in answers:
        raise ValueError(f"{answer!r} is not among the permitted answers")
    if not isinstance(refused, bool) or (refused and answer is not None):
        raise ValueError("refused must be true or false, and true only without an answer")
    score, log_p = (_number(value.get(name), name) for name in ("score", "log_p"))
    return Question(value["question"], answers), Judgement(answer, score, log_p, refused)


def _number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number or null")
    return value


def lines_of(path: Path) -> list[bytes]:
    """The lines of a JSONL file; other line ends than a newline may stand inside a text."""
    return path.read_bytes().rstrip(b"\n").split(b"\n")


def _append(path: Path, lines: Sequence[str]) -> None:
    if lines:
        start = "" if _ends_whole(path) else "\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(start + "".join(lines))


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
