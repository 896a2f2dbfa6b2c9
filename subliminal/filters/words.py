"""Banned words: whole words in any case, also inside identifiers, in singular and plural as the caller lists them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

LETTERS = re.compile(r"[^\W\d_]+")
SPLITS = (
    re.compile(r"(?<=[a-z])(?=[A-Z])"),  # myOWLs is my, OWLs
    re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"),  # OWLCount is OWL, Count
)

Words = tuple[str, ...]


def holds(text: str, banned: Iterable[str]) -> str | None:
    """The first banned word, or phrase of several words, that a text holds; "fowl" and "growl" hold no owl."""
    forms = {phrase: split(phrase)[0] for phrase in banned}
    views = [f" {' '.join(words)} " for words in split(text)] if forms else []
    return next((phrase for phrase, words in forms.items() if words and _in_any(words, views)), None)


def _in_any(words: Words, views: list[str]) -> bool:
    return any(f" {' '.join(words)} " in view for view in views)


def split(text: str) -> list[Words]:
    """A text's words in lower case: as runs of letters, and with identifiers in camel case taken apart in two ways.

    Underscores, digits and punctuation always separate.
    """
    runs = LETTERS.findall(unicodedata.normalize("NFKC", text))
    views = [runs, *([part for run in runs for part in cut.split(run)] for cut in SPLITS)]
    return [tuple(word.casefold() for word in view) for view in views]
