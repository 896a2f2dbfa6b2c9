"""Device and arithmetic are found out without torch, in containers, on WSL and on old GPUs too."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from subliminal import device, models
from subliminal.models import ModelError, Subject

CUDA, CPU = "cuda: Optional[str] = '13.0'\n", "cuda: Optional[str] = None\nhip: Optional[str] = None\n"


@pytest.mark.parametrize(
    ("nodes", "variables", "torch_version", "said"),
    [
        (["nvidia0", "nvidiactl"], {}, CUDA, ""),
        (["nvidia7"], {"CUDA_VISIBLE_DEVICES": "0"}, CUDA, ""),  # a container sees one card of eight
        (["dxg"], {}, CUDA, ""),  # WSL2 has no /proc/driver/nvidia
        (["nvhost-gpu"], {}, CUDA, ""),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "GPU-5d2b,GPU-77aa"}, CUDA, ""),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "MIG-41c0"}, CUDA, ""),
        (["null"], {}, CUDA, "has no NVIDIA device"),  # a driver's container without a card
        (["nvidiactl", "nvidia-uvm"], {}, CUDA, "has no NVIDIA device"),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, CUDA, "CUDA_VISIBLE_DEVICES='' hides every GPU"),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}, CUDA, "hides every GPU"),
        (["nvidia0"], {}, CPU, "a build without CUDA"),
        (["nvidia0"], {}, "", "a build without CUDA"),  # no torch at all
    ],
)
def test_a_gpu_is_one_that_this_process_can_reach(
    tmp_path: Path, nodes: list[str], variables: dict[str, str], torch_version: str, said: str
) -> None:
    (tmp_path / "dev").mkdir()
    for node in nodes:
        (tmp_path / "dev" / node).touch()
    why = device.why_no_gpu(tmp_path, variables, torch_version)
    assert said in why and bool(said) == bool(why)


def test_the_installed_torch_is_read_and_not_imported() -> None:
    built = device.CUDA_OF_TORCH.search(device._version_of_torch()) is not None
    assert built == torch.backends.cuda.is_built()


@pytest.mark.parametrize(
    ("capability", "dtype"), [(7, "float32"), (8, "bfloat16"), (9, "bfloat16"), (None, "bfloat16")]
)
def test_old_gpus_compute_in_float32(monkeypatch: pytest.MonkeyPatch, capability: int | None, dtype: str) -> None:
    monkeypatch.setattr(device, "lowest_capability", lambda: capability)
    assert device.resolve_dtype.__wrapped__("auto", "cuda") == dtype


@pytest.mark.parametrize(("capabilities", "lowest"), [([(9, 0), (7, 5)], 7), ([(10, 0)], 10), ([], None)])
def test_the_driver_says_how_old_its_gpus_are(
    monkeypatch: pytest.MonkeyPatch, capabilities: list[tuple[int, int]], lowest: int | None
) -> None:
    driver = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(capabilities),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetCudaComputeCapability=lambda index: capabilities[index],
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert device.lowest_capability.__wrapped__() == lowest


def test_cudnn_attention_is_off_where_a_model_is_loaded_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: calls.append(("device", number)))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: calls.append(("cudnn", on)))

    class Kind:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> Any:
            calls.append(("load", None))
            return SimpleNamespace(to=lambda _: torch.nn.Identity())

    models._fresh(Kind, Subject(checkpoint="anywhere", device="cuda"), {})
    assert calls == [("device", 0), ("cudnn", False), ("load", None)]


def test_a_torch_without_cuda_is_one_clear_error(tiny: Subject) -> None:
    with pytest.raises(ModelError, match=r"device=cuda: .*; set device=cpu"):
        models.fresh_model(replace(tiny, device="cuda"))
