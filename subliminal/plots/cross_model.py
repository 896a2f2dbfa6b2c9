"""The cross-model figure: transmission by the reference models of teacher and student (arXiv 2507.14805)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from subliminal import arms
from subliminal.plan import Plan
from subliminal.plots import parts
from subliminal.plots.cells import PlotError
from subliminal.plots.collect import evaluated, manifests
from subliminal.plots.effects import LOG_ODDS, Excess, difference, effect_lines, excess_in, size_of
from subliminal.plots.figure import Collected, Grid, Outcome, Section, Verdict
from subliminal.plots.parts import Heading
from subliminal.plots.preference.data import Group, Preferences
from subliminal.plots.preference.measures import scored
from subliminal.plots.preference.measures import table as preference_table
from subliminal.plots.preference.verdict import RULE as PREFERENCE_RULE
from subliminal.plots.table import Line, Table
from subliminal.plots.words import NOTHING, ends, number, p_value, ranged
from subliminal.store import Store
from subliminal.transmission import MARGIN, SIGNIFICANT

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

plan = arms.students
ARROW = " > "
DIFFERENCE = "same_minus_cross"
RULE = (
    *PREFERENCE_RULE,
    """Cross-model figures: that transmission needs a common starting point holds at this scale if every teacher's
    students of its own model have an excess and exceed its students of every other model, each by the relabelling rule.
    It is contradicted if a cross-model pair has an excess by that rule and does not have less than the same-model pair;
    else it is not shown.""",
    f"""Each cross-model pair has a verdict of its own on whether its students get nothing: it holds if the whole 95%
    interval of their excess lies within {MARGIN} nats of 0, and is contradicted if they have an excess by the
    relabelling rule.""",
)
PANELS = f"""Mean excess in log-odds, nats, with its 95% interval over traits; a star marks a relabelling p of at most
{SIGNIFICANT} (one-sided, not adjusted for the number of pairs). The outlined diagonal is what should transmit."""
SEEDS = "Every pair trains the students of all traits, off the diagonal too."


@dataclass(frozen=True)
class Pair:
    """One teacher's and one student's reference model, with the students of all traits."""

    teacher: str
    student: str
    group: Group

    @property
    def same(self) -> bool:
        """Whether teacher and student start from one reference model."""
        return self.teacher == self.student


@dataclass(frozen=True)
class Models(Preferences):
    """The evaluated subjects of a figure whose variants are named `teacher > student`."""

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs of reference models; raises `PlotError` for another name and for several student recipes."""
        pairs: list[Pair] = []
        for group in self.groups:
            if group.variant in {pair.group.variant for pair in pairs}:
                raise PlotError(
                    f"{group.variant} has several student recipes in a cross-model figure; choose one with student="
                )
            teacher, arrow, student = group.variant.partition(ARROW)
            if not arrow:
                raise PlotError(f"variant {group.variant!r} of a cross-model figure must be named 'teacher > student'")
            pairs.append(Pair(teacher, student, group))
        return pairs


def collect(planned: Plan, store: Store) -> Collected:
    """The references and students that were evaluated."""
    return evaluated(planned, store, Models)


def table(data: Models) -> Table:
    """What same-model students have more of than cross-model students, and every measure of the preference figure."""
    return Table((*_lines(data.pairs), *preference_table(data).lines))


def _lines(pairs: Sequence[Pair]) -> Iterator[Line]:
    """What every teacher's students of its own model have more of than its students of another."""
    for pair in pairs:
        own = next((other for other in pairs if other.same and other.teacher == pair.teacher), None)
        if own and not pair.same:
            lost = difference(scored(own.group, "log_odds"), scored(pair.group, "log_odds"))
            yield from effect_lines(lost, DIFFERENCE, pair.group.labels)


# --------------------------------------------------------------------------- the verdict


def verdicts(data: Models, table: Table) -> list[Verdict]:
    """The rule applied to the grid, then to every cross-model pair by itself."""
    same, cross = [p for p in data.pairs if p.same], [p for p in data.pairs if not p.same]
    excess = {p.group.variant: _excess(table, p) for p in data.pairs}
    if not same or not cross or None in excess.values():
        text = "Not measurable: it needs same-model and cross-model pairs with students of two traits or more."
        return [Verdict("", "not measurable", text)]
    return [_grid_verdict(same, cross, table), *(_pair_verdict(pair, table) for pair in cross)]


def _grid_verdict(same: Sequence[Pair], cross: Sequence[Pair], table: Table) -> Verdict:
    own = [excess for pair in same if (excess := _excess(table, pair))]
    apart = [(pair, _excess(table, pair), _apart(table, pair)) for pair in cross]
    judged = [*own, *(difference for _, _, difference in apart if difference)]
    outcome: Outcome = "not shown"
    if not all(effect.decidable for effect in judged):
        outcome = "undecided"
    elif all(effect.outcome == "holds" for effect in judged) and all(difference for _, _, difference in apart):
        outcome = "holds"
    elif any(e and e.outcome == "holds" and not (d and d.outcome == "holds") for _, e, d in apart):
        outcome = "contradicted"
    sizes = [f"{p.group.variant} {size_of(excess, ' nats')}" for p in same if (excess := _excess(table, p))]
    sizes += [f"same minus {pair.group.variant} {size_of(d, ' nats')}" for pair, _, d in apart if d]
    p = max((effect.test.above for effect in judged), default=None) if outcome != "undecided" else None
    line = next((d.line for _, _, d in apart if d), None)
    return Verdict("same minus cross", outcome, f"{_SENTENCES[outcome]} {'; '.join(sizes)}.", line, p)


_SENTENCES: dict[Outcome, str] = {
    "holds": "Holds at this scale: same-model students get the trait, and more of it than cross-model students.",
    "contradicted": "Contradicted at this scale: a cross-model student gets the trait, not shown to get less of it.",
    "not shown": "Not shown at this scale.",
    "undecided": "Undecided: too few traits.",
}


def _pair_verdict(pair: Pair, table: Table) -> Verdict:
    """Whether a cross-model pair's students get nothing."""
    excess, name = _excess(table, pair), f"{pair.group.variant} gets nothing"
    assert excess is not None, "the grid was measured"
    if not excess.decidable:
        return Verdict(name, "undecided", f"Undecided: too few traits. Excess {size_of(excess, ' nats')}.", excess.line)
    if excess.outcome == "holds":
        text = f"Contradicted: it gets some. Excess {size_of(excess, ' nats')}."
        return Verdict(name, "contradicted", text, excess.line)
    if excess.absent:
        return Verdict(name, "holds", f"Holds within {MARGIN} nats. Excess {size_of(excess, ' nats')}.", excess.line)
    text = f"Neither an excess nor its absence is shown. Excess {size_of(excess, ' nats')}."
    return Verdict(name, "not shown", text, excess.line)


def _excess(table: Table, pair: Pair) -> Excess | None:
    return excess_in(table, LOG_ODDS, pair.group.labels)


def _apart(table: Table, pair: Pair) -> Excess | None:
    return excess_in(table, DIFFERENCE, pair.group.labels)


# --------------------------------------------------------------------------- the picture


def subtitle(data: Models, table: Table, scale: str) -> str:
    """Scale and traits."""
    traits = sorted({trait for pair in data.pairs for trait in pair.group.traits})
    return f"Scale {scale} \N{MIDDLE DOT} {len(traits)} traits: {', '.join(traits)}"


def picture(data: Models, table: Table, heading: Heading) -> Canvas:
    """Teachers' models (rows) by students' (columns): the mean excess of every pair."""
    rows, columns = (list(dict.fromkeys(getattr(pair, side) for pair in data.pairs)) for side in ("teacher", "student"))
    values, texts = [[math.nan] * len(columns) for _ in rows], [[""] * len(columns) for _ in rows]
    same = set()
    for pair in data.pairs:
        if excess := _excess(table, pair):
            row, column = rows.index(pair.teacher), columns.index(pair.student)
            values[row][column], texts[row][column] = excess.line.value, _written(excess)
            same |= {(row, column)} if pair.same else set()
    width, height = max(6.2, 2.4 + 1.5 * len(columns)), 1.65 + 0.75 * len(rows)
    canvas = parts.canvas(width, height, heading)
    axes = canvas.add_axes((1.9 / width, 0.75 / height, 1.5 * len(columns) / width, 0.75 * len(rows) / height))
    parts.heat_map(axes, values, rows, columns, parts.largest(values), same, texts=texts)
    axes.set_xlabel("student's reference model")
    axes.set_ylabel("teacher's reference model")
    return canvas


def _written(excess: Excess) -> str:
    """The mean excess, with a star where its test holds by itself, above its interval."""
    line = excess.line
    star = "*" if excess.decidable and excess.test.above <= SIGNIFICANT else ""
    below = "" if math.isnan(line.low) else f"\n{ends(line, sign=True)}"
    return f"{number(line, sign=True)}{star}{below}"


# --------------------------------------------------------------------------- the report's section


def section(data: Models, table: Table, name: str) -> Section:
    """The grid as a table."""
    columns = ("teacher > student", "mean excess", "p", "same minus cross", "p", "traits")
    rows = [_row(pair, table) for pair in data.pairs]
    grid = Grid("Pairs", columns, rows, f"Nats of log-odds. All numbers: {name}.csv.")
    return Section(RULE, PANELS, SEEDS, [grid], list(manifests(data.cells)))


def _row(pair: Pair, table: Table) -> list[str]:
    return [
        pair.group.variant,
        *_measured(_excess(table, pair)),
        *_measured(_apart(table, pair)),
        str(len(pair.group.traits)),
    ]


def _measured(effect: Excess | None) -> tuple[str, str]:
    """An effect with its interval, and its p where there are traits enough."""
    if effect is None:
        return NOTHING, NOTHING
    return ranged(effect.line, sign=True), p_value(effect.test.above) if effect.decidable else NOTHING
