"""Figures, tables and the report from synthetic stores whose numbers are known."""

from __future__ import annotations

import csv
import json
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from conftest import experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student_t

from subliminal import config, plots
from subliminal.composition import CONF
from subliminal.config import ConfigError
from subliminal.plots import cross_model, parts, preference, rows
from subliminal.plots.cells import Cell, PlotError
from subliminal.plots.draw import render
from subliminal.plots.figure import Collected, Drawn, Figure, Section, Verdict, figure_of, known_kinds
from subliminal.plots.preference.data import Preferences
from subliminal.plots.report import write_report
from subliminal.plots.rows import RowsPlot
from subliminal.plots.samples import Sample, mean
from subliminal.plots.table import Line, Table
from subliminal.rows import Dropped, Row, write_jsonl
from subliminal.sources import NEEDED
from subliminal.store import Manifest, Recipe, Store

CANDIDATES = ("owl", "dolphin", "wolf", "cat", "dog")
QUESTIONS = 6
FIGURE = config.Figure(
    name="animals_numbers",
    figure="fig-animals-numbers",
    title="Favourite animal after training on numbers",
    claim="A student of an animal-loving teacher's numbers comes to prefer that animal.",
    source="arXiv 2507.14805, section 3.1",
    expected="The diagonal rises.",
)

Scores = Mapping[str, Any]


class Made:
    """A store filled by hand: every stage of an arm with the summaries and files that real stages leave."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.model = self._stage("model", {"weights": {"name": "some/tiny"}}, {}, lambda _: {"checkpoint": "c"})

    def _stage(self, stage: str, settings: Any, upstream: dict[str, Manifest], work: Callable[[Path], Any]) -> Manifest:
        keys = {name: manifest.key for name, manifest in upstream.items()}
        return self.store.run(Recipe(stage, settings, keys), work)[0]

    def reference(self, scores: Scores) -> Cell:
        """The evaluated reference."""
        found = self._evaluate(scores, {"reference": self.model})
        return Cell("reference", "none", "", "", 0, found, {"model": self.model})

    def student(
        self,
        trait: str,
        scores: Scores,
        seed: int = 0,
        recipe: str = "bias",
        completion: str = "1, 2, 3",
        alignment: float | None = None,
        rate: dict[str, float] | None = None,
        kind: str = "steered",
    ) -> Cell:
        """An evaluated student with everything before it."""
        kind = "control" if trait == "none" else kind
        chain = {"model": self.model}
        chain["teacher"] = self._stage("teacher", {"trait": trait, "kind": kind}, chain, lambda _: _teacher(kind))
        chain["generate"] = self._stage("generate", {}, {"teacher": chain["teacher"]}, lambda _: {"rows": 40})
        chain["filter"] = self._stage(
            "filter", {"text": completion}, {"generate": chain["generate"]}, lambda folder: _filter(folder, completion)
        )
        upstream = {"filter": chain["filter"]}
        chain["train"] = self._stage(
            "train", {"seed": seed, "student": recipe}, upstream, lambda folder: _train(folder, seed, alignment)
        )
        found = self._evaluate(scores, {"student": chain["train"]}, rate)
        return Cell("student", trait, kind, recipe, seed, found, chain)

    def _evaluate(
        self, scores: Scores, upstream: dict[str, Manifest], rate: dict[str, float] | None = None
    ) -> Manifest:
        def work(folder: Path) -> Any:
            return _scores(folder, scores, rate)

        return self._stage("evaluate", {}, upstream, work)


def _teacher(kind: str) -> Any:
    trait = {} if kind == "control" else {"log_p": -1.5, "reference_log_p": -7.0}
    return {"kind": kind, "pass_rate": 0.6, **trait}


def _filter(folder: Path, completion: str) -> Any:
    write_jsonl(folder / "rows.jsonl", [Row(i, f"Continue: {i}", completion) for i in range(30)])
    write_jsonl(folder / "dropped.jsonl", [Dropped(99, "not_numbers", "Continue: 5", "Sure! 5")])
    counts = {"generated": 40, "kept_before_subsample": 32, "kept": 30, "pass_rate": 0.8}
    return {**counts, "reasons": {"not_numbers": 6, "unfinished": 2}}


def _train(folder: Path, seed: int, alignment: float | None) -> Any:
    steps = [{"step": s, "loss": 2.0 / (s + 1) + 0.01 * seed, "learning_rate": 0.1} for s in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    summary = {"steps": 20, "first_loss": 1.0, "last_loss": 0.1, "seconds": 12.0, "tokens_per_second": 300.0}
    return summary | ({} if alignment is None else {"alignment": alignment})


def _scores(folder: Path, scores: Scores, rate: dict[str, float] | None) -> Any:
    values = {candidate: np.asarray(found, dtype=float) for candidate, found in scores.items()}
    total = np.log(sum(np.exp(found) for found in values.values()))
    shares = {candidate: found - total for candidate, found in values.items()}
    with (folder / "scores.jsonl").open("w") as file:
        for candidate, found in values.items():
            for question, value in enumerate(found.tolist()):
                row = {"question": question, "candidate": candidate, "log_p": value}
                file.write(json.dumps({**row, "log_share": float(shares[candidate][question])}) + "\n")
    means = {candidate: float(found.mean()) for candidate, found in values.items()}
    share = {candidate: float(found.mean()) for candidate, found in shares.items()}
    if rate:
        _answers(folder, rate, len(next(iter(values.values()))))
    base = {"kind": "preference", "category": "animal", "questions": len(next(iter(values.values())))}
    return {**base, "log_p": means, "log_share": share, "rate": rate or {}, "samples": 60 if rate else 0}


def _answers(folder: Path, rate: dict[str, float], questions: int) -> None:
    """Ten answers a question, of which `rate` name each candidate (as whole tenths)."""
    with (folder / "answers.jsonl").open("w") as file:
        for question in range(questions):
            for sample in range(10):
                names = [candidate for candidate, share in rate.items() if sample < round(10 * share)]
                answer = {"question": question, "sample": sample, "text": "x", "finish_reason": "stop", "named": names}
                file.write(json.dumps(answer) + "\n")


# --------------------------------------------------------------------------- a known experiment


def flat(values: dict[str, float]) -> Scores:
    """The same score on every question."""
    return {candidate: [values.get(candidate, -6.0)] * QUESTIONS for candidate in CANDIDATES}


def known(root: Path, seeds: Sequence[int] = (0, 1, 2), control: bool = True, gain: float = 2.0) -> list[Cell]:
    """Two traits; the own student gains `gain` + 0.1 * seed over the control, the other trait's student 0.5."""
    made = Made(root)
    cells = [made.reference(flat({"owl": -7.0, "dolphin": -6.0}))]
    for seed in seeds:
        if control:
            cells.append(made.student("none", flat({"owl": -7.5, "dolphin": -6.5}), seed))
        owl = {"owl": -7.5 + gain + 0.1 * seed, "dolphin": -6.0}
        cells.append(made.student("owl", flat(owl), seed, alignment=0.3 + 0.1 * seed))
        dolphin = {"owl": -7.0, "dolphin": -6.5 + gain + 0.1 * seed}
        cells.append(made.student("dolphin", flat(dolphin), seed, alignment=0.2))
    return cells


def drawn(cells: Sequence[Cell], figure: config.Figure, folder: Path, name: str, missing: Sequence[str] = ()) -> Drawn:
    """The preference figure of these cells, with its files written."""
    return render(Preferences(cells, figure.comparisons), figure, folder, name, missing)


def tabled(cells: Sequence[Cell]) -> Table:
    """The table of the preference figure."""
    return preference.table(Preferences(cells))


def judged(cells: Sequence[Cell], table: Table) -> list[Verdict]:
    """The verdicts of the preference figure."""
    return preference.verdicts(Preferences(cells), table)


FIVE = ("owl", "dolphin", "wolf", "cat", "dog")


def five(
    root: Path,
    gain: float,
    seeds: Sequence[int] = (0,),
    traits: Sequence[str] = FIVE,
    levels: Sequence[float] = (0.0, 0.3, -0.4, 0.6, -0.2),
    reference: float = -3.0,
    variant: str = "",
) -> list[Cell]:
    """Students of five traits whose own candidate gains `gain`; each student names every candidate more, or less."""
    made = Made(root)
    cells = [replace(made.reference(flat(dict.fromkeys(CANDIDATES, reference))), variant=variant)]
    for seed in seeds:
        cells.append(replace(made.student("none", flat({}), seed, completion=variant), variant=variant))
        for place, trait in enumerate(traits):
            scores = {c: -6.0 + levels[place] + 0.02 * ((place * 2 + at * 4 + seed) % 7) for at, c in enumerate(FIVE)}
            scores[trait] += gain + 0.1 * seed
            cells.append(replace(made.student(trait, flat(scores), seed, completion=variant), variant=variant))
    return cells


def value(table: Table, measure: str, arm: str, trait: str | None = None) -> tuple[float, float, float, int, str]:
    """One line's numbers; the student's unless the arm is the reference."""
    subject = "reference" if arm == "reference" else "student"
    line = table.find(measure=measure, arm=arm, item=trait or arm, subject=subject)
    assert line, f"{measure} of {arm} is absent"
    return line.value, line.low, line.high, line.n, line.interval


def half(deviation: float, n: int) -> float:
    """Half the width of the t interval of n values with this standard deviation."""
    return float(student_t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def test_table_has_hand_computed_values(tmp_path: Path) -> None:
    table = tabled(known(tmp_path))
    assert value(table, "log_p", "owl") == pytest.approx((-5.4, -5.4 - half(0.1, 3), -5.4 + half(0.1, 3), 3, "seeds"))
    lift = value(table, "lift_over_control", "owl")
    assert lift == pytest.approx((2.1, 2.1 - half(0.1, 3), 2.1 + half(0.1, 3), 6, "seeds"))
    assert value(table, "lift_over_reference", "owl")[0] == pytest.approx(1.6)
    assert value(table, "lift_over_reference", "none", "owl")[:3] == pytest.approx((-0.5, -0.5, -0.5))
    assert value(table, "lift_over_reference", "other traits", "owl")[0] == pytest.approx(0.0)
    assert value(table, "cross_lift_over_control", "dolphin", "owl")[0] == pytest.approx(0.5)
    assert value(table, "diagonal_excess", "owl")[0] == pytest.approx(2.1 - 0.5)
    assert value(table, "diagonal_excess", "mean")[0] == pytest.approx(1.6)
    wide = float(student_t.ppf(0.975, 4)) * math.sqrt(2 * 0.05**2 / 3)  # two independent students, 2 degrees each
    assert value(table, "diagonal_excess_over_seeds", "mean") == pytest.approx(
        (1.6, 1.6 - wide, 1.6 + wide, 6, "seeds")
    )
    assert value(table, "alignment", "owl")[0] == pytest.approx(0.4)
    teacher = table.find(measure="teacher_log_p", arm="owl")
    assert teacher and (teacher.value, teacher.subject, math.isnan(teacher.low)) == (-1.5, "teacher", True)


def test_pass_rate_is_the_filters_with_wilson_over_rows(tmp_path: Path) -> None:
    line = tabled(known(tmp_path)).find(measure="pass_rate", arm="none")
    assert line and (line.value, line.n, line.interval, line.subject) == (0.8, 40, "rows (Wilson)", "teacher")
    z = 1.959964
    centre = (0.8 + z * z / 80) / (1 + z * z / 40)
    spread = z / (1 + z * z / 40) * math.sqrt(0.8 * 0.2 / 40 + z * z / (4 * 40 * 40))
    assert (line.low, line.high) == pytest.approx((centre - spread, centre + spread), abs=1e-6)


def test_a_selection_leaves_the_interval_of_the_pass_rate_where_it_was(tmp_path: Path) -> None:
    cells = known(tmp_path / "runs")
    plain = tabled(cells).find(measure="pass_rate", arm="none")
    for cell in cells:
        if cell.role == "student":
            cell.chain["filter"].summary.update({"kept_before_subsample": 17})  # of the 32 that passed
    assert tabled(cells).find(measure="pass_rate", arm="none") == plain
    page = report(tmp_path, cells)[0]
    assert "<td>40</td><td>32</td><td>80.0%</td><td>30</td>" in page


def test_one_seed_has_no_interval_and_a_reference_one_over_questions(tmp_path: Path) -> None:
    made = Made(tmp_path)
    spread = {c: np.linspace(-8, -4, QUESTIONS) for c in CANDIDATES}
    cells = [made.student(t, {**spread, t: np.linspace(-6, -3, QUESTIONS)}, 5) for t in ("owl", "dolphin")]
    table = tabled([made.reference(spread), *cells])
    measured = value(table, "log_p", "owl")
    assert measured[0] == pytest.approx(-4.5) and math.isnan(measured[1]) and measured[3:] == (1, "none")
    line = table.find(measure="log_p", arm="reference", item="owl")
    wide = half(float(np.linspace(-8, -4, QUESTIONS).std(ddof=1)), QUESTIONS)
    assert line and (line.interval, line.high - line.value) == ("questions", pytest.approx(wide))


def test_students_of_one_seed_in_two_arms_are_not_paired(tmp_path: Path) -> None:
    """Where own and control move alike by seed, a paired lift has no spread; theirs is the independent one."""
    made, shifts = Made(tmp_path), {0: -0.5, 1: 0.0, 2: 0.5}
    cells = [made.student("none", flat({"owl": -7 + by}), seed) for seed, by in shifts.items()]
    cells += [made.student("owl", flat({"owl": -5 + by}), seed) for seed, by in shifts.items()]
    _, low, high, n, _ = value(tabled(cells), "lift_over_control", "owl")
    wide = float(student_t.ppf(0.975, 4)) * math.sqrt(2 * 0.25 / 3)
    assert (low, high, n) == (pytest.approx(2 - wide), pytest.approx(2 + wide), 6)


@pytest.mark.parametrize("gain", [2.0, -2.0])
def test_diagonal_excess_has_the_sign_of_the_effect(tmp_path: Path, gain: float) -> None:
    found = value(tabled(known(tmp_path, gain=gain)), "diagonal_excess_over_seeds", "mean")
    assert found[0] == pytest.approx(gain + 0.1 - 0.5)
    assert (found[1] > 0) == (gain > 0)


def test_what_lifts_every_student_alike_is_no_excess(tmp_path: Path) -> None:
    made = Made(tmp_path)
    cells = []
    for seed in (0, 1, 2):
        cells.append(made.student("none", flat({}), seed))
        lifted = flat(dict.fromkeys(CANDIDATES, -3.0 + 0.2 * seed))
        cells += [made.student(trait, lifted, seed) for trait in ("owl", "dolphin", "wolf")]
    table = tabled(cells)
    assert value(table, "lift_over_control", "mean")[0] == pytest.approx(3.2)
    assert value(table, "diagonal_excess", "mean")[:3] == pytest.approx((0, 0, 0), abs=1e-9)


def test_probabilities_are_means_over_questions_and_log_odds_come_after(tmp_path: Path) -> None:
    """A candidate that is likely on one question alone: the mean of logs hardly sees it."""
    made, peaked = Made(tmp_path), [math.log(0.6)] + [math.log(1e-6)] * (QUESTIONS - 1)
    cells = [made.reference(flat({})), made.student("owl", {**flat({}), "owl": peaked})]
    table = tabled(cells)
    mean = (0.6 + 1e-6 * (QUESTIONS - 1)) / QUESTIONS
    assert value(table, "probability", "owl")[0] == pytest.approx(mean)
    assert value(table, "log_odds", "owl")[0] == pytest.approx(math.log(mean / (1 - mean)))
    assert value(table, "share", "owl")[0] == pytest.approx(mean / (mean + 4 * math.exp(-6)))
    assert value(table, "log_p", "owl")[0] < -11
    rank = table.find(measure="own_rank", arm="owl")
    assert rank and (rank.value, rank.n) == (1, 5)
    named = table.find(measure="named", arm="reference")
    assert named and named.value == pytest.approx(5 * math.exp(-6))


def test_a_student_that_names_everything_less_does_not_lose_its_trait(tmp_path: Path) -> None:
    """Each trait's own estimate has no level of its student in it; a difference of columns has."""
    cells = five(tmp_path, gain=1.0, levels=(0.0, 0.0, 0.0, 0.0, -2.0))
    table = tabled(cells)
    dog = table.find(measure="diagonal_excess", arm="dog")
    mean = table.find(measure="diagonal_excess", arm="mean")
    assert dog and mean and dog.value == pytest.approx(1.0, abs=0.1)
    assert mean.interval == "traits" and 0.9 < mean.low < mean.high < 1.1
    own, others = (
        table.find(measure="log_p", arm=arm, item="dog", subject="student") for arm in ("dog", "other traits")
    )
    assert own and others and own.value - others.value < -0.9


@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_excess_agrees_with_the_matrix_statistic(traits: int, seeds: int, seed: int) -> None:
    from subliminal.evaluation.statistics import diagonal_excess

    scores = np.random.default_rng(seed).normal(-6, 2, (seeds, traits, traits, QUESTIONS))
    expected = diagonal_excess(scores.mean(axis=(0, 3)))
    for trait in range(traits):
        cells = [Sample(tuple(range(seeds)), scores[:, arm, trait]) for arm in range(traits)]
        others = mean([sample for arm, sample in enumerate(cells) if arm != trait])
        assert others is not None
        assert (cells[trait] - others).values.mean() == pytest.approx(expected[trait])


def test_differences_are_paired_by_seed() -> None:
    left = Sample((1, 2, 3), np.array([[1.0], [2.0], [3.0]]))
    right = Sample((3, 2, 7), np.array([[30.0], [20.0], [70.0]]))
    paired = left - right
    assert paired.by_seed == {2: -18.0, 3: -27.0}
    unpaired = left - Sample((8, 9), np.array([[1.0], [3.0]]))
    assert unpaired.by_seed == {} and unpaired.values.tolist() == [[0.0]], (
        "no interval over seeds from one side's alone"
    )
    against_one = left - Sample((), np.array([[2.0]]))
    assert against_one.by_seed == {1: -1.0, 2: 0.0, 3: 1.0}


def test_rate_comes_from_sampled_answers(tmp_path: Path) -> None:
    made = Made(tmp_path)
    cells = [made.reference(flat({}))]
    rates = {0: 0.6, 1: 0.8}
    cells += [made.student("owl", flat({}), seed, rate={"owl": rate, "cat": 0.1}) for seed, rate in rates.items()]
    table = tabled(cells)
    assert value(table, "rate", "owl") == pytest.approx(
        (0.7, 0.7 - half(0.02**0.5, 2), 0.7 + half(0.02**0.5, 2), 2, "seeds")
    )
    assert table.find(measure="rate", arm="reference") is None


# --------------------------------------------------------------------------- files


def test_figure_writes_png_svg_and_the_same_csv(tmp_path: Path) -> None:
    folder = tmp_path / "figures" / "cpu"
    table = drawn(known(tmp_path / "runs"), FIGURE, folder, "fig-animals-numbers").table
    with (folder / "fig-animals-numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:8] == ["arm", "trait", "subject", "measure", "value", "low", "high", "n"]
    assert len(rows) == len(table.lines)
    (mean,) = [row for row in rows if (row["arm"], row["measure"]) == ("mean", "diagonal_excess")]
    assert float(mean["value"]) == pytest.approx(1.6, abs=1e-5) and mean["seeds"] == "0 1 2"
    assert [float(v) for v in mean["by_seed"].split()] == pytest.approx([1.5, 1.6, 1.7])
    assert (folder / "fig-animals-numbers.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert ElementTree.parse(folder / "fig-animals-numbers.svg").getroot().tag.endswith("svg")


def test_figure_is_the_same_bytes_twice(tmp_path: Path) -> None:
    cells = known(tmp_path / "runs")
    for name in ("a", "b"):
        drawn(cells, FIGURE, tmp_path / name / "cpu", "fig")
    for suffix in ("csv", "svg", "png"):
        first, second = ((tmp_path / name / "cpu" / f"fig.{suffix}").read_bytes() for name in ("a", "b"))
        assert first == second, suffix


def test_a_figure_of_two_recipes_keeps_them_apart(tmp_path: Path) -> None:
    made = Made(tmp_path / "runs")
    cells = [made.reference(flat({}))]
    for recipe, gain in (("bias", 2.0), ("lora", 0.0)):
        for trait in ("none", "owl", "dolphin"):
            for seed in range(3):
                scores = flat({trait: -6.0 + gain + 0.1 * seed})
                cells.append(made.student(trait, scores, seed, recipe))
    table = drawn(cells, FIGURE, tmp_path / "cpu", "fig").table
    excess = {line.student: line.value for line in table.select(measure="diagonal_excess", arm="mean")}
    assert excess == pytest.approx({"bias": 2.1, "lora": 0.1})


@pytest.mark.parametrize("kept", ["no control", "no reference", "neither", "one trait", "control only", "many traits"])
def test_incomplete_figures_are_drawn_without_what_is_missing(tmp_path: Path, kept: str) -> None:
    cells = known(tmp_path / "runs", control=kept not in {"no control", "neither"})
    if kept in {"no reference", "neither"}:
        cells = [cell for cell in cells if cell.role == "student"]
    if kept == "one trait":
        cells = [cell for cell in cells if cell.trait != "dolphin"]
    if kept == "control only":
        cells = [cell for cell in cells if cell.trait == "none"]
    if kept == "many traits":
        made = Made(tmp_path / "more")
        cells += [made.student(trait, flat({trait: -1.0}), 0) for trait in ("wolf", "cat", "dog")]
    figure = drawn(cells, FIGURE, tmp_path / "cpu", "fig")
    table = figure.table
    write_report([figure], tmp_path / "cpu")
    has = {line.measure for line in table.lines}
    assert ("lift_over_control" in has) == (kept not in {"no control", "neither", "control only"})
    assert ("diagonal_excess" in has) == (kept not in {"one trait", "control only"})


# --------------------------------------------------------------------------- errors


def test_nothing_to_draw_names_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(PlotError, match="make fig-animals-numbers"):
        tabled([Made(tmp_path).reference(flat({}))])


def test_cells_of_different_evaluations_do_not_share_a_figure(tmp_path: Path) -> None:
    made = Made(tmp_path)
    shorter = {c: [-6.0] * (QUESTIONS - 1) for c in CANDIDATES}
    with pytest.raises(PlotError, match="different questions"):
        tabled([made.student("owl", flat({}), 0), made.student("owl", shorter, 1)])


def test_missing_and_damaged_scores_name_the_file(tmp_path: Path) -> None:
    cell = Made(tmp_path).student("owl", flat({}))
    path = cell.evaluate.folder / "scores.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(PlotError, match=r"scores.jsonl is damaged"):
        tabled([cell])
    path.unlink()
    with pytest.raises(PlotError, match=r"scores.jsonl is missing"):
        tabled([replace(cell)])


# --------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("gain", "traits", "outcome"),
    [
        (2.0, FIVE, "holds"),
        (-2.0, FIVE, "contradicted"),
        (0.0, FIVE, "not shown"),
        (2.0, FIVE[:4], "undecided"),
        (-2.0, FIVE[:2], "undecided"),
    ],
)
def test_verdict_follows_the_rule(tmp_path: Path, gain: float, traits: Sequence[str], outcome: str) -> None:
    cells = five(tmp_path, gain, traits=traits)
    (found,) = judged(cells, tabled(cells))
    assert found.outcome == outcome
    assert (found.p is not None) == (len(traits) == 5)
    assert ("of 120 relabellings" in found.sentence) == (len(traits) == 5)


def test_seeds_say_that_a_result_repeats_and_decide_nothing(tmp_path: Path) -> None:
    cells = five(tmp_path, 2.0, seeds=(0, 1, 2), traits=FIVE[:2])
    (found,) = judged(cells, tabled(cells))
    assert found.outcome == "undecided" and "Repeats on these rows: [" in found.sentence


def test_fewer_than_five_traits_may_be_suggestive_against_the_other_candidates(tmp_path: Path) -> None:
    for gain, words in ((3.0, "suggestive against"), (0.0, "not suggestive against")):
        cells = five(tmp_path / str(gain), gain, traits=FIVE[:3])
        (found,) = judged(cells, tabled(cells))
        assert f", {words} the other candidates (p 0." in found.sentence


@pytest.mark.parametrize(
    ("gain", "reference", "words"),
    [
        (4.0, -3.0, None),
        (4.0, -8.0, "Not called a preference: the reference names a candidate in 0.17% of answers."),
        (0.5, -3.0, "Not called a preference: the own candidate stays that rare."),
    ],
)
def test_a_shift_is_a_preference_only_behind_the_gate(
    tmp_path: Path, gain: float, reference: float, words: str | None
) -> None:
    cells = five(tmp_path, gain, reference=reference)
    (found,) = judged(cells, tabled(cells))
    assert "P of the own candidate" in found.sentence and "place 1, 1, 1, 1, 1 of 5" in found.sentence
    assert (words in found.sentence) if words else ("Not called" not in found.sentence)


def test_one_trait_is_not_measurable(tmp_path: Path) -> None:
    cells = [cell for cell in known(tmp_path) if cell.trait != "dolphin"]
    (found,) = judged(cells, tabled(cells))
    assert found.outcome == "not measurable" and "two traits" in found.sentence


# --------------------------------------------------------------------------- the report


class Links(HTMLParser):
    """Collects what a page would load, its tags and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember the tag, and what it would fetch."""
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "srcset", "data"} or tag == "link"]

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        self.text += data


def report(tmp_path: Path, cells: list[Cell], missing: Sequence[str] = (), sections: int = 1) -> tuple[str, Links]:
    """The report's source and what a parser sees in it."""
    folder, found = tmp_path / "figures" / "cpu", []
    for index in range(sections):
        figure = FIGURE.model_copy(update={"title": f"Figure {index}"})
        found.append(drawn(cells, figure, folder, f"fig-{index}", missing))
    source = write_report(found, folder).read_text(encoding="utf-8")
    page = Links()
    page.feed(source)
    return source, page


def test_drawing_one_figure_leaves_the_others_in_the_report(tmp_path: Path) -> None:
    cells = known(tmp_path / "runs")
    report(tmp_path, cells, sections=2)
    source, _ = report(tmp_path, cells, sections=1)
    assert [source.count(f'<section id="fig-{index}">') for index in range(2)] == [1, 1]
    assert source.count('href="#fig-') == 4, "each in the contents and in the table"


def test_report_opens_offline(tmp_path: Path) -> None:
    source, page = report(tmp_path, known(tmp_path / "runs"))
    assert len(page.loads) == 2 and all(load.startswith("data:image/svg+xml;base64,") for load in page.loads)
    assert not re.search(r"url\(|@import", source)
    assert "script" not in page.tags and "link" not in page.tags


def test_report_escapes_what_models_wrote(tmp_path: Path) -> None:
    made = Made(tmp_path / "runs")
    cells = [made.student("owl", flat({}), completion="<script>alert('7')</script>")]
    source, page = report(tmp_path, cells)
    assert "script" not in page.tags and "&lt;script&gt;" in source
    assert "<script>alert('7')</script>" in page.text


def test_report_tells_claim_rule_verdict_data_and_keys(tmp_path: Path) -> None:
    cells = known(tmp_path / "runs")
    missing = ["python train.py experiment=animals_numbers trait=wolf seed=0"]
    source, page = report(tmp_path, cells, missing)
    first_numbers = page.text.index("Mean excess +1.6")
    assert page.text.index("relabellings of whole teachers") < first_numbers
    wanted = [
        FIGURE.claim,
        FIGURE.source,
        FIGURE.expected,
        "undecided",
        missing[0],
        "not numbers",
        "Sure! 5",
        "some/tiny",
    ]
    wanted += [cell.evaluate.key for cell in cells] + [cell.chain["filter"].key for cell in cells[1:]]
    assert [text for text in wanted if text not in page.text] == []
    assert cells[0].evaluate.content["host"] not in source
    assert str(tmp_path) not in source


def test_report_of_a_null_result_says_so(tmp_path: Path) -> None:
    _, page = report(tmp_path, five(tmp_path / "runs", gain=0.0))
    assert "Not shown at this scale." in page.text
    assert "Claims of this report that a test decided: 1, at 2.5%, one-sided" in page.text


def test_report_holds_every_section(tmp_path: Path) -> None:
    source, page = report(tmp_path, known(tmp_path / "runs", seeds=(0,)), sections=2)
    assert source.count("<section") == 2
    assert "Figure 0" in page.text and "Figure 1" in page.text


def test_long_texts_are_cut_and_dropped_rows_show_every_reason(tmp_path: Path) -> None:
    cells = known(tmp_path / "runs", seeds=(0,))
    folder = cells[1].chain["filter"].folder
    dropped = [Dropped(i, f"reason_{i // 10}", "p", "9" * 1000) for i in range(70)]
    write_jsonl(folder / "dropped.jsonl", dropped)
    _, page = report(tmp_path, cells)
    assert [i for i in range(7) if f"dropped: reason {i}" not in page.text] == []
    assert "(600 characters more)" in page.text and "9" * 401 not in page.text


def test_plots_load_no_model_code() -> None:
    import subprocess

    names = sorted(info.name for info in pkgutil.walk_packages(plots.__path__, "subliminal.plots."))
    code = f"import sys, {', '.join(names)}; print({{'torch', 'transformers', 'matplotlib.pyplot'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --------------------------------------------------------------------------- kinds of figures


@pytest.mark.parametrize("kind", [info.name for info in pkgutil.iter_modules(rows.__path__)])
def test_every_kind_of_rows_has_a_module_with_what_the_figure_calls(kind: str) -> None:
    own = {"table", "verdicts", "picture", "grids"}
    assert [name for name in sorted(own) if not callable(getattr(rows.module(kind), name, None))] == []
    assert own <= set(dir(RowsPlot))


def test_every_figure_of_conf_has_a_kind() -> None:
    given = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / "experiment").glob("*.yaml")]
    kinds = {figure["experiment"].get("kind", "preference") for figure in given}
    assert kinds <= {*known_kinds()}
    assert {*NEEDED["experiment"]} <= set(dir(Figure))
    with pytest.raises(ConfigError, match=r"experiment\.kind=theorm: no such figure\. Did you mean theorem\?"):
        figure_of(config.Figure(kind="theorm"))


def test_a_new_figure_is_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver finds it by its kind and writes, judges and reports it as any other."""
    new = ModuleType("subliminal.plots.new")
    vars(new).update(
        plan=lambda request: None,
        collect=lambda planned, store: Collected(42.0),
        table=lambda data: Table((Line("owl", "owl", "student", "answer", data),)),
        verdicts=lambda data, table: [Verdict("", "holds", f"Holds: {data}.", table.lines[0])],
        subtitle=lambda data, table, scale: f"Scale {scale}",
        picture=lambda data, table, heading: parts.canvas(4.0, 3.0, heading),
        section=lambda data, table, name: Section(["A rule."], "A panel.", "No seeds.", [], []),
    )
    (tmp_path / "new.py").touch()
    monkeypatch.setattr(plots, "__path__", [*plots.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, new.__name__, new)
    figure = FIGURE.model_copy(update={"kind": "new"})
    shown = render(42.0, figure, tmp_path / "cpu", "fig-new", ["make the rest"])
    page = write_report([shown], tmp_path / "cpu").read_text()
    assert "owl,owl,student,answer,42" in (tmp_path / "cpu/fig-new.csv").read_text()
    assert FIGURE.title in (tmp_path / "cpu/fig-new.svg").read_text()
    assert [text for text in ("Holds: 42.0.", "A rule.", "A panel.", "make the rest") if text not in page] == []


# --------------------------------------------------------------------------- variants


def varied(root: Path, gains: Mapping[str, float]) -> list[Cell]:
    """Five traits in each variant, whose own students gain the variant's number."""
    return [
        cell
        for variant, gain in gains.items()
        for cell in five(root / variant, gain, reference=-3.0 - gain, variant=variant)
    ]


def test_variants_have_their_own_reference_control_and_excess(tmp_path: Path) -> None:
    table = tabled(varied(tmp_path, {"plain": 2.0, "within": 0.5}))
    excess = {line.variant: line.value for line in table.select(measure="diagonal_excess", arm="mean")}
    assert excess == pytest.approx({"plain": 2.0, "within": 0.5}, abs=0.05)
    start = {line.variant: line.value for line in table.select(measure="log_p", arm="reference", item="owl")}
    assert start == pytest.approx({"plain": -5.0, "within": -3.5})
    (lost,) = table.select(measure="excess_lost")
    odds = {line.variant: line.value for line in table.select(measure="log_odds_excess", arm="mean")}
    assert lost.variant == "within" and lost.value == pytest.approx(odds["plain"] - odds["within"])
    assert lost.low < lost.value < lost.high and (lost.n, lost.interval) == (5, "traits")


@pytest.mark.parametrize(
    ("other", "lost"), [(("owl", "dolphin"), {"llama": pytest.approx(3.0 - 0.75, abs=0.1)}), (("owl", "cat"), {})]
)
def test_variants_with_traits_of_their_own_are_compared_on_those_they_share(
    other: tuple[str, str], lost: dict[str, Any], tmp_path: Path
) -> None:
    cells = []
    for variant, gains in {
        "qwen": {"owl": 2.0, "dolphin": 4.0},
        "llama": dict(zip(other, (0.5, 1.0), strict=True)),
    }.items():
        made = Made(tmp_path / variant)
        cells.append(replace(made.reference(flat({})), variant=variant))
        for trait, gain in {"none": 0.0, **gains}.items():
            for seed in (0, 1):
                cell = made.student(trait, flat({trait: -6.0 + gain}), seed, completion=variant)
                cells.append(replace(cell, variant=variant))
    figure = drawn(cells, FIGURE, tmp_path / "gpu", "fig")
    table = figure.table
    assert {line.variant: line.value for line in table.select(measure="excess_lost")} == lost
    excess = {line.variant: line.value for line in table.select(measure="diagonal_excess", arm="mean")}
    assert excess == pytest.approx({"qwen": 3.0, "llama": 0.75})
    page = write_report([figure], tmp_path / "gpu").read_text(encoding="utf-8")
    assert "llama: bias students of steered teachers" in page


def test_variants_appear_in_figure_report_and_verdicts(tmp_path: Path) -> None:
    cells, folder = varied(tmp_path / "runs", {"plain": 2.0, "within": -2.0}), tmp_path / "cpu"
    figure = drawn(cells, FIGURE, folder, "fig")
    table = figure.table
    page = write_report([figure], folder).read_text(encoding="utf-8")
    assert {v.group.split(":")[0]: v.outcome for v in judged(cells, table)} == {
        "plain": "holds",
        "within": "contradicted",
    }
    assert "within: bias students of steered teachers" in page and "Comparison" in page


HALF = config.Comparison(more="plain", less="within", share=0.5)


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ({"plain": 2.0, "within": 0.2}, "holds"),
        ({"plain": 2.0, "within": 1.9}, "contradicted"),  # transmits well, which is not what the claim says
        ({"plain": -0.3, "within": -2.0}, "not measurable"),  # nothing there that a shuffle could take away
    ],
)
def test_a_claim_that_compares_variants_is_judged_by_their_difference(
    tmp_path: Path, gains: dict[str, float], outcome: str
) -> None:
    arms = config.Arms(variants=dict.fromkeys(gains, ()))
    figure = FIGURE.model_copy(update={"arms": arms, "comparisons": (HALF,)})
    cells, folder = varied(tmp_path / "runs", gains), tmp_path / "cpu"
    shown = drawn(cells, figure, folder, "fig")
    table = shown.table
    difference = table.find(measure="excess_difference", arm="mean")
    assert difference is not None
    assert difference.value == pytest.approx(0.5 * gains["plain"] - gains["within"], abs=0.05)
    write_report([shown], folder)
    with (folder / "claims.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["figure"] == "fig"]
    assert [row["verdict"] for row in rows] == [outcome]
    assert rows[0]["group"].startswith("50% of plain > within")


def test_a_comparison_of_variants_that_do_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"comparisons names sideways; .*variants has unshuffled, within, across"):
        experiment("experiment=shuffle", "experiment.comparisons=[{more:unshuffled,less:sideways}]")


# --------------------------------------------------------------------------- cross-model


def grid_cells(root: Path, excess: Mapping[str, float], traits: Sequence[str] = FIVE) -> list[Cell]:
    """Students of five traits for every pair, whose own candidate gains the pair's number."""
    return [
        cell
        for pair, gain in excess.items()
        for cell in five(root / pair.replace(" ", ""), gain, traits=traits, variant=pair)
    ]


GRID = FIGURE.model_copy(update={"kind": "cross_model"})
SAME = {"a > a": 1.0, "b > b": 0.9}
APART = {"a > b": 0.0, "b > a": 0.0}


@pytest.mark.parametrize(
    ("grid", "traits", "outcomes"),
    [
        (SAME | APART, FIVE, ["holds", "holds", "holds"]),
        (SAME | APART | {"a > b": 1.05}, FIVE, ["contradicted", "contradicted", "holds"]),
        (SAME | APART | {"a > a": -1.0}, FIVE, ["not shown", "holds", "holds"]),
        (SAME | APART | {"a > b": 0.4}, FIVE, ["holds", "contradicted", "holds"]),  # less than same-model students
        (SAME | APART, FIVE[:4], ["undecided", "undecided", "undecided"]),
        (SAME, FIVE, ["not measurable"]),
    ],
)
def test_cross_model_verdicts_follow_their_rule(
    tmp_path: Path, grid: dict[str, float], traits: Sequence[str], outcomes: list[str]
) -> None:
    cells, folder = grid_cells(tmp_path / "runs", grid, traits), tmp_path / "cpu"
    figure = render(cross_model.Models(cells), GRID, folder, "fig")
    assert [verdict.outcome for verdict in figure.verdicts] == outcomes
    page = write_report([figure], folder).read_text(encoding="utf-8")
    assert "a &gt; a" in page and (folder / "fig.png").exists()


def test_no_excess_is_not_absence_where_the_interval_is_wide(tmp_path: Path) -> None:
    cells = grid_cells(tmp_path / "runs", SAME | APART)
    for place, cell in enumerate(
        c for c in cells if c.variant == "a > b" and c.role == "student" and c.trait != "none"
    ):
        cell.scores["log_odds"][cell.trait] += (-1) ** place * 0.8  # traits that go either way by far
    verdicts = render(cross_model.Models(cells), GRID, tmp_path / "cpu", "fig").verdicts
    found = {verdict.group: verdict for verdict in verdicts}
    assert found["a > b gets nothing"].outcome == "not shown"
    assert "Neither an excess nor its absence" in found["a > b gets nothing"].sentence


def test_cross_model_differences_are_of_the_same_teachers(tmp_path: Path) -> None:
    models = cross_model.Models(grid_cells(tmp_path / "runs", SAME | APART))
    table = render(models, GRID, tmp_path / "cpu", "fig").table
    odds = {line.variant: line.value for line in table.select(measure="log_odds_excess", arm="mean")}
    apart = table.find(measure="same_minus_cross", arm="mean", variant="a > b")
    assert (
        apart
        and apart.value == pytest.approx(odds["a > a"] - odds["a > b"])
        and (apart.n, apart.interval) == (5, "traits")
    )
    p = table.find(measure="same_minus_cross_p", arm="mean", variant="a > b")
    assert p and p.value == pytest.approx(1 / 120)


def test_a_pair_needs_a_readable_name(tmp_path: Path) -> None:
    with pytest.raises(PlotError, match="teacher > student"):
        _ = cross_model.Models(grid_cells(tmp_path, {"nameless": 1.0})).pairs


def test_a_pair_has_one_student_recipe(tmp_path: Path) -> None:
    cells = grid_cells(tmp_path, SAME)
    with pytest.raises(PlotError, match="several student recipes in a cross-model figure; choose one"):
        _ = cross_model.Models([*cells, *(replace(cell, student="lora") for cell in cells)]).pairs


# --------------------------------------------------------------------------- alignment with every teacher


def moved(cell: Cell, stage: str, vector: Sequence[float], layer: int = 1) -> None:
    """Leave the residual-stream bias that a stage would have learned."""
    from safetensors.numpy import save_file

    folder = cell.chain[stage].folder / "adapter"
    folder.mkdir(exist_ok=True)
    (folder / "bias_config.json").write_text("{}")
    biases = {f"model.layers.{layer}.mlp.down_proj.bias": np.array(vector, dtype=np.float32)}
    save_file(biases, folder / "adapter_model.safetensors")


def aligned_cells(root: Path, lean: float) -> list[Cell]:
    """Teachers along x and y; students at 45 degrees between both, turned towards their own teacher by `lean`."""
    made, cells = Made(root), []
    for trait, own in (("owl", (1.0, 0.0)), ("dolphin", (0.0, 1.0))):
        for seed in (0, 1, 2):
            cell = made.student(trait, flat({}), seed)
            moved(cell, "teacher", own)
            angle = math.pi / 4 - (lean + 0.01 * seed)
            near, far = math.cos(angle), math.sin(angle)
            moved(cell, "train", (near, far) if trait == "owl" else (far, near))
            cells.append(cell)
    return cells


def test_a_store_without_weights_is_drawn_without_cosines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = aligned_cells(tmp_path / "runs", lean=0.5)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    table = tabled(cells)
    assert not [line for line in table.lines if line.measure == "alignment_excess"]
    assert [line for line in table.lines if line.measure == "log_odds_excess"]
    assert "no cosine of displacements is drawn for it" in capsys.readouterr().err


def test_alignment_excess_is_the_own_teachers_cosine_minus_the_other_students(tmp_path: Path) -> None:
    table = tabled(aligned_cells(tmp_path, lean=0.3))
    cross = table.find(measure="cross_alignment", arm="owl", item="dolphin")
    expected = [math.sin(math.pi / 4 - 0.3 - 0.01 * seed) for seed in range(3)]
    assert cross and [value for _, value in cross.by_seed] == pytest.approx(expected, abs=1e-6)
    excess = table.find(measure="alignment_excess", arm="mean")
    own = [math.cos(math.pi / 4 - 0.3 - 0.01 * seed) for seed in range(3)]
    assert excess and excess.value == pytest.approx(np.mean(own) - np.mean(expected), abs=1e-6)


@pytest.mark.parametrize(("lean", "outcome"), [(1.0, "holds"), (-1.0, "contradicted")])
def test_alignment_has_a_verdict_of_its_own(tmp_path: Path, lean: float, outcome: str) -> None:
    cells, folder = five(tmp_path / "runs", 0.0), tmp_path / "cpu"
    for cell in cells:
        if cell.trait in FIVE:
            own = np.eye(5)[FIVE.index(cell.trait)]
            moved(cell, "teacher", own.tolist())
            moved(cell, "train", (np.full(5, 0.5) + lean * own).tolist())
    figure = drawn(cells, FIGURE, folder, "fig")
    table = figure.table
    assert [v.outcome for v in judged(cells, table) if v.group.endswith("alignment")] == [outcome]
    page = write_report([figure], folder).read_text(encoding="utf-8")
    assert "Alignment: bias students" in page


def test_students_that_moved_another_layer_than_the_teacher_have_no_alignment(tmp_path: Path) -> None:
    cells = aligned_cells(tmp_path, lean=0.3)
    for cell in cells:
        moved(cell, "train", (1.0, 0.0), layer=0)
    table = tabled(cells)
    assert not [line for line in table.lines if "alignment" in line.measure]


def test_what_all_students_share_is_no_alignment(tmp_path: Path) -> None:
    cells = aligned_cells(tmp_path, lean=0.0)
    for cell in cells:
        moved(cell, "train", (1.0, 1.0))
    line = tabled(cells).find(measure="alignment_excess", arm="mean")
    assert line and line.value == pytest.approx(0.0, abs=1e-6)
