"""Device and arithmetic are found out without torch, in containers, on WSL and on old GPUs too."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from subliminal import device, models
from subliminal.models import Subject
from subliminal.weights import ModelError

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

    monkeypatch.setattr(models, "weights_bytes", lambda _: 1)
    models._fresh(Kind, Subject(checkpoint="anywhere", device="cuda"), {})
    assert calls == [("device", 0), ("cudnn", False), ("load", None)]


def test_a_torch_without_cuda_is_one_clear_error(tiny: Subject) -> None:
    with pytest.raises(ModelError, match=r"device=cuda: .*; set device=cpu"):
        models.fresh_model(replace(tiny, device="cuda"))


HOLD = """
    import os, sys
    from pathlib import Path
    from subliminal.device import hold_gpus

    folder, count, *gpus = sys.argv[1:]
    print(hold_gpus(int(count), gpus, Path(folder)), os.environ.get("CUDA_VISIBLE_DEVICES", "all"), flush=True)
    input()
"""


def test_processes_of_a_pool_have_gpus_of_their_own_until_they_end(tmp_path: Path) -> None:
    """Three processes that need two GPUs each, on a machine of four: two get them, and a third when one has ended."""
    code = textwrap.dedent(HOLD)

    def process() -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        command = [sys.executable, "-c", code, str(tmp_path), "2", "0", "1", "2", "3"]
        return subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]

    def said(started: subprocess.Popen[str]) -> str:
        assert started.stdout is not None
        return started.stdout.readline().strip()

    with process() as first:
        assert said(first) == "True 0,1"
        with process() as second:
            assert said(second) == "True 2,3"
            with process() as third:
                assert said(third) == "False all"
                third.kill()
            second.kill()  # however it ends, its GPUs are free
            second.wait()
            with process() as fourth:
                assert said(fourth) == "True 2,3"
                fourth.kill()
        first.kill()


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [(None, ["0", "1", "2", "10"]), ("", []), ("-1", []), ("3,1", ["3", "1"]), ("GPU-5d2b", ["GPU-5d2b"])],
)
def test_the_gpus_of_this_process_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None, gpus: list[str]
) -> None:
    (tmp_path / "dev").mkdir()
    for node in ("nvidia0", "nvidia10", "nvidia2", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / node).touch()
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert device.visible_gpus(tmp_path) == gpus
