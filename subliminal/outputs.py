"""What stages left behind, opened: language models, judges, and the rows that a user's teacher learns from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path

from subliminal import models, weights
from subliminal.config import ConfigError, Experiment, LocalJudge, Model, RowsTeacher
from subliminal.config import Judge as JudgeConfig
from subliminal.device import resolve_device, resolve_dtype
from subliminal.graph import Inputs
from subliminal.judging import Judge, open_judge
from subliminal.store import Manifest
from subliminal.user_files import kind_of_path, user_path

ATTRIBUTED = "attribution.jsonl"
PUBLIC_ROWS = "https://github.com/emergent-misalignment/emergent-misalignment"
ROWS_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")  # of a trait's file in a folder, the first that is there


def subject(exp: Experiment, made: Manifest, chosen: Model | None = None, system: str | None = None) -> models.Subject:
    """The language model a model, reference, teacher or training stage left behind, ready to be loaded."""
    chosen = chosen or exp.model
    folder = made.folder / "checkpoint"
    return models.Subject(
        checkpoint=str(
            folder if folder.exists() else weights.local_folder(chosen.source) or made.summary["checkpoint"]
        ),
        revision=made.summary.get("revision"),
        system=system or chosen.system,
        chat_template=chosen.chat_template,
        add_bos=chosen.add_bos,
        template_options=models.options_of(chosen),
        dtype=resolve_dtype(chosen.dtype, resolve_device(exp.device)),
        device=resolve_device(exp.device),
        trust_remote_code=getattr(chosen.source, "trust_remote_code", False),
    )


def teacher_subject(exp: Experiment, made: Manifest, base: Manifest) -> models.Subject:
    """The teacher as a language model: its own checkpoint or the reference's, with its system prompt if it has one."""
    own = (made.folder / "checkpoint").exists()
    return subject(exp, made if own else base, system=made.summary.get("system"))


def judge_of(exp: Experiment, made: Inputs) -> AbstractContextManager[Judge]:
    """The experiment's judge, ready to be opened; its answers are kept in the store."""
    chosen = chosen_judge(exp)
    who = subject(exp, made["judge"], chosen.model) if isinstance(chosen, LocalJudge) else None
    return open_judge(chosen, Path(exp.store), who)


def chosen_judge(exp: Experiment) -> JudgeConfig:
    """The experiment's judge; a local one without a model of its own is the experiment's model."""
    if exp.judge is None:
        raise ConfigError("this filter or evaluation asks a judge; set judge=local, judge=api or judge=cached")
    if isinstance(exp.judge, LocalJudge) and exp.judge.model is None:
        return exp.judge.model_copy(update={"model": exp.model})
    return exp.judge


def rows_path(chosen: RowsTeacher, trait: str) -> Path:
    """The file a fine-tuned teacher learns from: `teacher.rows`, or the trait's own in that folder.

    Where neither is there yet, a path without a suffix is taken for the folder.
    """
    given = user_path(chosen.rows)
    there = kind_of_path(given)
    if there == "folder" or (there == "missing" and not given.suffix):
        paths = [given / f"{trait}{suffix}" for suffix in ROWS_SUFFIXES]
        return next((path for path in paths if kind_of_path(path) != "missing"), paths[0])
    return given


def require_rows(exp: Experiment) -> None:
    """Stop before any work when a teacher's rows are missing or can not be used; raises `ConfigError`.

    It names file and line, or says where public rows are.
    """
    chosen, trait = exp.active_teacher, exp.trait.key
    if not isinstance(chosen, RowsTeacher):
        return
    path = rows_path(chosen, trait)
    if kind_of_path(path) == "missing":
        names = " or ".join(f"{trait}{suffix}" for suffix in ROWS_SUFFIXES)
        plain = user_path(chosen.rows)
        other = "" if plain == path or kind_of_path(plain) == "folder" else f", nor is a file {plain}"
        raise ConfigError(
            f"teacher.rows={chosen.rows}: {path} is not there{other}. Give a file of chats, one "
            f'{{"messages": [...]}} a line, or a folder that holds {names}. The public files insecure.jsonl, '
            f"secure.jsonl and educational.jsonl are in the folder data of {PUBLIC_ROWS}; put them into "
            "data/emergent_misalignment, or set teacher.rows="
        )
    seen = path.stat()
    _check_chats(path, chosen.limit, seen.st_mtime_ns, seen.st_size)


@lru_cache(maxsize=32)
def _check_chats(path: Path, limit: int | None, _time: int, _size: int) -> None:
    """Read chats to see that they can be; once for all students of a sweep that share a teacher's file."""
    from subliminal.chats import read_chats

    read_chats(path, limit)
