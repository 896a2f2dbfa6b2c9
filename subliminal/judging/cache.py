"""Judgements in a file: what a judge has answered is never asked again, and a file alone can be a judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from subliminal.judging import Judge, JudgeError, Judgement, Question, question_key
from subliminal.progress import progress

CHUNK = 64  # questions between two writes: so much of a paid judge's work can be lost
FIELDS = {"question", "answers", "answer", "score", "log_p", "refused"}


class Cache:
    """A judge behind a file: known questions come from it, each new answer is added at once."""

    def __init__(self, path: Path, opened: Callable[[], AbstractContextManager[Judge]]) -> None:
        self.path, self.opened = path, opened
        self.known = read_judgements(path, whole=False) if path.exists() else {}

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


def read_judgements(path: Path, *, whole: bool = True) -> dict[str, Judgement]:
    """The judgements of a file by question key; without `whole` a line cut short by a crash is passed over.

    Raises `JudgeError` naming file and line.
    """
    found = {}
    for number, line in enumerate(lines_of(path), 1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or set(value) - FIELDS:
                raise ValueError(f"expected an object with {sorted(FIELDS)}")
            answers = None if value.get("answers") is None else tuple(value["answers"])
            question = Question(value["question"], answers)
            rest = {name: value[name] for name in ("answer", "score", "log_p", "refused") if name in value}
            found[question_key(question)] = Judgement(**rest)
        except (ValueError, TypeError, KeyError) as error:
            if whole:
                raise JudgeError(f"{path}:{number}: not a judgement ({error})") from None
    return found


def lines_of(path: Path) -> list[str]:
    """The lines of a JSONL file; other line ends than a newline may stand inside a text."""
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def _ends_whole(path: Path) -> bool:
    """Is the file empty or its last line complete; a crash can cut one short."""
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _line(question: Question, judgement: Judgement) -> str:
    asked = {"question": question.text, "answers": question.answers}
    return json.dumps(asked | asdict(judgement), ensure_ascii=False) + "\n"
