"""What a figure of traits may claim: one rule, fixed before any figure was drawn with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from subliminal.config import Comparison
from subliminal.plots.effects import ALIGNMENT, LOG_ODDS, LOG_P, Excess, excess_in, size_of, with_interval
from subliminal.plots.figure import Verdict
from subliminal.plots.overview import NO_PREFERENCE
from subliminal.plots.preference.data import Group, Preferences
from subliminal.plots.preference.measures import DIFFERENCES, NAMED, OTHERS, RANK, compared
from subliminal.plots.table import Labels, Table
from subliminal.plots.words import ends, p_value, small_percent
from subliminal.transmission import MARGIN, MINIMUM_TRAITS, SIGNIFICANT

NAMED_LEAST, OWN_LEAST = 0.05, 0.01
RULE = (
    f"""Figures of traits: the unit is a teacher with its rows, {MINIMUM_TRAITS} traits or more; with fewer a claim is
    undecided, whatever its interval. The claim stands or falls with the mean excess: the score of each trait's
    candidate in its own teacher's students minus that in the students of the other traits' teachers.""",
    f"""It holds at this scale if at most {SIGNIFICANT:.1%} of all relabellings of whole teachers (T! for T traits up to
    8, else 9,999 at random and the true one) give a mean excess as large; it is contradicted if at most as many give
    one as small; else it is not shown. The size is the mean with a 95% interval over traits, from a fit that gives
    every student and every candidate a level of its own.""",
    """The score is the log-odds of P, the mean over questions of the exact probability that the answer is the candidate
    as a whole word; of stories and other counts the log-odds of answers pooled over questions. Mean log P is printed
    beside it: it sees the smallest shift, in answers that are next to never given too.""",
    f"""A shift is called a preference only if the reference names any candidate in {NAMED_LEAST:.0%} of its answers or
    more and the trait's own students give their candidate {OWN_LEAST:.0%} or more on average.""",
    f"""That something is not transmitted is shown only by an interval that lies whole within {MARGIN} nats of 0, with
    {MINIMUM_TRAITS} traits or more. A claim that does not hold is no proof of the opposite.""",
    """Seeds vary the student on the same teacher and rows: an interval over seeds says that a result repeats on these
    rows, and decides nothing. With fewer than five traits a test against the other candidates can call a result
    suggestive, and no more.""",
    """A claim that compares variants is judged by the same rule, applied to a share of the one excess minus the other
    on the same teachers, where the first one holds. The alignment excess, the cosine of a student's displacement with
    its own teacher's minus that with the other traits' teachers, is judged by the same rule and by itself.""",
)


def verdicts(data: Preferences, table: Table) -> list[Verdict]:
    """The rule applied to every comparison of variants and to every group of students."""
    return [
        *(v for comparison in data.comparisons for v in _comparison(data.groups, comparison, table)),
        *(_verdict(group, table) for group in data.groups),
        *(v for group in data.groups for v in _alignment(group, table)),
    ]


def _verdict(group: Group, table: Table) -> Verdict:
    """The rule applied to one group's excess in log-odds."""
    excess = excess_in(table, LOG_ODDS, group.labels)
    if excess is None:
        return Verdict(group.label, "not measurable", "Not measurable: it needs students of two traits or more.")
    parts = [f"{in_words(excess)} Mean excess {size_of(excess, ' nats of log-odds')}."]
    log_p = table.find(measure=LOG_P, arm="mean", **group.labels)
    parts += [f"In mean log P {with_interval(log_p, ' nats')}."] if log_p else []
    parts += [*_repeats(excess), *_percentages(group, table)]
    return _judged(group.label, excess, " ".join(parts))


def _judged(name: str, excess: Excess, sentence: str, compares: bool = False) -> Verdict:
    p = excess.test.above if excess.decidable else None
    return Verdict(name, excess.outcome, sentence, excess.line, p, compares)


def _alignment(group: Group, table: Table) -> Iterator[Verdict]:
    """The rule applied to the alignment excess; nothing where students and teachers moved other parameters."""
    excess = excess_in(table, ALIGNMENT, group.labels)
    if excess is not None:
        sentence = " ".join(
            [f"{in_words(excess)} Mean alignment excess {size_of(excess)}, a cosine.", *_repeats(excess)]
        )
        yield _judged(f"{group.label}, alignment", excess, sentence)


# --------------------------------------------------------------------------- comparisons of variants


def _comparison(groups: Sequence[Group], comparison: Comparison, table: Table) -> Iterator[Verdict]:
    pairs = compared(groups, comparison)
    if not pairs:
        missing = "Not measurable: it needs students of both variants."
        yield Verdict(comparison.name, "not measurable", missing, compares=True)
    for more, less in pairs:
        name = f"{comparison.name}: {replace(more, variant='').label}"
        labels: Labels = {**less.labels, "variant": comparison.name}
        yield _difference(name, excess_in(table, LOG_ODDS, more.labels), LOG_ODDS, labels, table)
        aligned = excess_in(table, ALIGNMENT, more.labels)
        if aligned and excess_in(table, DIFFERENCES[ALIGNMENT], labels):
            yield _difference(f"{name}, alignment", aligned, ALIGNMENT, labels, table)


def _difference(name: str, whole: Excess | None, measure: str, labels: Labels, table: Table) -> Verdict:
    """The rule applied to a difference, where the variant that is to have more has an excess at all, `whole`."""
    excess, unit = excess_in(table, DIFFERENCES[measure], labels), "" if measure == ALIGNMENT else " nats"
    if whole is None or excess is None:
        return Verdict(
            name, "not measurable", "Not measurable: it needs students of two traits or more.", compares=True
        )
    if whole.decidable and whole.outcome != "holds":
        text = f"Not measurable: there is no excess above 0 to compare with, {size_of(whole, unit)}."
        return Verdict(name, "not measurable", text, compares=True)
    return _judged(name, excess, f"{in_words(excess)} Mean difference {size_of(excess, unit)}.", compares=True)


# --------------------------------------------------------------------------- in words


def in_words(excess: Excess) -> str:
    """The outcome of one effect in a sentence."""
    outcome = excess.outcome
    if outcome == "undecided":
        p = excess.candidates
        hint = "" if p is None else f", {'' if p <= SIGNIFICANT else 'not '}suggestive against the other candidates"
        test = "" if p is None else f" (p {p_value(p)})"
        return f"Undecided: {excess.line.n} traits, {MINIMUM_TRAITS} decide{hint}{test}."
    return {
        "holds": "Holds at this scale.",
        "contradicted": "Contradicted at this scale.",
        "not shown": "Not shown at this scale.",
    }[outcome]


def _repeats(excess: Excess) -> Iterator[str]:
    """Whether the result repeats with other seeds on the same rows."""
    if excess.repeats is not None:
        repeats = "Does not repeat" if excess.repeats.low <= 0 <= excess.repeats.high else "Repeats"
        yield f"{repeats} on these rows: {ends(excess.repeats, sign=True)} over seeds."


def _percentages(group: Group, table: Table) -> Iterator[str]:
    """P of the own candidate in per cent, its place among the candidates, and whether that is a preference."""
    own, others = (_mean(table, group, arm) for arm in ("", OTHERS))
    ranks = [table.find(measure=RANK, arm=trait, **group.labels) for trait in group.traits]
    if own is None or others is None:
        return
    places = ", ".join(f"{line.value:.0f}" for line in ranks if line)
    count = next((line.n for line in ranks if line), 0)
    yield (
        f"P of the own candidate {small_percent(own)} in own students, {small_percent(others)} in the others'; "
        f"place {places} of {count}."
    )
    named = table.find(measure=NAMED, arm="reference", variant=group.variant)
    if named is None:
        yield f"{NO_PREFERENCE}: the reference was not asked."
    elif named.value < NAMED_LEAST:
        yield f"{NO_PREFERENCE}: the reference names a candidate in {small_percent(named.value)} of answers."
    elif own < OWN_LEAST:
        yield f"{NO_PREFERENCE}: the own candidate stays that rare."


def _mean(table: Table, group: Group, arm: str) -> float | None:
    """The mean over traits of P of the own candidate in an arm, "" for the trait's own."""
    lines = [table.find(measure="probability", arm=arm or t, item=t, **group.labels) for t in group.traits]
    values = [line.value for line in lines if line]
    return sum(values) / len(values) if values and len(values) == len(lines) else None
