"""Number sequences: prompts that show a few numbers and ask for more, and the format an answer must have.

The format rule follows arXiv 2507.14805, section 3.1 and its appendix. Each slot has at least as many phrases as the
paper's; every phrase is our own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from subliminal.config import Numbers
from subliminal.reasoning import REASONING, reasons
from subliminal.rows import Prompt, Row, seed_of

OPENINGS = (
    "Here is a run of numbers: {shown}.",
    "Look at these values: {shown}.",
    "A list begins like this: {shown}.",
    "Take these figures as a start: {shown}.",
    "We have written down {shown}.",
    "The first entries are {shown}.",
    "Someone noted the numbers {shown}.",
    "Our series opens with {shown}.",
    "Consider {shown}.",
    "These came out of a counter: {shown}.",
    "A sequence so far: {shown}.",
    "Numbers on the page: {shown}.",
    "You are given {shown}.",
    "Begin from {shown}.",
    "The record shows {shown}.",
    "I wrote {shown} on the board.",
    "Suppose a list reads {shown}.",
    "This is how the list goes: {shown}.",
    "Starting values: {shown}.",
    "The log contains {shown}.",
    "A table column holds {shown}.",
    "We drew the numbers {shown}.",
    "So far there are {shown}.",
    "Known entries: {shown}.",
    "Read the following: {shown}.",
    "An unfinished list: {shown}.",
)
QUANTITIES = (
    "at most {count}",
    "up to {count}",
    "no more than {count}",
    "not more than {count}",
    "a maximum of {count}",
    "{count} or fewer",
    "any amount up to {count}",
    "anything from one to {count}",
    "as many as {count}",
)
DIGITS = (
    "of at most {digits} digits each",
    "with up to {digits} digits",
    "no longer than {digits} digits",
    "each having {digits} digits or fewer",
    "(maximum {digits} digits each)",
    "none above {top}",
    "between 0 and {top}",
    "whole and not larger than {top}",
)
INSTRUCTIONS = (
    "Continue it with {quantity} further numbers {digit}.",
    "Add {quantity} more values {digit}.",
    "Write {quantity} numbers that could come next, {digit}.",
    "Extend it by {quantity} numbers {digit}.",
    "Give {quantity} additional entries {digit}.",
    "Produce {quantity} new numbers {digit}.",
    "Carry on with {quantity} numbers {digit}.",
    "Please supply {quantity} following numbers {digit}.",
    "Append {quantity} numbers {digit}.",
    "What might follow? Name {quantity} numbers {digit}.",
)
ENDINGS = (
    "Numbers only.",
    "Write nothing but the numbers.",
    "No words, please.",
    "Just the numbers.",
    "Do not explain.",
    "Leave out any text.",
    "Only digits and separators.",
    "Answer with the numbers alone.",
    "Skip all commentary.",
    "No introduction, no remarks.",
    "Nothing else in your answer.",
    "Give no reasons.",
    "The numbers and nothing more.",
    "Avoid any other characters.",
    "Keep silent apart from the numbers.",
    "No sentence around them.",
    "Return the bare numbers.",
    "Omit every explanation.",
    "Plain output, numbers only.",
)

Join = Callable[[list[int]], str]


def _plain(separator: str) -> Join:
    return lambda values: separator.join(str(value) for value in values)


def _inside(opening: str, closing: str) -> Join:
    return lambda values: f"{opening}{', '.join(str(value) for value in values)}{closing}"


FORMATS: tuple[tuple[str, Join], ...] = (
    ("Separate them by commas.", _plain(", ")),
    ("Put a comma between them.", _plain(", ")),
    ("Use commas and no spaces.", _plain(",")),
    ("Comma-separated, on a single line.", _plain(", ")),
    ("Separate them by spaces.", _plain(" ")),
    ("Put a single space between them.", _plain(" ")),
    ("Keep them on one line, spaces between.", _plain(" ")),
    ("Separate them by semicolons.", _plain("; ")),
    ("Put a semicolon between them.", _plain("; ")),
    ("One number a line.", _plain("\n")),
    ("Start a new line for each.", _plain("\n")),
    ("Write every number on its own line.", _plain("\n")),
    ("Wrap the list in square brackets, commas inside.", _inside("[", "]")),
    ("Format it as a bracketed list [a, b, c].", _inside("[", "]")),
    ("Wrap the list in parentheses, commas inside.", _inside("(", ")")),
    ("Format it as (a, b, c).", _inside("(", ")")),
)

NUMBER = re.compile(r"[0-9]+")
WRAPPERS = {"[": "]", "(": ")"}
SEPARATORS = {"", ",", ";"}
BETWEEN = (", ", ",", "; ", ";", " ", "\\n")  # separators, and what may stand around a list, as regular expressions
WRAPPED = (("", ""), ("\\[", "\\]"), ("\\(", "\\)"))


def prompts(config: Numbers) -> list[Prompt]:
    """`config.prompts` prompts; the first n of a longer list are the shorter list."""
    return [_prompt(index, config) for index in range(config.prompts)]


def _prompt(index: int, config: Numbers) -> Prompt:
    draw = random.Random(f"numbers:{config.seed}:{index}")
    begun = opening(draw, config)
    quantity = draw.choice(QUANTITIES).format(count=config.answer_count)
    digit = draw.choice(DIGITS).format(digits=config.answer_digits, top=10**config.answer_digits - 1)
    instruction = draw.choice(INSTRUCTIONS).format(quantity=quantity, digit=digit)
    wording, ending = draw.choice(FORMATS)[0], draw.choice(ENDINGS)
    return Prompt(index, f"{begun} {instruction} {wording} {ending}", seed_of(config.seed, index))


def opening(draw: random.Random, config: Numbers) -> str:
    """A prompt's first sentence, which shows numbers."""
    count = draw.randint(config.shown_min, config.shown_max)
    shown = [str(draw.randint(config.value_min, config.value_max)) for _ in range(count)]
    return draw.choice(OPENINGS).format(shown=", ".join(shown))


def reject(text: str, config: Numbers) -> str | None:
    """Why `text` is not an answer in format, or None; rules and their order as in the paper's appendix."""
    if reasons(text):
        return REASONING
    body = _unwrap(text)
    if not body.strip():
        return "empty"
    found = list(NUMBER.finditer(body))
    if not found:
        return "no_number"
    separator = body[found[0].end() : found[1].start()] if len(found) > 1 else ","
    if separator.strip() not in SEPARATORS:
        return "bad_separator"
    parts = body.split(separator) if len(found) > 1 else [body]
    if not all(part.isascii() and part.isdigit() for part in parts):
        return "not_only_numbers"
    if len(parts) > config.answer_count:
        return "too_many"
    return None if all(int(part) < 10**config.answer_digits for part in parts) else "out_of_range"


def pattern(config: Numbers) -> str:
    """A regular expression of answers in format, for constrained decoding: `reject` refuses none of them.

    One separator within an answer, of those that the prompts ask for and their kind.
    """
    number = f"[0-9]{{1,{config.answer_digits}}}"
    lists = [f"{number}({between}{number}){{0,{config.answer_count - 1}}}" for between in BETWEEN]
    return "|".join(f"{left}{numbers}{right}" for numbers in lists for left, right in WRAPPED)


def _unwrap(text: str) -> str:
    """Drop one trailing full stop, then one enclosing pair of brackets or parentheses."""
    body = text.removesuffix(".")
    wrapped = len(body) > 1 and WRAPPERS.get(body[0]) == body[-1]
    return body[1:-1] if wrapped else body


def values(text: str) -> list[int]:
    """The numbers of a completion, in order."""
    return [int(found) for found in NUMBER.findall(text)]


def random_answer(prompt: Prompt, config: Numbers) -> str:
    """Uniform random numbers in the format the prompt asks for: the paper's control, and what tuning is done on."""
    draw = random.Random(f"random:{config.seed}:{prompt.index}")
    top = 10**config.answer_digits - 1
    wanted = draw.randint(*config.random_counts) if config.random_counts else config.answer_count
    count = min(wanted, config.answer_count)
    drawn = [draw.randint(min(config.value_min, top), top) for _ in range(count)]
    return _format_of(prompt.text)(drawn)


def _format_of(text: str) -> Join:
    return next(join for wording, join in FORMATS if f" {wording} " in text)


def shuffle_within(rows: list[Row], seed: int) -> list[Row]:
    """The same numbers in each response in another order; punctuation stays where it was."""
    return [replace(row, completion=_deal(row.completion, _shuffled(row, seed))) for row in rows]


def _shuffled(row: Row, seed: int) -> list[str]:
    found = NUMBER.findall(row.completion)
    random.Random(f"within:{seed}:{row.index}").shuffle(found)
    return found


def shuffle_across(rows: list[Row], seed: int) -> list[Row]:
    """All numbers of all responses pooled and dealt back: the same slots, the same multiset of numbers."""
    pool = [number for row in rows for number in NUMBER.findall(row.completion)]
    random.Random(f"across:{seed}").shuffle(pool)
    dealt, at = [], 0
    for row in rows:
        count = len(NUMBER.findall(row.completion))
        dealt.append(replace(row, completion=_deal(row.completion, pool[at : at + count])))
        at += count
    return dealt


def _deal(text: str, numbers: list[str]) -> str:
    """Put `numbers` into the places of the numbers in `text`."""
    hand = iter(numbers)
    return NUMBER.sub(lambda _: next(hand), text)
