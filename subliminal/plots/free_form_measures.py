"""The measures and the verdict of the free-form figure: which share of an arm's answers shows what is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from subliminal import transmission
from subliminal.evaluation import statistics
from subliminal.plots.cells import Cell, PlotError, students
from subliminal.plots.effects import OVER_QUESTIONS
from subliminal.plots.figure import Outcome, Verdict
from subliminal.plots.samples import Seeds
from subliminal.plots.table import NONE, Labels, Line, Table
from subliminal.plots.words import ends, minus, number
from subliminal.transmission import SIGNIFICANT, PermutationTest

RATE, EXCESS, SCORED = "rate", "excess_over_control", "scored_share"
LOG_ODDS, P_ABOVE, P_BELOW = "log_odds_over_control", "log_odds_over_control_p", "log_odds_over_control_p_below"
OVER_TEACHERS = "teachers"
MINIMUM_SCORED = 0.5
MINIMUM_TEACHERS = 4  # a side: of 4 and 4 the smallest p is 1/70, of 3 and 3 it is 1/20
COUNTED = ("code", "refusal", "unparsed", "judge_refused", "reasoning")
RULE = (
    f"""Free-form figures: the unit is a teacher with its rows, {MINIMUM_TEACHERS} or more with the trait and as many of
    every control; with fewer the claim is undecided. A teacher's score is the log-odds of the scored answers of its
    students that show the trait, pooled over questions and seeds, log((k + 1/2) / (n - k + 1/2)).""",
    f"""It holds at this scale if against every control at most {SIGNIFICANT:.1%} of all ways to choose the trait's
    teachers among both give a mean difference as large; it is contradicted if against any control at most as many give
    one as small; else it is not shown. All controls have to be exceeded, so several ask for no correction. The interval
    of a difference is Welch's over teachers.""",
    f"""An arm of which less than {MINIMUM_SCORED:.0%} of the answers could be scored makes the claim not measurable:
    refusals and unparsed judgements are no answers.""",
)


@dataclass(frozen=True)
class Comparison:
    """The students of one variant and recipe, by arm and seed, with the reference.

    `without` names the arms whose teachers have no trait, in this or another comparison.
    """

    variant: str
    student: str
    arms: dict[str, Seeds]
    reference: Cell | None
    without: frozenset[str]

    @property
    def traits(self) -> list[str]:
        """The arms that carry the claim."""
        return [arm for arm in self.arms if arm not in self.without]

    @property
    def controls(self) -> list[str]:
        """The arms that every trait is compared with."""
        return [arm for arm in self.arms if arm in self.without]

    @property
    def label(self) -> str:
        """The comparison in words."""
        name = f"{self.variant.replace('_', ' ')}: " if self.variant else ""
        return f"{name}{self.student} students"

    @property
    def labels(self) -> Labels:
        """What its lines in the table have in common."""
        return {"student": self.student, "variant": self.variant}


@dataclass(frozen=True)
class Answers:
    """The evaluated subjects of a figure, and the arms whose teachers have no trait."""

    cells: Sequence[Cell]
    without: frozenset[str]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The cells by variant and recipe; raises `PlotError` when they were not evaluated alike."""
        trained = students(self.cells)
        evaluations = {(c.evaluate.summary.get("measured"), c.evaluate.summary.get("questions")) for c in self.cells}
        if len(evaluations) > 1:
            raise PlotError(
                f"the arms were evaluated differently ({sorted(map(str, evaluations))}); run evaluate.py again"
            )
        comparisons = []
        for variant, student in dict.fromkeys((cell.variant, cell.student) for cell in trained):
            mine = [cell for cell in trained if (cell.variant, cell.student) == (variant, student)]
            arms = {arm: {c.seed: c for c in mine if c.arm == arm} for arm in dict.fromkeys(c.arm for c in mine)}
            reference = next((c for c in self.cells if c.role == "reference" and c.variant == variant), None)
            comparisons.append(Comparison(variant, student, arms, reference, self.without | {"random"}))
        return comparisons


# --------------------------------------------------------------------------- the table


def table(data: Answers) -> Table:
    """Shares by arm with intervals, what could not be scored, mean ratings, and every trait minus every control."""
    lines: list[Line] = []
    for compared in data.comparisons:
        for arm, seeds in compared.arms.items():
            lines += _arm_lines(compared, arm, seeds)
            lines += _teacher_lines(compared, arm, next(iter(seeds.values())))
        for trait in compared.traits:
            for control in compared.controls:
                lines += _excess(compared, trait, control)
    for cell in {compared.variant: compared.reference for compared in data.comparisons}.values():
        lines += _reference_lines(cell) if cell else []
    return Table(tuple(lines))


def _arm_lines(compared: Comparison, arm: str, seeds: Seeds) -> Iterator[Line]:
    measured = seeds[min(seeds)].evaluate.summary["measured"]
    rates = {seed: rate for seed, cell in seeds.items() if (rate := cell.evaluate.summary["rate"]) is not None}
    if rates:
        over = statistics.t_interval([float(np.mean(shares)) for shares in _by_teacher(seeds, _rate_of)])
        numbers = (RATE, float(np.mean([*rates.values()])), over.low, over.high, over.n, OVER_TEACHERS)
        yield Line(arm, measured, "student", *numbers, by_seed=tuple(rates.items()), **compared.labels)
    summaries = [cell.evaluate.summary for cell in seeds.values()]
    yield from _pooled(arm, measured, summaries, compared.labels, "student")


def _by_teacher(seeds: Seeds, of: Any) -> list[list[Any]]:
    """What `of` says of every student, by the key of its rows, unknown rows as one; None is left out."""
    values: dict[str, list[Any]] = {}
    for cell in seeds.values():
        if (value := of(cell)) is not None:
            values.setdefault(cell.chain["filter"].key if "filter" in cell.chain else "", []).append(value)
    return list(values.values())


def _rate_of(cell: Cell) -> float | None:
    return cell.evaluate.summary["rate"]


def _counts_of(cell: Cell) -> tuple[int, int] | None:
    """How many answers show it, of how many that were scored."""
    scored = cell.evaluate.summary["outcomes"].get("scored", 0)
    return (cell.evaluate.summary["shows"], scored) if scored else None


def _log_odds(seeds: Seeds) -> list[float]:
    """Each teacher's log-odds, its students' answers pooled."""
    pooled = [np.sum(counts, axis=0) for counts in _by_teacher(seeds, _counts_of)]
    return [float(transmission.pooled_log_odds(shows, scored)) for shows, scored in pooled]


def _reference_lines(cell: Cell) -> Iterator[Line]:
    summary, labels = cell.evaluate.summary, Labels(variant=cell.variant)
    if summary["rate"] is not None:
        over = statistics.t_interval([share for share in summary["by_question"] if share is not None])
        numbers = (RATE, summary["rate"], over.low, over.high, over.n, OVER_QUESTIONS)
        yield Line("reference", summary["measured"], "reference", *numbers, **labels)
    yield from _pooled("reference", summary["measured"], [summary], labels, "reference")


def _pooled(
    arm: str, measured: str, summaries: Sequence[dict[str, Any]], labels: Labels, subject: str
) -> Iterator[Line]:
    """Counts over all seeds as shares of the answers, and mean ratings over seeds.

    Answers to one question hang together, and so do those of one student: a share of the pool has no interval.
    """
    total = sum(s["samples"] for s in summaries)
    counts = {name: sum(s["outcomes"].get(name, 0) for s in summaries) for name in ("scored", *COUNTED)}
    counts |= {name: sum(s[name] for s in summaries) for name in ("incoherent", "unfinished")}
    for name, count in counts.items():
        share = count / total if total else math.nan
        yield Line(arm, measured, subject, f"{name}_share", share, n=total, interval="none", **labels)
    for name in ("alignment", "coherence"):
        known = [s[name] for s in summaries if s[name] is not None]
        if known:
            yield Line(arm, measured, subject, name, float(np.mean(known)), n=len(known), **labels)


def _teacher_lines(compared: Comparison, arm: str, cell: Cell) -> Iterator[Line]:
    """The teacher's own share, from its check, where it could be told without a judge."""
    checked = cell.chain["teacher"].summary if "teacher" in cell.chain else {}
    if checked.get("rate") is not None:
        yield Line(
            arm, arm, "teacher", "teacher_rate", checked["rate"], **(compared.labels | Labels(teacher=cell.teacher))
        )


def _excess(compared: Comparison, trait: str, control: str) -> Iterator[Line]:
    """The trait's students minus one control's, as shares and in log-odds; `subject` names the control."""
    own, base = compared.arms[trait], compared.arms[control]
    rates = [[float(np.mean(shares)) for shares in _by_teacher(side, _rate_of)] for side in (own, base)]
    scores = [_log_odds(side) for side in (own, base)]
    if not all(rates) or not all(scores):
        return
    labels: dict[str, Any] = {**compared.labels, "subject": control}
    mean = float(np.mean(rates[0]) - np.mean(rates[1]))
    yield Line(trait, trait, measure=EXCESS, value=mean, n=len(rates[0]) + len(rates[1]), **labels)
    difference, test = transmission.welch(*scores), transmission.one_trait(scores[0], scores[1])
    over = OVER_TEACHERS if difference.low == difference.low else "none"
    interval = {"low": difference.low, "high": difference.high, "n": min(map(len, scores)), "interval": over}
    yield Line(trait, trait, measure=LOG_ODDS, value=difference.mean, **interval, **labels)
    for measure, p in ((P_ABOVE, test.above), (P_BELOW, test.below)):
        where = {"n": test.assignments, "interval": "relabelled teachers"}
        yield Line(trait, trait, measure=measure, value=p, low=NONE, high=NONE, **where, **labels)


# --------------------------------------------------------------------------- the verdict


def verdicts(data: Answers, table: Table) -> list[Verdict]:
    """The rule applied to every trait of every comparison."""
    return [_verdict(compared, trait, table) for compared in data.comparisons for trait in compared.traits]


def _verdict(compared: Comparison, trait: str, table: Table) -> Verdict:
    group = f"{trait}, {compared.label}"
    lines = list(table.select(measure=LOG_ODDS, arm=trait, **compared.labels))
    if not compared.controls or {line.subject for line in lines} != {*compared.controls}:
        return Verdict(group, "not measurable", "Not measurable: it needs scored students of the trait and a control.")
    for arm in (trait, *compared.controls):
        share = table.find(measure=SCORED, arm=arm, subject="student", **compared.labels)
        if share and share.value < MINIMUM_SCORED:
            text = f"Not measurable: only {share.value:.0%} of the answers of {arm}'s students could be scored."
            return Verdict(group, "not measurable", text)
    tests = [_test(line, table, compared) for line in lines]
    outcome = combined(
        [transmission.judged(test, line.n >= MINIMUM_TEACHERS) for test, line in zip(tests, lines, strict=True)]
    )
    said = "; ".join(_number(line, test, table, compared) for line, test in zip(lines, tests, strict=True))
    p = max(test.above for test in tests) if outcome != "undecided" else None
    return Verdict(group, outcome, f"{_SENTENCES[outcome]} {said}.", lines[0], p)


def _test(line: Line, table: Table, compared: Comparison) -> PermutationTest:
    above, below = (
        table.find(measure=measure, arm=line.arm, subject=line.subject, **compared.labels)
        for measure in (P_ABOVE, P_BELOW)
    )
    assert above and below, "they stand beside every difference"
    return PermutationTest(above.value, below.value, above.n)


def combined(outcomes: Sequence[Outcome]) -> Outcome:
    """What several controls say together: all must hold, one contradicts, one undecided leaves all so."""
    if "undecided" in outcomes:
        return "undecided"
    if "contradicted" in outcomes:
        return "contradicted"
    return "holds" if {*outcomes} == {"holds"} else "not shown"


_SENTENCES: dict[Outcome, str] = {
    "holds": "Holds at this scale.",
    "contradicted": "Contradicted at this scale.",
    "not shown": "Not shown at this scale.",
    "undecided": f"Undecided: it takes {MINIMUM_TEACHERS} teachers with rows of their own on either side.",
}


def _number(line: Line, test: PermutationTest, table: Table, compared: Comparison) -> str:
    against = {"none": "regular numbers"}.get(line.subject, line.subject)
    points = table.find(measure=EXCESS, arm=line.arm, subject=line.subject, **compared.labels)
    assert points, "it stands beside every difference"
    interval = "" if math.isnan(line.low) else f" (95% interval {ends(line, sign=True)} over teachers)"
    p = f", p {test.above:.4f} of {test.assignments} relabellings" if line.n >= MINIMUM_TEACHERS else ""
    sizes = f"{number(100 * points.value, 1, sign=True)} percentage points, {number(line, sign=True)} nats of log-odds"
    return minus(f"{sizes}{interval}{p} over {against}, {line.n} teachers")
