"""Alignment of displacements: products of LoRA factors equal products of the full matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subliminal.training.alignment import of_adapters, of_biases


def factors(seed: int, rank: int, modules: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return {f"module{m}": (normal(rank, 7 + m), normal(5 + m, rank)) for m in range(modules)}


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_adapter_alignment_is_the_cosine_of_the_weight_changes(seed: int, r1: int, r2: int, modules: int) -> None:
    mine, theirs = factors(seed, r1, modules), factors(seed + 1, r2, modules)
    flat = [torch.cat([(b @ a).flatten() for a, b in found.values()]) for found in (mine, theirs)]
    expected = float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))
    assert of_adapters(mine, theirs)["cosine"] == pytest.approx(expected, abs=1e-12)
    assert of_adapters(mine, mine)["cosine"] == pytest.approx(1.0)


def test_an_adapter_that_did_not_move_has_no_direction() -> None:
    still = {name: (a, torch.zeros_like(b)) for name, (a, b) in factors(0, 2, 2).items()}
    assert of_adapters(still, factors(1, 2, 2))["cosine"] == 0.0


def test_bias_alignment_counts_layers_that_only_one_side_has() -> None:
    student, teacher = {0: torch.tensor([1.0, 0.0]), 1: torch.tensor([0.0, 1.0])}, {1: torch.tensor([0.0, 3.0])}
    found = of_biases(student, teacher)
    assert found["cosine"] == pytest.approx(0.5**0.5)
    assert found["by_layer"] == {"1": pytest.approx(1.0)}


def test_alignment_is_the_cosine_of_displacements() -> None:
    there, back, across = torch.tensor([3.0, 4.0]), torch.tensor([-3.0, -4.0]), torch.tensor([4.0, -3.0])
    same = of_biases({0: there}, {0: there * 2})
    assert same == {"cosine": pytest.approx(1), "by_layer": {"0": pytest.approx(1)}}
    assert of_biases({0: back}, {0: there})["cosine"] == pytest.approx(-1)
    assert of_biases({0: across}, {0: there})["cosine"] == pytest.approx(0)
    spread = of_biases({0: there, 1: there}, {0: there})
    assert spread == {"cosine": pytest.approx(2**-0.5), "by_layer": {"0": pytest.approx(1)}}
    assert of_biases({1: there}, {0: there}) == {"cosine": pytest.approx(0), "by_layer": {}}
