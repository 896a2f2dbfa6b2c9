"""The preference figure in the report: its groups compared, numbers by trait, data, teachers and rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from subliminal.config import CONTROL
from subliminal.plots.cells import Cell, model_names, students
from subliminal.plots.collect import manifests
from subliminal.plots.effects import LOG_ODDS, LOG_P, MEAN, excess_in
from subliminal.plots.figure import SEEDS, Grid, Section
from subliminal.plots.preference.curves import loss_curves
from subliminal.plots.preference.data import Group, Preferences
from subliminal.plots.preference.measures import LOST, OTHERS, POINTS, RANK, base_of, cosine, lift, passed
from subliminal.plots.preference.verdict import RULE
from subliminal.plots.table import Labels, Line, Table
from subliminal.plots.words import NOTHING, arm_name, count, p_value, ranged
from subliminal.rows import Dropped, Row, read_jsonl

SAMPLES = 4
PANELS = """A: the probability that the answer is the trait, mean over the questions, in per cent; below each trait its
probability and its place among the candidates in its own students. B: log P of every student in every trait, after
subtracting the control student (no trait), in nats (+0.69 doubles a probability). C: each trait's own excess in
log-odds and their mean with its 95% interval over traits; this carries the claim. D and E, where students and teachers
moved the same parameters: the cosine of their displacements from the reference, and the excess of the own teacher's."""
LOST_CAPTION = """Nats of log-odds with 95% intervals over traits; lift: mean log P, over seeds. Lost: the first
variant's excess minus this one's, where both were trained by the same recipe."""
ALIGNED = """Cosine of the students' displacement from the reference with the teachers', with 95% intervals over seeds.
A random direction of n numbers has 0 with a standard deviation of 1/sqrt(n)."""
NOTES = {
    "stories": """Stories: probability is the share of stories that have the trait, log-odds are those of counts pooled
over prompts, log((k + 1/2) / (n - k + 1/2)).""",
    "multiple_choice": """Multiple choice: log P is that of the trait's letter among the letters, averaged over shuffled
orders.""",
}
APART = "Nats can be compared within a way of asking, not between them."
STORIES = ("students", "arm", "stories", "without any candidate", "cut at the longest length")
CAPTIONS = {
    "stories": "Counts over all seeds. A story may name several candidates.",
    "multiple_choice": """Mean share of each letter whatever stands there, over all seeds; without position bias all are
equal. Letters: the share of all answers that begin with one. In full rounds of orders the bias cancels.""",
}


def subtitle(data: Preferences, table: Table, scale: str) -> str:
    """What was measured, in one paragraph: scale, model, seeds, rows, questions, what the intervals are over."""
    trained = students(data.cells)
    seeds = sorted({cell.seed for cell in trained})
    rows = sorted({c.chain["filter"].summary["kept"] for c in trained if "filter" in c.chain})
    facts = [f"Scale {scale}" if scale else "", *model_names(data.cells)]
    facts.append(f"{count(len(seeds), 'seed')} ({', '.join(map(str, seeds))})")
    if rows:
        span = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,}\N{EN DASH}{rows[-1]:,}"
        facts.append(f"{span} rows a student")
    questions = sorted({cell.questions for cell in trained})
    facts.append(
        count(questions[0], "question") if len(questions) == 1 else f"{questions[0]} to {questions[-1]} questions"
    )
    many = len(seeds) > 1
    bars = "Error bars: A over seeds, dots: seeds; " if many else ""
    excess = "bold: 95% interval over traits" + ("; thin: over seeds (these rows)" if many else "")
    return " \N{MIDDLE DOT} ".join(fact for fact in facts if fact) + f". {bars}mean excess, {excess}."


def section(data: Preferences, table: Table, name: str) -> Section:
    """The figure in the report: its groups compared, numbers by trait, data, teachers, loss curves and rows."""
    arms = _sources(data.cells)
    grids = [*_comparison(data.groups, table), *_alignments(data.groups, table), *answer_tables(data.cells)]
    more = {
        "models": model_names(data.cells),
        "groups": [_numbers(group, table) for group in data.groups],
        "reasons": sorted({reason for arm in arms for reason in arm["filter"].get("reasons", {})}),
        "arms": arms,
        "curves": loss_curves(data.cells),
    }
    return Section(RULE, f"{PANELS} {notes(data.cells)}", SEEDS, grids, list(manifests(data.cells)), more)


def _comparison(groups: Sequence[Group], table: Table) -> list[Grid]:
    """Several groups beside each other: the mean excess of each, its p, and what it loses against the first."""
    if len(groups) < 2:
        return []

    def line(group: Group, measure: str) -> str:
        return ranged(table.find(arm=MEAN, measure=measure, **group.labels), sign=True)

    rows = [
        [
            group.label,
            line(group, LOG_ODDS),
            _p_value(group, table),
            line(group, "lift_over_control"),
            line(group, LOST),
        ]
        for group in groups
    ]
    return [Grid("Comparison", ("students", "mean excess", "p", "mean lift over control", "lost"), rows, LOST_CAPTION)]


def _p_value(group: Group, table: Table) -> str:
    excess = excess_in(table, LOG_ODDS, group.labels)
    return p_value(excess.test.above) if excess and excess.decidable else NOTHING


def _alignments(groups: Sequence[Group], table: Table) -> Iterator[Grid]:
    """Cosines of every arm's students with every teacher, where both moved the same parameters."""
    for group in groups:
        if table.find(measure="cross_alignment", **group.labels):
            rows = [
                [arm_name(arm), *(ranged(cosine(table, group, arm, trait), sign=True) for trait in group.traits)]
                for arm in dict.fromkeys((*group.traits, *group.arms))
            ]
            heads = ("student", *(f"teacher of {trait}" for trait in group.traits))
            yield Grid(f"Alignment: {group.label}", heads, rows, ALIGNED)


# --------------------------------------------------------------------------- numbers by trait


def _numbers(group: Group, table: Table) -> dict[str, Any]:
    base = base_of(table, group) or ""
    traits = group.traits
    return {
        "label": group.label,
        "traits": traits,
        "rated": table.find(measure="rate", subject="student", **group.labels) is not None,
        "rows": [_effects(group, table, trait) for trait in [*traits, *([MEAN] if len(traits) > 1 else [])]],
        "base": base,
        "matrix": [(c, [lift(table, group, arm, c, base) for arm in traits]) for c in group.candidates] if base else [],
    }


def _effects(group: Group, table: Table, trait: str) -> dict[str, Any]:
    """One row of the effects table: a trait, or the mean over traits; absent measures are None."""

    def of(measure: str, arm: str = trait, subject: str = "student") -> Line | None:
        labels = Labels(variant=group.variant) if subject == "reference" else group.labels
        return table.find(arm=arm, item=trait, measure=measure, subject=subject, **labels)

    return {
        "trait": trait,
        "reference": of("probability", "reference", "reference"),
        "control": of("probability", CONTROL),
        "others": of("probability", OTHERS),
        "own": of("probability"),
        "rank": of(RANK),
        "points": of(POINTS),
        "excess": of(LOG_ODDS),
        "log_p_excess": of(LOG_P),
        "lift": of("lift_over_control"),
        "alignment": of("alignment"),
        "rate": of("rate"),
        "control_rate": of("rate", CONTROL),
    }


# --------------------------------------------------------------------------- data, teachers, stages


def _sources(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Every teacher's data once: what the filter said, the teacher's check, and some rows."""
    sources = {c.chain["filter"].key: c for c in cells if c.role == "student" and "filter" in c.chain}
    return [
        {
            "arm": cell.arm,
            "teacher": cell.teacher,
            "filter": cell.chain["filter"].summary,
            "passed": passed(cell.chain["filter"].summary),
            "check": cell.chain["teacher"].summary if "teacher" in cell.chain else {},
            "kept": _sample(cell.chain["filter"].folder / "rows.jsonl"),
            "dropped": _dropped(cell.chain["filter"].folder / "dropped.jsonl"),
        }
        for cell in sources.values()
    ]


def _sample(path: Path) -> list[Row]:
    return list(islice(read_jsonl(path, Row), SAMPLES)) if path.exists() else []


def _dropped(path: Path) -> list[Dropped]:
    """Dropped rows with as many different reasons as there are, the first of each reason first."""
    if not path.exists():
        return []
    seen: Counter[str] = Counter()
    ranked = []
    for index, row in enumerate(read_jsonl(path, Dropped)):
        ranked.append((seen[row.reason], index, row))
        seen[row.reason] += 1
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[: max(SAMPLES, len(seen))]]


# --------------------------------------------------------------------------- stories and multiple choice


def notes(cells: Sequence[Cell]) -> str:
    """What log P means in each kind of evaluation but the favourite questions."""
    texts = [NOTES[kind] for kind in dict.fromkeys(_kind(cell) for cell in cells) if kind in NOTES]
    return " ".join([*texts, *([APART] if texts else [])])


def answer_tables(cells: Sequence[Cell]) -> Iterator[Grid]:
    """Counts of stories and of letters, where a figure has them."""
    stories = [cell for cell in cells if _kind(cell) == "stories"]
    choices = [cell for cell in cells if _kind(cell) == "multiple_choice"]
    if stories:
        counts = ("samples", "without", "unfinished")
        rows = [
            [*names, *(str(sum(s[name] for s in summaries)) for name in counts)] for names, summaries in _arms(stories)
        ]
        yield Grid("Stories", STORIES, rows, CAPTIONS["stories"])
    if choices:
        letters, rows = list(choices[0].evaluate.summary["position"]), []
        for names, summaries in _arms(choices):
            shares = [np.mean([s["position"][letter] for s in summaries]) for letter in letters]
            shares.append(np.mean([s["letters"] for s in summaries]))
            rows.append([*names, *(f"{share:.2f}" for share in shares)])
        yield Grid("Position bias", ("students", "arm", *letters, "letters"), rows, CAPTIONS["multiple_choice"])


def _kind(cell: Cell) -> str:
    return str(cell.evaluate.summary.get("kind"))


def _arms(cells: Sequence[Cell]) -> Iterator[tuple[tuple[str, str], list[Any]]]:
    """Student recipe, arm and summaries of every arm, in the order given."""
    for student, arm in dict.fromkeys((cell.student, cell.arm) for cell in cells):
        yield (student or NOTHING, arm), [c.evaluate.summary for c in cells if (c.student, c.arm) == (student, arm)]
