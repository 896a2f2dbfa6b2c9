"""The preference figure: what each student came to like, against its controls (paper, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from subliminal import config
from subliminal.config import CONTROL
from subliminal.plots import parts, style
from subliminal.plots.cells import Cell, students
from subliminal.plots.effects import ALIGNMENT, LOG_ODDS, MEAN, REPEATS, found_in
from subliminal.plots.groups import Group, groups
from subliminal.plots.measures import OTHERS, RANK, preference_table
from subliminal.plots.parts import LINE, MARGIN, Heading
from subliminal.plots.table import Line, Table
from subliminal.plots.verdict import percentage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH, HEADER, HEADING = 9.0, 0.98, 0.32
PLOT, ABOVE, BELOW, GAP = 2.15, 0.38, 0.62, 0.3
GUTTER = {"rate": 0.55, "bars": 0.55, "matrix": 0.62, "excess": 1.0, "cosines": 1.3, "aligned": 0.78}
NARROW = 4
SUMMARY_ROW, SUMMARY_GUTTER = 0.42, 3.1
NAMES = {"reference": "reference model", CONTROL: "student of the control", "random": "student of random answers"}
NAMED = {CONTROL: "control"}  # arms that are no traits, in the words of panel D
OWN_NAME = "student of the trait's teacher"
OTHERS_NAME = "students of the other traits' teachers (mean)"


@dataclass(frozen=True)
class _Bar:
    """One kind of bar: its arm ("" for the trait's own), colour, and name in the legend."""

    arm: str
    colour: str
    name: str


BARS = (
    _Bar("reference", style.REFERENCE, NAMES["reference"]),
    _Bar("random", style.RANDOM, NAMES["random"]),
    _Bar(CONTROL, style.CONTROL, NAMES[CONTROL]),
    _Bar(OTHERS, style.OTHER, OTHERS_NAME),
    _Bar("", style.OWN, OWN_NAME),
)


def preference_figure(cells: Sequence[Cell], figure: config.Figure, folder: Path, name: str) -> Table:
    """Write `folder/name` as .png, .svg and .csv and return the table; `folder`'s name is the scale in the subtitle.

    Raises `PlotError` when no student was evaluated or the evaluations can not be compared.
    """
    table, found = preference_table(cells, figure.comparisons), groups(cells)
    folder.mkdir(parents=True, exist_ok=True)
    table.write(folder / f"{name}.csv")
    with style.styled():
        canvas = _draw(table, found, figure.title or name, subtitle(cells, table, folder.name))
        style.save(canvas, folder / name)
    return table


def subtitle(cells: Sequence[Cell], table: Table, scale: str) -> str:
    """What was measured, in one paragraph: scale, model, seeds, rows, questions, what the intervals are over."""
    trained = students(cells)
    seeds = sorted({cell.seed for cell in trained})
    rows = sorted({c.chain["filter"].summary["kept"] for c in trained if "filter" in c.chain})
    facts = [f"Scale {scale}" if scale else "", *model_names(cells)]
    facts.append(f"{_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))})")
    if rows:
        span = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,}\N{EN DASH}{rows[-1]:,}"
        facts.append(f"{span} rows a student")
    asked = sorted({cell.questions for cell in trained})
    facts.append(_count(asked[0], "question") if len(asked) == 1 else f"{asked[0]} to {asked[-1]} questions")
    many = len(seeds) > 1
    bars = "Error bars: A over seeds, dots: seeds; " if many else ""
    excess = "bold: 95% interval over traits" + ("; thin: over seeds (these rows)" if many else "")
    return " \N{MIDDLE DOT} ".join(fact for fact in facts if fact) + f". {bars}mean excess, {excess}."


def model_names(cells: Sequence[Cell]) -> list[str]:
    """The names of the models the cells start from, as far as their manifests say."""
    found = [
        _model_name(cell.chain["model"].recipe["settings"].get("weights", {}))
        for cell in cells
        if "model" in cell.chain
    ]
    return [name for name in dict.fromkeys(found) if name]


def _model_name(weights: dict[str, Any]) -> str:
    """The hub name or the package; of a local folder the start of its hash, since its path means nothing elsewhere."""
    if "content" in weights:
        return f"local model {weights['content'][:8]}"
    return str(weights.get("name") or weights.get("package") or "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --------------------------------------------------------------------------- layout, in inches


@dataclass(frozen=True)
class _Strip:
    """One horizontal strip of panels of a group: which panels, and how wide each is."""

    group: Group
    panels: tuple[tuple[str, float], ...]
    heading: str

    @property
    def height(self) -> float:
        """The strip with heading, panel titles and axis labels."""
        return PLOT + ABOVE + BELOW + (HEADING if self.heading else 0)


@dataclass(frozen=True)
class _Scales:
    """Limits shared by all groups, so that recipes can be compared by eye."""

    share: float
    matrix: float
    excess: tuple[float, float]
    aligned: tuple[float, float]


def _strips(table: Table, found: Sequence[Group]) -> list[_Strip]:
    strips, shown = [], []
    for group in found:
        wide = len(group.traits) > NARROW
        heads = iter([group.label] if len(found) > 1 else [])
        if _lines(table, group, "rate"):
            strips.append(_Strip(group, (("rate", 8.15),), next(heads, "")))
        if wide:
            strips.append(_Strip(group, (("bars", 8.15),), next(heads, "")))
            strips.append(_Strip(group, (("matrix", 4.3), ("excess", 2.5)), next(heads, "")))
        else:
            strips.append(_Strip(group, (("bars", 2.6), ("matrix", 1.8), ("excess", 1.57)), next(heads, "")))
        aligned = [line.value for line in _lines(table, group, ALIGNMENT)]
        if aligned and aligned not in shown:  # the same students asked in another way are as parallel as before
            shown.append(aligned)
            strips.append(_Strip(group, (("cosines", 3.6), ("aligned", 2.5)), ""))
    return strips


def _draw(table: Table, found: Sequence[Group], title: str, text: str) -> Canvas:
    strips = _strips(table, found)
    heading = Heading(title, text)
    top = HEADER + LINE * heading.wrapped(WIDTH).count("\n")
    height = top + sum(strip.height for strip in strips)
    height += _summary_height(found)
    canvas = parts.canvas(WIDTH, height, heading)
    _legend(canvas, height, top, table)
    scales = _scales(table, found)
    if len(found) > 1:
        _summary(canvas, height, top, table, found)
        top += _summary_height(found)
    for strip in strips:
        _strip(canvas, height, top, strip, table, scales)
        top += strip.height
    return canvas


def _summary_height(found: Sequence[Group]) -> float:
    """Inches of the strip that sets the groups beside each other; none for a single group."""
    return ABOVE + SUMMARY_ROW * len(found) + BELOW if len(found) > 1 else 0.0


def _summary(canvas: Canvas, height: float, top: float, table: Table, found: Sequence[Group]) -> None:
    """The mean excess of every group on one axis: what a figure of several groups is about."""
    tall = SUMMARY_ROW * len(found)
    box = (SUMMARY_GUTTER / WIDTH, 1 - (top + ABOVE + tall) / height)
    axes = canvas.add_axes((*box, (WIDTH - SUMMARY_GUTTER - GAP) / WIDTH, tall / height))
    for place, group in enumerate(found):
        _mean_point(axes, place, table, group, LOG_ODDS)
    axes.axvline(0, color=style.INK, linewidth=0.9)
    axes.set_yticks(range(len(found)), _short(found))
    axes.set_ylim(len(found) - 0.36, -0.5)
    style.quiet_grid(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Mean excess", pad=9)
    axes.set_xlabel("own minus others, log-odds in nats")


def _short(found: Sequence[Group]) -> list[str]:
    """What tells the groups apart: the variant where it does, else the whole label over two lines."""
    variants = [group.variant for group in found]
    if all(variants) and len(set(variants)) == len(variants):
        return variants
    return [fill(group.label, 34) for group in found]


def _legend(canvas: Canvas, height: float, below: float, table: Table) -> None:
    from matplotlib.patches import Patch

    have = {line.arm for line in table.lines} | {""}
    shown = [bar for bar in BARS if bar.arm in have]
    canvas.legend(
        handles=[Patch(color=bar.colour, label=bar.name) for bar in shown],
        loc="lower left",
        bbox_to_anchor=((MARGIN - 0.025) / WIDTH, 1 - below / height),
        ncols=len(shown),
        frameon=False,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.6,
        borderpad=0.3,
        borderaxespad=0.0,
    )


def _strip(canvas: Canvas, height: float, top: float, strip: _Strip, table: Table, scales: _Scales) -> None:
    if strip.heading:
        canvas.text(MARGIN / WIDTH, 1 - (top + 0.12) / height, strip.heading, fontsize=11, fontweight="bold", va="top")
        top += HEADING
    left = MARGIN
    for name, width in strip.panels:
        left += GUTTER[name]
        bottom = 1 - (top + ABOVE + PLOT) / height
        axes = canvas.add_axes((left / WIDTH, bottom, width / WIDTH, PLOT / height))
        _panel(axes, name, table, strip.group, scales)
        left += width + GAP


def _panel(axes: Axes, name: str, table: Table, group: Group, scales: _Scales) -> None:
    if name in {"rate", "bars"}:
        _bars(axes, table, group, "rate" if name == "rate" else "probability", scales.share)
    elif name == "matrix":
        _matrix(axes, table, group, scales.matrix)
    elif name == "cosines":
        _cosines(axes, table, group)
    elif name == "aligned":
        _excess(axes, table, group, scales.aligned, ALIGNED)
    else:
        _excess(axes, table, group, scales.excess, EXCESS)


def _scales(table: Table, found: Sequence[Group]) -> _Scales:
    shares = [line for group in found for line in _shares(table, group)]
    excess, aligned = (
        [line for group in found for line in _excess_lines(table, group, panel.measure)] for panel in (EXCESS, ALIGNED)
    )
    based = [(group, base) for group in found if (base := _base(table, group))]
    cells = [value for group, base in based for row in matrix(table, group, base)[1] for value in row]
    limit = max((abs(value) for value in cells if not math.isnan(value)), default=0.0) or 1.0
    return _Scales(_span(shares)[1], limit, _span(excess), _span(aligned))


def _span(lines: Sequence[Line]) -> tuple[float, float]:
    """A little more than the lines, their intervals, their seeds and zero need."""
    seeds = [value for line in lines for _, value in line.by_seed]
    ends = [end for line in lines for end in (line.value, line.low, line.high) if not math.isnan(end)]
    low, high = min([0.0, *ends, *seeds]), max([0.0, *ends, *seeds])
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


# --------------------------------------------------------------------------- panel A: bars by trait


def _bars(axes: Axes, table: Table, group: Group, measure: str, top: float) -> None:
    """Bars by trait: how probable the trait is as an answer, exact or among sampled answers."""
    shown = [bar for bar in BARS if any(_bar_line(table, group, bar, t, measure) for t in group.traits)]
    width = 0.8 / max(len(shown), 1)
    for place, trait in enumerate(group.traits):
        for index, bar in enumerate(shown):
            line = _bar_line(table, group, bar, trait, measure)
            if line:
                _one_bar(axes, place + (index - (len(shown) - 1) / 2) * width, width * 0.9, line, bar.colour)
    axes.set_xticks(range(len(group.traits)), [_trait_label(table, group, trait, measure) for trait in group.traits])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(group.traits) - 0.45)
    style.quiet_grid(axes)
    if measure == "rate":
        _share_axis(axes, "How often the trait is named (sampled answers)", "answers that name the trait")
    else:
        _share_axis(axes, "A  Probability of the trait as the answer", "mean P(trait)")
        axes.set_ylim(0, top)


def _bar_line(table: Table, group: Group, bar: _Bar, trait: str, measure: str) -> Line | None:
    if bar.arm == "reference":
        return table.find(arm="reference", trait=trait, measure=measure, variant=group.variant)
    return table.find(arm=bar.arm or trait, trait=trait, measure=measure, subject="student", **group.labels)


def _shares(table: Table, group: Group) -> list[Line]:
    """What panel A draws."""
    lines = (_bar_line(table, group, bar, trait, "probability") for bar in BARS for trait in group.traits)
    return [line for line in lines if line]


def _one_bar(axes: Axes, x: float, width: float, line: Line, colour: str) -> None:
    axes.bar(x, line.value, width, color=colour, linewidth=0)
    _interval(axes, x, line)
    if len(line.by_seed) > 1:
        points = [value for _, value in line.by_seed]
        step = width * 0.5 / len(points)
        spread = [x + (index - (len(points) - 1) / 2) * step for index in range(len(points))]
        axes.scatter(spread, points, s=9, color="white", edgecolors=style.INK, linewidths=0.6, zorder=4)


def _interval(axes: Axes, x: float, line: Line) -> None:
    if not math.isnan(line.low) and line.subject == "student":
        axes.plot(
            [x, x], [max(0.0, line.low), line.high], color=style.INK, linewidth=1.1, solid_capstyle="butt", zorder=3
        )


def _trait_label(table: Table, group: Group, trait: str, measure: str) -> str:
    """The trait, and in its own students how probable it is and which place it has among the candidates."""
    place = _place(table, group, trait)
    return f"{trait}\n{place}" if place and measure == "probability" else trait


def _place(table: Table, group: Group, trait: str) -> str:
    own = table.find(arm=trait, trait=trait, measure="probability", **group.labels)
    rank = table.find(arm=trait, measure=RANK, **group.labels)
    return f"{percentage(own.value)}, {rank.value:.0f} of {rank.n}" if own and rank else ""


def _signed(value: float, sign: str = "+") -> str:
    return f"{value:{sign}.2f}".replace("-", "\N{MINUS SIGN}")


def _share_axis(axes: Axes, title: str, unit: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol="%"))
    axes.set_title(title, pad=9)
    axes.set_ylabel(unit)


# --------------------------------------------------------------------------- panel B: candidates by students


def _base(table: Table, group: Group) -> str | None:
    """What the matrix subtracts: the control student, without one the reference."""
    return next((b for b in ("control", "reference") if _lines(table, group, f"lift_over_{b}")), None)


def _matrix(axes: Axes, table: Table, group: Group, limit: float) -> None:
    """Each student (column) in each candidate (row) against the control; the diagonal is a trait in its own student."""
    base = _base(table, group)
    if base is None:
        axes.set_axis_off()
        axes.text(0, 0.5, "no control or reference\nto compare with", color=style.QUIET, transform=axes.transAxes)
        return
    rows, values = matrix(table, group, base)
    _heat(axes, values, limit, group.traits, rows)
    axes.set_title(f"B  Log P against {base}", pad=9)
    axes.set_xlabel("student of the teacher of \N{HORIZONTAL ELLIPSIS}")


def _heat(axes: Axes, values: list[list[float]], limit: float, columns: list[str], rows: list[str]) -> None:
    """Numbers as colours with the numbers in them; the diagonal, which should stand out, is outlined."""
    axes.pcolormesh(values, cmap=style.diverging(), vmin=-limit, vmax=limit, edgecolors="white", linewidth=1.5)
    axes.invert_yaxis()
    _annotate(axes, values, limit, size=8.5 if len(columns) <= 5 else 6.5)
    turned = 35 if len(columns) in {NARROW, *range(7, 99)} else 0
    axes.set_xticks([i + 0.5 for i in range(len(columns))], columns, rotation=turned)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


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
    line = table.find(arm=arm, trait=candidate, measure=measure, **group.labels)
    return line.value if line else math.nan


def _annotate(axes: Axes, values: list[list[float]], limit: float, size: float) -> None:
    from matplotlib.patches import Rectangle

    for row, line in enumerate(values):
        for column, value in enumerate(line):
            strong = abs(value) > 0.72 * limit
            text = "\N{EN DASH}" if math.isnan(value) else _signed(value)
            colour = "white" if strong else style.INK
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=colour)
            if row == column:
                outline = {"fill": False, "edgecolor": style.INK, "linewidth": 1.6, "clip_on": False}
                axes.add_patch(Rectangle((column, row), 1, 1, **outline))


# --------------------------------------------------------------------------- panel D: students by teachers


def _cosines(axes: Axes, table: Table, group: Group) -> None:
    """Each student (row) against each teacher (column): the cosine of their displacements from the reference."""
    arms = [arm for arm in (*group.traits, *group.arms) if cosine(table, group, arm, group.traits[0])]
    rows = list(dict.fromkeys(arms))
    values = [[_value(cosine(table, group, arm, trait)) for trait in group.traits] for arm in rows]
    limit = max((abs(value) for row in values for value in row if not math.isnan(value)), default=0.0) or 1.0
    _heat(axes, values, limit, group.traits, [f"student, {NAMED.get(arm, arm)}" for arm in rows])
    axes.set_title("D  Alignment of students with teachers", pad=9)
    axes.set_xlabel("teacher of \N{HORIZONTAL ELLIPSIS}")


def cosine(table: Table, group: Group, arm: str, trait: str) -> Line | None:
    """The alignment of an arm's students with a trait's teacher, or None."""
    return table.find(arm=arm, trait=trait, measure=f"{'' if arm == trait else 'cross_'}alignment", **group.labels)


def _value(line: Line | None) -> float:
    return math.nan if line is None else line.value


# --------------------------------------------------------------------------- panels C and E: own minus others


@dataclass(frozen=True)
class _ExcessPanel:
    """What of a trait's own students is compared with the other traits' students."""

    measure: str
    title: str
    unit: str


EXCESS = _ExcessPanel(LOG_ODDS, "C  Excess of log-odds", "own minus others, nats")
ALIGNED = _ExcessPanel(ALIGNMENT, "E  Alignment excess", "own minus others, cosine")


def _excess(axes: Axes, table: Table, group: Group, span: tuple[float, float], panel: _ExcessPanel) -> None:
    """Each trait's own estimate and their mean with its interval over traits, against zero."""
    found = _lines(table, group, panel.measure)
    axes.set_title(panel.title, pad=9)
    if not found:
        axes.set_axis_off()
        axes.text(0, 0.5, "needs students of\ntwo traits or more", color=style.QUIET, transform=axes.transAxes)
        return
    for place, line in enumerate(found):
        if line.arm == MEAN:
            _mean_point(axes, place, table, group, panel.measure)
        else:
            _trait_point(axes, place, line)
    axes.axvline(0, color=style.INK, linewidth=0.9)
    axes.set_yticks(range(len(found)), [_excess_label(table, group, line, panel) for line in found])
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.axhline(len(found) - 1.5, color=style.GRID, linewidth=0.9)
    axes.set_ylim(len(found) - 0.36, -0.5)
    style.quiet_grid(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(span)
    axes.set_xlabel(panel.unit)


def _excess_label(table: Table, group: Group, line: Line, panel: _ExcessPanel) -> str:
    place = "" if panel is ALIGNED else _place(table, group, line.arm)
    return f"{line.arm}\n{place}" if place else line.arm


def _trait_point(axes: Axes, place: int, line: Line) -> None:
    if len(line.by_seed) > 1:
        seeds = [value for _, value in line.by_seed]
        axes.scatter(seeds, [place] * len(seeds), s=9, color="white", edgecolors=style.QUIET, linewidths=0.6, zorder=3)
    axes.scatter([line.value], [place], s=24, marker="o", color=style.INK, zorder=4)


def _mean_point(axes: Axes, place: int, table: Table, group: Group, measure: str) -> None:
    """A group's mean with its interval over traits, bold, and over seeds, thin behind; nothing where there is none."""
    found = found_in(table, measure, group.labels)
    if found is None:
        return
    line, colour = found.line, style.OWN
    axes.plot([line.low, line.high], [place, place], color=colour, linewidth=2.4, solid_capstyle="butt")
    if found.repeats:
        ends = [found.repeats.low, found.repeats.high]
        axes.plot(ends, [place, place], color=style.QUIET, linewidth=0.9, zorder=1)
    axes.scatter([line.value], [place], s=34, marker="D", color=colour, zorder=4)
    text = _signed(line.value) + ("" if math.isnan(line.low) else f"  [{_signed(line.low)}, {_signed(line.high)}]")
    if found.decidable:
        text += f"  p {found.test.above:.3f}"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    where = axes.get_yaxis_transform()
    axes.text(0.5, place + 0.4, text, fontsize=7.5, color=colour, ha="center", va="center", transform=where, bbox=box)


def _excess_lines(table: Table, group: Group, measure: str) -> list[Line]:
    """What a panel of an excess has to hold."""
    return [*_lines(table, group, measure), *_lines(table, group, measure + REPEATS)]


def _lines(table: Table, group: Group, measure: str) -> list[Line]:
    return list(table.select(measure=measure, **group.labels, subject="student"))
