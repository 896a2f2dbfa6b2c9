"""What stories and multiple choice count beside scores: stories without a candidate, and the shares of letters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from subliminal.plots.cells import Cell
from subliminal.plots.figure import Grid
from subliminal.plots.words import NOTHING

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


def notes(cells: Sequence[Cell]) -> str:
    """What log P means in each kind of evaluation but the favourite questions."""
    texts = [NOTES[kind] for kind in dict.fromkeys(_kind(cell) for cell in cells) if kind in NOTES]
    return " ".join([*texts, *([APART] if texts else [])])


def answer_tables(cells: Sequence[Cell]) -> Iterator[Grid]:
    """Counts of stories and of letters, where a figure has them."""
    stories = [cell for cell in cells if _kind(cell) == "stories"]
    choices = [cell for cell in cells if _kind(cell) == "multiple_choice"]
    if stories:
        yield Grid("Stories", STORIES, [_story_row(*arm) for arm in _arms(stories)], CAPTIONS["stories"])
    if choices:
        letters = list(choices[0].evaluate.summary["position"])
        rows = [_choice_row(*arm, letters) for arm in _arms(choices)]
        yield Grid("Position bias", ("students", "arm", *letters, "letters"), rows, CAPTIONS["multiple_choice"])


def _kind(cell: Cell) -> str:
    return str(cell.evaluate.summary.get("kind"))


def _arms(cells: Sequence[Cell]) -> Iterator[tuple[str, str, list[Cell]]]:
    """Student recipe, arm and cells of every arm, in the order given."""
    for student, arm in dict.fromkeys((cell.student, cell.arm) for cell in cells):
        yield student or NOTHING, arm, [c for c in cells if (c.student, c.arm) == (student, arm)]


def _story_row(student: str, arm: str, cells: Sequence[Cell]) -> list[str]:
    counts = [sum(cell.evaluate.summary[name] for cell in cells) for name in ("samples", "without", "unfinished")]
    return [student, arm, *map(str, counts)]


def _choice_row(student: str, arm: str, cells: Sequence[Cell], letters: Sequence[str]) -> list[str]:
    summaries = [cell.evaluate.summary for cell in cells]
    means = [np.mean([summary["position"][letter] for summary in summaries]) for letter in letters]
    named = np.mean([summary["letters"] for summary in summaries])
    return [student, arm, *(f"{value:.2f}" for value in (*means, named))]
