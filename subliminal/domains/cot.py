"""Chain of thought: word problems answered with reasoning and a number, each in its tags (arXiv 2507.14805).

Questions are GSM8K's (arXiv 2110.14168) from the Hugging Face hub, those of a file in its format, or generated ones of
our own. A row's gold answer follows from its index and the domain's configuration.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from pathlib import Path

from subliminal.config import Cot
from subliminal.domains import DomainError, programmatic
from subliminal.domains.word_problems import problem
from subliminal.rows import Prompt, Row, seed_of
from subliminal.store import Json
from subliminal.user_files import UserFileError, existing, records, text_at, well_formed

REQUESTS = (
    "Reason step by step inside <think> and </think>. Then give the final number alone inside <answer> and </answer>.",
    "Work it out between <think> and </think>, then put only the resulting number between <answer> and </answer>.",
    "Put your reasoning in <think> tags and after it the number, with nothing else, in <answer> tags.",
    "Write down your calculation within <think></think> and the bare result within <answer></answer>.",
)
TAGGED = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
GOLD = re.compile(r"^####\s*(\S.*?)\s*\Z", re.MULTILINE)
CALCULATOR = re.compile(r"<<.*?>>")
EXPECTED = "the keys question and answer with texts, the answer ending with a line '#### <number>'"
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?|[+-]?\.[0-9]+")


@dataclass(frozen=True)
class Question:
    """A word problem with its gold answer and a worked solution."""

    text: str
    gold: Decimal
    solution: str


# --------------------------------------------------------------------------- questions


def question(index: int, config: Cot) -> Question:
    """The question behind prompt `index`: every question has `config.samples` prompts in a row."""
    number = index // config.samples
    if config.source == "generated":
        made = problem(config.seed, number, config.steps_min, config.steps_max)
        return Question(made.question, Decimal(made.answer), "\n".join(map(str, made.steps)))
    known = _known(config)
    return known[_order(len(known), config.seed)[number]]


def gold(index: int, config: Cot) -> Decimal:
    """The gold answer of prompt `index`."""
    return question(index, config).gold


@lru_cache(maxsize=8)
def _order(count: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(f"cot:{seed}").sample(range(count), count))


def _known(config: Cot) -> tuple[Question, ...]:
    if config.source == "hub":
        return _from_hub(config.dataset, config.dataset_config, config.split, config.revision)
    path = existing(str(config.questions_file), "domain.questions_file")
    return _from_file(path, path.stat().st_mtime_ns)


@cache
def _from_hub(name: str, subset: str, split: str, revision: str | None) -> tuple[Question, ...]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        rows = load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DomainError(
            f"domain.dataset={name} ({subset}, {split}) can not be had: {said}. Check name and network, or set "
            "domain.source=generated, or domain.source=file domain.questions_file=<JSONL with question and answer>"
        ) from None
    found = tuple(_questions((f"{name} row {number}", well_formed(row)) for number, row in enumerate(rows)))
    if not found:
        raise UserFileError(f"domain.dataset={name} ({subset}, {split}) is empty; expected {EXPECTED}")
    return found


@lru_cache(maxsize=2)
def _from_file(path: Path, _: int) -> tuple[Question, ...]:
    found = tuple(_questions(records(path, EXPECTED)))
    if not found:
        raise UserFileError(f"domain.questions_file={path} is empty; expected {EXPECTED}")
    return found


def _questions(rows: Iterable[tuple[str, Json]]) -> Iterator[Question]:
    """Rows in GSM8K's format as questions; raises `UserFileError` naming the row and what is missing in it."""
    for place, row in rows:
        asked, answer = (text_at(row, key, place, EXPECTED) for key in ("question", "answer"))
        found = GOLD.search(answer)
        value = number_of(found[1]) if found else None
        if found is None or value is None:
            said = f"no gold answer: {found[1]!r} is no number" if found else "no gold answer"
            raise UserFileError(f"{place}: {said}; the answer must end with a line '#### <number>'")
        yield Question(asked.strip(), value, CALCULATOR.sub("", answer[: found.start()]).strip())


# --------------------------------------------------------------------------- prompts and answers


def prompts(config: Cot) -> list[Prompt]:
    """`config.prompts` prompts, `config.samples` in a row for every question; a longer list begins with the shorter."""
    if config.source != "generated":
        _require(config, len(_known(config)))
    return [Prompt(index, _text(index, config), seed_of(config.seed, index)) for index in range(config.prompts)]


def require(config: Cot) -> None:
    """Read a file of questions and raise `DomainError` where it can not make so many prompts; the hub is not asked."""
    if config.source == "file":
        _require(config, len(_known(config)))


def _require(config: Cot, count: int) -> None:
    if config.prompts > count * config.samples:
        raise DomainError(
            f"domain.prompts={config.prompts}: {count} questions x domain.samples={config.samples} make "
            f"{count * config.samples} prompts; lower domain.prompts or raise domain.samples"
        )


def _text(index: int, config: Cot) -> str:
    return f"{question(index, config).text}\n\n{request(config.seed, index // config.samples)}"


def request(seed: int, number: int = 0) -> str:
    """The words that ask for the tags; an evaluation's questions can end with them too."""
    return REQUESTS[seed_of("request", seed, number) % len(REQUESTS)]


def random_answer(prompt: Prompt, config: Cot) -> str:
    """The worked solution and the gold answer in their tags: no model is asked."""
    known = question(prompt.index, config)
    return f"<think>\n{known.solution}\n</think>\n<answer>{known.gold}</answer>"


def practice(config: Cot, count: int, seed: int) -> list[Row]:
    """Rows for reference tuning: generated problems of another seed with their solutions, whatever the source."""
    changes = {"source": "generated", "questions_file": None, "samples": 1, "prompts": count, "seed": seed}
    return programmatic(config.model_copy(update=changes))


# --------------------------------------------------------------------------- the format


def reject(text: str, config: Cot) -> str | None:
    """Why `text` is not reasoning and a number in their tags, or None."""
    if not text.strip():
        return "empty"
    if why := _wrong_tags(text):
        return why
    found = TAGGED.fullmatch(text)
    if found is None:
        return "outside_tags"
    if not found[1].strip():
        return "no_reasoning"
    return None if number_of(found[2]) is not None else "no_number"


def _wrong_tags(text: str) -> str | None:
    counts = [text.count(tag) for tag in TAGS]
    if max(counts) > 1:
        return "repeated_tag"
    return "no_think" if not all(counts[:2]) else "no_answer" if not all(counts[2:]) else None


def answer_of(text: str) -> Decimal | None:
    """The number in a completion's answer tags, or None when there is none."""
    said = answer_text(text)
    return None if said is None else number_of(said)


def answer_text(text: str) -> str | None:
    """What stands in a completion's answer tags behind its reasoning, or None when there are none."""
    found = TAGGED.search(text)
    return found[2] if found else None


def number_of(text: str) -> Decimal | None:
    """A number as people write it: dollar signs, thousands separators, trailing zeros and full stop do not matter."""
    plain = text.replace(",", "").replace("$", "").strip().removesuffix(".")
    return Decimal(plain) if NUMBER.fullmatch(plain) else None
