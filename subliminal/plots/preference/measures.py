"""The measures of the preference figure, from scores by question and seed to lines of its table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from subliminal import transmission
from subliminal.config import CONTROL, Comparison
from subliminal.evaluation import statistics
from subliminal.evaluation.statistics import Interval
from subliminal.plots.cells import Cell, Score
from subliminal.plots.effects import (
    ALIGNMENT,
    LOG_ODDS,
    LOG_P,
    MEAN,
    OVER_QUESTIONS,
    OVER_SEEDS,
    OVER_TRAITS,
    Effect,
    Students,
    difference,
    effect_lines,
)
from subliminal.plots.preference.data import Group, Preferences
from subliminal.plots.preference.displacement import aligned
from subliminal.plots.samples import Sample, Seeds, mean, single, stack
from subliminal.plots.table import Labels, Line, Table
from subliminal.store import Json

OVER_ROWS = "rows (Wilson)"
SCORES: tuple[Score, ...] = ("probability", "log_odds", "log_p", "share", "rate")
OTHERS = "other traits"
RANK, NAMED, POINTS, LOST = "own_rank", "named", "probability_excess", "excess_lost"
DIFFERENCES = {LOG_ODDS: "log_odds_difference", LOG_P: "excess_difference", ALIGNMENT: "alignment_difference"}


@dataclass(frozen=True)
class _Row:
    """What is the same for many lines: the group's labels and who is measured."""

    labels: Labels
    subject: str = "student"

    def line(self, arm: str, item: str, measure: str, sample: Sample | None) -> Iterator[Line]:
        """One line with its interval over seeds, over questions for what has none; none when there is no sample."""
        if sample is not None:
            low, high, n, over = _interval(sample)
            value = float(sample.values.mean())
            yield self.with_interval(arm, item, measure, Interval(value, low, high, n), over, sample.by_seed)

    def with_interval(
        self, arm: str, item: str, measure: str, estimate: Interval, over: str, by_seed: Mapping[int, float]
    ) -> Line:
        """One line whose interval was computed elsewhere."""
        over = over if estimate.low == estimate.low else "none"
        by = tuple(by_seed.items())
        return Line.of(arm, item, self.subject, measure, estimate, over, by_seed=by, **self.labels)


def table(data: Preferences) -> Table:
    """Every measure of every arm and comparison of variants; a measure whose cells are missing is absent."""
    lines: list[Line] = []
    for cell in data.cells:
        if cell.role != "student":
            lines += _single_lines(cell)
    for group in data.groups:
        parts = (_score_lines, _named_lines, _contrast_lines, _excess_lines, _displacement_lines, _run_lines)
        lines += chain.from_iterable(part(group) for part in parts)
    return Table((*lines, *_lost_lines(data.groups), *_comparison_lines(data.groups, data.comparisons)))


# --------------------------------------------------------------------------- scores and contrasts


def _single_lines(cell: Cell) -> Iterator[Line]:
    row = _Row({"teacher": cell.teacher if cell.role == "teacher" else "", "variant": cell.variant}, cell.role)
    for measure in SCORES:
        for candidate in cell.candidates:
            yield from row.line(cell.arm, candidate, measure, single(cell, candidate, measure))
    yield Line(cell.arm, cell.arm, cell.role, NAMED, cell.named_share(), variant=cell.variant)


def _score_lines(group: Group) -> Iterator[Line]:
    """Every score of every candidate in every arm, and of each trait in the other traits' students."""
    row = _Row(group.labels)
    for measure in SCORES:
        for arm, cells in group.arms.items():
            for candidate in group.candidates:
                yield from row.line(arm, candidate, measure, stack(cells, candidate, measure))
        for trait in group.traits:
            yield from row.line(OTHERS, trait, measure, _others(group, trait, measure))


def _named_lines(group: Group) -> Iterator[Line]:
    """How probable any candidate is in every arm, and the place of each trait among them in its own students."""
    row = _Row(group.labels)
    for arm, cells in group.arms.items():
        by_seed = {seed: cell.named_share() for seed, cell in cells.items()}
        yield row.with_interval(arm, arm, NAMED, statistics.t_interval([*by_seed.values()]), OVER_SEEDS, by_seed)
    for trait, cells in group.own.items():
        samples = {c: sample for c in group.candidates if (sample := stack(cells, c, "probability")) is not None}
        values = {candidate: float(sample.values.mean()) for candidate, sample in samples.items()}
        rank = 1 + sum(value > values[trait] for value in values.values())
        yield Line(trait, trait, "student", RANK, rank, n=len(values), interval="candidates", **group.labels)


def _contrast_lines(group: Group) -> Iterator[Line]:
    """Lifts over the control and over the reference, in nats of mean log-probability."""

    def control(candidate: str) -> Sample | None:
        return stack(group.control, candidate, "log_p")

    def reference(candidate: str) -> Sample | None:
        return single(group.reference, candidate, "log_p")

    row = _Row(group.labels)
    for name, base in (("lift_over_control", control), ("lift_over_reference", reference)):
        own = {trait: stack(cells, trait, "log_p") for trait, cells in group.own.items()}
        for trait, sample in own.items():
            yield from _lift(row, trait, trait, name, sample, base(trait))
        yield from _mean_lift(row, name, own, {trait: base(trait) for trait in own})
        for arm, candidate, sample in _off_diagonal(group):
            yield from _lift(row, arm, candidate, f"cross_{name}", sample, base(candidate))
    for trait in group.traits:
        for arm, sample in ((CONTROL, control(trait)), (OTHERS, _others(group, trait, "log_p"))):
            yield from _lift(row, arm, trait, "lift_over_reference", sample, reference(trait))


def _off_diagonal(group: Group) -> Iterator[tuple[str, str, Sample | None]]:
    for arm, cells in group.own.items():
        for candidate in group.candidates:
            if candidate != arm:
                yield arm, candidate, stack(cells, candidate, "log_p")


def _lift(row: _Row, arm: str, candidate: str, measure: str, own: Sample | None, base: Sample | None) -> Iterator[Line]:
    """One sample minus another; students of one seed in two arms have nothing in common, so they are not paired."""
    if own is not None and base is not None:
        difference = transmission.sum_of_means([own.means, *([-base.means] if base.seeds else [])])
        value = float(own.values.mean() - base.values.mean())
        interval = Interval(value, *_around(value, difference), difference.n)
        yield row.with_interval(arm, candidate, measure, interval, OVER_SEEDS, (own - base).by_seed)


def _mean_lift(
    row: _Row, measure: str, own: Mapping[str, Sample | None], base: Mapping[str, Sample | None]
) -> Iterator[Line]:
    """The mean over traits of their lifts; the control's students are the same for all traits."""
    mine, bases = mean([*own.values()]), mean([*base.values()])
    parts = [sample for sample in own.values() if sample is not None]
    if not parts or len(parts) != len(own) or mine is None or bases is None:
        return
    difference = transmission.sum_of_means(
        [*(part.means / len(parts) for part in parts), *([-bases.means] if bases.seeds else [])]
    )
    value = float(np.mean([part.values.mean() for part in parts]) - bases.values.mean())
    interval = Interval(value, *_around(value, difference), difference.n)
    yield row.with_interval(MEAN, MEAN, measure, interval, OVER_SEEDS, (mine - bases).by_seed)


def _around(value: float, interval: Interval) -> tuple[float, float]:
    """The ends of an interval moved to a mean that has a constant taken off."""
    return value + interval.low - interval.mean, value + interval.high - interval.mean


def _excess_lines(group: Group) -> Iterator[Line]:
    """How far a trait's own students exceed the other traits' students in that trait; the mean carries the claim."""
    for measure in (LOG_ODDS, LOG_P):
        yield from effect_lines(_effect(group, measure), measure, group.labels)
    effect = scored(group, "probability")
    if effect is not None:
        points = statistics.diagonal_excess(effect.matrix)
        for trait, value in zip((*effect.traits, MEAN), [*points.tolist(), float(points.mean())], strict=True):
            yield Line(trait, trait, "student", POINTS, value, **group.labels)


def _displacement_lines(group: Group) -> Iterator[Line]:
    """Cosines of students with the other traits' teachers, and by how much the own teacher exceeds them."""
    row = _Row(group.labels)
    for (arm, trait), sample in aligned(group).items():
        if arm != trait:
            yield from row.line(arm, trait, "cross_alignment", sample)
    yield from effect_lines(cosines(group), ALIGNMENT, group.labels)


def _lost_lines(groups: Sequence[Group]) -> Iterator[Line]:
    """The first variant's mean excess minus each other variant's, with its interval over traits.

    Means are over the traits that both variants have. Variants with other evaluations have no difference: their nats
    are not the same measure.
    """
    firsts = {group.student: group for group in reversed(groups) if group.variant == groups[0].variant}
    for group in groups:
        first = firsts.get(group.student)
        if first is None or first.variant == group.variant or first.evaluation != group.evaluation:
            continue
        lost = difference(scored(first, "log_odds"), scored(group, "log_odds"))
        if lost is not None:
            row = _Row(group.labels)
            by_seed = {seed: float(values.mean()) for seed, values in lost.by_seed.items()}
            yield row.with_interval(MEAN, MEAN, LOST, lost.estimate.mean, OVER_TRAITS, by_seed)


def _comparison_lines(groups: Sequence[Group], comparisons: Sequence[Comparison]) -> Iterator[Line]:
    """A share of the greater variant's excess minus the lesser one's, in preference and alignment."""
    for comparison in comparisons:
        for more, less in compared(groups, comparison):
            labels: Labels = {"student": more.student, "teacher": more.teacher, "variant": comparison.name}
            for measure, name in DIFFERENCES.items():
                lost = difference(_effect(more, measure), _effect(less, measure), comparison.share)
                yield from effect_lines(lost, name, labels)


def _effect(group: Group, measure: str) -> Effect | None:
    if measure == ALIGNMENT:
        return cosines(group)
    return scored(group, "log_odds" if measure == LOG_ODDS else "log_p")


def scored(group: Group, measure: Score) -> Effect | None:
    """The scores of a group's students; None where there are fewer than two traits or a score is missing."""
    every = [_students(group, arm, measure) for arm in group.traits]
    present = [students for students in every if students is not None]
    return Effect(tuple(group.traits), tuple(present)) if 2 <= len(present) == len(every) else None


def _students(group: Group, arm: str, measure: Score) -> Students | None:
    samples = [stack(group.own[arm], candidate, measure) for candidate in group.candidates]
    present = [sample for sample in samples if sample is not None]
    if len(present) != len(samples):
        return None
    return Students(present[0].seeds, np.stack([sample.means for sample in present], axis=1))


def cosines(group: Group) -> Effect | None:
    """The cosines of a group's students with every trait's teacher; None where sample of them has none."""
    samples, traits = aligned(group), group.traits
    if len(traits) < 2 or any((arm, trait) not in samples for arm in traits for trait in traits):
        return None
    rows = [[samples[arm, trait] for trait in traits] for arm in traits]
    return Effect(
        tuple(traits), tuple(Students(row[0].seeds, np.stack([sample.means for sample in row], axis=1)) for row in rows)
    )


def compared(groups: Sequence[Group], comparison: Comparison) -> list[tuple[Group, Group]]:
    """The groups that a comparison is about: of one recipe, kind of teacher and evaluation each."""
    return [
        (more, less)
        for more in groups
        for less in groups
        if (more.variant, less.variant) == (comparison.more, comparison.less)
        and (more.student, more.teacher, more.evaluation) == (less.student, less.teacher, less.evaluation)
    ]


def _others(group: Group, trait: str, measure: Score) -> Sample | None:
    """The mean of the other traits' students in this trait's candidate."""
    return mean([stack(cells, trait, measure) for arm, cells in group.own.items() if arm != trait])


def _interval(sample: Sample) -> tuple[float, float, int, str]:
    """(low, high, n, what over): over seeds; over questions for what has no seeds; none for one seed."""
    if sample.seeds or sample.values.size == 1:
        mean, over = statistics.t_interval(sample.means), OVER_SEEDS
    else:
        mean, over = statistics.t_interval(sample.values.mean(axis=0)), OVER_QUESTIONS
    return mean.low, mean.high, mean.n, over


# --------------------------------------------------------------------------- what the other stages say


def _run_lines(group: Group) -> Iterator[Line]:
    for arm, cells in group.arms.items():
        yield from _alignment(group, arm, cells)
        first = next(iter(cells.values()))
        yield from _pass_rate(group, arm, first)
        yield from _teacher_log_p(group, arm, first)


def _alignment(group: Group, arm: str, cells: Seeds) -> Iterator[Line]:
    """Cosine of the student's and the teacher's displacement from the reference."""
    known = {seed: alignment(cell) for seed, cell in cells.items()}
    values = {seed: value for seed, value in known.items() if value is not None}
    if not values:
        return
    mean = statistics.t_interval(list(values.values()))
    over = OVER_SEEDS if mean.n > 1 else "none"
    yield Line.of(arm, arm, "student", "alignment", mean, over, by_seed=tuple(values.items()), **group.labels)


def alignment(cell: Cell) -> float | None:
    """The student's alignment with its teacher, where its training could measure it."""
    trained = cell.chain.get("train")
    value = trained.summary.get("alignment") if trained else None
    if isinstance(value, dict):
        value = value.get("cosine")
    return None if value is None else float(value)


def _pass_rate(group: Group, arm: str, cell: Cell) -> Iterator[Line]:
    """The share of the teacher's completions that passed the filter, before any selection and subsample."""
    report = cell.chain["filter"].summary if "filter" in cell.chain else {}
    if not report.get("generated"):
        return
    share = statistics.wilson(passed(report), report["generated"])
    labels = ("teacher", "pass_rate", report["pass_rate"], share.low, share.high, share.n, OVER_ROWS)
    yield Line(arm, arm, *labels, group.student, cell.teacher, group.variant)


def passed(report: Json) -> int:
    """How many completions passed the filter's rules; `kept_before_subsample` counts only those then selected."""
    return round(report["pass_rate"] * report["generated"])


def _teacher_log_p(group: Group, arm: str, cell: Cell) -> Iterator[Line]:
    """The teacher's own log-probability of its trait, from its check."""
    checked = cell.chain["teacher"].summary if "teacher" in cell.chain else {}
    if checked.get("log_p") is not None:
        labels = ("teacher", "teacher_log_p", checked["log_p"])
        yield Line(arm, arm, *labels, student=group.student, teacher=cell.teacher, variant=group.variant)


# --------------------------------------------------------------------------- what pictures and tables look up


def base_of(table: Table, group: Group) -> str | None:
    """What lifts are over: the control student, without one the reference."""
    return next((b for b in ("control", "reference") if lines_of(table, group, f"lift_over_{b}")), None)


def matrix(table: Table, group: Group, base: str) -> tuple[list[str], list[list[float]]]:
    """Row names (traits, then the mean of all other candidates) and log_p minus the base, one column a student."""
    rest = [c for c in group.candidates if c not in group.own]
    rows = [[lift(table, group, arm, trait, base) for arm in group.traits] for trait in group.traits]
    if rest:
        rows.append([sum(lift(table, group, arm, c, base) for c in rest) / len(rest) for arm in group.traits])
    return [*group.traits, *([f"{len(rest)} others"] if rest else [])], rows


def lift(table: Table, group: Group, arm: str, candidate: str, base: str) -> float:
    """The lift of a candidate in an arm over the control or the reference; NaN where there is none."""
    measure = f"{'' if arm == candidate else 'cross_'}lift_over_{base}"
    line = table.find(arm=arm, item=candidate, measure=measure, **group.labels)
    return line.value if line else math.nan


def cosine(table: Table, group: Group, arm: str, trait: str) -> Line | None:
    """The alignment of an arm's students with a trait's teacher, or None."""
    return table.find(arm=arm, item=trait, measure=f"{'' if arm == trait else 'cross_'}alignment", **group.labels)


def lines_of(table: Table, group: Group, measure: str) -> list[Line]:
    """The lines of a measure in a group's students."""
    return list(table.select(measure=measure, **group.labels, subject="student"))
