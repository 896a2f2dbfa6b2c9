"""The overview: every claim of a scale in one table, with what was expected, what was measured and the verdict.

It is made from the sections that were drawn so far; a figure that is configured but not drawn is a row of its own, and
a claim that does not hold stands there like any other.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from subliminal.composition import CONF
from subliminal.config import ConfigError, Figure
from subliminal.evaluation.statistics import holm
from subliminal.plots.figure import Verdict
from subliminal.plots.words import minus
from subliminal.transmission import SIGNIFICANT

NOT_RUN = "not run"
NO_PREFERENCE = "Not called a preference"  # a shift that holds and is too small to say more
OLD = "drawn by an earlier version: python -m subliminal plot {figure} scale={scale}"
RUN = "make {figure} SCALE={scale}"


@dataclass(frozen=True)
class Claim:
    """One row: what a figure claims, for one group of its students where it has several.

    `value`, `low` and `high` are the number that decides, in the unit of its measure, `n` and `interval` what its
    interval is over, `p` the one-sided p of a claim that a test decides and `p_holm` the same adjusted for all such
    claims of the report (Holm 1979); "" where a verdict has no such number. `why` says what the verdict rests on.
    """

    figure: str
    claim: str
    expected: str
    verdict: str
    why: str
    group: str = ""
    measure: str = ""
    value: str = ""
    low: str = ""
    high: str = ""
    n: str = ""
    interval: str = ""
    p: str = ""
    p_holm: str = ""

    @property
    def measured(self) -> str:
        """The deciding number in words, with its interval."""
        if not self.value:
            return ""
        ends = f" [{self.low}, {self.high}]" if self.low else ""
        return minus(f"{self.measure.replace('_', ' ')} {self.value}{ends}")

    @property
    def units(self) -> str:
        """How many of what the interval is over."""
        return f"{self.n} {self.interval}" if self.n and self.interval not in {"", "none"} else self.n


def claims_of(name: str, figure: Figure, verdicts: Sequence[Verdict]) -> list[Claim]:
    """The rows of a figure that was drawn, one a verdict; of a claim that compares variants only the comparisons."""
    comparing = [verdict for verdict in verdicts if verdict.compares]
    return [_claim(name, figure, verdict) for verdict in comparing or verdicts]


def _claim(name: str, figure: Figure, verdict: Verdict) -> Claim:
    first = (name, figure.claim, figure.expected, verdict.outcome)
    if verdict.line is None:
        return Claim(*first, why=verdict.sentence, group=verdict.group)
    first_sentence, *others = verdict.sentence.rstrip(".").split(". ")
    why = ". ".join([first_sentence, *(each for each in others if each.startswith(NO_PREFERENCE))]) + "."
    p = "" if verdict.p is None else f"{verdict.p:.3g}"
    line = verdict.line
    ends = {name: _text(getattr(line, name)) for name in ("value", "low", "high")}
    numbers = {"measure": line.measure, **ends, "n": str(line.n), "interval": line.interval}
    return Claim(*first, why=why, group=verdict.group, **numbers, p=p)


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{round(value, 3) + 0:.3g}"


# --------------------------------------------------------------------------- all figures of a scale


def overview(sections: Iterable[dict[str, Any]], scale: str) -> list[Claim]:
    """The rows of the sections that were drawn, then those of the figures that are configured but not drawn."""
    drawn = {section["id"]: list(_kept(section, scale)) for section in sections}
    absent = [_absent(figure, RUN, scale) for figure in configured() if figure["figure"] not in drawn]
    return _adjusted([*(row for rows in drawn.values() for row in rows), *absent])


def _adjusted(claims: Sequence[Claim]) -> list[Claim]:
    """The claims with their p adjusted for all claims that have one."""
    tested = [claim for claim in claims if claim.p]
    adjusted = iter(holm([float(claim.p) for claim in tested]))
    return [replace(claim, p_holm=f"{next(adjusted):.3g}") if claim.p else claim for claim in claims]


def multiplicity(claims: Sequence[Claim]) -> str:
    """How many claims a test decided, how many would hold by chance, and how many hold for all claims together."""
    tested = [claim for claim in claims if claim.p]
    hold = [claim for claim in tested if claim.verdict == "holds"]
    together = [claim for claim in hold if float(claim.p_holm) <= SIGNIFICANT]
    count = len(tested)
    return (
        f"Claims of this report that a test decided: {count}, at {SIGNIFICANT:.1%}, one-sided, each for itself; "
        f"{len(hold)} hold. If nothing were transmitted anywhere, {SIGNIFICANT * count:.2g} would be expected "
        f"to hold by chance. Adjusted for all {count} (Holm 1979), {len(together)} hold. With five traits no p is "
        "below 1/120, so that more than three claims can not all hold after the adjustment; with six it is 1/720."
    )


def _kept(section: dict[str, Any], scale: str) -> Iterator[Claim]:
    """The rows kept with a section; one that an earlier version drew says so."""
    if "claims" not in section:
        known = next((f for f in configured() if f["figure"] == section["id"]), {"figure": section["id"]})
        yield _absent(known, OLD, scale)
    known = {field.name for field in fields(Claim)}
    for row in section.get("claims", []):
        if known >= {*row}:
            yield Claim(**row)
        else:
            yield Claim(
                row["figure"], row["claim"], row["expected"], NOT_RUN, OLD.format(figure=row["figure"], scale=scale)
            )


def _absent(figure: dict[str, str], remedy: str, scale: str) -> Claim:
    name = figure["figure"]
    texts = (figure.get("claim", ""), figure.get("expected", ""))
    return Claim(name, *texts, NOT_RUN, why=remedy.format(figure=name, scale=scale))


@cache
def configured() -> tuple[dict[str, str], ...]:
    """Every figure of `conf/experiment/`, with experiment and claim, by target name; files are read as plain YAML."""
    figures = [_figure(path) for path in CONF.glob("experiment/*.yaml")]
    return tuple(sorted((figure for figure in figures if figure.get("figure")), key=lambda figure: figure["figure"]))


def _figure(path: Path) -> dict[str, str]:
    texts = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("experiment") or {}
    named = {name: str(texts[name]) for name in ("figure", "claim", "expected") if texts.get(name)}
    return {**named, "experiment": path.stem}


def experiment_of(figure: str) -> str:
    """The experiment that makes a figure; raises `ConfigError` with all names for one that none makes."""
    known = {each["figure"]: each["experiment"] for each in configured()}
    if figure not in known:
        raise ConfigError(f"there is no figure {figure}; there are {', '.join(known)}")
    return known[figure]


def by_figure(claims: Sequence[Claim]) -> list[tuple[str, list[Claim]]]:
    """The rows of each figure together, in the order given."""
    return [(name, list(rows)) for name, rows in groupby(claims, key=lambda claim: claim.figure)]


def write_claims(claims: Sequence[Claim], path: Path) -> None:
    """Write the rows as CSV, UTF-8, one line a claim and group."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Claim)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(claim) for claim in claims)
