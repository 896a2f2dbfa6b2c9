"""Alignment of displacements: products of LoRA factors equal products of the full matrices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROWS, optimisation
from hypothesis import given, settings
from hypothesis import strategies as st

from subliminal.config import BiasStudent, Lora, LoraStudent
from subliminal.models import Subject
from subliminal.training.alignment import alignment, of_adapters, of_biases
from subliminal.training.sft import fit


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


@pytest.fixture(scope="module")
def narrow(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny Llama with half of its width: the same module names in other sizes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("narrow")
    shape = AutoConfig.from_pretrained(tiny.checkpoint, hidden_size=32)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((Path(tiny.checkpoint) / name).read_bytes())
    return replace(tiny, checkpoint=str(folder))


@pytest.mark.parametrize(("student", "kind"), [("narrow", "bias"), ("gemma", "bias"), ("narrow", "lora")])
def test_models_that_share_no_parameters_have_no_alignment(
    student: str, kind: str, tiny: Subject, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    how = optimisation(batch_size=16)
    recipe = (
        BiasStudent(layers=(1,), optimisation=how) if kind == "bias" else LoraStudent(lora=Lora(r=2), optimisation=how)
    )
    for who, model in (("teacher", tiny), ("own", tiny), ("other", request.getfixturevalue(student))):
        fit(model, ROWS, recipe, 0, tmp_path / who)
    assert alignment(tmp_path / "other", tmp_path / "teacher") is None
    own = alignment(tmp_path / "own", tmp_path / "teacher")
    assert own is not None and own["cosine"] == pytest.approx(1, abs=1e-3)
