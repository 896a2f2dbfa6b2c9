"""The overview of all claims, and the target that makes every figure."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from test_plots import FIGURE, Links, drawn, five, known, report

from subliminal.__main__ import _figure_overrides
from subliminal.composition import ROOT, compose
from subliminal.config import ConfigError
from subliminal.plots.figure import Verdict
from subliminal.plots.overview import Claim, claims_of, configured, multiplicity, overview
from subliminal.plots.report import KEPT, write_report

TARGETS = re.findall(r"^((?:fig|table)-[a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """The overview's CSV by figure."""
    with (folder / "claims.csv").open(newline="") as file:
        return {row["figure"]: row for row in csv.DictReader(file)}


def test_a_drawn_figure_is_a_row_with_its_number(tmp_path: Path) -> None:
    source, page = report(tmp_path, five(tmp_path / "runs", gain=1.6))
    row = rows(tmp_path / "figures" / "cpu")["fig-0"]
    assert (row["claim"], row["expected"], row["verdict"]) == (FIGURE.claim, FIGURE.expected, "holds")
    assert (row["measure"], row["n"], row["interval"]) == ("log_odds_excess", "5", "traits")
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert (row["p"], row["p_holm"]) == ("0.00833", "0.00833")
    assert f"log odds excess {row['value']} [{row['low']}, {row['high']}]" in page.text and "5 traits" in page.text
    assert source.index('href="#fig-0"') < source.index('<section id="fig-0">'), "the report begins with it"
    assert source.index('<section id="fig-0">') < source.index('<details id="not-run">'), "what was not run comes last"
    assert "fig-shuffle" not in source[: source.index('<details id="not-run">')]


def test_a_shift_that_is_no_preference_says_so_in_the_overview(tmp_path: Path) -> None:
    report(tmp_path, five(tmp_path / "runs", gain=0.5))
    row = rows(tmp_path / "figures" / "cpu")["fig-0"]
    assert row["why"] == "Holds at this scale. Not called a preference: the own candidate stays that rare."


@pytest.mark.parametrize(("gain", "verdict"), [(0.0, "not shown"), (-2.0, "contradicted")])
def test_a_claim_that_does_not_hold_is_shown_as_such(tmp_path: Path, gain: float, verdict: str) -> None:
    source, _ = report(tmp_path, five(tmp_path / "runs", gain=gain))
    assert rows(tmp_path / "figures" / "cpu")["fig-0"]["verdict"] == verdict
    assert f'<span class="badge {verdict}">{verdict}</span>' in source[: source.index("<section")]


def test_the_report_says_what_several_claims_do_to_each_other() -> None:
    """Four claims with the smallest p that five traits have: each holds by itself, none for all together."""
    claims = [Claim(f"fig-{n}", "c", "e", "holds", "w", p="0.00833") for n in range(4)]
    sections = [{"id": claim.figure, "claims": [asdict(claim)]} for claim in claims]
    found = overview(sections, "cpu")
    assert [claim.p_holm for claim in found if claim.p] == ["0.0333"] * 4
    said = multiplicity(found)
    assert said.startswith("Claims of this report that a test decided: 4, at 2.5%, one-sided, each for itself; 4 hold")
    assert "0.1 would be expected to hold by chance. Adjusted for all 4 (Holm 1979), 0 hold." in said


def test_what_can_not_be_measured_says_why(tmp_path: Path) -> None:
    cells = [cell for cell in known(tmp_path / "runs") if cell.trait != "dolphin"]
    source, _ = report(tmp_path, cells)
    row = rows(tmp_path / "figures" / "cpu")["fig-0"]
    assert (row["verdict"], row["why"]) == (
        "not measurable",
        "Not measurable: it needs students of two traits or more.",
    )
    assert "not measurable at this scale" in source


def test_configured_figures_that_were_not_drawn_are_rows_too(tmp_path: Path) -> None:
    folder = tmp_path / "figures" / "cpu"
    report(tmp_path, known(tmp_path / "runs"))
    found = rows(folder)
    row = found["fig-trees-numbers"]
    assert (row["verdict"], row["why"], row["value"]) == ("not run", "make fig-trees-numbers SCALE=cpu", "")
    assert row["claim"] and row["expected"]
    cells = five(tmp_path / "more", gain=2.0)
    write_report([drawn(cells, FIGURE, folder, "fig-trees-numbers")], folder)
    assert rows(folder)["fig-trees-numbers"]["verdict"] == "holds"
    assert rows(folder)["fig-0"] == found["fig-0"]


def test_a_section_of_an_earlier_version_asks_to_be_drawn_again(tmp_path: Path) -> None:
    folder = tmp_path / "figures" / "cpu"
    report(tmp_path, known(tmp_path / "runs"))
    kept = folder / KEPT / "fig-0.json"
    content = json.loads(kept.read_text())
    content["claims"][0]["over_traits"] = "[1, 2]"  # a column that claims had once
    without = {name: value for name, value in content.items() if name != "claims"}
    for older in (content, without):
        (row,) = [claim for claim in overview([older], "cpu") if claim.figure == "fig-0"]
        assert (row.verdict, "plot fig-0 scale=cpu" in row.why) == ("not run", True)


def test_a_verdict_without_one_number_is_told_in_its_sentence() -> None:
    (row,) = claims_of("fig", FIGURE, [Verdict("pairs", "not shown", "Not shown. Excess a, b. More.")])
    assert (row.why, row.measured, row.units) == ("Not shown. Excess a, b. More.", "", "")


def test_numbers_are_written_with_a_true_minus() -> None:
    row = Claim("f", "c", "e", "holds", "w", measure="excess_lost", value="-1", low="-2", high="0.5", n="3")
    assert row.measured == "excess lost \N{MINUS SIGN}1 [\N{MINUS SIGN}2, 0.5]"


def test_the_overview_escapes_texts(tmp_path: Path) -> None:
    cells, figure = known(tmp_path / "runs"), FIGURE.model_copy(update={"claim": "<script>alert(1)</script>"})
    shown = drawn(cells, figure, tmp_path / "cpu", "fig")
    page = Links()
    page.feed(write_report([shown], tmp_path / "cpu").read_text())
    assert "script" not in page.tags and "<script>alert(1)</script>" in page.text


# --------------------------------------------------------------------------- every figure has a claim and a target


def test_every_configured_figure_has_a_claim_and_a_target() -> None:
    for figure in configured():
        assert figure["figure"] in TARGETS
        assert figure.get("claim") and figure.get("expected"), figure
    assert {"fig-elicitation", "table-capability"} <= {figure["figure"] for figure in configured()}


@pytest.mark.parametrize("figure", [figure["figure"] for figure in configured()])
def test_a_figures_name_stands_for_its_experiment(figure: str) -> None:
    (override, _) = _figure_overrides([figure, "scale=cpu"])
    assert compose([override, "scale=cpu"]).experiment.file == figure


def test_a_name_that_is_no_figures_is_told_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no figure fig-atribution; there are .*fig-attribution, .*table-capability"):
        _figure_overrides(["fig-atribution"])


PYTHON = """#!/bin/sh
echo "$@" >> ran.txt
case "$*" in *experiment=shuffle*) exit 1;; esac
"""


def test_making_every_figure_goes_on_after_a_failed_one_and_names_it(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()
    brought = tmp_path / "data" / "emergent_misalignment"
    brought.mkdir(parents=True)
    done = subprocess.run(["make", "figures"], cwd=tmp_path, capture_output=True, text=True, check=False)
    ran = (tmp_path / "ran.txt").read_text().splitlines()
    assert done.returncode != 0
    assert "failed: fig-shuffle\n" in done.stderr
    assert len([line for line in ran if "subliminal sweep" in line]) == len(TARGETS)
    brought.rmdir()
    planned = subprocess.run(["make", "-n", "figures"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "fig-shuffle" in planned.stdout and "fig-misalignment" not in planned.stdout
    python.write_text("#!/bin/sh\n")
    assert subprocess.run(["make", "figures"], cwd=tmp_path, capture_output=True, check=False).returncode == 0
