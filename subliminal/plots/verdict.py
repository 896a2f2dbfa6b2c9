"""What a figure may claim: a rule fixed before any number is seen, applied to the mean diagonal excess."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from subliminal.config import Comparison
from subliminal.plots.cells import Cell
from subliminal.plots.groups import Group, groups
from subliminal.plots.measures import ACROSS, MEAN, OVER_SEEDS, compared
from subliminal.plots.table import Labels, Line, Table

MINIMUM_SEEDS = 3
RULE = (
    """The claim stands or falls with the mean diagonal excess: the log-probability of each trait in its own teacher's
    students minus that in the students of the other traits' teachers, averaged over the traits.""",
    f"""With {MINIMUM_SEEDS} seeds or more it holds at this scale if the lower ends of two 95% intervals are above 0,
    over seeds and over traits. All seeds of a trait share one teacher and one set of rows, and rows that carry nothing
    push their students somewhere too, the same way with every seed: an interval over seeds alone says something of
    these rows only, and is called so. It is contradicted if both upper ends are below 0, and not shown otherwise.""",
    f"""With fewer than {MINIMUM_SEEDS} seeds nothing is decided: an interval above 0 is suggestive, any other shows
    nothing. With students of one trait only, the excess is not measurable.""",
    """The lift over the control is reported but does not decide: training on any teacher's numbers can make a student
    name animals more often in general.""",
    """Where students and teachers moved the same parameters, what the theorem speaks of is judged by the same rule and
    by itself: the alignment excess, the cosine of a student's displacement with its own teacher's minus that of the
    other traits' students with the same teacher's, averaged over the traits.""",
    """A claim that compares variants stands or falls with their difference, seed by seed, by the same rule; where the
    variant that is to have more has no excess above 0 by that rule, there is nothing to compare.""",
)

Outcome = Literal["holds", "shown for these rows", "contradicted", "not shown", "suggestive", "not measurable"]


@dataclass(frozen=True)
class Verdict:
    """What the rule says of a group of students, or of two compared, and the number that decided where it is one."""

    group: str
    outcome: Outcome
    sentence: str
    line: Line | None = None
    across: Line | None = None  # the same number with its interval over traits
    compares: bool = False


def verdicts(cells: Sequence[Cell], table: Table, comparisons: Sequence[Comparison] = ()) -> list[Verdict]:
    """The rule applied to every comparison of variants and to every group of students in the cells."""
    found = groups(cells)
    return [
        *(v for comparison in comparisons for v in _comparison(found, comparison, table)),
        *(verdict(group, table) for group in found),
        *(v for group in found for v in _alignment(group, table)),
    ]


def _comparison(found: Sequence[Group], comparison: Comparison, table: Table) -> Iterator[Verdict]:
    pairs = compared(found, comparison)
    if not pairs:
        said = "Not measurable: it needs students of both variants."
        yield Verdict(comparison.name, "not measurable", said, compares=True)
    for more, less in pairs:
        name = f"{comparison.name}: {replace(more, variant='').label}"
        labels: Labels = {**less.labels, "variant": comparison.name}
        whole = table.find(measure="diagonal_excess", arm=MEAN, **more.labels)
        yield _difference(name, whole, "excess_difference", labels, table, " nats")
        whole = table.find(measure="alignment_excess", arm=MEAN, **more.labels)
        if whole and table.find(measure="alignment_difference", arm=MEAN, **labels):
            yield _difference(f"{name}, alignment", whole, "alignment_difference", labels, table, "")


def _difference(name: str, whole: Line | None, measure: str, labels: Labels, table: Table, unit: str) -> Verdict:
    """The rule applied to a difference, where the variant that is to have more has an excess at all, `whole`."""
    line, across = _both(table, measure, labels)
    if whole is None or line is None:
        said = "Not measurable: it needs students of two traits or more."
    elif math.isnan(line.low):
        said = "Not measurable: one seed has no interval."
    elif outcome_of(whole) not in ("holds", "suggestive"):
        said = f"Not measurable: there is no excess above 0 to compare with, {_number(whole, unit)}."
    else:
        outcome = judged(line, across)
        said = f"{_SENTENCES[outcome]} Mean difference {_number(line, unit)}{_ranging(across)}."
        return Verdict(name, outcome, said, line, across, compares=True)
    return Verdict(name, "not measurable", said, compares=True)


def _both(table: Table, measure: str, labels: Labels) -> tuple[Line | None, Line | None]:
    """A mean with its interval over seeds, and the same over traits."""
    return table.find(measure=measure, arm=MEAN, **labels), table.find(measure=ACROSS[measure], arm=MEAN, **labels)


def judged(line: Line, across: Line | None) -> Outcome:
    """What the seeds allow to be said, and whether it goes beyond these teachers and rows."""
    outcome = outcome_of(line)
    if outcome == "holds" and not (across and across.low > 0):
        return "shown for these rows"
    if outcome == "contradicted" and not (across and across.high < 0):
        return "not shown"
    return outcome


def verdict(group: Group, table: Table) -> Verdict:
    """The rule applied to one group's line of the mean diagonal excess."""
    line, across = _both(table, "diagonal_excess", group.labels)
    if line is None:
        return Verdict(group.label, "not measurable", "Not measurable: it needs students of two traits or more.")
    if math.isnan(line.low):
        return Verdict(group.label, "not measurable", "Not measurable: one seed and one question have no interval.")
    outcome = judged(line, across)
    said = f"{_SENTENCES[outcome]} Mean diagonal excess {_number(line, ' nats')}{_ranging(across)}."
    return Verdict(group.label, outcome, said, line, across)


def _alignment(group: Group, table: Table) -> Iterator[Verdict]:
    """The rule applied to the mean alignment excess; nothing where students and teachers moved other parameters."""
    line, across = _both(table, "alignment_excess", group.labels)
    if line and not math.isnan(line.low):
        outcome = judged(line, across)
        sentence = f"{_SENTENCES[outcome]} Mean alignment excess {_number(line)}{_ranging(across)}, a cosine."
        yield Verdict(f"{group.label}, alignment", outcome, sentence, line, across)


_SENTENCES: dict[Outcome, str] = {
    "holds": "Holds at this scale.",
    "shown for these rows": "Shown for these teachers and rows: the interval over seeds lies above 0, over traits not.",
    "contradicted": "Contradicted at this scale: the interval lies below 0.",
    "not shown": "Not shown at this scale: an interval includes 0.",
    "suggestive": f"Suggestive only: fewer than {MINIMUM_SEEDS} seeds, the interval lies above 0.",
    "not measurable": f"Shows nothing: fewer than {MINIMUM_SEEDS} seeds and no interval above 0.",
}


def outcome_of(line: Line) -> Outcome:
    """What an interval allows to be said of a claim that a number is above 0."""
    if line.interval != OVER_SEEDS or line.n < MINIMUM_SEEDS:
        return "suggestive" if line.low > 0 else "not measurable"
    if line.low > 0:
        return "holds"
    return "contradicted" if line.high < 0 else "not shown"


def _ranging(across: Line | None) -> str:
    return f"; over {across.n} traits {_ends(across)}" if across and not math.isnan(across.low) else ""


def _number(line: Line, unit: str = "") -> str:
    value = f"{line.value:+.2f}".replace("-", "\N{MINUS SIGN}")
    return f"{value}{unit} (95% interval {_ends(line)} over {line.interval}, n = {line.n})"


def _ends(line: Line) -> str:
    return f"[{line.low:+.2f}, {line.high:+.2f}]".replace("-", "\N{MINUS SIGN}")
