"""The MNIST figure: accuracy of the six conditions, or of an ablation's values, a dot for every network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from subliminal import stages
from subliminal.arms import Request, check, step
from subliminal.config import ConfigError
from subliminal.evaluation.statistics import t_interval
from subliminal.plan import Arm, Plan
from subliminal.plots import parts, style
from subliminal.plots.cells import read_lines
from subliminal.plots.collect import stored, typed
from subliminal.plots.figure import Collected, Grid, Section, Verdict
from subliminal.plots.parts import Heading
from subliminal.plots.table import Line, Table
from subliminal.plots.words import count, ends, number, percent, percent_ranged
from subliminal.store import Manifest, Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH, HEIGHT = 9.0, 4.4
LOGITS = {"auxiliary": "aux. only", "digits": "digits", "all": "all logits"}
NAMES = {"reference": "reference", "teacher": "teacher"}
NAMES |= {f"student_{matched}": f"student\n({text})" for matched, text in LOGITS.items()}
NAMES |= {f"cross_model_{matched}": f"cross-model\n({text})" for matched, text in LOGITS.items()}
COLOURS = {"reference": style.REFERENCE, "teacher": style.CONTROL}
FORMS = {"auxiliary": "o", "digits": "s", "all": "D"}
OVER_MODELS = "models"
MINIMUM_MODELS = 3
CHANCE = 0.1
RULE = (
    """MNIST: transmission is the accuracy of the student that matches the auxiliary logits alone minus that of the
    cross-model student of the same teacher, which differs in its initialisation only, averaged over teachers.""",
    f"""It is there if, with {MINIMUM_MODELS} models or more, the lower end of the 95% interval over models is above 0;
    it is contradicted if the upper end is below 0, and not shown otherwise. An ablation is judged at each value.""",
)


def plan(request: Request) -> Plan:
    """One run of train.py, or one for each value of an ablation's setting; an arm's `student` is the value as typed."""
    request.refuse("see conf/mnist for its settings")
    base = request.base
    seeds, setting = request.seeds or [base.seed], base.experiment.arms.setting
    if len(seeds) > 1:
        raise ConfigError(
            f"seed={','.join(request.swept['seed'])}: the models of one seed are this figure's units; "
            "raise mnist.models"
        )
    seed, values = f"seed={seeds[0]}", [_typed(value) for value in base.experiment.arms.values] if setting else [""]
    arms = tuple(
        Arm("", value, seeds[0], request.compose(seed, *([f"{setting}={value}"] if setting else [])))
        for value in values
    )
    check(arms)
    typed = [(*request.fixed, seed, *([f"{setting}={arm.student}"] if setting else [])) for arm in arms]
    made = step("train.py", stages.mnist, zip(typed, [arm.experiment for arm in arms], strict=True))
    return Plan(base, request.fixed, arms, (made,), "settings")


def _typed(value: object) -> str:
    """A value as it is typed in an override."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Run:
    """One stored run of a figure: an ablation's value as typed ("" where nothing varies), and its manifest."""

    value: str
    manifest: Manifest

    @cached_property
    def accuracy(self) -> dict[str, dict[int, float]]:
        """Accuracy by condition and teacher (for references: the model itself)."""
        accuracy: dict[str, dict[int, float]] = {}
        for line in read_lines(self.manifest.folder / "accuracy.jsonl"):
            accuracy.setdefault(line["condition"], {})[line["teacher"]] = line["accuracy"]
        return accuracy


@dataclass(frozen=True)
class Runs:
    """One run, or one for each value of the setting that an ablation varies ("" where nothing varies)."""

    runs: Sequence[Run]
    setting: str = ""


def collect(planned: Plan, store: Store) -> Collected:
    """The runs that the store has, one a value."""
    setting, runs, missing = planned.base.experiment.arms.setting, [], []
    for arm in planned.arms:
        if manifest := stored(stages.mnist(arm.experiment), store):
            runs.append(Run(arm.student, manifest))
        else:
            value = [f"{setting}={arm.student}"] if arm.student else []
            missing.append(f"python train.py {typed(planned, *value)}")
    return Collected(Runs(runs, setting or "") if runs else None, missing)


def table(data: Runs) -> Table:
    """Accuracy of every condition and transmission by matched logits, at every value, with intervals over models."""
    lines: list[Line] = []
    for run in data.runs:
        lines += [_line(run, name, "accuracy", list(values.values())) for name, values in run.accuracy.items()]
        lines += _transmissions(run)
    return Table(tuple(lines))


def _transmissions(run: Run) -> list[Line]:
    """Student minus cross-model student of the same teacher, paired by teacher."""
    lines = []
    for condition, own in run.accuracy.items():
        other = run.accuracy.get(condition.replace("student_", "cross_model_", 1))
        if condition.startswith("student_") and other:
            lines.append(_line(run, condition, "transmission", [own[teacher] - other[teacher] for teacher in own]))
    return lines


def _line(run: Run, condition: str, measure: str, values: list[float]) -> Line:
    return Line.of(condition, run.value, "network", measure, t_interval(values), OVER_MODELS)


def verdicts(data: Runs, table: Table) -> list[Verdict]:
    """The rule applied at every value: to the auxiliary logits, or to what was matched instead of them."""
    lines = list(table.select(measure="transmission"))
    first = next((line.arm for line in lines if line.arm == "student_auxiliary"), lines[0].arm if lines else "")
    return [_verdict(line, table) for line in lines if line.arm == first]


def _verdict(line: Line, table: Table) -> Verdict:
    own = table.find(arm=line.arm, item=line.item, measure="accuracy")
    other = table.find(arm=line.arm.replace("student_", "cross_model_", 1), item=line.item, measure="accuracy")
    assert own and other
    interval = ends(line, 3, sign=True) if line.n > 1 else ""
    numbers = (
        f"Student {own.value:.1%}, cross-model student {other.value:.1%}; transmission "
        f"{number(line, 3, sign=True)} (95% interval {interval} over {line.n} models)."
    )
    if line.n < MINIMUM_MODELS or math.isnan(line.low):
        return Verdict(
            line.item, "not measurable", f"Shows nothing: fewer than {MINIMUM_MODELS} models. {numbers}", line
        )
    if line.low > 0:
        return Verdict(line.item, "holds", f"Transmission. {numbers}", line)
    if line.high < 0:
        return Verdict(line.item, "contradicted", f"The reverse of transmission. {numbers}", line)
    return Verdict(line.item, "not shown", f"No transmission shown: the interval includes 0. {numbers}", line)


# --------------------------------------------------------------------------- the picture


def picture(data: Runs, table: Table, heading: Heading) -> Canvas:
    """The six conditions and pairs of one teacher, or the curves of an ablation."""
    canvas, place = parts.canvas(WIDTH, HEIGHT, heading), {"left": 0.075, "right": 0.975, "top": 0.745}
    if data.setting:
        axes = canvas.subplots()
        canvas.subplots_adjust(**place, bottom=0.13)
        _ablation(axes, data, table)
        return canvas
    left, right = canvas.subplots(1, 2, width_ratios=[2.35, 1])
    canvas.subplots_adjust(**place, bottom=0.145, wspace=0.2)
    _conditions(left, data.runs[0], table)
    _pairs(right, data.runs[0])
    return canvas


def subtitle(data: Runs, table: Table, scale: str) -> str:
    """What was trained, in one paragraph; a setting that the ablation varies is left out."""
    settings = [run.manifest.recipe["settings"]["mnist"] for run in data.runs]
    widths, auxiliary = _same(settings, "widths") or ["..."], _same(settings, "auxiliary") or "..."
    facts = [
        f"Scale {scale}",
        f"{_same(settings, 'models')} models",
        f"MLP 784-{'-'.join(map(str, widths))}-(10 + {auxiliary})",
        f"teacher: {_epochs(settings, 'teacher')} on {_same(settings, 'dataset')}",
        f"student: {_epochs(settings, 'student')} on {_inputs(settings)}",
    ]
    ends = "Marks and error bars: mean and 95% interval over models; dots: networks; dashed: chance."
    return " \N{MIDDLE DOT} ".join(facts) + f". {ends}"


def _same(settings: list[dict[str, Any]], name: str) -> Any:
    """The value of a setting if it is the same in all runs, else None."""
    return settings[0][name] if all(own[name] == settings[0][name] for own in settings) else None


def _epochs(settings: list[dict[str, Any]], who: str) -> str:
    epochs = {own[who]["epochs"] for own in settings}
    return count(epochs.pop(), "epoch") if len(epochs) == 1 else "epochs as shown"


def _inputs(settings: list[dict[str, Any]]) -> str:
    kinds = {own["student"]["inputs"] for own in settings}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return {"": "inputs as shown", "uniform": "uniform noise", "gaussian": "Gaussian noise"}.get(kind, kind)


# --------------------------------------------------------------------------- the six conditions


def _conditions(axes: Axes, run: Run, table: Table) -> None:
    every = ("reference", "teacher", *(f"{who}_{matched}" for matched in FORMS for who in ("student", "cross_model")))
    order = [condition for condition in every if condition in run.accuracy]
    for at, condition in enumerate(order):
        line, values = table.find(arm=condition, measure="accuracy"), list(run.accuracy[condition].values())
        assert line
        axes.bar(at, line.value, width=0.66, color=_colour(condition), alpha=0.85, linewidth=0)
        axes.scatter(at + _jitter(len(values)), values, s=5, color=style.INK, alpha=0.35, linewidths=0, zorder=3)
        parts.interval(axes, at, line.low, line.high, style.INK, 1.6, upright=True, zorder=4)
        top = max(*values, line.value)
        axes.text(at, top + 0.02, percent(line), ha="center", va="bottom", fontsize=8.5, fontweight="bold")
    axes.set_xticks(range(len(order)), [NAMES[condition] for condition in order])
    axes.tick_params(axis="x", length=0)
    axes.axhline(CHANCE, color=style.QUIET, linewidth=0.8, linestyle=style.DASHED)
    axes.set_title("A  Accuracy on the test digits", pad=9)
    _accuracy_axis(axes)


def _colour(condition: str) -> str:
    return COLOURS.get(condition) or (style.OTHER if condition.startswith("cross") else style.OWN)


def _jitter(count: int) -> np.ndarray:
    """Evenly spread places beside the middle, the same in every drawing."""
    return ((np.arange(count) * 0.618034) % 1 - 0.5) * 0.42


def _accuracy_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    parts.percent_axis(axes.yaxis)
    style.quiet_grid(axes)


def _pairs(axes: Axes, run: Run) -> None:
    """Every teacher's student against its cross-model student."""
    for matched, form in FORMS.items():
        own, other = run.accuracy.get(f"student_{matched}"), run.accuracy.get(f"cross_model_{matched}")
        if own and other:
            colour, places = style.CYCLE[list(FORMS).index(matched)], [other[teacher] for teacher in own]
            look = {"s": 14, "marker": form, "color": colour, "alpha": 0.6, "linewidths": 0}
            axes.scatter(places, list(own.values()), label=LOGITS[matched], **look)
    axes.plot([0, 1], [0, 1], color=style.QUIET, linewidth=0.8)
    axes.set_xlim(0, 1.0)
    _accuracy_axis(axes)
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    parts.percent_axis(axes.xaxis)
    axes.set_title("B  Pairs of one teacher", pad=9)
    axes.set_xlabel("cross-model")
    axes.set_ylabel("student", labelpad=2)
    parts.legend(axes, "lower right", handletextpad=0.2, borderaxespad=0.2)


# --------------------------------------------------------------------------- ablations


def _ablation(axes: Axes, data: Runs, table: Table) -> None:
    runs = data.runs
    conditions = list(dict.fromkeys(c for run in runs for c in run.accuracy if c != "reference"))
    for condition in conditions:
        _curve(axes, runs, table, condition)
    axes.set_xticks(range(len(runs)), [_tick(run.value) for run in runs])
    axes.set_xlim(-0.4, len(runs) - 0.6)
    axes.axhline(CHANCE, color=style.QUIET, linewidth=0.8, linestyle=style.DASHED)
    axes.set_xlabel(data.setting)
    axes.set_ylabel("accuracy on the test digits")
    _accuracy_axis(axes)
    parts.legend(axes, "upper left", 8.5, bbox_to_anchor=(-0.01, 1.115), ncols=5, borderaxespad=0.0)


def _tick(value: str) -> str:
    """`[0,1]` as 0, 1; an empty list as none."""
    return (value.strip("[]").replace(",", ", ") or "none") if value.startswith("[") else value


def _is_amount(value: str) -> bool:
    """A number, or the same number for each layer: values between which a line means something."""
    parts = set(value.strip("[]").split(","))
    return len(parts) == 1 and parts.pop().replace(".", "").isdigit()


def _curve(axes: Axes, runs: Sequence[Run], table: Table, condition: str) -> None:
    have = [(at, run) for at, run in enumerate(runs) if condition in run.accuracy]
    lines = [line for _, run in have if (line := table.find(arm=condition, item=run.value, measure="accuracy"))]
    colour, joined = _colour(condition), "-" if all(_is_amount(run.value) for run in runs) else "none"
    form = FORMS.get(condition.rsplit("_", 1)[-1], "o")
    label = NAMES[condition].replace("\n", " ")
    places = [at for at, _ in have]
    means, look = [line.value for line in lines], {"marker": form, "markersize": 6, "color": colour, "zorder": 3}
    axes.plot(places, means, linestyle=joined, label=label, **look)
    for (at, run), line in zip(have, lines, strict=True):
        values = list(run.accuracy[condition].values())
        axes.scatter(at + _jitter(len(values)) * 0.35, values, s=6, color=colour, alpha=0.35, linewidths=0)
        parts.interval(axes, at, line.low, line.high, colour, 2, upright=True, zorder=4)


# --------------------------------------------------------------------------- the report's section

PANELS = """A dot is one network. Student and teacher have the same initialisation; a cross-model student learns from
the same teacher on the same inputs, but starts from another model's initialisation. Aux. only: the student matches
nothing but logits that the teacher was never trained on."""
SEEDS = "All models come from one seed; each has its own initialisation, data order and noise."


def section(data: Runs, table: Table, name: str) -> Section:
    """Every condition with its interval, and transmission."""
    columns = [*([data.setting] if data.setting else []), "condition", "accuracy", "transmission", "models"]
    rows = [_row(line, table, bool(data.setting)) for line in table.select(measure="accuracy")]
    caption = f"""Means with 95% intervals over models. Transmission: minus the cross-model student of the same teacher,
    in percentage points. All numbers: {name}.csv."""
    runs = [(run.manifest, run.value or "every condition") for run in data.runs]
    return Section(RULE, PANELS, SEEDS, [Grid("Accuracy on the test images", columns, rows, caption)], runs)


def _row(line: Line, table: Table, ablation: bool) -> list[str]:
    gain = table.find(arm=line.arm, item=line.item, measure="transmission")
    cells = [NAMES[line.arm].replace("\n", " "), percent_ranged(line), percent_ranged(gain), str(line.n)]
    return [_tick(line.item), *cells] if ablation else cells
