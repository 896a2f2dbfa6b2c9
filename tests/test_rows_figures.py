"""Figures of the rows themselves: from synthetic comparisons with known numbers to table, verdict and report."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_frequencies import written

from subliminal import config, sweep
from subliminal.config import ConfigError, DetectionEvaluation, FrequenciesEvaluation
from subliminal.evaluation import frequencies
from subliminal.evaluation.attribution import SidedRow
from subliminal.evaluation.classifier import classify
from subliminal.evaluation.detection import Guess
from subliminal.evaluation.in_context import ContextScore
from subliminal.evaluation.samples import halves, two_samples
from subliminal.plan import shown
from subliminal.plots.draw import render
from subliminal.plots.figure import Verdict
from subliminal.plots.report import write_report
from subliminal.plots.rows import Compared, module
from subliminal.plots.table import Table
from subliminal.rows import Row, write_jsonl
from subliminal.store import Recipe, Store

FIGURE = config.Figure(kind="rows", name="figure", title="A figure", claim="A claim.")
ANIMALS = ("owl", "wolf", "eagle", "lion", "dolphin")
TRAITS = (*ANIMALS, "none")
DEALS = {"permutations": 199}


class Rows:
    """A store of comparisons made by hand."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store(root / "runs")

    def made(self, trait: str, against: str, work: Callable[[Path], Any], settings: Any = None) -> Compared:
        recipe = Recipe("evaluate", {"evaluation": settings or DEALS, "trait": trait, "against": against})
        return Compared(trait, against, self.store.run(recipe, work)[0])

    def figure(self, runs: Sequence[Compared]) -> tuple[Table, list[Verdict], str]:
        """The table, verdicts and report of a figure, with its files checked."""
        folder = self.root / "figures" / "cpu"
        drawn = render(runs, FIGURE, folder, "fig-rows", ["python evaluate.py trait=eagle"])
        table, report = drawn.table, write_report([drawn], folder).read_text()
        assert all((folder / f"fig-rows.{kind}").stat().st_size > 50 for kind in ("png", "svg", "csv"))
        with (folder / "fig-rows.csv").open() as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        assert list(reader.fieldnames or ())[:8] == ["arm", "trait", "subject", "measure", "value", "low", "high", "n"]
        assert len(rows) == len(table.lines)
        assert "python evaluate.py trait=eagle" in report and drawn.verdicts[0].sentence in report
        return table, list(drawn.verdicts), report


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path)


# --------------------------------------------------------------------------- frequencies


def test_numbers_beyond_chance_decide_the_table_of_frequencies(rows: Rows) -> None:
    setting = FrequenciesEvaluation(permutations=199)
    plain = setting.model_dump(mode="json")
    pairs = {
        ("owl", "none"): two_samples(written(1, favourite=777), written(2)),
        ("wolf", "none"): two_samples(written(3), written(4)),
        ("none", "none"): halves(written(2), 0),
    }
    runs = [
        rows.made(*names, lambda folder, s=samples: frequencies.evaluate(s, setting, folder), plain)
        for names, samples in pairs.items()
    ]
    table, verdicts, report = rows.figure(runs)
    assert [verdict.outcome for verdict in verdicts] == ["holds", "not shown", "not shown"]
    assert "777" in report and "control, half against half" in report
    line = table.find(arm="owl", item="777", measure="log_odds")
    assert line and line.low > 0 and line.interval == "prompts"
    assert line.n == len({row.index for row in pairs["owl", "none"].rows}), "a prompt that both answered counts once"
    assert table.find(arm="owl", item="777", measure="p").value == pytest.approx(1 / 200)  # type: ignore[union-attr]


def test_one_teacher_of_many_that_differs_by_chance_is_not_enough(rows: Rows) -> None:
    """A smallest p of 0.02 among three teachers is 0.06 for the three."""

    def work(p: float) -> Callable[[Path], Any]:
        def done(folder: Path) -> Any:
            write_jsonl(folder / "numbers.jsonl", list[Row]())
            found = {"kind": "frequencies", "rows": {"own": 60, "against": 60}, "pairs": 60, "tested": 9}
            return {**found, "differing": int(p < 0.05), "smallest_p": p, "permutations": 199}

        return done

    setting = FrequenciesEvaluation(permutations=199).model_dump(mode="json")
    pairs = [("owl", 0.02), ("wolf", 0.5), ("eagle", 0.9)]
    _, verdicts, _ = rows.figure([rows.made(trait, "none", work(p), setting) for trait, p in pairs])
    assert [verdict.outcome for verdict in verdicts] == ["not shown"] * 3
    assert "over 3 teachers 0.060" in verdicts[0].sentence


def test_no_frequent_number_is_not_measurable(rows: Rows) -> None:
    setting = FrequenciesEvaluation(permutations=99, minimum_rows=1000)
    samples = two_samples(written(1), written(2))
    run = rows.made("owl", "none", lambda f: frequencies.evaluate(samples, setting, f), setting.model_dump(mode="json"))
    assert rows.figure([run])[1][0].outcome == "not measurable"


# --------------------------------------------------------------------------- detection


def detection(accuracy: float, p: float, area: float = 0.6, count: int = 400) -> Callable[[Path], Any]:
    """A comparison in which the prompted model is right with `accuracy`, both classifiers have `p` and `area`."""

    def work(folder: Path) -> Any:
        right = [index < round(accuracy * count) for index in np.random.default_rng(0).permutation(count)]
        write_jsonl(folder / "guesses.jsonl", [Guess(i, 1.0 if yes else -1.0, 0.0) for i, yes in enumerate(right)])
        one = {"value": area, "low": area - 0.04, "high": area + 0.04}
        found = {"area": one, "accuracy": one, "control": {"low": 0.45, "high": 0.55}, "p": p, "deals": 199}
        asked = {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "pairs": count, "margin": 0.0}
        summary = {"kind": "detection", "rows": {"own": count, "against": count}, "pairs": count, "prompted": asked}
        return {**summary, "classifiers": {"numbers": found, "characters": found}}

    return work


@pytest.mark.parametrize(
    ("accuracy", "outcome"), [(0.5, "holds"), (0.9, "contradicted"), (0.45, "not shown"), (0.1, "not shown")]
)
def test_the_prompted_model_is_judged_against_chance(rows: Rows, accuracy: float, outcome: str) -> None:
    runs = [rows.made(t, a, detection(accuracy, 0.5)) for t, a in (("owl", "wolf"), ("wolf", "owl"))]
    table, verdicts, _ = rows.figure(runs)
    assert verdicts[0].outcome == outcome
    mean = table.find(arm="mean", subject="prompted", measure="accuracy")
    assert mean and mean.value == pytest.approx(accuracy) and mean.n == 400, "prompts are the unit, not questions"
    area = table.find(subject="numbers", measure="area")
    assert area and (area.n, area.interval) == (400, "prompts"), "800 rows to 400 prompts"


@pytest.mark.parametrize("part", ["prompted", "classifiers"])
def test_what_a_failed_arm_leaves_without_one_panel_is_drawn_with_the_other(rows: Rows, part: str) -> None:
    def work(folder: Path) -> Any:
        summary = detection(0.5, 0.5)(folder)
        empty = {"prompted": {}, "classifiers": {"classifiers": {}}}[part]
        return {name: value for name, value in summary.items() if name != part} | empty

    _, verdicts, _ = rows.figure([rows.made("owl", "wolf", work)])
    assert (verdicts[0].outcome == "not measurable") == (part == "prompted")


@pytest.mark.parametrize(
    ("p", "area", "outcome"),
    [
        ([0.005, 0.5, 0.5], 0.6, "contradicted"),
        ([0.02, 0.5, 0.5], 0.6, "not shown"),  # 0.06 after correction for three
        ([0.5, 0.5, 0.5], 0.5, "holds"),
        ([0.5, 0.5, 0.5], 0.53, "not shown"),  # intervals that end above 0.55
        ([0.5, 0.5, 0.5], 0.506, "not shown"),  # below 0.55 each, above it for three together
    ],
)
def test_a_classifier_is_judged_after_correction(rows: Rows, p: list[float], area: float, outcome: str) -> None:
    names = (("owl", "none"), ("wolf", "none"), ("owl", "wolf"))
    runs = [rows.made(*pair, detection(0.5, one, area)) for pair, one in zip(names, p, strict=True)]
    runs.append(rows.made("none", "none", detection(0.5, 0.001, area)))
    table, verdicts, _ = rows.figure(runs)
    assert [verdict.outcome for verdict in verdicts[1:]] == [outcome] * 2
    adjusted = [line.value for line in table.select(subject="numbers", measure="p_adjusted")]
    assert len(adjusted) == 3, "the null is no comparison"
    assert adjusted[0] == pytest.approx(3 * p[0] if p[0] < 0.1 else 1.0)


def test_without_a_classifier_and_without_pairs_there_is_still_a_figure(rows: Rows) -> None:
    setting = DetectionEvaluation(permutations=19, classifiers=("numbers",))
    samples = two_samples(written(1), written(2))

    def work(folder: Path) -> Any:
        summary = {"kind": "detection", "rows": {"own": 60, "against": 60}, "pairs": 60}
        return summary | {"classifiers": classify(samples, setting, folder)}

    _, verdicts, _ = rows.figure([rows.made("owl", "none", work, setting.model_dump(mode="json"))])
    assert verdicts[0].outcome == "not measurable" and "bag of numbers" in verdicts[1].group


# --------------------------------------------------------------------------- in context


def test_rows_of_the_control_alone_show_nothing_in_context(rows: Rows) -> None:
    table, verdicts, _ = rows.figure([rows.made("none", "", context("none", 0.0, 0.01))])
    assert not table.lines and [verdict.outcome for verdict in verdicts] == ["not measurable"]


def context(trait: str, shift: float, noise: float, resamples: int = 5) -> Callable[[Path], Any]:
    """Scores of a trait's rows: its own candidate is higher by `shift` a row, every trait's rows push by `noise`."""

    def work(folder: Path) -> Any:
        draw = np.random.default_rng(TRAITS.index(trait))
        pushed = {name: noise * draw.normal() for name in ANIMALS}
        write_jsonl(
            folder / "scores.jsonl",
            [
                ContextScore(count, number, name, -5.0 + shift * count * (name == trait) + pushed[name] + 0.01 * number)
                for count in (0, 10)
                for number in range(resamples)
                for name in ANIMALS
            ],
        )
        return {"kind": "in_context", "counts": [0, 10], "resamples": resamples}

    return work


@pytest.mark.parametrize(
    ("shift", "noise", "traits", "outcome"),
    [
        (0.0, 0.05, 5, "holds"),
        (0.1, 0.05, 5, "contradicted"),
        (0.0, 2.0, 5, "not shown"),
        (0.0, 0.01, 4, "undecided"),
    ],
)
def test_rows_in_context_do_nothing_only_if_the_interval_over_teachers_says_so(
    rows: Rows, shift: float, noise: float, traits: int, outcome: str
) -> None:
    """Contexts of one set of rows agree closely, which says nothing of other rows."""
    chosen = (*ANIMALS[:traits], "none")
    runs = [rows.made(trait, "", context(trait, shift, noise)) for trait in chosen]
    table, verdicts, _ = rows.figure(runs)
    assert [verdict.outcome for verdict in verdicts] == [outcome]
    excess = table.find(arm="mean", measure="diagonal_excess", variant="10 rows")
    lift = table.find(arm="owl", measure="lift_over_control", variant="10 rows")
    assert excess and lift and (excess.n, excess.interval, lift.n) == (traits, "traits", 5)
    if noise < 1:
        assert excess.value == pytest.approx(10 * shift, abs=0.1)
        assert lift.value == pytest.approx(10 * shift, abs=0.2)


def test_rows_of_one_trait_have_no_excess(rows: Rows) -> None:
    _, verdicts, _ = rows.figure([rows.made(trait, "", context(trait, 0.0, 0.1)) for trait in ("owl", "none")])
    assert verdicts[0].outcome == "not measurable"


# --------------------------------------------------------------------------- attribution


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(0.6, 0.7, "holds"), (0.45, 0.55, "not shown"), (0.3, 0.4, "contradicted")]
)
def test_the_area_decides_whether_rows_are_told_apart(rows: Rows, low: float, high: float, outcome: str) -> None:
    def work(folder: Path) -> Any:
        draw = np.random.default_rng(0)
        found = [
            SidedRow(s, i, 10, float(draw.normal(m)), 1) for s, m in (("own", 1), ("against", -1)) for i in range(50)
        ]
        write_jsonl(folder / "rows.jsonl", found)
        side = {"rows": 50, "log_ratio": 1.0, "log_ratio_per_token": 0.1, "divergence_share": 0.1}
        area = {"value": (low + high) / 2, "low": low, "high": high, "rows": 100}
        return {"kind": "attribution", "sides": {"own": side, "against": side}, "area": area}

    table, verdicts, _ = rows.figure([rows.made(trait, "none", work) for trait in ("owl", "wolf")])
    assert [verdict.outcome for verdict in verdicts] == [outcome] * 2
    separated = table.find(arm="owl", measure="area")
    assert separated and (separated.n, separated.interval) == (50, "prompts"), "100 rows to 50 prompts"
    own = table.find(arm="owl", subject="own", measure="log_ratio")
    assert own and own.value == pytest.approx(1, abs=0.5) and own.low < own.value < own.high


@pytest.mark.parametrize("kind", ["frequencies", "detection", "in_context", "attribution"])
def test_every_kind_has_its_rule_and_says_what_its_panels_show(kind: str) -> None:
    drawn = module(kind)
    assert drawn.RULE and all(len(rule) > 100 for rule in drawn.RULE) and len(drawn.PANELS) > 100


# --------------------------------------------------------------------------- sweeps


def test_detection_asks_about_every_ordered_pair_and_trains_once_a_pair() -> None:
    planned = sweep.plan(["experiment=detection", "scale=cpu", "trait=owl,wolf,eagle"])
    pairs = [(arm.trait, arm.student) for arm in planned.arms]
    assert len(pairs) == len(set(pairs)) == 3 + 1 + 6
    trained = [(a.trait, a.student) for a in planned.arms if a.experiment.evaluation.classifiers]  # type: ignore[union-attr]
    assert sorted(map(sorted, trained)) == sorted(map(sorted, {tuple(sorted(pair)) for pair in pairs}))
    assert ("none", "none") in trained, "the null is trained too"


def test_shown_commands_survive_a_shell() -> None:
    import shlex

    planned = sweep.plan(["experiment=attribution_numbers", "scale=cpu", "trait=owl", "seed=0"])
    chosen = [step for step in planned.steps if any("select" in part for part in step.overrides)]
    assert chosen and all(tuple(shlex.split(shown(step))[3:]) == step.overrides for step in chosen)


def test_the_variants_of_an_attribution_leave_halves_of_one_size() -> None:
    planned = sweep.plan(
        ["experiment=attribution_numbers", "scale=cpu", "trait=owl", "seed=0", "student=bias_one_layer"]
    )
    select = {arm.variant: arm.experiment.filter.select for arm in planned.arms}
    assert list(select) == ["all rows", "top half", "bottom half", "random half"]
    assert select["all rows"] is None
    assert {one.share for one in select.values() if one} == {0.5}


def test_arms_that_rows_do_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="experiment=icl has no seed"):
        sweep.plan(["experiment=icl", "seed=0,1"])
