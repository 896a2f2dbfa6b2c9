"""transformers' switches for less memory or less time: the same training to rounding, and what they need said early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROWS, experiment, optimisation

from subliminal import machine
from subliminal.composition import compose
from subliminal.config import BiasStudent, FullStudent, Lora, LoraStudent
from subliminal.models import Subject

STUDENTS: dict[str, Any] = {
    "lora": lambda how: LoraStudent(lora=Lora(r=4), optimisation=how),
    "bias": lambda how: BiasStudent(layers=(1,), optimisation=how),
    "full": lambda how: FullStudent(optimisation=how),
}


def losses(subject: Subject, recipe: Any, folder: Path) -> list[float]:
    from subliminal.training.sft import fit

    fit(subject, ROWS, recipe, 0, folder)
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", STUDENTS)
def test_checkpointing_changes_nothing_but_rounding(
    kind: str, tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.modeling_utils as library

    calls: list[bool] = []
    plain = library.checkpoint

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(named["use_reentrant"])
        return plain(*arguments, **named)

    monkeypatch.setattr(library, "checkpoint", counted)
    found = {}
    for switched in (False, True):
        before = len(calls)
        how = optimisation(learning_rate=1e-3, batch_size=8, gradient_checkpointing=switched)
        found[switched] = losses(tiny, STUDENTS[kind](how), tmp_path / str(switched))
        assert bool(calls[before:]) == switched, "layers are computed again where it is switched on, and only there"
    assert len(found[True]) == 2 and found[True] == pytest.approx(found[False], rel=1e-5)
    assert not any(calls)


@pytest.mark.skipif(not any(map(shutil.which, machine.COMPILERS)), reason="torch.compile needs a C++ compiler")
def test_compiling_changes_nothing_but_rounding(tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    compiled: list[object] = []
    plain = torch.compile

    def counted(model: Any = None, **named: Any) -> Any:
        compiled.append(model)
        return plain(model, **named)

    monkeypatch.setattr(torch, "compile", counted)
    found = {}
    for switched in (False, True):
        how = optimisation(learning_rate=1e-3, torch_compile=switched)
        found[switched] = losses(tiny, STUDENTS["lora"](how), tmp_path / str(switched))
        assert bool(compiled) == switched
    assert found[True] == pytest.approx(found[False], rel=1e-4)


# --------------------------------------------------------------------------- what is said early

LIGER = "student.optimisation.liger_kernel=true"


def said(exp: Any, *stages: str) -> str:
    return "\n".join(machine._without_switches(exp, set(stages)))


def test_fused_kernels_without_a_gpu_are_refused() -> None:
    exp = experiment(LIGER, "device=cpu")
    assert "run on NVIDIA GPUs alone" in said(exp, "train")
    assert not said(exp, "evaluate"), "nothing is trained"
    assert not said(experiment("device=cpu"), "train", "reference", "teacher")


def test_fused_kernels_that_are_not_installed_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_installed", lambda _: False)
    text = said(experiment(LIGER, "device=cuda"), "train")
    assert "pip install liger-kernel" in text and "EXTRAS=gpu" in text
    monkeypatch.setattr(machine, "_installed", lambda _: True)
    assert not said(experiment(LIGER, "device=cuda"), "train")


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    exp = experiment("reference_tuning.optimisation.torch_compile=true", "device=cpu")
    assert "reference_tuning.optimisation.torch_compile=true needs a C++ compiler" in said(exp, "reference")


def test_a_classifiers_switches_are_looked_at_too() -> None:
    typed = ["experiment=detection", "scale=cpu", "device=cpu", "evaluation.classifiers=[finetuned]", "subject=rows"]
    exp = compose([*typed, "evaluation.finetuned.optimisation.liger_kernel=true"])
    assert "evaluation.finetuned.optimisation.liger_kernel=true" in said(exp, "evaluate")


def test_the_gpus_switches_reach_the_trainer(tiny: Subject) -> None:
    """liger's kernels can not run here: what transformers is asked for, with the loss left to the project's own."""
    from subliminal.training.sft import trainer_settings

    settings = trainer_settings(optimisation(liger_kernel=True), 0, tiny)
    assert settings["use_liger_kernel"] is True
    assert settings["liger_kernel_config"] == {"fused_linear_cross_entropy": False, "cross_entropy": False}
    assert trainer_settings(optimisation(), 0, tiny)["use_liger_kernel"] is False


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        (["domain=code"], 6),
        (["domain=cot"], 5),
        (["model=qwen2_5_14b"], 11),
        (["model=qwen2_5_14b", "domain=code"], 6),
        ([], 22),
    ],
)
@pytest.mark.parametrize("scale", ["gpu", "paper"])
def test_passes_are_of_a_size_that_80_gigabytes_hold(overrides: list[str], rows: int, scale: str) -> None:
    exp = compose(["experiment=animals_numbers", f"scale={scale}", *overrides])
    assert exp.student.optimisation.micro_batch_size == rows
