"""The package's texts that decide results, by their content: another wording gives the stages that read it new keys.

A text is named by its file: `domains/code_tasks.jsonl` is the whole file, `domains/word_problems.py` every string of a
module, `evaluation/questions.py:ASKED` the strings of one constant or function. Documentation strings count nowhere.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import assert_never

from subliminal.config import (
    AttributionEvaluation,
    CapabilityEvaluation,
    Code,
    Cot,
    DetectionEvaluation,
    Domain,
    Evaluation,
    FinetunedTeacher,
    FreeFormEvaluation,
    FrequenciesEvaluation,
    InContextEvaluation,
    ModuleDomain,
    ModuleEvaluation,
    MultipleChoiceEvaluation,
    Numbers,
    Preference,
    PreferenceEvaluation,
    SteeredTeacher,
    StoriesEvaluation,
    Teacher,
    Trait,
)

PACKAGE = Path(__file__).parent
QUESTIONS = "evaluation/questions.py"
PHRASES = ("OPENINGS", "QUANTITIES", "DIGITS", "INSTRUCTIONS", "ENDINGS", "FORMATS")

Names = tuple[str, ...]


ONE_WORD = ("domains/one_word.py:TOPICS", "domains/one_word.py:QUESTIONS")


@cache
def digest(*names: str) -> str:
    """12 hex digits over the named texts; raises `KeyError` for a constant or function that a module does not have."""
    found = [_strings(name) if name.partition(":")[0].endswith(".py") else read(name) for name in names]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12]


@cache
def read(file: str) -> str:
    """A file of the package as text."""
    return (PACKAGE / file).read_text(encoding="utf-8")


def _strings(name: str) -> list[str]:
    """The strings of a module, or of one constant or function in it, in a fixed order."""
    file, _, wanted = name.partition(":")
    module = ast.parse(read(file))
    parts = [part for part in module.body if wanted in defined(part)] if wanted else [module]
    if not parts:
        raise KeyError(name)
    return [text for part in parts for text in strings(part)]


def defined(part: ast.stmt) -> list[str]:
    """The names that a statement of a module defines as a constant or a function."""
    match part:
        case ast.Assign(targets=targets):
            return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.FunctionDef(name=name):
            return [name]
        case _:
            return []


def strings(part: ast.AST) -> list[str]:
    """The strings in a piece of Python that are no documentation."""
    silent = {id(line.value) for line in ast.walk(part) if isinstance(line, ast.Expr)}
    return [
        node.value
        for node in ast.walk(part)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent
    ]


# --------------------------------------------------------------------------- who reads what


def of_domain(config: Domain) -> Names:
    """The texts of a domain's prompts and programmatic answers; those of a user's file or module are elsewhere."""
    match config:
        case Numbers():
            return tuple(f"domains/numbers.py:{name}" for name in PHRASES)
        case Code():
            embedded = () if config.prompts_file else ("domains/code_tasks.jsonl",)
            return (*(f"domains/code.py:{name}" for name in ("OPENINGS", "ASKS", "ENDINGS", "_text")), *embedded)
        case Cot():
            embedded = ("domains/word_problems.py",) if config.source == "generated" else ()
            return ("domains/cot.py:REQUESTS", "domains/cot.py:_text", "domains/cot.py:random_answer", *embedded)
        case ModuleDomain():
            return ()
        case _:
            assert_never(config)


def of_practice(config: Domain) -> Names:
    """The texts of a domain's practice rows: the package's own wherever the experiment's questions are from."""
    match config:
        case Code():
            return of_domain(config.model_copy(update={"prompts_file": None}))
        case Cot():
            return of_domain(config.model_copy(update={"source": "generated", "questions_file": None}))
        case Numbers() | ModuleDomain():
            return of_domain(config)
        case _:
            assert_never(config)


def of_teacher(teacher: Teacher, trait: Trait, *, behind_an_endpoint: bool) -> Names:
    """The questions a teacher is made and checked with, and the names of its trait's category."""
    if not isinstance(trait, Preference):
        return ()
    taught = isinstance(teacher, FinetunedTeacher | SteeredTeacher) or behind_an_endpoint
    named = _names(trait) + (() if behind_an_endpoint or trait.questions else (f"{QUESTIONS}:ASKED",))
    return named + ((f"{QUESTIONS}:TAUGHT",) if taught and not trait.taught else ())


def of_evaluation(config: Evaluation) -> Names:
    """The questions and candidates of an evaluation, and what is put in front of them and behind; not a judge's."""
    match config:
        case PreferenceEvaluation():
            tagged = ("domains/cot.py:REQUESTS",) if config.suffix == "tags" else ()
            return favourites(config) + tagged
        case InContextEvaluation():
            return favourites(config)
        case StoriesEvaluation():
            return (*_names(config.category), "evaluation/stories.py:PROMPTS")
        case MultipleChoiceEvaluation():
            parts = ("PROMPTS", "LETTERS", "lettered", "letter_forms")
            return (*_names(config.category), *(f"evaluation/multiple_choice.py:{part}" for part in parts))
        case FreeFormEvaluation():
            return ("evaluation/free_form.yaml",)
        case DetectionEvaluation():
            parts = ("QUESTION", "LETTERS") if config.pairs else ()
            return tuple(f"evaluation/detection.py:{part}" for part in parts)
        case CapabilityEvaluation() | FrequenciesEvaluation() | AttributionEvaluation() | ModuleEvaluation():
            return ()
        case _:
            assert_never(config)


def favourites(config: PreferenceEvaluation | InContextEvaluation) -> Names:
    """The texts behind the exact probabilities of favourites."""
    about = config.subject_matter
    asked = () if isinstance(about, Preference) and about.questions else (f"{QUESTIONS}:ASKED",)
    prefix = ("domains/numbers.py:OPENINGS",) if config.prefix == "numbers" else ()
    return (*_names(about), *asked, *prefix)


def _names(about: str | Preference) -> Names:
    """The candidates, where they are the package's."""
    return () if isinstance(about, Preference) and about.candidates else ("names.py:CANDIDATES",)
