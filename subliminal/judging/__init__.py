"""Judging: a model that rates or sorts texts, behind one small protocol over local models, endpoints and files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, assert_never

from subliminal import weights
from subliminal.config import ApiJudge, CachedJudge, LocalJudge, Model, identity
from subliminal.config import Judge as JudgeConfig
from subliminal.models import Subject
from subliminal.store import Json, Recipe, StoreError
from subliminal.user_files import content, existing, well_formed

FOLDER = "judgements"  # in the store, one file a judge
VERSION = 3  # of what the files hold; raised as a stage's is


class JudgeError(StoreError):
    """A judge that can not be asked or whose answers can not be used; the text says what to do."""


@dataclass(frozen=True)
class Question:
    """What a judge is asked, and the answers it may give; None permits any text."""

    text: str
    answers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Judgement:
    """A judge's answer.

    `answer` is None when the reply was none of the permitted answers. `score` is the expected value over permitted
    answers that are numbers (of "0" and "1": the probability of "1"), else the answer's own value. `log_p` is the
    answer's log-probability in nats, None where the backend gives none. `refused`: the judge would not answer.
    """

    answer: str | None
    score: float | None = None
    log_p: float | None = None
    refused: bool = False


class Judge(Protocol):
    """Anything that answers questions."""

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        """One judgement a question, in order; the same question is answered once."""
        ...


@contextmanager
def open_judge(config: JudgeConfig, store: Path, subject: Subject | None = None) -> Iterator[Judge]:
    """The judge of a configuration; what it has answered before is read from, and new answers go to, the store.

    `subject` is the loaded-weights description of a local judge. Raises `UserFileError` for a file that is no judge.
    """
    from subliminal.judging.cache import Cache, FileJudge

    if isinstance(config, CachedJudge):
        yield FileJudge(_existing(config))
        return
    yield Cache(store / FOLDER / f"{key(config, subject)}.jsonl", backend(config, subject))


def backend(config: JudgeConfig, subject: Subject | None) -> Callable[[], AbstractContextManager[Judge]]:
    """How the judge itself is opened, once there is a question that was never answered."""

    def opened() -> AbstractContextManager[Judge]:
        match config:
            case ApiJudge():
                from subliminal.judging.endpoint import EndpointJudge

                return EndpointJudge(config)
            case LocalJudge():
                from subliminal.judging.local import ModelJudge

                if subject is None:
                    raise JudgeError("judge=local needs its weights; set judge.model, or judge=api")
                return ModelJudge(config, subject)
            case CachedJudge():
                raise JudgeError("judge=cached is a file and has no weights; set judge=local or judge=api")
            case _:
                assert_never(config)

    return opened


def fingerprint(config: JudgeConfig, dtype: str = "") -> Json:
    """What identifies a judge: the settings that can change an answer, its weights, or its file's content.

    Raises `UserFileError` for a file of judgements that can not be used, so before any work that would ask for one.
    """
    match config:
        case CachedJudge():
            from subliminal.judging.cache import read_judgements

            path = _existing(config)
            found = {"kind": "cached", "content": content(path)}
            read_judgements(path)
            return found
        case ApiJudge():
            return identity(config)
        case LocalJudge():
            return identity(config) | (_weights(config.model, dtype) if config.model else {})
        case _:
            assert_never(config)


def _weights(model: Model, dtype: str) -> Json:
    """What identifies a local judge's own model."""
    found = {"model": weights.fingerprint(model), "system": model.system, "dtype": dtype}
    found["chat"] = [model.chat_template, model.add_bos]
    return found | ({"template_options": model.template_options} if model.template_options else {})


def key(config: JudgeConfig, subject: Subject | None) -> str:
    """The name of a judge's file in the store."""
    return Recipe("judge", fingerprint(config, subject.dtype if subject else ""), version=VERSION).key


def counts(judgements: Sequence[Judgement]) -> Json:
    """How many were asked, refused, and neither refused nor a permitted answer."""
    unparsed = sum(j.answer is None and not j.refused for j in judgements)
    return {"asked": len(judgements), "refused": sum(j.refused for j in judgements), "unparsed": unparsed}


def _existing(config: CachedJudge) -> Path:
    remedy = f"give a JSONL of judgements, such as one from <store>/{FOLDER}/, or set judge=local or judge=api"
    return existing(config.path, "judge.path", remedy)


def question_key(question: Question) -> str:
    """What the same question has in common: its text and its permitted answers."""
    return well_formed(json.dumps([question.text, question.answers], ensure_ascii=False))
