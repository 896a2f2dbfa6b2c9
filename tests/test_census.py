"""Keys stay what they were, in every branch of the identity code."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from census import all_keys, census

KEPT = yaml.safe_load((Path(__file__).parent / "census_keys.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def todays() -> dict[str, dict[str, list[str]]]:
    """The keys of today's code."""
    return all_keys()


@pytest.mark.parametrize("name", census())
def test_keys_stay_what_they_were(name: str, todays: dict[str, dict[str, list[str]]]) -> None:
    """A key that moves orphans stored results: see the head of census.yaml for what to do where it is meant."""
    assert todays[name] == KEPT[name]
