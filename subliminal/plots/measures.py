"""The measures of the preference figure, from scores by question and seed to lines of its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from subliminal.config import CONTROL, Comparison
from subliminal.evaluation import statistics
from subliminal.plots.cells import Cell, Score
from subliminal.plots.displacement import aligned, alignment_excess
from subliminal.plots.groups import Group, Sample, Seeds, groups, mean, single, stack
from subliminal.plots.table import Line, Table
from subliminal.store import Json

OVER_SEEDS = "seeds"
OVER_TRAITS = "traits"
ACROSS = {  # the measure that a claim may rest on, and the same with its interval over traits
    "diagonal_excess": "excess_over_traits",
    "alignment_excess": "alignment_over_traits",
    "excess_difference": "excess_difference_over_traits",
    "alignment_difference": "alignment_difference_over_traits",
}
OVER_QUESTIONS = "questions (one seed)"
OVER_QUESTIONS_ONLY = "questions"
OVER_ROWS = "rows (Wilson)"
SCORES: tuple[Score, ...] = ("log_p", "log_share", "rate")
OTHERS = "other traits"
MEAN = "mean"


@dataclass(frozen=True)
class _Row:
    """What is the same for many lines: the group's labels and who is measured."""

    student: str
    teacher: str
    variant: str
    subject: str

    def line(self, arm: str, trait: str, measure: str, sample: Sample | None) -> Iterator[Line]:
        """One line, or none when the sample does not exist."""
        if sample is None:
            return
        seeds = tuple(sample.by_seed.items())
        low, high, n, over = _interval(sample)
        value = float(sample.values.mean())
        labels = (self.subject, measure, value, low, high, n, over, self.student, self.teacher, self.variant)
        yield Line(arm, trait, *labels, by_seed=seeds)

    def over_traits(self, measure: str, found: Mapping[str, Sample | None]) -> Iterator[Line]:
        """The mean with its interval over traits: there what all seeds of a trait share varies, teacher and rows."""
        values = [float(sample.values.mean()) for sample in found.values() if sample is not None]
        if values:
            one = statistics.t_interval(values)
            over = OVER_TRAITS if one.n > 1 else "none"
            labels = (one.mean, one.low, one.high, one.n, over, self.student, self.teacher, self.variant)
            yield Line(MEAN, MEAN, self.subject, measure, *labels)


def preference_table(cells: Sequence[Cell], comparisons: Sequence[Comparison] = ()) -> Table:
    """Every measure of every arm and comparison of variants; a measure whose cells are missing is absent."""
    lines: list[Line] = []
    for cell in cells:
        if cell.role != "student":
            lines += _single_lines(cell)
    found = groups(cells)
    for group in found:
        parts = (_score_lines, _contrast_lines, _excess_lines, _displacement_lines, _run_lines)
        lines += chain.from_iterable(part(group) for part in parts)
    return Table((*lines, *_difference_lines(found), *_comparison_lines(found, comparisons)))


# --------------------------------------------------------------------------- scores and contrasts


def _single_lines(cell: Cell) -> Iterator[Line]:
    row = _Row("", cell.teacher if cell.role == "teacher" else "", cell.variant, cell.role)
    for measure in SCORES:
        for candidate in cell.candidates:
            yield from row.line(cell.arm, candidate, measure, single(cell, candidate, measure))


def _score_lines(group: Group) -> Iterator[Line]:
    """log_p, log_share and rate of every candidate in every arm, and of each trait in the other traits' students."""
    row = _Row(**group.labels, subject="student")
    for measure in SCORES:
        for arm, cells in group.arms.items():
            for candidate in group.candidates:
                yield from row.line(arm, candidate, measure, stack(cells, candidate, measure))
        for trait in group.traits:
            yield from row.line(OTHERS, trait, measure, _others(group, trait, measure))


def _contrast_lines(group: Group) -> Iterator[Line]:
    """Lifts over the control and over the reference, in nats of mean log-probability."""
    row = _Row(**group.labels, subject="student")

    def control(candidate: str) -> Sample | None:
        return stack(group.control, candidate, "log_p")

    def reference(candidate: str) -> Sample | None:
        return single(group.reference, candidate, "log_p")

    for name, base in (("lift_over_control", control), ("lift_over_reference", reference)):
        own = {t: _minus(stack(cells, t, "log_p"), base(t)) for t, cells in group.own.items()}
        for trait, sample in own.items():
            yield from row.line(trait, trait, name, sample)
        yield from row.line(MEAN, MEAN, name, mean(list(own.values())))
        for arm, candidate, sample in _off_diagonal(group):
            yield from row.line(arm, candidate, f"cross_{name}", _minus(sample, base(candidate)))
    for trait in group.traits:
        for arm, sample in ((CONTROL, control(trait)), (OTHERS, _others(group, trait, "log_p"))):
            yield from row.line(arm, trait, "lift_over_reference", _minus(sample, reference(trait)))


def _off_diagonal(group: Group) -> Iterator[tuple[str, str, Sample | None]]:
    for arm, cells in group.own.items():
        for candidate in group.candidates:
            if candidate != arm:
                yield arm, candidate, stack(cells, candidate, "log_p")


def _excess_lines(group: Group) -> Iterator[Line]:
    """How far a trait's own students exceed the other traits' students in that trait; the mean carries the claim."""
    row = _Row(**group.labels, subject="student")
    names: tuple[tuple[str, Score], ...] = (("diagonal_excess", "log_p"), ("diagonal_excess_share", "log_share"))
    for name, measure in names:
        found = excess(group, measure)
        for trait, sample in found.items():
            yield from row.line(trait, trait, name, sample)
        yield from row.line(MEAN, MEAN, name, mean(list(found.values())))
    yield from row.over_traits(ACROSS["diagonal_excess"], excess(group, "log_p"))


def excess(group: Group, measure: Score) -> dict[str, Sample | None]:
    """Own students minus the other traits' students in each trait, in nats; None where a score is missing."""
    return {t: _minus(stack(c, t, measure), _others(group, t, measure)) for t, c in group.own.items()}


def _displacement_lines(group: Group) -> Iterator[Line]:
    """Cosines of students with the other traits' teachers, and by how much the own teacher exceeds them."""
    row = _Row(**group.labels, subject="student")
    for (arm, trait), sample in aligned(group).items():
        if arm != trait:
            yield from row.line(arm, trait, "cross_alignment", sample)
    found = alignment_excess(group)
    for trait, sample in found.items():
        yield from row.line(trait, trait, "alignment_excess", sample)
    yield from row.line(MEAN, MEAN, "alignment_excess", mean(list(found.values())))
    yield from row.over_traits(ACROSS["alignment_excess"], found)


def _difference_lines(found: Sequence[Group]) -> Iterator[Line]:
    """The first variant's mean diagonal excess minus each other variant's, seed by seed: what a variant takes away.

    Means are over the traits that both variants have. Variants that were asked something else have no difference:
    their nats are not the same measure.
    """
    firsts = {group.student: group for group in reversed(found) if group.variant == found[0].variant}
    for group in found:
        first = firsts.get(group.student)
        if first is None or first.variant == group.variant or first.asked != group.asked:
            continue
        left, right = (excess(g, "log_p") for g in (first, group))
        lost = _minus(*(mean([found[trait] for trait in left if trait in right]) for found in (left, right)))
        yield from _Row(**group.labels, subject="student").line(MEAN, MEAN, "excess_lost", lost)


def _comparison_lines(found: Sequence[Group], comparisons: Sequence[Comparison]) -> Iterator[Line]:
    """A share of the greater variant's mean excess minus the lesser one's, by seed, in preference and alignment."""
    for comparison in comparisons:
        for more, less in compared(found, comparison):
            row = _Row(more.student, more.teacher, comparison.name, "student")
            ends = (excess(more, "log_p"), excess(less, "log_p")), (alignment_excess(more), alignment_excess(less))
            for name, (left, right) in zip(("excess_difference", "alignment_difference"), ends, strict=True):
                lost = {t: _minus(_share(left[t], comparison.share), right[t]) for t in left if t in right}
                yield from row.line(MEAN, MEAN, name, mean(list(lost.values())))
                yield from row.over_traits(ACROSS[name], lost)


def compared(found: Sequence[Group], comparison: Comparison) -> list[tuple[Group, Group]]:
    """The groups that a comparison is about, of one recipe and kind of teacher each and asked the same."""
    return [
        (more, less)
        for more in found
        for less in found
        if (more.variant, less.variant) == (comparison.more, comparison.less)
        and (more.student, more.teacher, more.asked) == (less.student, less.teacher, less.asked)
    ]


def _share(sample: Sample | None, share: float) -> Sample | None:
    return None if sample is None else Sample(sample.seeds, share * sample.values)


def _others(group: Group, trait: str, measure: Score) -> Sample | None:
    """The mean of the other traits' students in this trait's candidate."""
    return mean([stack(cells, trait, measure) for arm, cells in group.own.items() if arm != trait])


def _minus(left: Sample | None, right: Sample | None) -> Sample | None:
    return None if left is None or right is None else left - right


def _interval(sample: Sample) -> tuple[float, float, int, str]:
    """(low, high, n, what over): across seeds where there are two or more, else across questions."""
    if len(sample.values) >= 2:
        found, over = statistics.t_interval(sample.values.mean(axis=1)), OVER_SEEDS
    elif sample.values.size == 1:
        found, over = statistics.t_interval(sample.values[0]), "none"
    else:
        found = statistics.bootstrap_over_questions(sample.values, seed=0)
        over = OVER_QUESTIONS if sample.seeds else OVER_QUESTIONS_ONLY
    return found.low, found.high, found.n, over


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
    found = statistics.t_interval(list(values.values()))
    over = OVER_SEEDS if found.n > 1 else "none"
    labels = ("student", "alignment", found.mean, found.low, found.high, found.n, over)
    yield Line(arm, arm, *labels, **group.labels, by_seed=tuple(values.items()))


def alignment(cell: Cell) -> float | None:
    """The student's alignment with its teacher, where its training could measure it."""
    trained = cell.chain.get("train")
    found = trained.summary.get("alignment") if trained else None
    if isinstance(found, dict):
        found = found.get("cosine")
    return None if found is None else float(found)


def _pass_rate(group: Group, arm: str, cell: Cell) -> Iterator[Line]:
    """The share of the teacher's completions that passed the filter, before any selection and subsample."""
    report = cell.chain["filter"].summary if "filter" in cell.chain else {}
    if not report.get("generated"):
        return
    found = statistics.wilson(passed(report), report["generated"])
    labels = ("teacher", "pass_rate", report["pass_rate"], found.low, found.high, found.n, OVER_ROWS)
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
