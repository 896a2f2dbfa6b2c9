"""Figures that share the animals' teachers, at `debug=smoke`."""

from __future__ import annotations

from pathlib import Path

import pytest
from smoke import ANIMALS, deep, root, run_from_start_to_end

__all__ = ["deep", "root"]  # fixtures


@pytest.mark.parametrize("name", ANIMALS)
def test_the_figure_runs_from_start_to_end(name: str, root: Path, request: pytest.FixtureRequest) -> None:
    run_from_start_to_end(name, root, lambda: request.getfixturevalue("deep"))
