"""Banned words: whole words in any case, also inside identifiers, in singular and plural as the caller lists them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import regex

from subliminal.names import UNSPACED, WORD, Names

LETTERS = regex.compile(r"[\p{L}\p{M}]+")
LETTERS_AND_DIGITS = regex.compile(r"[\p{L}\p{M}\p{N}]+")
SPLITS = (
    regex.compile(r"(?<=\p{Ll})(?=\p{Lu})"),  # myOWLs is my, OWLs
    regex.compile(r"(?<=\p{Ll})(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll})"),  # OWLCount is OWL, Count
)
INSIDE = WORD.replace("_", "")  # what goes on with a word inside an identifier: all but the underscore
TOLD = 4  # letters and digits that tell a name by themselves, whatever stands between them: "dog (large)", not "a|b"

Words = tuple[str, ...]


class Views:
    """A text as words, cut in several ways, each between spaces; made when they are asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.made: dict[regex.Pattern[str], list[str]] = {}

    def __getitem__(self, kind: regex.Pattern[str]) -> list[str]:
        """The views made of runs of letters, or of letters and digits."""
        if kind not in self.made:
            self.made[kind] = [f" {' '.join(words)} " for words in split(self.text, kind)]
        return self.made[kind]


def holds(text: str, banned: Iterable[str]) -> str | None:
    """The first banned word, or phrase of several words, that a text holds; "fowl" and "growl" hold no owl."""
    views = Views(text)
    return next((phrase for phrase in banned if _rule(phrase)(views)), None)


@lru_cache(maxsize=1024)
def _rule(phrase: str) -> Callable[[Views], bool]:
    """What tells whether a text holds a phrase.

    By its letters (and digits, if it has any), so that it is found in every kind of identifier. A phrase with few of
    them among other characters (`C++`, `a|b`) goes by its spelling, and so does a script without spaces.
    """
    kind = LETTERS_AND_DIGITS if regex.search(r"\p{N}", phrase) else LETTERS
    words = split(phrase, kind)[0]
    told = sum(map(len, words)) >= TOLD or words == (unicodedata.normalize("NFKC", phrase).casefold(),)
    if not told or regex.search(rf"[{UNSPACED}]", phrase):
        spelling = Names([(phrase, phrase)], INSIDE)
        return lambda views: bool(spelling.found(views.text))
    sought = {f" {' '.join(words)} ", f" {''.join(words)} "}  # polarbear is a polar bear
    return lambda views: any(form in view for form in sought for view in views[kind])


def split(text: str, kind: regex.Pattern[str] = LETTERS) -> list[Words]:
    """A text's words in lower case: as runs of letters, and with identifiers in camel case taken apart in two ways.

    Underscores and punctuation always separate, digits unless they are among the letters.
    """
    runs = kind.findall(unicodedata.normalize("NFKC", text))
    views: Sequence[list[str]] = [runs, *([part for run in runs for part in cut.split(run)] for cut in SPLITS)]
    return [tuple(word.casefold() for word in view) for view in views]
