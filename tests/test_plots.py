"""Figures, tables and the report from synthetic stores whose numbers are known."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student_t

from subliminal import config
from subliminal.config import ConfigError
from subliminal.evaluation.statistics import t_interval
from subliminal.plots.cells import Cell, PlotError
from subliminal.plots.groups import Sample
from subliminal.plots.measures import OVER_SEEDS, OVER_TRAITS, preference_table
from subliminal.plots.preference import preference_figure
from subliminal.plots.report import Section, write_report
from subliminal.plots.table import Line, Table
from subliminal.plots.verdict import judged, verdicts
from subliminal.rows import Dropped, Row, write_jsonl
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


def value(table: Table, measure: str, arm: str, trait: str | None = None) -> tuple[float, float, float, int, str]:
    """One line's numbers; the student's unless the arm is the reference."""
    subject = "reference" if arm == "reference" else "student"
    line = table.find(measure=measure, arm=arm, trait=trait or arm, subject=subject)
    assert line, f"{measure} of {arm} is absent"
    return line.value, line.low, line.high, line.n, line.interval


def half(deviation: float, n: int) -> float:
    """Half the width of the t interval of n values with this standard deviation."""
    return float(student_t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def test_table_has_hand_computed_values(tmp_path: Path) -> None:
    table = preference_table(known(tmp_path))
    assert value(table, "log_p", "owl") == pytest.approx((-5.4, -5.4 - half(0.1, 3), -5.4 + half(0.1, 3), 3, "seeds"))
    lift = value(table, "lift_over_control", "owl")
    assert lift == pytest.approx((2.1, 2.1 - half(0.1, 3), 2.1 + half(0.1, 3), 3, "seeds"))
    assert value(table, "lift_over_reference", "owl")[0] == pytest.approx(1.6)
    assert value(table, "lift_over_reference", "none", "owl")[:3] == pytest.approx((-0.5, -0.5, -0.5))
    assert value(table, "lift_over_reference", "other traits", "owl")[0] == pytest.approx(0.0)
    assert value(table, "cross_lift_over_control", "dolphin", "owl")[0] == pytest.approx(0.5)
    assert value(table, "diagonal_excess", "owl")[0] == pytest.approx(2.1 - 0.5)
    assert value(table, "diagonal_excess", "mean")[:4] == pytest.approx(
        (1.6, 1.6 - half(0.1, 3), 1.6 + half(0.1, 3), 3)
    )
    assert value(table, "alignment", "owl")[0] == pytest.approx(0.4)
    teacher = table.find(measure="teacher_log_p", arm="owl")
    assert teacher and (teacher.value, teacher.subject, math.isnan(teacher.low)) == (-1.5, "teacher", True)


def test_pass_rate_is_the_filters_with_wilson_over_rows(tmp_path: Path) -> None:
    line = preference_table(known(tmp_path)).find(measure="pass_rate", arm="none")
    assert line and (line.value, line.n, line.interval, line.subject) == (0.8, 40, "rows (Wilson)", "teacher")
    z = 1.959964
    centre = (0.8 + z * z / 80) / (1 + z * z / 40)
    spread = z / (1 + z * z / 40) * math.sqrt(0.8 * 0.2 / 40 + z * z / (4 * 40 * 40))
    assert (line.low, line.high) == pytest.approx((centre - spread, centre + spread), abs=1e-6)


def test_a_selection_leaves_the_interval_of_the_pass_rate_where_it_was(tmp_path: Path) -> None:
    cells = known(tmp_path / "runs")
    plain = preference_table(cells).find(measure="pass_rate", arm="none")
    for cell in cells:
        if cell.role == "student":
            cell.chain["filter"].summary.update({"kept_before_subsample": 17})  # of the 32 that passed
    assert preference_table(cells).find(measure="pass_rate", arm="none") == plain
    page = report(tmp_path, cells)[0]
    assert "<td>40</td><td>32</td><td>80.0%</td><td>30</td>" in page


def test_one_seed_takes_its_interval_over_questions_and_says_so(tmp_path: Path) -> None:
    made = Made(tmp_path)
    spread = {c: np.linspace(-8, -4, QUESTIONS) for c in CANDIDATES}
    cells = [made.student(t, {**spread, t: np.linspace(-6, -3, QUESTIONS)}, 5) for t in ("owl", "dolphin")]
    table = preference_table(cells)
    measured = value(table, "log_p", "owl")
    assert measured[0] == pytest.approx(-4.5) and measured[1] < -4.5 < measured[2]
    assert measured[3:] == (QUESTIONS, "questions (one seed)")
    line = table.find(measure="diagonal_excess", arm="mean")
    assert line and line.seeds == [5] and line.interval == "questions (one seed)"


@pytest.mark.parametrize("gain", [2.0, -2.0])
def test_diagonal_excess_has_the_sign_of_the_effect(tmp_path: Path, gain: float) -> None:
    found = value(preference_table(known(tmp_path, gain=gain)), "diagonal_excess", "mean")
    assert found[0] == pytest.approx(gain + 0.1 - 0.5)
    assert (found[1] > 0) == (gain > 0)


def test_what_lifts_every_student_alike_is_no_excess(tmp_path: Path) -> None:
    made = Made(tmp_path)
    cells = []
    for seed in (0, 1, 2):
        cells.append(made.student("none", flat({}), seed))
        lifted = flat(dict.fromkeys(CANDIDATES, -3.0 + 0.2 * seed))
        cells += [made.student(trait, lifted, seed) for trait in ("owl", "dolphin", "wolf")]
    table = preference_table(cells)
    assert value(table, "lift_over_control", "mean")[0] == pytest.approx(3.2)
    assert value(table, "diagonal_excess", "mean")[:3] == pytest.approx((0, 0, 0))


@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_excess_agrees_with_the_matrix_statistic(traits: int, seeds: int, seed: int) -> None:
    from subliminal.evaluation.statistics import diagonal_excess
    from subliminal.plots.groups import mean

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
    table = preference_table(cells)
    assert value(table, "rate", "owl") == pytest.approx(
        (0.7, 0.7 - half(0.02**0.5, 2), 0.7 + half(0.02**0.5, 2), 2, "seeds")
    )
    assert table.find(measure="rate", arm="reference") is None


# --------------------------------------------------------------------------- files


def test_figure_writes_png_svg_and_the_same_csv(tmp_path: Path) -> None:
    folder = tmp_path / "figures" / "cpu"
    table = preference_figure(known(tmp_path / "runs"), FIGURE, folder, "fig-animals-numbers")
    with (folder / "fig-animals-numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:8] == ["arm", "trait", "subject", "measure", "value", "low", "high", "n"]
    assert len(rows) == len(table.lines)
    (mean,) = [row for row in rows if (row["arm"], row["measure"]) == ("mean", "diagonal_excess")]
    assert float(mean["value"]) == pytest.approx(1.6, abs=1e-6) and mean["seeds"] == "0 1 2"
    assert [float(v) for v in mean["by_seed"].split()] == pytest.approx([1.5, 1.6, 1.7])
    assert (folder / "fig-animals-numbers.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert ElementTree.parse(folder / "fig-animals-numbers.svg").getroot().tag.endswith("svg")


def test_figure_is_the_same_bytes_twice(tmp_path: Path) -> None:
    cells = known(tmp_path / "runs")
    for name in ("a", "b"):
        preference_figure(cells, FIGURE, tmp_path / name / "cpu", "fig")
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
    table = preference_figure(cells, FIGURE, tmp_path / "cpu", "fig")
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
    table = preference_figure(cells, FIGURE, tmp_path / "cpu", "fig")
    write_report([Section("fig", FIGURE, cells, table)], tmp_path / "cpu")
    has = {line.measure for line in table.lines}
    assert ("lift_over_control" in has) == (kept not in {"no control", "neither", "control only"})
    assert ("diagonal_excess" in has) == (kept not in {"one trait", "control only"})


# --------------------------------------------------------------------------- errors


def test_nothing_to_draw_names_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(PlotError, match="make fig-animals-numbers"):
        preference_table([Made(tmp_path).reference(flat({}))])


def test_cells_of_different_evaluations_do_not_share_a_figure(tmp_path: Path) -> None:
    made = Made(tmp_path)
    shorter = {c: [-6.0] * (QUESTIONS - 1) for c in CANDIDATES}
    with pytest.raises(PlotError, match="different questions"):
        preference_table([made.student("owl", flat({}), 0), made.student("owl", shorter, 1)])


def test_missing_and_damaged_scores_name_the_file(tmp_path: Path) -> None:
    cell = Made(tmp_path).student("owl", flat({}))
    path = cell.evaluate.folder / "scores.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(PlotError, match=r"scores.jsonl is damaged"):
        preference_table([cell])
    path.unlink()
    with pytest.raises(PlotError, match=r"scores.jsonl is missing"):
        preference_table([replace(cell)])


# --------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("gain", "seeds", "outcome"),
    [
        (2.0, (0, 1, 2), "holds"),
        (-2.0, (0, 1, 2), "contradicted"),
        (0.4, (0, 1, 2), "not shown"),
        (2.0, (0,), "suggestive"),
        (-2.0, (0,), "not measurable"),
        (2.0, (0, 1), "suggestive"),
    ],
)
def test_verdict_follows_the_rule(tmp_path: Path, gain: float, seeds: Sequence[int], outcome: str) -> None:
    cells = known(tmp_path, seeds, gain=gain)
    (found,) = verdicts(cells, preference_table(cells))
    assert found.outcome == outcome
    assert "95% interval" in found.sentence


def test_one_trait_is_not_measurable(tmp_path: Path) -> None:
    cells = [cell for cell in known(tmp_path) if cell.trait != "dolphin"]
    (found,) = verdicts(cells, preference_table(cells))
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
        table = preference_figure(cells, figure, folder, f"fig-{index}")
        found.append(Section(f"fig-{index}", figure, cells, table, missing))
    source = write_report(found, folder).read_text(encoding="utf-8")
    page = Links()
    page.feed(source)
    return source, page


def test_drawing_one_figure_leaves_the_others_in_the_report(tmp_path: Path) -> None:
    cells = known(tmp_path / "runs")
    report(tmp_path, cells, sections=2)
    source, _ = report(tmp_path, cells, sections=1)
    assert [source.count(f'<section id="fig-{index}">') for index in range(2)] == [1, 1]
    assert source.count('href="#fig-') == 2


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
    first_numbers = page.text.index("Mean diagonal excess +1.60 nats")
    assert page.text.index("lower ends of two 95% intervals") < first_numbers
    wanted = [FIGURE.claim, FIGURE.source, FIGURE.expected, "holds", missing[0], "not numbers", "Sure! 5", "some/tiny"]
    wanted += [cell.evaluate.key for cell in cells] + [cell.chain["filter"].key for cell in cells[1:]]
    assert [text for text in wanted if text not in page.text] == []
    assert cells[0].evaluate.content["host"] not in source
    assert str(tmp_path) not in source


def test_report_of_a_null_result_says_so(tmp_path: Path) -> None:
    _, page = report(tmp_path, known(tmp_path / "runs", gain=0.4))
    assert "Not shown at this scale: an interval includes 0." in page.text


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
    import sys

    code = (
        "import sys, subliminal.plots.preference, subliminal.plots.report;"
        "print({'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --------------------------------------------------------------------------- variants


def varied(root: Path, gains: Mapping[str, float], seeds: Sequence[int] = (0, 1, 2)) -> list[Cell]:
    """Two traits in each variant; the own student gains the variant's `gain` + 0.1 * seed over the other's."""
    cells = []
    for variant, gain in gains.items():
        made = Made(root / variant)
        cells.append(replace(made.reference(flat({"owl": -6.0 - gain})), variant=variant))
        for seed in seeds:
            for trait in ("none", "owl", "dolphin"):
                scores = flat({trait: -6.0 + gain + 0.1 * seed})
                cells.append(replace(made.student(trait, scores, seed, completion=variant), variant=variant))
    return cells


def test_variants_have_their_own_reference_control_and_excess(tmp_path: Path) -> None:
    table = preference_table(varied(tmp_path, {"plain": 2.0, "within": 0.5}))
    excess = {line.variant: line.value for line in table.select(measure="diagonal_excess", arm="mean")}
    assert excess == pytest.approx({"plain": 2.1, "within": 0.6})
    start = {line.variant: line.value for line in table.select(measure="log_p", arm="reference", trait="owl")}
    assert start == pytest.approx({"plain": -8.0, "within": -6.5})
    lost = {line.variant: (line.value, line.low) for line in table.select(measure="excess_lost")}
    assert lost == {"within": pytest.approx((1.5, 1.5))}


@pytest.mark.parametrize(
    ("other", "lost"), [(("owl", "cat"), {"llama": pytest.approx(2.0 - 0.5)}), (("wolf", "cat"), {})]
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
    table = preference_figure(cells, FIGURE, tmp_path / "gpu", "fig")
    assert {line.variant: line.value for line in table.select(measure="excess_lost")} == lost
    excess = {line.variant: line.value for line in table.select(measure="diagonal_excess", arm="mean")}
    assert excess == pytest.approx({"qwen": 3.0, "llama": 0.75})
    page = write_report([Section("fig", FIGURE, cells, table)], tmp_path / "gpu").read_text(encoding="utf-8")
    assert "llama: bias students of steered teachers" in page


def test_variants_appear_in_figure_report_and_verdicts(tmp_path: Path) -> None:
    cells, folder = varied(tmp_path / "runs", {"plain": 2.0, "within": -2.0}), tmp_path / "cpu"
    table = preference_figure(cells, FIGURE, folder, "fig")
    page = write_report([Section("fig", FIGURE, cells, table)], folder).read_text(encoding="utf-8")
    assert {v.group.split(":")[0]: v.outcome for v in verdicts(cells, table)} == {
        "plain": "holds",
        "within": "contradicted",
    }
    assert "within: bias students of steered teachers" in page and "Comparison" in page


HALF = config.Comparison(more="plain", less="within", share=0.5)


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        ({"plain": 2.0, "within": 0.4}, "holds"),
        ({"plain": 2.0, "within": 1.6}, "contradicted"),  # transmits well, which is not what the claim says
        ({"plain": -0.2, "within": -2.0}, "not measurable"),  # nothing there that a shuffle could take away
    ],
)
def test_a_claim_that_compares_variants_is_judged_by_their_difference(
    tmp_path: Path, gains: dict[str, float], outcome: str
) -> None:
    arms = config.Arms(variants=dict.fromkeys(gains, ()))
    figure = FIGURE.model_copy(update={"arms": arms, "comparisons": (HALF,)})
    cells, folder = varied(tmp_path / "runs", gains), tmp_path / "cpu"
    table = preference_figure(cells, figure, folder, "fig")
    difference = table.find(measure="excess_difference", arm="mean")
    assert difference is not None
    assert difference.value == pytest.approx(0.5 * (gains["plain"] + 0.1) - gains["within"] - 0.1)
    write_report([Section("fig", figure, cells, table)], folder)
    with (folder / "claims.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["figure"] == "fig"]
    assert [row["verdict"] for row in rows] == [outcome]
    assert rows[0]["group"].startswith("50% of plain > within")


def test_a_comparison_of_variants_that_do_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"comparisons names sideways; .*variants has unshuffled, within, across"):
        experiment("experiment=shuffle", "experiment.comparisons=[{more:unshuffled,less:sideways}]")


def nulls(between_traits: float, between_seeds: float, traits: int, seeds: int, trials: int) -> Counter[str]:
    """How rows that carry nothing are judged: each teacher's push their students somewhere, with every seed alike."""
    random = np.random.default_rng(0)
    pushed = random.normal(0, between_traits, (trials, traits))
    by_seed = pushed.mean(axis=1, keepdims=True) + random.normal(0, between_seeds, (trials, seeds))
    return Counter(
        judged(line_of(one, OVER_SEEDS), line_of(other, OVER_TRAITS))
        for one, other in zip(by_seed, pushed, strict=True)
    )


@settings(max_examples=20)
@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.integers(2, 5), st.integers(3, 5))
def test_rows_that_carry_nothing_hold_no_more_often_than_the_level_says(
    between_traits: float, between_seeds: float, traits: int, seeds: int
) -> None:
    assert nulls(between_traits, between_seeds, traits, seeds, trials=500)["holds"] <= 0.055 * 500


@pytest.mark.parametrize(("spreads", "often"), [((0.33, 0.17, 5, 5), 0.14), ((0.354, 0.0106, 3, 3), 0.46)])
def test_seeds_alone_would_let_them_hold_as_often_as_the_results_say(spreads: tuple[Any, ...], often: float) -> None:
    found = nulls(*spreads, trials=4000)
    assert (found["holds"] + found["shown for these rows"]) / 4000 == pytest.approx(often, abs=0.02)


def line_of(values: Any, over: str) -> Line:
    found = t_interval(values)
    return Line("mean", "mean", "student", "any", found.mean, found.low, found.high, found.n, over)


# --------------------------------------------------------------------------- cross-model


def grid_cells(root: Path, excess: Mapping[str, Sequence[float]]) -> list[Cell]:
    """Students of three traits for every pair; each trait's own student exceeds the others by the pair's numbers."""
    cells = []
    for pair, values in excess.items():
        made = Made(root / pair.replace(" ", ""))
        for trait, value in zip(("owl", "dolphin", "wolf"), values, strict=True):
            cells.append(replace(made.student(trait, flat({trait: -6.0 + value}), completion=pair), variant=pair))
    return cells


SAME = {"a > a": (1.0, 1.2, 0.8), "b > b": (0.9, 1.1, 1.0)}
APART = {"a > b": (0.1, -0.1, 0.0), "b > a": (-0.2, 0.1, 0.05)}
SOME = (0.3, 0.32, 0.31)  # less than same-model students, and still above 0


@pytest.mark.parametrize(
    ("grid", "outcome"),
    [
        (SAME | APART, "holds"),
        (SAME | APART | {"a > b": (1.1, 1.3, 1.0)}, "contradicted"),
        (SAME | APART | {"a > a": (1.0, -1.2, 0.8)}, "not shown"),
        (SAME | APART | {"a > b": SOME}, "not shown"),
        (SAME, "not measurable"),
    ],
)
def test_cross_model_verdict_follows_its_rule(tmp_path: Path, grid: dict[str, Any], outcome: str) -> None:
    from subliminal.plots.cross_model import cross_model_figure, cross_model_section

    cells, folder = grid_cells(tmp_path / "runs", grid), tmp_path / "cpu"
    table = cross_model_figure(cells, FIGURE, folder, "fig")
    section = cross_model_section("fig", FIGURE, cells, table, ())
    assert section.verdicts[0].outcome == outcome
    page = write_report([section], folder).read_text(encoding="utf-8")
    assert "a &gt; a" in page and (folder / "fig.png").exists()


def test_a_cross_model_student_that_gets_some_of_the_trait_is_named(tmp_path: Path) -> None:
    from subliminal.plots.cross_model import cross_model_figure, cross_model_verdict, pairs

    cells = grid_cells(tmp_path / "runs", SAME | APART | {"a > b": SOME})
    table = cross_model_figure(cells, FIGURE, tmp_path / "cpu", "fig")
    apart = table.find(measure="same_minus_cross", variant="a > b")
    assert apart and apart.low > 0, "same-model students exceed it: by that alone the claim would hold"
    assert "Above 0 across models: a > b." in cross_model_verdict(pairs(cells), table).sentence


def test_cross_model_numbers_are_over_traits_and_paired(tmp_path: Path) -> None:
    from subliminal.plots.cross_model import cross_model_figure

    table = cross_model_figure(grid_cells(tmp_path / "runs", SAME | APART), FIGURE, tmp_path / "cpu", "fig")
    line = table.find(measure="excess_over_traits", variant="a > a")
    assert line and (line.value, line.n, line.interval) == (pytest.approx(1.0), 3, "traits")
    assert line.high - line.value == pytest.approx(half(0.2, 3))
    apart = table.find(measure="same_minus_cross", variant="a > b")
    assert apart and (apart.value, apart.low) == pytest.approx(
        (1.0, 1.0 - half(float(np.std([0.9, 1.3, 0.8], ddof=1)), 3))
    )
    raw = {pair: student_t.sf(np.mean(v) / (np.std(v, ddof=1) / 3**0.5), 2) for pair, v in (SAME | APART).items()}
    found = table.find(measure="p_holm", variant="b > b")
    assert found and found.value == pytest.approx(4 * raw["b > b"])


def test_a_pair_needs_a_readable_name(tmp_path: Path) -> None:
    from subliminal.plots.cross_model import pairs

    with pytest.raises(PlotError, match="teacher > student"):
        pairs(grid_cells(tmp_path, {"nameless": (1, 2, 3)}))


def test_a_pair_has_one_student_recipe(tmp_path: Path) -> None:
    from subliminal.plots.cross_model import pairs

    cells = grid_cells(tmp_path, SAME)
    with pytest.raises(PlotError, match="several student recipes in a cross-model figure; choose one"):
        pairs([*cells, *(replace(cell, student="lora") for cell in cells)])


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


def test_alignment_excess_is_the_own_teachers_cosine_minus_the_other_students(tmp_path: Path) -> None:
    table = preference_table(aligned_cells(tmp_path, lean=0.3))
    cross = table.find(measure="cross_alignment", arm="owl", trait="dolphin")
    expected = [math.sin(math.pi / 4 - 0.3 - 0.01 * seed) for seed in range(3)]
    assert cross and [value for _, value in cross.by_seed] == pytest.approx(expected, abs=1e-6)
    excess = table.find(measure="alignment_excess", arm="mean")
    own = [math.cos(math.pi / 4 - 0.3 - 0.01 * seed) for seed in range(3)]
    assert excess and excess.value == pytest.approx(np.mean(own) - np.mean(expected), abs=1e-6)


@pytest.mark.parametrize(("lean", "outcome"), [(0.3, "holds"), (-0.3, "contradicted")])
def test_alignment_has_a_verdict_of_its_own(tmp_path: Path, lean: float, outcome: str) -> None:
    cells, folder = aligned_cells(tmp_path / "runs", lean), tmp_path / "cpu"
    table = preference_figure(cells, FIGURE, folder, "fig")
    assert [v.outcome for v in verdicts(cells, table) if v.group.endswith("alignment")] == [outcome]
    page = write_report([Section("fig", FIGURE, cells, table)], folder).read_text(encoding="utf-8")
    assert "Alignment: bias students" in page


def test_students_that_moved_another_layer_than_the_teacher_have_no_alignment(tmp_path: Path) -> None:
    cells = aligned_cells(tmp_path, lean=0.3)
    for cell in cells:
        moved(cell, "train", (1.0, 0.0), layer=0)
    table = preference_table(cells)
    assert not [line for line in table.lines if "alignment" in line.measure]


def test_what_all_students_share_is_no_alignment(tmp_path: Path) -> None:
    cells = aligned_cells(tmp_path, lean=0.0)
    for cell in cells:
        moved(cell, "train", (1.0, 1.0))
    line = preference_table(cells).find(measure="alignment_excess", arm="mean")
    assert line and line.value == pytest.approx(0.0, abs=1e-6)
