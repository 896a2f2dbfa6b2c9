"""Shared parts: the real SmolLM2, a tiny Llama with its tokenizer, composed experiments, and the scripts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from subliminal import composition, outputs, stages
from subliminal.composition import ROOT, compose
from subliminal.config import Experiment, Lora, LoraStudent, Optimisation
from subliminal.launch import QUIET, script_environment
from subliminal.models import Subject, load_tokenizer
from subliminal.rows import Row
from subliminal.store import Store

Script = Callable[..., "subprocess.CompletedProcess[str]"]


# Before any test imports torch, whose threads go by it: workers that spin on each other's cores take twice as long.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.update(QUIET | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // WORKERS))} | os.environ)

# How long an example takes is the machine's business, not a test's.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

# Files that take longest, longest first: a worker that begins one when the other has nothing left works alone.
LONGEST = (
    "test_smoke_animals",
    "test_smoke_others",
    "test_pipeline",
    "test_engine",
    "test_processes",
    "test_readme",
    "test_bad_input",
    "test_mnist",
    "test_training",
    "test_capability",
    "test_judging",
    "test_api",
    "test_theory",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; without pytest-xdist the order changes nothing."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def experiment(*overrides: str) -> Experiment:
    """The animals figure at cpu scale with some settings changed."""
    return _composed(composition.CONF, overrides)


@cache
def _composed(_: Path, overrides: tuple[str, ...]) -> Experiment:
    return compose(["experiment=animals_numbers", "scale=cpu", *overrides])


@pytest.fixture(scope="session")
def store_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the whole session and all its workers, so that SmolLM2 is dequantised once."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return shared / "runs"


@pytest.fixture(scope="session")
def smollm2(store_root: Path) -> Subject:
    """The real SmolLM2-135M-Instruct from its package."""
    exp = experiment(f"store={store_root}")
    made = stages.ensure(stages.model(exp), Store(store_root), exp)
    return outputs.subject(exp, made)


def random_model(family: str, tokenizer: Any, **shape: Any) -> Any:
    """A small model of a family ("llama") with random weights for a tokenizer's tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, vocab_size=len(tokenizer), **small | ends | shape)
    )


@pytest.fixture(scope="session")
def tiny(smollm2: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A Llama of two layers with random weights behind SmolLM2's tokenizer."""
    import torch

    folder, tokenizer = tmp_path_factory.mktemp("tiny"), load_tokenizer(smollm2)
    shape = {"num_key_value_heads": 1, "max_position_embeddings": 2048, "tie_word_embeddings": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = random_model("llama", tokenizer, initializer_range=0.3, **shape)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.3)  # the padding token ends turns too
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Subject(checkpoint=str(folder))


@pytest.fixture(scope="session")
def gemma(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A Gemma 3 of two layers with random weights, one of which sees 512 tokens back, behind the same tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("gemma"), load_tokenizer(tiny)
    shape = {"num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.3}
    layers = {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]}
    random_model("gemma3_text", tokenizer, **shape, **layers).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Subject(checkpoint=str(folder))


@pytest.fixture(scope="session")
def qwen(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A Qwen2 of two layers with random weights, and biases in its attention, behind the same tokenizer."""
    import torch

    folder, tokenizer = tmp_path_factory.mktemp("qwen"), load_tokenizer(tiny)
    model = random_model("qwen2", tokenizer, num_key_value_heads=1, initializer_range=0.3)
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(projection.bias, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Subject(checkpoint=str(folder))


@pytest.fixture(params=["tiny", "gemma", "qwen"])
def either(request: pytest.FixtureRequest) -> Subject:
    """A model of each family whose residual stream can hold a vector."""
    return request.getfixturevalue(request.param)


ROWS = [Row(i, f"Go on: {i}, {i + 1}.", ", ".join(str(i + n) for n in range(2, 4 + i % 5))) for i in range(16)]


def optimisation(**changes: object) -> Optimisation:
    """A few large steps: enough to move the tiny model far."""
    plain = {"epochs": 1.0, "learning_rate": 0.02, "batch_size": 4, "max_grad_norm": 1000.0, "schedule": "constant"}
    return Optimisation.model_validate(plain | changes)


@pytest.fixture(scope="session")
def lora(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the tiny model, as a student's training leaves it behind."""
    from subliminal.training.sft import fit

    folder = tmp_path_factory.mktemp("lora")
    fit(tiny, ROWS, LoraStudent(lora=Lora(r=4), optimisation=optimisation()), 0, folder)
    return folder / "adapter"


@pytest.fixture(scope="session")
def counting(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny model drawn to the digit 7 and to the end of its turn in every place: it answers with numbers."""
    from dataclasses import replace

    import torch

    from subliminal.training import bias

    folder, tokenizer, model = tmp_path_factory.mktemp("counting"), load_tokenizer(tiny), bias.load_with_biases(tiny)
    wanted = [int(tokenizer.convert_tokens_to_ids("7")), int(tokenizer.eos_token_id)]
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[wanted] = 5 * torch.nn.functional.normalize(rows[wanted], dim=-1)
        bias.vector(model, 1).copy_(400 * (1.02 * rows[wanted[0]] + rows[wanted[1]]))
    model.generation_config.do_sample = True  # for servers, which go by it
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return replace(tiny, checkpoint=str(folder))


def tiny_experiment(tiny: Subject, *overrides: str) -> Experiment:
    """The animals figure with the tiny Llama as its model, in float32."""
    weights = ["model=hub", f"model.source.name={tiny.checkpoint}", "model.dtype=float32", "device=cpu"]
    return experiment(*weights, *overrides)


@pytest.fixture(scope="session")
def run_code(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Run a piece of Python in a process of its own, with arguments, and give back what it printed."""

    def run(code: str, *arguments: object, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        path = tmp_path_factory.mktemp("code") / "piece.py"
        path.write_text(textwrap.dedent(code))
        command = [sys.executable, str(path), *map(str, arguments)]
        return subprocess.run(
            command, env=script_environment(), capture_output=True, text=True, timeout=seconds, check=False
        )

    return run


@pytest.fixture(scope="session")
def run_script() -> Script:
    """Run `python <script> <arguments>` from the repository's root; returns the finished process with its output."""

    def run(script: str, *arguments: str, seconds: float = 400) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *script.split(), *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=script_environment(), capture_output=True, text=True, timeout=seconds, check=False
        )

    return run
