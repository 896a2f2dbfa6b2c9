"""The theorem's numbers from the stored rows of its trials and training runs: the table, the claim, the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from subliminal.evaluation import statistics
from subliminal.plots.cells import PlotError, read_lines
from subliminal.plots.effects import OVER_SEEDS
from subliminal.plots.figure import Verdict
from subliminal.plots.table import Line, Table
from subliminal.store import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALL = "all trials"
OVER_TRIALS, OVER_TRIALS_WILSON = "trials", "trials (Wilson)"
RATIO_TOLERANCE, SLOPE_TOLERANCE = 1e-3, 0.01
COIN_MARGIN = 0.1  # of the share of positive products
SPLITS = ("architecture", "loss", "matched", "teacher_loss", "inputs", "activation")
RULE = (
    """The claim holds if, in every trial with a shared initialisation and at every small step of the teacher (1e-4 of
    its weights or less), the product d_S . d_T is not negative and the teacher's loss does not rise; one trial to the
    contrary contradicts it.""",
    f"""It also needs the prediction to be exact in the limit: measured over predicted within {RATIO_TOLERANCE:g} of 1
    at the smallest step, and a log-log slope of measured on predicted within {SLOPE_TOLERANCE:g} of 1.""",
    f"""And it needs the control: with different initialisations the whole 95% interval of the share of positive
    products must lie within {COIN_MARGIN} of one half. The teacher's loss has a random sign, so that a half is what no
    transmission means; that the interval includes a half would fail in one fair run of twenty, whatever its size.""",
)


@dataclass(frozen=True)
class Trials:
    """The measurements of all seeds as columns; `small` is the longest step of the teacher that counts as small."""

    columns: dict[str, NDArray[Any]]
    small: float

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self["step"])

    def where(self, **wanted: object) -> Trials:
        """The measurements whose columns equal `wanted`."""
        chosen = np.ones(len(self), dtype=bool)
        for name, value in wanted.items():
            chosen &= self[name] == value
        return self._only(chosen)

    @property
    def small_ones(self) -> Trials:
        """The measurements at small steps of the teacher."""
        return self._only(self["step"] <= self.small)

    @property
    def smallest(self) -> Trials:
        """The measurements at the smallest step of the teacher: one a trial and initialisation."""
        return self._only(self["step"] == self["step"].min()) if len(self) else self

    @property
    def ratio_error(self) -> NDArray[np.float64]:
        """How far measured over predicted is from 1."""
        return np.abs(self["measured"] / self["predicted"] - 1)

    @property
    def count(self) -> int:
        """How many different trials there are."""
        return len(set(self.ids))

    @property
    def ids(self) -> list[tuple[int, int]]:
        """(seed, trial) of every measurement."""
        return list(zip(self["seed"].tolist(), self["trial"].tolist(), strict=True))

    def _only(self, chosen: NDArray[np.bool_]) -> Trials:
        return Trials({name: values[chosen] for name, values in self.columns.items()}, self.small)


def read_trials(runs: Sequence[Manifest]) -> Trials:
    """The measurements of every seed's run; raises `PlotError` for files that are missing or damaged."""
    files = [(int(run.recipe["settings"]["seed"]), run.folder / "trials.jsonl") for run in runs]
    rows = [{"seed": seed, **row} for seed, path in files for row in read_lines(path)]
    if not rows:
        raise PlotError("no trial of the theorem to draw; run: python -m subliminal sweep experiment=theorem")
    return Trials({name: np.array([row[name] for row in rows]) for name in rows[0]}, runs[0].summary["small"])


# --------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Checks:
    """The theorem's runs, one a seed."""

    runs: Sequence[Manifest]

    @cached_property
    def trials(self) -> Trials:
        """The measurements of all trials."""
        return read_trials(self.runs)

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """The measurements along every training run."""
        return [point for run in self.runs for point in read_lines(run.folder / "alignment.jsonl")]


def table(data: Checks) -> Table:
    """Every number of the figure: overall, by each thing a trial draws, by step, and along the training runs."""
    return theorem_table(data.trials, data.points, data.runs[0].summary["parameters"])


def theorem_table(trials: Trials, points: Sequence[dict[str, Any]], parameters: int) -> Table:
    """Every number of the figure: overall, by each thing a trial draws, by step, and along the training runs."""
    lines = list(_share_lines(ALL, "", trials))
    lines += _fit_lines(ALL, "", trials)
    for split in SPLITS:
        for value in dict.fromkeys(trials[split].tolist()):
            part = trials.where(**{split: value})
            lines += [*_share_lines(value, split, part), *_fit_lines(value, split, part)]
    lines += _step_lines(trials)
    lines += _alignment_lines(points)
    if points:
        lines.append(Line("chance", "", "different", "cosine_spread", 1 / math.sqrt(parameters)))
    return Table(tuple(lines))


def _share_lines(arm: str, split: str, trials: Trials) -> Iterator[Line]:
    """Trials with a negative product or a risen loss at any small step, and how often the sign is positive."""
    same = trials.where(initialisation="same")
    for measure, bad in (("negative", same["measured"] < 0), ("loss_risen", same["loss_change"] > 0)):
        yield _share(arm, split, "same", measure, _trials_with(same, bad & (same["step"] <= same.small)), same.count)
    for initialisation in ("same", "different"):
        last = trials.where(initialisation=initialisation).smallest
        yield _share(arm, split, initialisation, "positive", int((last["measured"] > 0).sum()), len(last))
        falls = int((last["loss_change"] < 0).sum())
        yield _share(arm, split, initialisation, "loss_fell", falls, len(last))
    plain = trials.where(initialisation="different", sign=1).smallest
    yield _share(arm, split, "different", "positive_plain_sign", int((plain["measured"] > 0).sum()), len(plain))


def _share(arm: str, split: str, subject: str, measure: str, hits: int, count: int) -> Line:
    return Line.of(arm, split, subject, measure, statistics.wilson(hits, count), OVER_TRIALS_WILSON)


def _trials_with(trials: Trials, bad: NDArray[np.bool_]) -> int:
    return len({key for key, hit in zip(trials.ids, bad.tolist(), strict=True) if hit})


def _fit_lines(arm: str, split: str, trials: Trials) -> Iterator[Line]:
    """How the measured product approaches the prediction with the teacher's step."""
    same = trials.where(initialisation="same")
    last = same.smallest
    yield Line(arm, split, "same", "largest_ratio_error", float(last.ratio_error.max()), n=len(last))
    yield Line(arm, split, "same", "largest_direction_error", float(last["direction_error"].max()), n=len(last))
    slopes = _slopes(same.small_ones)
    if len(slopes):
        yield Line.of(arm, split, "same", "slope", statistics.t_interval(slopes), OVER_TRIALS)


def _slopes(trials: Trials) -> NDArray[np.float64]:
    """For each trial the least-squares slope of log measured on log predicted over the small steps."""
    order = np.lexsort((trials["step"], trials["trial"], trials["seed"]))
    sizes = len(set(trials["step"].tolist()))
    if sizes < 2:
        return np.array([])
    measured, predicted = (trials[name][order].reshape(-1, sizes) for name in ("measured", "predicted"))
    positive = (measured > 0).all(axis=1) & (predicted > 0).all(axis=1)
    x, y = np.log(predicted[positive]), np.log(measured[positive])
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    return (x * y).sum(axis=1) / (x * x).sum(axis=1)


def _step_lines(trials: Trials) -> Iterator[Line]:
    """The median error of the ratio, and signs, at every size of the teacher's step."""
    for size in sorted(set(trials["step"].tolist())):
        for initialisation in ("same", "different"):
            part = trials.where(initialisation=initialisation, step=size)
            hits = int((part["measured"] > 0).sum())
            yield _share(f"step {size:g}", "step", initialisation, "positive", hits, len(part))
        same = trials.where(initialisation="same", step=size)
        low, middle, high = np.quantile(same.ratio_error, [0.025, 0.5, 0.975]).tolist()
        yield Line(
            f"step {size:g}", "step", "same", "ratio_error", middle, low, high, len(same), "trials (central 95%)"
        )


def _alignment_lines(points: Sequence[dict[str, Any]]) -> Iterator[Line]:
    keys = dict.fromkeys((p["optimiser"], p["initialisation"], p["step"]) for p in points)
    for optimiser, initialisation, step in keys:
        at = [
            p for p in points if (p["optimiser"], p["initialisation"], p["step"]) == (optimiser, initialisation, step)
        ]
        for measure in ("cosine", "length_share", "accuracy", "teacher_loss"):
            mean, seeds = statistics.t_interval([p[measure] for p in at]), tuple((p["seed"], p[measure]) for p in at)
            over = OVER_SEEDS if mean.n > 1 else "none"
            yield Line.of(optimiser, f"step {step}", initialisation, measure, mean, over, by_seed=seeds)


# --------------------------------------------------------------------------- the claim


def verdict(table: Table) -> Verdict:
    """The rule applied to the table: contradicted by one failure, not shown without the limit or the control."""
    negative, risen = _overall(table, "negative", "same"), _overall(table, "loss_risen", "same")
    ratio, slope = _overall(table, "largest_ratio_error", "same"), table.find(arm=ALL, measure="slope")
    control = _overall(table, "positive", "different")
    exact = ratio.value < RATIO_TOLERANCE and slope is not None and abs(slope.value - 1) < SLOPE_TOLERANCE
    sentence = claim(table)
    if negative.value or risen.value:
        return Verdict("theorem", "contradicted", f"Contradicted. {sentence}", negative)
    if not exact:
        return Verdict(
            "theorem", "not shown", f"Not shown: the prediction is not reached in the limit. {sentence}", negative
        )
    if control.low < 0.5 - COIN_MARGIN or control.high > 0.5 + COIN_MARGIN:
        return Verdict("theorem", "not shown", f"Not shown: the control is no fair coin. {sentence}", negative)
    return Verdict("theorem", "holds", f"Holds in every trial. {sentence}", negative)


def claim(table: Table) -> str:
    """Trials, failures, the limit and the control in three sentences."""
    negative, risen = _overall(table, "negative", "same"), _overall(table, "loss_risen", "same")
    ratio, slope = _overall(table, "largest_ratio_error", "same"), table.find(arm=ALL, measure="slope")
    control = _overall(table, "positive", "different")
    fit = f"; slope {slope.value:.6f} [{slope.low:.6f}, {slope.high:.6f}]" if slope else ""
    share = f"{control.value:.1%} positive, 95% interval [{control.low:.1%}, {control.high:.1%}]"
    return (
        f"{negative.n:,} trials with a shared initialisation: {_count(negative)} negative products, "
        f"{_count(risen)} rises of the teacher's loss at small steps. "
        f"Measured over predicted at the smallest step: within {ratio.value:.1e} of 1{fit}. "
        f"Different initialisations: {share} (n = {control.n:,})."
    )


def _count(line: Line) -> int:
    return round(line.value * line.n)


def _overall(table: Table, measure: str, subject: str) -> Line:
    line = table.find(arm=ALL, measure=measure, subject=subject)
    if line is None:
        raise PlotError(f"the theorem's table has no {measure}; remove its runs and run evaluate.py again")
    return line
