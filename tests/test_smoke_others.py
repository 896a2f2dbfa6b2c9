"""Figures with teachers of their own, or none, at `debug=smoke`; and what its limits do."""

from __future__ import annotations

from pathlib import Path

import pytest
from smoke import OTHERS, deep, root, run_from_start_to_end

from subliminal import stages
from subliminal.composition import compose
from subliminal.limits import limited

__all__ = ["deep", "root"]  # fixtures


@pytest.mark.parametrize("name", OTHERS)
def test_the_figure_runs_from_start_to_end(name: str, root: Path, request: pytest.FixtureRequest) -> None:
    run_from_start_to_end(name, root, lambda: request.getfixturevalue("deep"))


def test_limits_hold_where_the_setting_is_and_nowhere_else() -> None:
    plain = {"a": {"n": 9, "small": 1, "none": None, "list": [1, 2, 3], "word": "x", "table": {"p": 1, "q": 2}}, "b": 1}
    limits = {
        "a.n": 4,
        "a.small": 4,
        "a.none": 4,
        "a.list": 2,
        "a.word": "y",
        "a.table": 1,
        "b": 0.5,
        "a.absent": 1,
        "c.d": 1,
        "b.e": 1,
    }
    found = limited({**plain, "debug": limits})
    assert found == {"a": {"n": 4, "small": 1, "none": 4, "list": [1, 2], "word": "y", "table": {"p": 1}}, "b": 0}


def test_smoke_changes_keys_and_the_figures_folder_and_no_debug_changes_nothing() -> None:
    plain, off, smoke = (
        compose(["experiment=animals_numbers", "scale=cpu", *extra]) for extra in ([], ["debug=off"], ["debug=smoke"])
    )
    assert plain == off and smoke.scale == "smoke"
    assert stages.generate(plain).key != stages.generate(smoke).key
    assert compose(["scale=cpu", "debug=smoke", "domain.prompts=2", "filter.rows=2"]).domain.prompts == 2
