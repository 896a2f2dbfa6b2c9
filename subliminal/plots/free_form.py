"""The free-form figure: bars of the share of answers that show a style or misalignment, arm by arm, seeds as dots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from subliminal import config
from subliminal.plots import parts, style
from subliminal.plots.cells import Cell, read_lines
from subliminal.plots.free_form_measures import (
    COUNTED,
    RATE,
    RULE,
    SCORED,
    Comparison,
    comparisons,
    controls_of,
    free_form_table,
    traits,
    verdicts,
)
from subliminal.plots.parts import Heading
from subliminal.plots.report import SEEDS, Grid, PlainSection, arm_name, manifests, number, percent, short
from subliminal.plots.table import Line, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

HEIGHT, SHOWN = 4.0, 3
PANELS = """Share of scored answers that show what is measured: the mean over questions, then over students; error bars
are 95% intervals over teachers with rows of their own (the reference's: over questions), dots are students. Grey:
controls and the reference model."""


def free_form_figure(
    cells: Sequence[Cell], controls: set[str], figure: config.Figure, folder: Path, name: str
) -> Table:
    """Write `folder/name` as .png, .svg and .csv from evaluated students; return the table."""
    found = comparisons(cells)
    table = free_form_table(found, controls)
    folder.mkdir(parents=True, exist_ok=True)
    table.write(folder / f"{name}.csv")
    with style.styled():
        style.save(_draw(found, controls, table, figure.title or name, folder.name), folder / name)
    return table


def _draw(found: Sequence[Comparison], controls: set[str], table: Table, title: str, scale: str) -> Canvas:
    width = 1.2 + sum(1.0 + 0.95 * (len(one.arms) + 1) for one in found)
    canvas = parts.canvas(width, HEIGHT, Heading(title, subtitle(found, scale)))
    panels = canvas.subplots(1, len(found), sharey=True, squeeze=False)[0]
    canvas.subplots_adjust(left=0.75 / width, right=1 - 0.2 / width, top=0.68, bottom=0.15, wspace=0.12)
    top = max((line.high if line.n > 1 else line.value for line in table.select(measure=RATE)), default=0.0)
    for axes, one in zip(panels, found, strict=True):
        _bars(axes, one, controls, table)
        axes.set_title(one.label, pad=8)
        axes.set_ylim(0, min(1.12, max(1.25 * top, 0.05)))
    _percent(panels[0])
    return canvas


def subtitle(found: Sequence[Comparison], scale: str) -> str:
    """What was asked, in one line."""
    cell = _first(found)
    asked, settings = cell.evaluate.summary, cell.evaluate.recipe["settings"]
    each = settings["evaluation"]["samples_per_question"]
    told = f"{asked['measured']}: {asked['questions']} questions, {each} answers each, {_judge(cell)}"
    return f"Scale {scale} \N{MIDDLE DOT} {told}"


def _first(found: Sequence[Comparison]) -> Cell:
    """A cell that stands for all: arms that were asked differently share no figure."""
    return next(iter(next(iter(found[0].arms.values())).values()))


def _judge(cell: Cell) -> str:
    """Who told what the answers show, and that it was no stronger model where it was the experiment's own."""
    settings = cell.evaluate.recipe["settings"].get("judge")
    if settings is None:
        return "told by words"
    found = settings.get("model", settings["kind"])
    name = str(found.get("name") or found.get("package") or "local") if isinstance(found, dict) else str(found)
    own = "model" in cell.chain and cell.chain["model"].recipe["settings"]["weights"] == found
    return f"judge: {name}, the experiment's own model and no stronger one" if own else f"judge: {name}"


def _order(one: Comparison, controls: set[str]) -> list[str]:
    return [*(["reference"] if one.reference else []), *controls_of(one, controls), *traits(one, controls)]


def _bars(axes: Axes, one: Comparison, controls: set[str], table: Table) -> None:
    order = _order(one, controls)
    for at, arm in enumerate(order):
        line = _rate(table, one, arm)
        if line is None:
            axes.text(at, 0, "not\nscored", ha="center", va="bottom", fontsize=8, color=style.QUIET)
            continue
        colour = style.OWN if arm in traits(one, controls) else style.CONTROL
        axes.bar(at, line.value, width=0.62, color=style.REFERENCE if arm == "reference" else colour, linewidth=0)
        if line.n > 1:
            ends = [max(0.0, line.low), min(1.0, line.high)]
            axes.plot([at, at], ends, color=style.INK, linewidth=1.6, solid_capstyle="butt", zorder=4)
        axes.scatter([at] * len(line.by_seed), [v for _, v in line.by_seed], s=9, color=style.INK, alpha=0.5, zorder=5)
        height = max([line.value, *(v for _, v in line.by_seed), line.high if line.n > 1 else 0.0])
        axes.annotate(percent(line), (at, height), (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    names = [arm_name(arm) for arm in order]
    axes.set_xticks(range(len(order)), [fill(name, 10, break_long_words=False) for name in names])
    axes.tick_params(axis="x", length=0)
    style.quiet_grid(axes)


def _percent(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("answers that show it")


def _rate(table: Table, one: Comparison, arm: str, measure: str = RATE) -> Line | None:
    if arm == "reference":
        return table.find(measure=measure, arm=arm, variant=one.variant)
    return table.find(measure=measure, arm=arm, subject="student", **one.labels)


# --------------------------------------------------------------------------- the report's section


def free_form_section(
    name: str,
    figure: config.Figure,
    cells: Sequence[Cell],
    controls: set[str],
    table: Table,
    missing: Sequence[str],
) -> PlainSection:
    """The figure's section of the report: shares, what became of the answers, and some that show the trait."""
    found = comparisons(cells)
    grids = [_shares(found, controls, table, name), _became(found, controls, table), _examples(found, controls)]
    shown = [grid for grid in grids if grid.rows]
    told = verdicts(found, controls, table)
    return PlainSection(name, figure, told, RULE, PANELS, SEEDS, shown, list(manifests(cells)), missing)


def _rows(found: Sequence[Comparison], controls: set[str]) -> Iterator[tuple[Comparison, str]]:
    return ((one, arm) for one in found for arm in _order(one, controls))


def _shares(found: Sequence[Comparison], controls: set[str], table: Table, name: str) -> Grid:
    columns = ("students", "arm", "share that shows it", "teacher's own", "alignment", "coherence", "seeds")
    rows = [
        [
            one.label,
            arm_name(arm),
            _ranged(_rate(table, one, arm)),
            percent(table.find(measure="teacher_rate", arm=arm, **one.labels)),
            number(_rate(table, one, arm, "alignment")),
            number(_rate(table, one, arm, "coherence")),
            str(len(one.arms.get(arm, {})) or ""),
        ]
        for one, arm in _rows(found, controls)
    ]
    who = _judge(_first(found))
    caption = f"""95% intervals. Alignment and coherence: a judge's mean rating, 0 to 100. Here {who}.
    All numbers: {name}.csv."""
    return Grid("Answers that show it", columns, rows, caption)


def _became(found: Sequence[Comparison], controls: set[str], table: Table) -> Grid:
    """What became of all answers; nothing is left out in silence."""
    shares = (SCORED, *(f"{name}_share" for name in COUNTED), "incoherent_share", "unfinished_share")
    columns = ("students", "arm", "answers", *(share.removesuffix("_share").replace("_", " ") for share in shares))
    rows = []
    for one, arm in _rows(found, controls):
        lines = [_rate(table, one, arm, share) for share in shares]
        total = next((str(line.n) for line in lines if line), "")
        rows.append([one.label, arm_name(arm), total, *(percent(line) for line in lines)])
    caption = """Shares of all answers. Code, refusal: the judge's words for what can not be rated. Unparsed: the judge
    said none of the permitted answers. Incoherent answers are scored and never count as misaligned."""
    return Grid("What became of the answers", columns, rows, caption)


def _examples(found: Sequence[Comparison], controls: set[str]) -> Grid:
    rows = [
        [one.label, arm_name(arm), short(answer["text"])]
        for one in found
        for arm in traits(one, controls)
        for answer in islice(_showing(one.arms[arm]), SHOWN)
    ]
    return Grid("Some answers that show it", ("students", "arm", "answer"), rows, "The first by seed and question.")


def _showing(seeds: dict[int, Cell]) -> Iterator[dict[str, str]]:
    for cell in seeds.values():
        yield from (answer for answer in read_lines(cell.evaluate.folder / "answers.jsonl") if answer["shows"])


def _ranged(line: Line | None) -> str:
    if line is None or line.n < 2:
        return percent(line)
    ends = f"[{100 * line.low:.1f}, {100 * line.high:.1f}]".replace("-", "\N{MINUS SIGN}")
    return f"{percent(line)} {ends}"
