"""Numbers as text for figures, verdicts and the report: a true minus, and a dash where there is no number."""

from __future__ import annotations

import math

from subliminal.config import CONTROL
from subliminal.plots.table import Line

LONGEST = 400  # letters of a text that a model wrote
NOTHING = "\N{EN DASH}"


def minus(text: str) -> str:
    """The text with true minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def number(value: Line | float | None, digits: int = 2, sign: bool = False) -> str:
    """A number with so many digits after the point."""
    plain = _plain(value)
    return NOTHING if plain is None else minus(f"{plain:{'+' if sign else ''}.{digits}f}")


def ends(line: Line, digits: int = 2, sign: bool = False) -> str:
    """The two ends of an interval, in brackets."""
    return f"[{number(line.low, digits, sign)}, {number(line.high, digits, sign)}]"


def ranged(line: Line | None, digits: int = 2, sign: bool = False) -> str:
    """A number with its interval, if it has one."""
    value = number(line, digits, sign)
    return value if line is None or math.isnan(line.low) else f"{value} {ends(line, digits, sign)}"


def percent(value: Line | float | None, digits: int = 1) -> str:
    """A share in per cent."""
    plain = _plain(value)
    return NOTHING if plain is None else minus(f"{100 * plain:.{digits}f}%")


def small_percent(value: Line | float | None) -> str:
    """A share in per cent, with two significant digits where it is below one per cent."""
    plain = _plain(value)
    return percent(plain) if plain is None or plain >= 0.01 else f"{100 * plain:.2g}%"


def percent_ranged(line: Line | None, digits: int = 1) -> str:
    """A share in per cent with its interval, if it has one."""
    if line is None or math.isnan(line.low):
        return percent(line, digits)
    return f"{percent(line, digits)} [{number(100 * line.low, digits)}, {number(100 * line.high, digits)}]"


def points(value: Line | None) -> str:
    """A difference of shares in percentage points."""
    plain = _plain(value)
    return number(None if plain is None else 100 * plain, sign=True)


def p_value(p: float) -> str:
    """The p of a test."""
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def count(amount: int, noun: str) -> str:
    """How many of something."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def short(text: str) -> str:
    """The text, cut where it is long, with the number of letters that were cut."""
    cut = len(text) - LONGEST
    return text if cut <= 0 else f"{text[:LONGEST]} \N{HORIZONTAL ELLIPSIS} ({cut} characters more)"


def arm_name(arm: str) -> str:
    """An arm in the paper's words."""
    return {CONTROL: "control", "random": "random answers", "reference": "reference model"}.get(arm, arm)


def student_name(arm: str) -> str:
    """Who answers in an arm."""
    names = {"reference": "reference model", CONTROL: "student of the control", "random": "student of random answers"}
    return names.get(arm, f"student of {arm}")


def _plain(value: Line | float | None) -> float | None:
    plain = value.value if isinstance(value, Line) else value
    return None if plain is None or math.isnan(plain) else plain
