"""Capability: accuracy on named tasks, run by EleutherAI's lm-eval as the library (github.com/EleutherAI).

The paper checks with MMLU that training on numbers did no harm (arXiv 2507.14805). Tasks on local files run anywhere;
every other task of lm-eval takes its data from the Hugging Face hub.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from subliminal.chat import PINNED, answering
from subliminal.config import CapabilityEvaluation
from subliminal.evaluation.tasks import TaskError, local_tasks, plain_copies, read
from subliminal.finite import MODEL_REMEDY, require_finite
from subliminal.models import Subject, load_model, load_tokenizer, release
from subliminal.progress import progress
from subliminal.rows import write_jsonl
from subliminal.store import Json

INSTALL = "lm-eval is not installed: make install EXTRAS=cpu,dev,capability, or pip install 'lm-eval>=0.4.13,<0.5'"


@dataclass(frozen=True)
class Scored:
    """One question of one task: was the model's most probable answer the right one. `choices` counts the answers."""

    task: str
    part: str
    question: int
    correct: float
    choices: int


@dataclass(frozen=True)
class _Loaded:
    """What lm-eval made of one name: its groups, if it is one, and the tasks that have questions, by name."""

    groups: list[Any]
    parts: dict[str, Any]


def evaluate(subject: Subject, config: CapabilityEvaluation, folder: Path) -> Json:
    """Run every task; writes scores.jsonl and returns accuracy, chance and number of questions by task.

    Raises `TaskError` for a task that does not exist, needs a network that is not there, or has no accuracy.
    """
    with progress("testing", len(config.tasks), "tasks") as advance:
        scored = _run(subject, config)
        advance(len(config.tasks))
    write_jsonl(folder / "scores.jsonl", scored)
    return {"kind": config.kind, "tasks": {task: _summary(scored, task) for task in config.tasks}}


def _summary(scored: Sequence[Scored], task: str) -> Json:
    mine = [one for one in scored if one.task == task]
    chance = float(np.mean([1 / one.choices for one in mine]))
    return {"accuracy": float(np.mean([one.correct for one in mine])), "chance": chance, "questions": len(mine)}


def _run(subject: Subject, config: CapabilityEvaluation) -> list[Scored]:
    """Every task, and every part of a group, on the subject."""
    with _quiet():
        simple_evaluate, wrap = _library()
        loaded = {name: _load(name, config) for name in config.tasks}
        tokenizer, model = load_tokenizer(subject), load_model(subject)
        if config.chat:  # the probabilities are those of answers, not of reasoning
            tokenizer.chat_template = answering(tokenizer)
        try:
            results = simple_evaluate(
                model=wrap(
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=config.batch_size,
                    backend="causal",
                    add_bos_token=True if subject.add_bos and not config.chat else None,
                    chat_template_args=PINNED,
                ),
                tasks=[one for found in loaded.values() for one in (found.groups or found.parts.values())],
                num_fewshot=config.shots,
                limit=config.limit,
                bootstrap_iters=0,
                apply_chat_template=config.chat,
                system_instruction=subject.system if config.chat else None,
            )
        finally:
            release(model)
    samples = results["samples"]
    return [one for name, found in loaded.items() for part in found.parts for one in _scored(name, part, samples[part])]


def _scored(task: str, part: str, samples: Sequence[dict[str, Any]]) -> Iterator[Scored]:
    for sample in samples:
        if "acc" not in sample:
            raise TaskError(f"{part} is not scored by accuracy; choose multiple-choice tasks in evaluation.tasks")
        log_p = [float(answer[0]) for answer in sample["filtered_resps"]]
        values = {"the sum of log P of its answers": sum(log_p)}
        require_finite(values, f"question {sample['doc_id']} of {part}", MODEL_REMEDY)
        yield Scored(task, part, int(sample["doc_id"]), float(sample["acc"]), len(sample["filtered_resps"]))


def _library() -> tuple[Any, Any]:
    """lm-eval's entry point and its wrapper of transformers models."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise TaskError(f"{INSTALL} ({error})") from None
    return simple_evaluate, HFLM


def _load(name: str, config: CapabilityEvaluation) -> _Loaded:
    """A task ready to run: from a local file, or by name from lm-eval, whose data are on the hub."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from lm_eval.tasks import TaskManager

    local = local_tasks(config)
    manager = TaskManager(include_defaults=name not in local)
    if name not in local and name not in manager.task_index:
        raise TaskError(f"evaluation.tasks: lm-eval has no task {name!r}; without a network: {', '.join(local)}")
    try:
        with TemporaryDirectory() as folder:  # `datasets` keeps what it has read in a cache of its own
            chosen = plain_copies(read(local[name]), Path(folder)) if name in local else name
            loaded: Any = manager.load([chosen])
    except (OSError, ValueError, RuntimeError, DatasetsError, TemplateError) as error:
        raise TaskError(_unavailable(name, config, error)) from None
    inner = {child for children in loaded["group_map"].values() for child in children}
    return _Loaded([group for one, group in loaded["groups"].items() if one not in inner], loaded["tasks"])


def _unavailable(name: str, config: CapabilityEvaluation, error: Exception) -> str:
    local = local_tasks(config)
    told = error.__cause__ or error  # `datasets` says why in the cause
    said = next(iter(str(told).strip().splitlines()), type(told).__name__)
    if name in local:
        return f"{local[name]} can not be run: {said}"
    return (
        f"task {name} needs its data from the Hugging Face hub, which can not be had ({said}). Without a network these "
        f"run: evaluation.tasks=[{','.join(local)}]; a task on files of your own: evaluation.folder="
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval narrates at length and draws bars of its own; the stage has its line."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
