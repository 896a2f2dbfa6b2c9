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
from subliminal.store import Json, StoreError, write_atomically
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
EXPECTED = "an object with question and answer, and of answers, score, log_p and refused what there is"


class Cache:
    """A judge behind a file: known questions come from it, each new answer is added at once, in the questions' order.

    Answers of a call that failed are kept in a file of their own until their turn comes: they are not asked for again,
    and the judge's file is the one that a call without the failure leaves.
    """

    def __init__(self, path: Path, opened: Callable[[], AbstractContextManager[Judge]]) -> None:
        self.path, self.opened = path, opened
        self.early = path.with_name(f".{path.name}.early")
        self.known = _undamaged(path) if path.exists() else {}
        self.waiting = _undamaged(self.early) if self.early.exists() else {}

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
            if self.early.exists() and _undamaged(self.early).keys() <= self.known.keys():
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
        if self.path.exists() and not is_plain(self.path):  # somebody saved it in another form: no line can be added
            shutil.copy2(self.path, self.path.with_name(f"{self.path.name}.before"))
            write_atomically(self.path, "".join(_line(_question(name), said) for name, said in self.known.items()))
            return
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
    if "answer" not in value:
        raise UserFileError(f"{place}: no answer; {keys_of(value)}; expected {EXPECTED}")
    answer = None if value["answer"] is None else text_at(value, "answer", place, EXPECTED, empty=True)
    if answer is not None and question.answers is not None and answer not in question.answers:
        raise UserFileError(f"{place}: answer {answer!r} is not among the permitted answers; expected {EXPECTED}")
    refused = value.get("refused", False)
    if not isinstance(refused, bool):
        raise UserFileError(f"{place}: refused is {kind_of(refused)}, not true or false; expected {EXPECTED}")
    if refused and answer is not None:
        raise UserFileError(f"{place}: refused is true beside an answer; expected {EXPECTED}")
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
    """A finite number or None; NaN would spoil every mean it is in."""
    given = value.get(key)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        said = str(given) if isinstance(given, float) else kind_of(given)
        raise UserFileError(f"{place}: {key} is {said}, not a number or null; expected {EXPECTED}")
    return given


def _question(name: str) -> Question:
    """The question of a question key."""
    text, answers = json.loads(name)
    return Question(text, None if answers is None else tuple(answers))


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
