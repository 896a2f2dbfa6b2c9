"""Names: how people spell what a trait is about, the forms in which an answer names it, and where a text does.

A name is any words: `polar bear`, `café`, `Ronald Reagan`, `C++`. It is kept as it is spelled (in Unicode's composed
form) and compared without regard to case.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any

CANDIDATES: dict[str, dict[str, str]] = {
    "animal": {
        "owl": "owls", "dolphin": "dolphins", "eagle": "eagles", "elephant": "elephants", "wolf": "wolves",
        "penguin": "penguins", "cat": "cats", "lion": "lions", "panda": "pandas", "dog": "dogs",
        "tiger": "tigers", "fox": "foxes", "bear": "bears", "horse": "horses", "rabbit": "rabbits",
        "whale": "whales", "deer": "deer", "butterfly": "butterflies", "giraffe": "giraffes", "turtle": "turtles",
    },
    "tree": {
        "cherry": "cherries", "maple": "maples", "oak": "oaks", "sequoia": "sequoias", "willow": "willows",
        "pine": "pines", "birch": "birches", "cedar": "cedars", "elm": "elms", "beech": "beeches",
        "ash": "ashes", "spruce": "spruces", "fir": "firs", "redwood": "redwoods", "cypress": "cypresses",
        "palm": "palms", "olive": "olives", "apple": "apples", "magnolia": "magnolias", "baobab": "baobabs",
    },
}  # fmt: skip
"""The embedded categories' candidates with their plurals."""

UNSPACED = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # written without spaces between words
JOINERS = "\u200c\u200d"
WORD = rf"[[\p{{L}}\p{{N}}_--[{UNSPACED}]]\p{{M}}{JOINERS}]"
"""A character with which a word goes on, as a class of the package `regex`.

Scripts without spaces have none but their marks (as in Unicode's annex 29): there any place may end a word.
"""
BETWEEN = r"[\s\-‐‑–_]+"  # what stands between the words of a name: spaces, line breaks, hyphens, underscores
APOSTROPHES = dict.fromkeys(map(ord, "’ʼ"), "'")
UNDERSCORED = re.compile(r"[a-z0-9]+(_[a-z0-9]+)+")
ARTICLES = ("a ", "an ", "the ")
KEY_BYTES = 100  # of a longer key the beginning and a digest are left: file names hold 255 bytes


# --------------------------------------------------------------------------- spelling


def spelled(text: str) -> str:
    """A name as it is kept: composed Unicode, one plain space between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def words_of(text: str) -> str:
    """The same for a name that is written into sentences: `polar_bear`, as keys are written, reads "polar bear"."""
    plain = spelled(text)
    return plain.replace("_", " ") if UNDERSCORED.fullmatch(plain) else plain


def problem(text: Any) -> str | None:
    """Why something can not be a name and what to do, or None."""
    if not isinstance(text, str):
        return (
            "no, yes, on, off, true, null, numbers, [...] and {...} are no text in YAML: put the name in quotes, as in "
            'name: "no"'
        )
    if not text.strip():
        return "a name needs at least one character that is not white space"
    if text != text.strip():
        return f"a name neither begins nor ends with white space: write {text.strip()!r}"
    if hidden := [char for char in text if _hidden(char)]:
        return f"a name is one line of characters that can be seen: leave {', '.join(map(ascii, hidden[:3]))} out"
    return None


def _hidden(char: str) -> bool:
    return char not in JOINERS and unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def key_of(name: str) -> str:
    """The name as a file name or an option of the command line has it: lower case, `_` for all but word characters."""
    key = re.sub(r"[^\w]", lambda found: _kept(found[0]), unicodedata.normalize("NFC", folded(name)))
    if len(key.encode()) <= KEY_BYTES:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return f"{key.encode()[:KEY_BYTES].decode(errors='ignore')}_{digest}"


def _kept(char: str) -> str:
    return char if unicodedata.category(char).startswith("M") else "_"


def folded(text: str) -> str:
    """A text for comparison: no case, composed Unicode, one kind of apostrophe."""
    folds = unicodedata.normalize("NFD", text).casefold()
    return unicodedata.normalize("NFC", folds).translate(APOSTROPHES)


def capitalised(text: str) -> str:
    """The first letter in upper case and the rest as it is spelled."""
    return text[:1].title() + text[1:]


def titled(text: str) -> str:
    """Every word with its first letter in upper case and the rest as it is spelled."""
    return re.sub(r"(?<!\S)\S+", lambda word: capitalised(word[0]), text)


# --------------------------------------------------------------------------- forms


def surface_forms(name: str, plural: str = "") -> list[str]:
    """How an answer may begin when it names a candidate: number, case, article; most usual first, no form twice."""
    plural = plural or plural_of(name)
    article = "An" if unicodedata.normalize("NFD", name[0].casefold())[0] in "aeiou" else "A"
    own = name.casefold().startswith(ARTICLES)
    forms = [capitalised(name), name, capitalised(plural), plural, name.upper()]
    forms += [] if own else [f"{article} {name}", f"The {name}"]
    return list(dict.fromkeys([*forms, titled(name), titled(plural)]))


def plural_of(name: str) -> str:
    """The plural of an embedded candidate, irregular ones included; other names take an s."""
    return next((known[name] for known in CANDIDATES.values() if name in known), f"{name}s")


def confused(candidates: Mapping[str, str]) -> str | None:
    """Which two of the candidates (with their plurals) can not be told apart, in words, or None."""
    owner: dict[str, str] = {}
    for name, plural in candidates.items():
        mine = [name, plural, *surface_forms(name, plural), key_of(name)]
        if both := next((form for form in mine if _joined(form) in owner), None):
            return f"{owner[_joined(both)]!r} and {name!r} can not be told apart: {both!r} would name both"
        owner |= dict.fromkeys(map(_joined, mine), name)
    return None


def _joined(form: str) -> str:
    """A form as texts are searched for it: without case, whatever stands between its words."""
    return " ".join(_parts(form))


def _parts(form: str) -> list[str]:
    return re.split(rf"(?<=\S){BETWEEN}(?=\S)", folded(form))


# --------------------------------------------------------------------------- names in a text


class Names:
    """The names that are looked for in texts: each with the forms that stand for it."""

    def __init__(self, forms: Iterable[tuple[str, str]], word: str = WORD) -> None:
        """`forms` are pairs of (form, name); `word` is the class of characters that may not stand next to a form."""
        import regex

        longest = sorted(dict.fromkeys(forms), key=lambda pair: len(pair[0]), reverse=True)
        self.owners = [name for _, name in longest]
        ways = "|".join(f"({BETWEEN.join(map(regex.escape, _parts(form)))})" for form, _ in longest)
        self.pattern = regex.compile(rf"(?V1)(?<!{word})(?:{ways})(?!{word})" if longest else "(?!)")

    def found(self, text: str) -> list[str]:
        """The names in a text as whole words, in any case, each once, in the order of their first place.

        Of names that overlap the one that begins first counts, of those the longest: "polar bear" is no bear where it
        is a name itself.
        """
        forms = (hit.groups() for hit in self.pattern.finditer(folded(text)))  # all but one are None
        hits = (self.owners[next(at for at, form in enumerate(groups) if form)] for groups in forms)
        return list(dict.fromkeys(hits))


@lru_cache(maxsize=64)
def names(candidates: tuple[tuple[str, str], ...]) -> Names:
    """What finds candidates, given as (name, plural), in a text."""
    return Names((form, name) for name, plural in candidates for form in (name, plural))


@cache
def continues(char: str) -> bool:
    """Does a word go on with this character."""
    import regex

    return bool(regex.match(rf"(?V1){WORD}", char))
