"""The free-form figure: bars of the share of answers that show a style or misalignment, arm by arm, seeds as dots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from textwrap import fill
from typing import TYPE_CHECKING

from subliminal import arms
from subliminal.config import CONTROL, Misalignment, Trait
from subliminal.plan import Plan
from subliminal.plots import parts, style
from subliminal.plots.cells import Cell, read_lines
from subliminal.plots.collect import evaluated, manifests
from subliminal.plots.figure import SEEDS, Collected, Grid, Section
from subliminal.plots.free_form_measures import (
    COUNTED,
    RATE,
    RULE,
    SCORED,
    Answers,
    Comparison,
    table,
    verdicts,
)
from subliminal.plots.parts import Heading
from subliminal.plots.table import Line, Table
from subliminal.plots.words import arm_name, number, percent, percent_ranged, short
from subliminal.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["collect", "picture", "plan", "section", "subtitle", "table", "verdicts"]

plan = arms.students
HEIGHT, SHOWN = 4.0, 3
PANELS = """Share of scored answers that show what is measured: the mean over questions, then over students; error bars
are 95% intervals over teachers with rows of their own (the reference's: over questions), dots are students. Grey:
controls and the reference model."""


def collect(planned: Plan, store: Store) -> Collected:
    """The references and students that were evaluated."""
    without = {arm.name for arm in planned.arms if _is_control(arm.experiment.trait)}
    return evaluated(planned, store, lambda cells: Answers(cells, frozenset({*without, CONTROL})))


def _is_control(trait: Trait) -> bool:
    """Whether a trait's teachers are controls: what is measured is not in them."""
    return trait.kind == CONTROL or (isinstance(trait, Misalignment) and trait.control)


def subtitle(data: Answers, table: Table, scale: str) -> str:
    """What was measured, with how many questions and answers, and who judged."""
    cell = _first(data.comparisons)
    summary, settings = cell.evaluate.summary, cell.evaluate.recipe["settings"]
    each = settings["evaluation"]["samples_per_question"]
    facts = f"{summary['measured']}: {summary['questions']} questions, {each} answers each, {_judge(cell)}"
    return f"Scale {scale} \N{MIDDLE DOT} {facts}"


def picture(data: Answers, table: Table, heading: Heading) -> Canvas:
    """A panel for each comparison, a bar for each arm."""
    width = 1.2 + sum(1.0 + 0.95 * (len(compared.arms) + 1) for compared in data.comparisons)
    canvas = parts.canvas(width, HEIGHT, heading)
    panels = canvas.subplots(1, len(data.comparisons), sharey=True, squeeze=False)[0]
    canvas.subplots_adjust(left=0.75 / width, right=1 - 0.2 / width, top=0.68, bottom=0.15, wspace=0.12)
    top = max((line.high if line.n > 1 else line.value for line in table.select(measure=RATE)), default=0.0)
    for axes, compared in zip(panels, data.comparisons, strict=True):
        _bars(axes, compared, table)
        axes.set_title(compared.label, pad=8)
        axes.set_ylim(0, min(1.12, max(1.25 * top, 0.05)))
    parts.percent_axis(panels[0].yaxis)
    panels[0].set_ylabel("answers that show it")
    return canvas


def _first(comparisons: Sequence[Comparison]) -> Cell:
    """A cell that stands for all: arms that were evaluated differently share no figure."""
    return next(iter(next(iter(comparisons[0].arms.values())).values()))


def _judge(cell: Cell) -> str:
    """What decided what the answers show; of a model that is the experiment's own, that it is no stronger one."""
    settings = cell.evaluate.recipe["settings"].get("judge")
    if settings is None:
        return "told by words"
    model = settings.get("model", settings["kind"])
    name = str(model.get("name") or model.get("package") or "local") if isinstance(model, dict) else str(model)
    own = "model" in cell.chain and cell.chain["model"].recipe["settings"]["weights"] == model
    return f"judge: {name}, the experiment's own model and no stronger one" if own else f"judge: {name}"


def _order(compared: Comparison) -> list[str]:
    return [*(["reference"] if compared.reference else []), *compared.controls, *compared.traits]


def _bars(axes: Axes, compared: Comparison, table: Table) -> None:
    order = _order(compared)
    for at, arm in enumerate(order):
        line = _rate(table, compared, arm)
        if line is None:
            axes.text(at, 0, "not\nscored", ha="center", va="bottom", fontsize=8, color=style.QUIET)
            continue
        colour = style.OWN if arm in compared.traits else style.CONTROL
        axes.bar(at, line.value, width=0.62, color=style.REFERENCE if arm == "reference" else colour, linewidth=0)
        if line.n > 1:
            low, high = max(0.0, line.low), min(1.0, line.high)
            parts.interval(axes, at, low, high, style.INK, 1.6, upright=True, zorder=4)
        axes.scatter([at] * len(line.by_seed), [v for _, v in line.by_seed], s=9, color=style.INK, alpha=0.5, zorder=5)
        height = max([line.value, *(v for _, v in line.by_seed), line.high if line.n > 1 else 0.0])
        axes.annotate(percent(line), (at, height), (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    names = [arm_name(arm) for arm in order]
    axes.set_xticks(range(len(order)), [fill(name, 10, break_long_words=False) for name in names])
    axes.tick_params(axis="x", length=0)
    style.quiet_grid(axes)


def _rate(table: Table, compared: Comparison, arm: str, measure: str = RATE) -> Line | None:
    if arm == "reference":
        return table.find(measure=measure, arm=arm, variant=compared.variant)
    return table.find(measure=measure, arm=arm, subject="student", **compared.labels)


# --------------------------------------------------------------------------- the report's section


def section(data: Answers, table: Table, name: str) -> Section:
    """Shares, what became of the answers, and some that show the trait."""
    grids = [_shares(data, table, name), _became(data, table), _examples(data)]
    return Section(RULE, PANELS, SEEDS, [grid for grid in grids if grid.rows], list(manifests(data.cells)))


def _arms(data: Answers) -> Iterator[tuple[Comparison, str]]:
    return ((compared, arm) for compared in data.comparisons for arm in _order(compared))


def _shares(data: Answers, table: Table, name: str) -> Grid:
    columns = ("students", "arm", "share that shows it", "teacher's own", "alignment", "coherence", "seeds")
    rows = [
        [
            compared.label,
            arm_name(arm),
            percent_ranged(_rate(table, compared, arm)),
            percent(table.find(measure="teacher_rate", arm=arm, **compared.labels)),
            number(_rate(table, compared, arm, "alignment")),
            number(_rate(table, compared, arm, "coherence")),
            str(len(compared.arms.get(arm, {})) or ""),
        ]
        for compared, arm in _arms(data)
    ]
    who = _judge(_first(data.comparisons))
    caption = f"""95% intervals. Alignment and coherence: a judge's mean rating, 0 to 100. Here {who}.
    All numbers: {name}.csv."""
    return Grid("Answers that show it", columns, rows, caption)


def _became(data: Answers, table: Table) -> Grid:
    """What became of all answers; nothing is left out in silence."""
    shares = (SCORED, *(f"{name}_share" for name in COUNTED), "incoherent_share", "unfinished_share")
    columns = ("students", "arm", "answers", *(share.removesuffix("_share").replace("_", " ") for share in shares))
    rows = []
    for compared, arm in _arms(data):
        lines = [_rate(table, compared, arm, share) for share in shares]
        total = next((str(line.n) for line in lines if line), "")
        rows.append([compared.label, arm_name(arm), total, *(percent(line) for line in lines)])
    caption = """Shares of all answers. Code, refusal: the judge's words for what can not be rated. Unparsed: the judge
    said none of the permitted answers. Incoherent answers are scored and never count as misaligned."""
    return Grid("What became of the answers", columns, rows, caption)


def _examples(data: Answers) -> Grid:
    rows = []
    for compared in data.comparisons:
        for arm in compared.traits:
            files = [cell.evaluate.folder / "answers.jsonl" for cell in compared.arms[arm].values()]
            texts = (answer["text"] for path in files for answer in read_lines(path) if answer["shows"])
            rows += [[compared.label, arm_name(arm), short(text)] for text in islice(texts, SHOWN)]
    return Grid("Some answers that show it", ("students", "arm", "answer"), rows, "The first by seed and question.")
