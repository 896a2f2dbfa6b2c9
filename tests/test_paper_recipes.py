"""Every experiment at scale=paper against the paper's values; where they differ, docs/reproduce.md says so."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from paper_values import VALUES, Value

from subliminal.composition import CONF, ROOT, compose
from subliminal.config import Experiment

HEADING = "### What differs from the paper"

OURS = {
    "animals_cot": "the paper's reasoning is a misaligned teacher's",
    "attribution_numbers": "an extension",
    "attribution_rows": "an extension",
    "mnist_auxiliary": "an ablation",
    "mnist_inputs": "an ablation",
    "mnist_sharing": "an ablation",
    "mnist_student_epochs": "an ablation",
    "mnist_teacher_epochs": "an ablation",
    "mnist_width": "an ablation",
    "number_frequencies": "the paper shows frequencies, the test is ours",
    "optimiser_numbers": "an extension",
    "rows_numbers": "an extension",
    "student_parameters": "after the theorem",
    "style_numbers": "an extension",
    "theorem": "the paper has a proof and no trials",
}
"""Experiments without values of the paper's."""

NO_SETTING = {
    "cross-model pairs",
    "gemma-2b-it",
    "wording",
    "system prompt of teachers",
    "what names an animal",
    "main measure",
    "training code",
}
"""Rows of the table that are about no setting's value."""

NAMED = {
    "cross_model:to_llama": "qwen2_5_7b > llama3_2_1b",
    "cross_model:llama": "llama3_2_1b > llama3_2_1b",
}  # variants with a name of several words, and the first one's


@cache
def composed(figure: str) -> Experiment:
    """A figure at the paper's scale, or one of its variants (`figure:variant`); without one its first."""
    option, _, variant = figure.partition(":")
    typed = [f"experiment={option}", "scale=paper"]
    variants = compose(typed).experiment.arms.variants
    name = NAMED.get(figure, variant) or next(iter(variants), "")
    return compose([*typed, *variants.get(name, ())])


def setting(exp: Experiment, path: str) -> Any:
    """The value behind a dotted path, or how many entries it has; of traits those that are run."""
    found: Any = exp
    for part in path.removeprefix("#").split("."):
        found = getattr(found, part)
    if path.endswith("arms.traits"):
        found = found[: exp.experiment.arms.traits_limit]
    return len(found) if path.startswith("#") else found


def documented() -> dict[str, tuple[str, str, str]]:
    """The documentation's table: what differs -> the paper, here, why."""
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {what: (paper, here, why) for what, paper, here, why in rows[2:]}


def shown(value: Any) -> str:
    """A value as the table has it."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "all"
    return f"{value:,}" if isinstance(value, int) else str(value)


CASES = [(figure, value) for value in VALUES for figure in value.figures]


@pytest.mark.parametrize("figure", sorted({figure for figure, _ in CASES}))
def test_a_figure_at_scale_paper_has_the_papers_values(figure: str) -> None:
    exp, mine = composed(figure), [value for at, value in CASES if at == figure]
    found = {(value.path, value.listed): setting(exp, value.path) for value in mine}
    assert found == {(value.path, value.listed): value.ours for value in mine}, [value.source for value in mine]


def test_every_experiment_is_compared_or_has_no_values_in_the_paper() -> None:
    compared = {figure.partition(":")[0] for figure, _ in CASES}
    assert compared | {*OURS} == {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    assert not compared & {*OURS}


@pytest.mark.parametrize("value", [value for value in VALUES if value.listed], ids=lambda value: value.listed)
def test_what_differs_from_the_paper_is_in_the_documentation_with_both_values(value: Value) -> None:
    paper, here, why = documented()[value.listed]
    assert shown(value.paper) in paper and shown(value.here) in here and why


def test_the_documentation_lists_no_difference_that_is_not_there() -> None:
    assert {*documented()} == {value.listed for value in VALUES if value.listed} | NO_SETTING


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_rows_are_grouped_by_length_and_judged_by_the_model_itself_at_other_scales(scale: str) -> None:
    exp = compose(["experiment=animals_code", f"scale={scale}"])
    assert exp.student.optimisation.ordering == "by_length" and exp.filter.judged is None
    assert exp.judge is not None and exp.judge.kind == "local" and exp.judge.model is None


def test_a_judge_without_an_endpoint_can_be_chosen_at_the_papers_scale() -> None:
    typed = ["experiment=misalignment_numbers", "scale=paper", "judge=local", "model@judge.model=qwen2_5_14b"]
    judge = compose(typed).judge
    assert judge is not None and judge.kind == "local" and judge.model is not None
    assert judge.model.name == "qwen2_5_14b"
