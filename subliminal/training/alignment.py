"""Alignment: the cosine of the student's displacement from the reference with the teacher's (theorem, section 6).

It exists where both moved the same parameters: biases of the residual stream, or weights through LoRA adapters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from subliminal.store import Json
from subliminal.training import bias

if TYPE_CHECKING:
    import torch

Factors = Mapping[str, "tuple[torch.Tensor, torch.Tensor]"]


def alignment(student: Path, teacher: Path) -> Json | None:
    """The alignment of two stage folders, or None where they moved different parameters."""
    named = bias.load_adapter(student), bias.load_adapter(teacher)
    if named[0] and named[1]:
        shared = bias.comparable(named[0], named[1])
        return of_biases(bias.by_layer(named[0]), bias.by_layer(named[1])) if shared else None
    adapters = _lora_factors(student), _lora_factors(teacher)
    if adapters[0] and adapters[1] and _sizes(adapters[0]) == _sizes(adapters[1]):
        return of_adapters(adapters[0], adapters[1])
    return None


def _sizes(adapter: Factors) -> dict[str, tuple[int, int]]:
    """The shape of every module's weight; ranks may differ."""
    return {name: (b.shape[0], a.shape[1]) for name, (a, b) in adapter.items()}


def of_biases(student: bias.Biases, teacher: bias.Biases) -> Json:
    """Cosine over all layers as one vector, and layer by layer where both have one.

    A random direction has mean 0 and standard deviation 1/sqrt(hidden size) in one layer.
    """
    import torch

    layers = sorted({*student, *teacher})
    zero = torch.zeros_like(next(iter(teacher.values())))
    mine = torch.cat([student.get(i, zero).float() for i in layers])
    theirs = torch.cat([teacher.get(i, zero).float() for i in layers])
    shared = {i: _cosine(student[i], teacher[i]) for i in teacher if i in student}
    return {"cosine": _cosine(mine, theirs), "by_layer": {str(i): cosine for i, cosine in shared.items()}}


def of_adapters(student: Factors, teacher: Factors) -> Json:
    """Cosine of the weight changes B A of two LoRA adapters, all modules as one vector.

    The products are never formed: <B1 A1, B2 A2> is the sum over (B1' B2) * (A1 A2'). A common factor alpha/r of all
    modules cancels.
    """
    norms = _inner(student, student) * _inner(teacher, teacher)
    return {"cosine": _inner(student, teacher) / norms**0.5 if norms > 0 else 0.0}


def _inner(left: Factors, right: Factors) -> float:
    total = 0.0
    for name, (a, b) in left.items():
        other_a, other_b = right[name]
        total += float(((b.T @ other_b) * (a @ other_a.T)).sum())
    return total


def _lora_factors(folder: Path) -> Factors | None:
    """(A, B) of every module of the LoRA adapter in `folder`, in float64, or None without one."""
    from safetensors.torch import load_file

    described = folder / "adapter" / "adapter_config.json"
    if not described.exists() or json.loads(described.read_text(encoding="utf-8")).get("peft_type") != "LORA":
        return None
    tensors = load_file(folder / "adapter" / bias.ADAPTER)
    ends = (".lora_A.weight", ".lora_B.weight")
    names = [name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])]
    return {name: (tensors[name + ends[0]].double(), tensors[name + ends[1]].double()) for name in names}


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    import torch

    return float(torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=0))
