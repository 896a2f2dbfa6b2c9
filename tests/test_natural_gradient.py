"""Natural gradient: it finds a known optimum where Adam does not, and its scores are the rows' own gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROWS, experiment, optimisation
from safetensors.torch import load_file

from subliminal.config import BiasStudent, ConfigError, NaturalGradient
from subliminal.models import Subject, load_tokenizer
from subliminal.training import bias, natural_gradient, recipes
from subliminal.training.batches import Collator, completion_loss, tokenise
from subliminal.training.natural_gradient import NaturalGradientOptimiser, covariance, row_scores
from subliminal.training.sft import fit

SIZE = 40


def quadratic() -> tuple[torch.Tensor, torch.Tensor]:
    """A Fisher information of which three directions hold nearly all, and an optimum in the many others."""
    generator = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator))
    curvature = torch.cat([torch.tensor([300.0, 100.0, 40.0]), torch.linspace(1.0, 0.3, SIZE - 3)])
    optimum = axes[:, 3:] @ torch.randn(SIZE - 3, generator=generator)
    return (axes * curvature) @ axes.T, optimum


def descend(optimiser: torch.optim.Optimizer, vector: torch.Tensor, steps: int = 20) -> torch.Tensor:
    fisher, optimum = quadratic()
    rate = optimiser.param_groups[0]["lr"]
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        vector.grad = fisher @ (vector.detach() - optimum)
        optimiser.step()
    return vector.detach()


def test_it_reaches_an_optimum_in_the_flat_directions_where_adam_is_still_on_its_way() -> None:
    fisher, optimum = quadratic()
    settings = NaturalGradient(damping=0.03, longest_step=6.0)
    vector = torch.nn.Parameter(torch.zeros(SIZE))
    natural = descend(NaturalGradientOptimiser([vector], [fisher], settings, 0.5), vector)
    assert torch.cosine_similarity(natural, optimum, dim=0) > 0.99
    best = 0.0
    for rate in (0.01, 0.03, 0.1, 0.3, 1.0):
        vector = torch.nn.Parameter(torch.zeros(SIZE))
        adam = descend(torch.optim.Adam([vector], lr=rate), vector)
        best = max(best, float(torch.cosine_similarity(adam, optimum, dim=0)))
    assert best < 0.95


def test_without_damping_one_whole_step_is_the_optimum() -> None:
    fisher, optimum = quadratic()
    vector = torch.nn.Parameter(torch.zeros(SIZE))
    vector.grad = fisher @ (vector.detach() - optimum)
    NaturalGradientOptimiser([vector], [fisher], NaturalGradient(damping=1e-9, longest_step=1e9), 1.0).step()
    assert torch.allclose(vector.detach(), optimum, atol=1e-3)


def test_no_step_is_longer_than_the_longest() -> None:
    vector = torch.nn.Parameter(torch.zeros(SIZE))
    vector.grad = torch.full((SIZE,), 1e6)
    NaturalGradientOptimiser([vector], [torch.eye(SIZE)], NaturalGradient(longest_step=2.5), 1.0).step()
    assert float(vector.detach().norm()) == pytest.approx(2.5)


def test_the_fisher_information_is_the_covariance_of_scores_a_token() -> None:
    """Rows of many tokens have longer scores; what all tokens share is no information."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 60, (4000,), generator=generator).double()
    per_token = torch.tensor([1.0, 2.0, 0.5]).double()
    shared = torch.tensor([0.3, -0.2, 0.1]).double()
    noise = torch.randn(4000, 3, generator=generator).double() * tokens[:, None].sqrt() * per_token
    estimated = covariance(noise + tokens[:, None] * shared, tokens)
    assert torch.allclose(estimated, torch.diag(per_token**2), atol=0.2)


def test_scores_are_the_gradients_of_single_rows(either: Subject) -> None:
    recipe = BiasStudent(layers=(0, 1), optimisation=optimisation())
    model = recipes.trainable(either, recipe)
    tokenizer = load_tokenizer(either)
    data = tokenise(tokenizer, ROWS[:5], None, 500)
    collate = Collator(int(tokenizer.pad_token_id))  # type: ignore[arg-type]
    scores = row_scores(model, [0, 1], collate(data))
    for place, row in enumerate(data):
        loss, _, _ = completion_loss(model, collate([row]))
        alone = torch.autograd.grad(loss, [bias.vector(model, layer) for layer in (0, 1)])
        for layer, gradient in enumerate(alone):
            assert torch.allclose(scores[layer][place], -gradient, atol=1e-4 * float(gradient.abs().max()))


def student(**changes: Any) -> BiasStudent:
    how = optimisation(
        optimiser=NaturalGradient(fisher_rows=12), learning_rate=0.5, epochs=4.0, save_every=3, **changes
    )
    return BiasStudent(layers=(1,), optimisation=how)


def test_a_student_by_natural_gradient_fits_its_rows_and_ends_alike_after_a_kill(
    tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = fit(tiny, ROWS, student(), 0, tmp_path / "whole")
    assert report["last_loss"] < report["first_loss"]
    computed = natural_gradient.fisher_information
    estimates: list[int] = []
    monkeypatch.setattr(
        "subliminal.training.sft.fisher_information",
        lambda *given: estimates.append(len(given[2])) or computed(*given),
    )
    killed = RuntimeError("killed")

    def stop(_: int, total: list[int] = [0]) -> None:  # noqa: B006
        total[0] += 1
        if total[0] == 9:
            raise killed

    with pytest.raises(RuntimeError, match="killed"):
        fit(tiny, ROWS, student(), 0, tmp_path / "killed", progress=stop)
    fit(tiny, ROWS, student(), 0, tmp_path / "killed")
    assert estimates == [12], "the resume point has what the Fisher information gave"
    (whole,), (again,) = (load_file(tmp_path / n / "adapter" / bias.ADAPTER).values() for n in ("whole", "killed"))
    assert torch.allclose(whole, again, atol=1e-6) and float(whole.norm()) > 0


def test_a_student_in_bfloat16_goes_the_way_of_one_in_float32(tiny: Subject, tmp_path: Path) -> None:
    moved = {}
    for dtype in ("float32", "bfloat16"):
        fit(replace(tiny, dtype=dtype), ROWS, student(), 0, tmp_path / dtype)
        (moved[dtype],) = load_file(tmp_path / dtype / "adapter" / bias.ADAPTER).values()
    assert torch.cosine_similarity(moved["float32"], moved["bfloat16"], dim=0) > 0.9


@pytest.mark.parametrize("group", ["student=lora_small", "student=full"])
def test_what_has_no_vectors_is_refused(group: str) -> None:
    with pytest.raises(ConfigError, match=r"kind=natural_gradient is for vectors .*student=bias_one_layer"):
        experiment(group, "+student.optimisation.optimiser.kind=natural_gradient")
