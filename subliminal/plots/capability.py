"""The capability table: accuracy of every arm on named tasks, and what students lost against the control."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from subliminal import arms
from subliminal.config import CONTROL
from subliminal.evaluation.statistics import paired_change, t_interval, wilson
from subliminal.plan import Plan
from subliminal.plots import parts, style
from subliminal.plots.cells import Cell, PlotError, model_names, read_lines, students
from subliminal.plots.collect import evaluated, manifests
from subliminal.plots.effects import MEAN, OVER_QUESTIONS, OVER_SEEDS, OVER_TRAITS
from subliminal.plots.figure import SEEDS, Collected, Grid, Outcome, Section, Verdict
from subliminal.plots.parts import Heading
from subliminal.plots.samples import Sample, mean
from subliminal.plots.table import Line, Table
from subliminal.plots.words import percent, percent_ranged, ranged, student_name
from subliminal.store import Store
from subliminal.transmission import MINIMUM_TRAITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

plan = arms.students
MARGIN = 0.03
ACCURACY, CHANGE, CHANCE, CHANGE_BY_QUESTION = "accuracy", "change_from_control", "chance", "change_over_questions"
WIDTH, LETTER = 9.0, 0.061  # inches, inches a letter of a label
COLOURS = {"reference": style.REFERENCE, CONTROL: style.CONTROL, "random": style.CONTROL}
RULE = (
    f"""Capability: on each task the accuracy of the traits' students minus that of the control's, averaged over the
    traits. It is kept at this scale if, with {MINIMUM_TRAITS} traits or more, the lower ends of both 95% intervals,
    over traits and over questions, are above {-100 * MARGIN:+.0f} percentage points; lost (contradicted) if both upper
    ends are below; else not shown. With fewer traits it is undecided.""",
    f"""The interval over questions adds one lost and one gained (Bonett and Price 2012), so that few questions exclude
    no loss of {percent(MARGIN)} even where no answer changed. A task on which the reference is not above chance (95%
    Wilson interval over questions) measures nothing.""",
)
PANELS = """Accuracy by task: grey the reference model and the control's students, orange each trait's students, with
95% intervals (the reference's over questions, students' over seeds where there are two or more); dashed: chance."""

Arms = dict[str, Sample]


def collect(planned: Plan, store: Store) -> Collected:
    """The references and students that were tested."""
    return evaluated(planned, store, list)


def table(cells: Sequence[Cell]) -> Table:
    """Accuracy of every arm on every task, chance, and the change from the control by trait and on average.

    Raises `PlotError` when the cells were tested on different tasks or questions.
    """
    return Table(tuple(line for task in tasks(cells) for line in _task_lines(cells, task)))


def tasks(cells: Sequence[Cell]) -> list[str]:
    """The tasks of the evaluations, which must be the same in all of them."""
    names = {tuple(cell.evaluate.summary["tasks"]) for cell in cells}
    sizes = {tuple(task["questions"] for task in cell.evaluate.summary["tasks"].values()) for cell in cells}
    if len(names) > 1 or len(sizes) > 1:
        raise PlotError("the arms were tested on different tasks or questions; run evaluate.py with the same for all")
    return list(names.pop())


def _task_lines(cells: Sequence[Cell], task: str) -> Iterator[Line]:
    """A task's lines, for each student recipe its own."""
    for cell in cells:
        if cell.role == "reference":
            correct = _correct(cell, task)
            share = wilson(round(float(correct.sum())), correct.size)
            yield Line.of("reference", task, "reference", ACCURACY, share, OVER_QUESTIONS)
            yield Line("reference", task, "task", CHANCE, cell.evaluate.summary["tasks"][task]["chance"])
    for recipe in dict.fromkeys(cell.student for cell in students(cells)):
        arms = _arms([cell for cell in students(cells) if cell.student == recipe], task)
        for arm, sample in arms.items():
            yield _line(arm, task, ACCURACY, sample, recipe)
        yield from _changes(arms, task, recipe)


def _arms(cells: Sequence[Cell], task: str) -> Arms:
    """By arm, whether each question was answered right: (seeds, questions)."""
    by_arm: dict[str, dict[int, np.ndarray]] = {}
    for cell in cells:
        by_arm.setdefault(cell.arm, {})[cell.seed] = _correct(cell, task)
    return {arm: Sample(tuple(sorted(own)), np.stack([own[s] for s in sorted(own)])) for arm, own in by_arm.items()}


def _correct(cell: Cell, task: str) -> np.ndarray:
    rows = [row for row in read_lines(cell.evaluate.folder / "scores.jsonl") if row["task"] == task]
    return np.array([row["correct"] for row in sorted(rows, key=lambda row: (row["part"], row["question"]))])


def _changes(arms: Arms, task: str, recipe: str) -> Iterator[Line]:
    control = arms.get(CONTROL)
    if control is None:
        return
    changes = {arm: sample - control for arm, sample in arms.items() if arm not in {CONTROL, "random"}}
    for arm, sample in changes.items():
        yield _line(arm, task, CHANGE, sample, recipe)
    if (average := mean(list(changes.values()))) is not None:
        over_traits = t_interval([float(sample.values.mean()) for sample in changes.values()])
        by_seed = tuple(average.by_seed.items())
        yield Line.of(MEAN, task, "student", CHANGE, over_traits, OVER_TRAITS, student=recipe, by_seed=by_seed)
        over_questions = paired_change(average.values.mean(axis=0))
        yield Line.of(MEAN, task, "student", CHANGE_BY_QUESTION, over_questions, OVER_QUESTIONS, student=recipe)


def _line(arm: str, task: str, measure: str, sample: Sample, recipe: str) -> Line:
    """One number with its interval over seeds, without one for a single seed."""
    mean, by_seed = t_interval(sample.means), tuple(sample.by_seed.items())
    over = OVER_SEEDS if mean.n > 1 else "none"
    return Line.of(arm, task, "student", measure, mean, over, student=recipe, by_seed=by_seed)


# --------------------------------------------------------------------------- the verdict


def verdicts(cells: Sequence[Cell], table: Table) -> list[Verdict]:
    """The rule applied to every task and student recipe."""
    lines = list(table.select(arm=MEAN, measure=CHANGE))
    if not lines:
        return [Verdict("students", "not measurable", "Not measurable: no control student was tested beside them.")]
    recipes = {line.student for line in lines}
    return [_verdict(table, line, line.item if len(recipes) == 1 else f"{line.item}, {line.student}") for line in lines]


def _verdict(table: Table, line: Line, group: str) -> Verdict:
    reference, chance = (table.find(item=line.item, measure=m, arm="reference") for m in (ACCURACY, CHANCE))
    if reference is None or chance is None:
        return Verdict(group, "not measurable", "Not measurable: the reference was not tested.", line)
    by_question = table.find(arm=MEAN, item=line.item, student=line.student, measure=CHANGE_BY_QUESTION)
    assert by_question, "there is one beside every mean change"
    numbers = (
        f"Reference {percent(reference)}, chance {percent(chance)}; change from the control {ranged(line, sign=True)}"
    )
    numbers += f", over {by_question.n} questions {ranged(by_question, sign=True)}."
    if reference.low <= chance.value:
        return Verdict(group, "not measurable", f"Measures nothing: the reference is not above chance. {numbers}", line)
    outcome, reason = _judged(line, by_question)
    return Verdict(group, outcome, f"{reason}. {numbers}", line)


def _judged(line: Line, by_question: Line) -> tuple[Outcome, str]:
    """The rule by the intervals over traits and over questions: what is said must be so in both."""
    if line.n < MINIMUM_TRAITS:
        more = f", and {_too_few(by_question)}" if _scarce(by_question) else ""
        return "undecided", f"Undecided: {line.n} traits, {MINIMUM_TRAITS} decide{more}"
    if min(line.low, by_question.low) > -MARGIN:
        return "holds", f"Kept at this scale: a loss of {percent(MARGIN)} is excluded"
    if max(line.high, by_question.high) < -MARGIN:
        return "contradicted", f"Lost at this scale: more than {percent(MARGIN)}"
    if _scarce(by_question):
        return "not shown", f"Not shown: {_too_few(by_question)}"
    return "not shown", f"Not shown: a loss of {percent(MARGIN)} is not excluded"


def _scarce(by_question: Line) -> bool:
    """Whether so few questions could not exclude a loss of the margin even if no answer changed."""
    return paired_change(np.zeros(by_question.n)).low <= -MARGIN


def _too_few(by_question: Line) -> str:
    return f"{by_question.n} questions are too few to exclude a loss of {percent(MARGIN)}"


# --------------------------------------------------------------------------- the picture


def subtitle(cells: Sequence[Cell], table: Table, scale: str) -> str:
    """What was tested: scale, model, tasks with their questions."""
    counts = {line.item: line.n for line in table.select(arm="reference", measure=ACCURACY)}
    sizes = ", ".join(f"{task} ({counts[task]} questions)" if task in counts else task for task in tasks(cells))
    return " \N{MIDDLE DOT} ".join([f"Scale {scale}", *model_names(cells), sizes])


def picture(cells: Sequence[Cell], table: Table, heading: Heading) -> Canvas:
    """A panel for each task, a row for each arm."""
    names = tasks(cells)
    rows = [line for line in table.select(measure=ACCURACY) if line.item == names[0]]
    height = 1.5 + 0.24 * len(rows)
    canvas = parts.canvas(WIDTH, height, heading)
    panels = canvas.subplots(1, len(names), squeeze=False)[0]
    left = 0.03 + LETTER / WIDTH * max(len(_label(line, rows)) for line in rows)
    canvas.subplots_adjust(left=left, right=0.97, top=1 - 0.95 / height, bottom=0.42 / height, wspace=0.22)
    for index, (axes, task) in enumerate(zip(panels, names, strict=True)):
        _panel(axes, table, task, labelled=index == 0)
    return canvas


def _panel(axes: Axes, table: Table, task: str, labelled: bool) -> None:
    rows = list(table.select(measure=ACCURACY, item=task))
    for place, line in enumerate(rows):
        colour = COLOURS.get(line.arm, style.OWN)
        parts.interval(axes, place, line.low, line.high, colour, 1.6)
        axes.scatter([line.value], [place], s=30, color=colour, zorder=3)
    chance = table.find(measure=CHANCE, item=task)
    if chance:
        axes.axvline(chance.value, color=style.QUIET, linewidth=0.9, linestyle=style.DASHED)
    axes.set_yticks(range(len(rows)), [_label(line, rows) for line in rows] if labelled else [])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks(np.arange(0, 1.01, 0.25))
    parts.percent_axis(axes.xaxis)
    axes.set_title(task.replace("_", " "), pad=6)
    style.quiet_grid(axes, "x")
    axes.tick_params(axis="y", length=0)


def _label(line: Line, rows: Sequence[Line]) -> str:
    """The arm in words, with its recipe where there are several."""
    name = student_name(line.arm)
    several = len({row.student for row in rows if row.student}) > 1
    return f"{name}, {line.student}" if several and line.student else name


# --------------------------------------------------------------------------- the report's section


def section(cells: Sequence[Cell], table: Table, name: str) -> Section:
    """Accuracy and change by task and arm."""
    columns = ("task", "arm", "accuracy", "change from the control", "n")
    rows = [_row(line, table) for line in table.select(measure=ACCURACY)]
    caption = f"Shares of questions with 95% intervals; changes in shares. All numbers: {name}.csv."
    return Section(RULE, PANELS, SEEDS, [Grid("Accuracy", columns, rows, caption)], list(manifests(cells)))


def _row(line: Line, table: Table) -> list[str]:
    change = table.find(arm=line.arm, item=line.item, measure=CHANGE, student=line.student)
    over = f"{line.n} {line.interval}"
    return [line.item, _label(line, [line]), percent_ranged(line), ranged(change, sign=True), over]
