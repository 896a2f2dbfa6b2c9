"""The detection figure: a prompted model's guesses and trained classifiers, against chance and against dealt labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subliminal.config import CONTROL
from subliminal.evaluation.statistics import LEVEL as LEVEL_OF_INTERVALS
from subliminal.evaluation.statistics import holm, share_ahead, signs, t_interval
from subliminal.plots import parts, style
from subliminal.plots.cells import read_lines
from subliminal.plots.figure import Grid, Outcome, Verdict
from subliminal.plots.parts import Heading
from subliminal.plots.rows import TOP, WIDTH, Compared, rows_name
from subliminal.plots.table import Line, Table
from subliminal.plots.words import ranged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

CHANCE, MARGIN, LEVEL = 0.5, 0.05, 0.05
MEAN, PROMPTED = "mean", "prompted"
RULE = (
    f"""Detection by a prompted model: its mean accuracy over ordered pairs of traits is at chance (the claim holds) if
    the whole 95% interval over prompts is within {MARGIN} of {CHANCE}; above that chance (contradicted) if the interval
    lies above {CHANCE} and not within; else nothing is shown.""",
    f"""Detection by a trained classifier: the claim is contradicted if any comparison's p against labels dealt anew is
    below {LEVEL} after Holm's correction for all comparisons of that classifier; it holds if none is and every 95%
    interval of the area under the curve, widened for the number of comparisons (Bonferroni), ends below
    {CHANCE + MARGIN}; else nothing is shown. The intervals are of the classifiers as they were trained, over prompts.
    For the fine-tuned model labels are dealt anew to the tested rows only; each fold's p is exact given the folds
    before, and Fisher's method makes one of them.""",
)
PANELS = """Left: how often the reference, asked in words which of two completions came from the teacher that loves the
animal, puts the right letter first over both orders, ties as one half (95% intervals). Right: area under the ROC curve
of cross-validated classifiers, two logistic regressions and, against the control, the fine-tuned reference (95%
intervals over prompts); grey: the same on labels dealt anew (central 95%). Filled: beyond chance after correction.
Dashed: chance."""
NAMES = {
    "numbers": "bag of numbers",
    "characters": "pieces of 1 to 3 characters",
    "finetuned": "fine-tuned model",
    PROMPTED: "prompted model",
}
FORMS = {"numbers": "o", "characters": "s", "finetuned": "^"}


def table(runs: Sequence[Compared]) -> Table:
    """Accuracies, areas with their controls and p, and the prompted model's mean over ordered pairs of traits."""
    lines = [line for run in runs for line in (*_prompted(run), *_classified(run))]
    return Table((*lines, *_pooled(runs), *_corrected(runs)))


def _prompted(run: Compared) -> Iterator[Line]:
    if margins := [margin for _, margin in _margins(run)]:
        share = share_ahead(margins)
        yield Line.of(run.trait, run.against, PROMPTED, "accuracy", share, "prompts")
        yield Line(run.trait, run.against, PROMPTED, "margin", float(np.mean(margins)), n=share.n)


def _margins(run: Compared) -> Iterator[tuple[int, float]]:
    """Prompt and margin of every pair that the reference was asked about."""
    if PROMPTED in run.manifest.summary:
        yield from ((line["index"], line["margin"]) for line in read_lines(run.manifest.folder / "guesses.jsonl"))


def _classified(run: Compared) -> Iterator[Line]:
    for name, scores in run.manifest.summary["classifiers"].items():
        where = (run.trait, run.against, name)
        for measure in ("area", "accuracy"):
            value = scores[measure]
            prompts = scores.get("prompts", run.prompts)
            yield Line(*where, measure, value["value"], value["low"], value["high"], prompts, "prompts")
        middle = (scores["control"]["low"] + scores["control"]["high"]) / 2
        deals = scores["deals"]
        yield Line(*where, "control_area", middle, scores["control"]["low"], scores["control"]["high"], deals, "deals")
        yield Line(*where, "p", scores["p"], n=deals)


def _pooled(runs: Sequence[Compared]) -> Iterator[Line]:
    """Mean accuracy over ordered pairs of traits: a mean for each prompt first, since its pairs share rows."""
    right: dict[int, list[float]] = {}
    for run in runs:
        if CONTROL not in (run.trait, run.against):
            for index, margin in _margins(run):
                right.setdefault(index, []).append((1 + float(signs(margin))) / 2)
    if right:
        mean = t_interval([np.mean(pairs) for pairs in right.values()])
        yield Line.of(MEAN, MEAN, PROMPTED, "accuracy", mean, "prompts")


def _corrected(runs: Sequence[Compared]) -> Iterator[Line]:
    """Holm's correction over all comparisons of a classifier but the null ones."""
    for name in NAMES:
        mine = [run for run in runs if not run.null and name in run.manifest.summary["classifiers"]]
        for run, p in zip(mine, holm([run.manifest.summary["classifiers"][name]["p"] for run in mine]), strict=True):
            yield Line(run.trait, run.against, name, "p_adjusted", p, n=len(mine))


def verdicts(runs: Sequence[Compared], table: Table) -> list[Verdict]:
    """The rule for the prompted model and for each classifier."""
    names = dict.fromkeys(name for run in runs for name in run.manifest.summary["classifiers"])
    return [_prompted_verdict(table), *(_classifier_verdict(name, table) for name in names)]


def _prompted_verdict(table: Table) -> Verdict:
    line = table.find(arm=MEAN, subject=PROMPTED, measure="accuracy")
    if line is None or line.low != line.low:
        return Verdict(
            NAMES[PROMPTED], "not measurable", "Not measurable: it needs rows of two traits to the same prompts."
        )
    outcome: Outcome = "not shown"
    if line.low > CHANCE - MARGIN and line.high < CHANCE + MARGIN:
        outcome = "holds"
    elif line.low > CHANCE:
        outcome = "contradicted"
    return Verdict(
        NAMES[PROMPTED], outcome, f"{_SAID[outcome]} Mean accuracy {ranged(line)} over {line.n} prompts.", line
    )


_SAID: dict[Outcome, str] = {
    "holds": "At chance.",
    "contradicted": "Told apart better than by chance.",
    "not shown": "Neither at chance nor above it with these data.",
}


def _classifier_verdict(name: str, table: Table) -> Verdict:
    p = list(table.select(subject=name, measure="p_adjusted"))
    areas = [table.find(arm=line.arm, item=line.item, subject=name, measure="area") for line in p]
    if not p:
        return Verdict(NAMES[name], "not measurable", "Not measurable: nothing but the null was compared.")
    detected = sum(line.value < LEVEL for line in p)
    outcome: Outcome = "not shown"
    if detected:
        outcome = "contradicted"
    elif all(line and _widened(line, len(p)) < CHANCE + MARGIN for line in areas):
        outcome = "holds"
    mean = float(np.mean([line.value for line in areas if line]))
    return Verdict(
        NAMES[name], outcome, f"{_SAID[outcome]} {detected} of {len(p)} comparisons detected, mean area {mean:.2f}."
    )


def _widened(line: Line, comparisons: int) -> float:
    """The upper end of an interval that holds for all comparisons together, from that of one by normal quantiles."""
    from scipy.special import ndtri

    tail = (1 - LEVEL_OF_INTERVALS) / 2
    return line.value + (line.high - line.value) * float(ndtri(1 - tail / comparisons) / ndtri(1 - tail))


# --------------------------------------------------------------------------- the picture


def picture(runs: Sequence[Compared], table: Table, heading: Heading) -> Canvas:
    """Panel A: the prompted model by ordered pair. Panel B: classifiers by comparison."""
    asked = [run for run in runs if PROMPTED in run.manifest.summary]
    trained = [run for run in runs if run.manifest.summary["classifiers"]]
    height = TOP + 1.4 + 0.22 * max(len(asked) + 1, len(trained), 6)
    canvas = parts.canvas(WIDTH, height, heading)
    left, right = canvas.subplots(1, 2)
    canvas.subplots_adjust(left=0.205, right=0.985, wspace=0.6, top=1 - (TOP + 0.4) / height, bottom=0.7 / height)
    _guesses(left, asked, table)
    _areas(right, trained, table)
    return canvas


def _guesses(axes: Axes, runs: Sequence[Compared], table: Table) -> None:
    lines = [
        (run.label, table.find(arm=run.trait, item=run.against, subject=PROMPTED, measure="accuracy")) for run in runs
    ]
    lines.append(("mean over pairs of traits", table.find(arm=MEAN, subject=PROMPTED, measure="accuracy")))
    shown = [(label, line) for label, line in lines if line]
    for place, (_, line) in enumerate(shown):
        colour = style.OWN if line.arm == MEAN else style.INK
        _point(axes, place, line, colour, "D" if line.arm == MEAN else "o")
    _settle(axes, [label for label, _ in shown], "A  Prompted model", "accuracy")


def _areas(axes: Axes, runs: Sequence[Compared], table: Table) -> None:
    for place, run in enumerate(runs):
        names = list(run.manifest.summary["classifiers"])
        for step, name in enumerate(names):
            where: dict[str, Any] = {"arm": run.trait, "item": run.against, "subject": name}
            at, colour = place + 0.24 * (step - (len(names) - 1) / 2), style.CYCLE[list(FORMS).index(name)]
            control = table.find(**where, measure="control_area")
            p, line = table.find(**where, measure="p_adjusted"), table.find(**where, measure="area")
            if line and control:
                parts.interval(axes, at, control.low, control.high, style.GRID, 6)
                _point(axes, at, line, colour, FORMS[name], filled=p is not None and p.value < LEVEL)
    shown = {name for run in runs for name in run.manifest.summary["classifiers"]}
    for name, colour in zip(FORMS, style.CYCLE, strict=False):
        if name in shown:
            axes.plot([], [], color=colour, marker=FORMS[name], linestyle="none", label=NAMES[name])
    _settle(axes, [run.label for run in runs], "B  Trained classifiers", "area under the ROC curve")
    if shown:
        below = axes.get_figure().transFigure  # type: ignore[union-attr]
        parts.legend(axes, "lower right", 8.5, bbox_to_anchor=(0.99, 0.0), bbox_transform=below, ncols=3)


def _point(axes: Axes, place: float, line: Line, colour: str, form: str, filled: bool = True) -> None:
    parts.interval(axes, place, line.low, line.high, colour, 1.4, zorder=3)
    face = colour if filled else "white"
    axes.scatter([line.value], [place], s=24, marker=form, facecolors=face, edgecolors=colour, zorder=4)


def _settle(axes: Axes, labels: Sequence[str], title: str, unit: str) -> None:
    axes.axvline(CHANCE, color=style.QUIET, linewidth=0.9, linestyle=style.DASHED)
    parts.named_rows(axes, labels)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, pad=9)
    axes.set_xlabel(unit)


def grids(runs: Sequence[Compared], table: Table, name: str) -> list[Grid]:
    """Every comparison: accuracy of the prompted model, area, control and p of each classifier."""
    columns = ("rows of", "against", "who tells", "accuracy", "area", "labels dealt anew", "p", "adjusted p")
    caption = f"""95% intervals over prompts; of labels dealt anew the central 95% of areas. Accuracy of classifiers is
    the mean of both sides' shares. All numbers: {name}.csv."""
    return [
        Grid(
            "Whose rows are these?", columns, [_row(line, table) for line in table.select(measure="accuracy")], caption
        )
    ]


def _row(line: Line, table: Table) -> list[str]:
    def of(measure: str) -> Line | None:
        return table.find(arm=line.arm, item=line.item, subject=line.subject, measure=measure)

    control, p, adjusted = of("control_area"), of("p"), of("p_adjusted")
    dealt = f"{control.low:.2f} to {control.high:.2f}" if control else ""
    where = [rows_name(line.arm), "its own half" if line.arm == line.item else rows_name(line.item)]
    if line.arm == MEAN:
        where = ["mean", "pairs of traits"]
    tests = [f"{line.value:.3f}" if line else "" for line in (p, adjusted)]
    return [*where, NAMES[line.subject], ranged(line), ranged(of("area")), dealt, *tests]
