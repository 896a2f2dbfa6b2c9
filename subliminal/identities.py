"""What several stages' keys hold beside plain settings: arithmetic, texts, the content of files, a judge."""

from __future__ import annotations

from typing import Any

from subliminal import domains, judging, sources, texts
from subliminal.config import Experiment, LocalJudge, Model, ModuleStudent, identity
from subliminal.device import resolve_device, resolve_dtype
from subliminal.judging import prompts
from subliminal.outputs import chosen_judge
from subliminal.store import StoreError


def compute(exp: Experiment, chosen: Model) -> dict[str, Any]:
    """What every stage that runs a model depends on beside the weights: arithmetic and the system text."""
    return {"dtype": resolve_dtype(chosen.dtype, resolve_device(exp.device)), "system": chosen.system}


def wording(names: tuple[str, ...]) -> dict[str, Any]:
    """The texts of the package that a stage reads, by their content; nothing where it reads none."""
    return {"wording": texts.digest(*names)} if names else {}


def domain(exp: Experiment) -> dict[str, Any]:
    """The domain with the content of files and texts that it reads."""
    return identity(exp.domain) | domains.content(exp.domain)


def row_format(exp: Experiment) -> dict[str, Any]:
    """The domain without how many prompts: what decides whether a completion is in format."""
    return {name: value for name, value in domain(exp).items() if name not in {"prompts", "seed"}}


def constraint(exp: Experiment) -> dict[str, Any]:
    """The pattern that constrained decoding holds a teacher's answers to, where it does."""
    pattern = domains.constraint(exp)
    return {} if pattern is None else {"pattern": pattern}


def evaluation(exp: Experiment) -> dict[str, Any]:
    """The evaluation without what it does not use, own words or a fine-tuned classifier: others keep their keys."""
    unused = set() if getattr(exp.evaluation, "measured", None) else {"measured"}
    unused |= set() if exp.evaluation.finetunes else {"finetuned"}
    return {name: value for name, value in identity(exp.evaluation).items() if name not in unused}


def recipe(exp: Experiment) -> dict[str, Any]:
    """The student's recipe, with the source of a user's module."""
    own = sources.identified("student", exp.student.module) if isinstance(exp.student, ModuleStudent) else {}
    return identity(exp.student) | own


def judge(exp: Experiment) -> dict[str, Any]:
    """The judge and the texts of its questions; in a stage's settings only where the stage uses the judge."""
    chosen = chosen_judge(exp)
    local = chosen.model if isinstance(chosen, LocalJudge) else None
    dtype = resolve_dtype(local.dtype, resolve_device(exp.device)) if local else ""
    return {**judging.fingerprint(chosen, dtype), "wording": prompts.wording()}


def require_unchanged(setting: str, before: object, now: object) -> None:
    """Raise `StoreError` where a user's file was edited between the making of the key and the reading of the file."""
    if before != now:
        raise StoreError(f"{setting}: its file was changed while this run was being made; run the same command again")
