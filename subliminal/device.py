"""Which device and which arithmetic a stage computes with, found out without importing torch.

The arithmetic enters keys, and the device is needed before anything heavy is loaded: nothing here may take long.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

NATIVE_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}  # flags of /proc/cpuinfo
BF16_CAPABILITY = 8  # compute capability from which a GPU multiplies bfloat16 natively (Ampere, 2020)
HIDDEN = {"", "-1", "none", "void", "NoDevFiles"}  # values of CUDA_VISIBLE_DEVICES that show no GPU to a process
# What NVIDIA's driver puts into /dev: a card on Linux and in most containers, on WSL2, on a Jetson.
NODES = ("nvidia[0-9]*", "dxg", "nvhost-gpu")
CUDA_OF_TORCH = re.compile(r"^cuda\b[^=]*=\s*(?P<quote>['\"])(?P<version>.+)(?P=quote)", re.MULTILINE)


@cache
def resolve_device(name: str) -> str:
    """`auto` is cuda where this process can reach an NVIDIA GPU through its torch, else cpu."""
    return ("cpu" if why_no_gpu() else "cuda") if name == "auto" else name


def why_no_gpu(root: Path = Path("/"), environment: Mapping[str, str] | None = None, torch: str | None = None) -> str:
    """Why this process can not compute on an NVIDIA GPU, "" where it can.

    `root` is the file system looked at, `torch` the text of torch's `version.py` (None: the installed one's).
    """
    seen = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if seen is not None and seen.split(",")[0].strip() in HIDDEN:
        return f"CUDA_VISIBLE_DEVICES={seen!r} hides every GPU"
    devices = root / "dev"
    if not any(node for pattern in NODES for node in devices.glob(pattern)):
        return f"{devices} has no NVIDIA device ({', '.join(NODES)})"
    if not CUDA_OF_TORCH.search(_version_of_torch() if torch is None else torch):
        return "the installed torch is a build without CUDA; make install EXTRAS=gpu,dev installs one with it"
    return ""


def _version_of_torch() -> str:
    """The text of torch's `version.py`, which names its CUDA; reading it takes no second, importing torch does."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    return Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")


def visible_gpus(root: Path = Path("/")) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; empty where they can not be counted."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return [name.strip() for name in shown.split(",") if name.strip() not in HIDDEN]
    cards = {path.name.removeprefix("nvidia") for path in (root / "dev").glob(NODES[0])}
    return sorted((card for card in cards if card.isdecimal()), key=int)


_HELD: list[IO[str]] = []  # lock files of the GPUs that are this process's own, until it ends


def hold_gpus(count: int, gpus: Sequence[str], folder: Path) -> bool:
    """Make `count` of the GPUs this process's own among all that call this with the same `folder`, if so many are free.

    Later imports of torch see these alone. A lock file a GPU is held until the process ends, however it ends. Returns
    whether it has them.
    """
    import fcntl

    if _HELD:
        return True
    folder.mkdir(parents=True, exist_ok=True)
    taken: dict[str, IO[str]] = {}
    for gpu in gpus:
        file = (folder / f"gpu-{gpu.replace('/', '_')}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        taken[gpu] = file
        if len(taken) == count:
            _HELD.extend(taken.values())
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
            return True
    for file in taken.values():
        file.close()
    return False


@cache
def resolve_dtype(name: str, device: str) -> str:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32, which is then much faster."""
    if name != "auto":
        return name
    if device == "cuda":
        lowest = lowest_capability()
        return "float32" if lowest is not None and lowest < BF16_CAPABILITY else "bfloat16"
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    return "bfloat16" if flags & NATIVE_BF16 else "float32"


@cache
def lowest_capability() -> int | None:
    """The lowest major compute capability of this machine's GPUs; None where the driver does not say."""
    return _least(lambda driver, card: driver.nvmlDeviceGetCudaComputeCapability(card)[0])


@cache
def least_memory() -> int | None:
    """The bytes of memory of this machine's smallest GPU; None where the driver does not say."""
    return _least(lambda driver, card: driver.nvmlDeviceGetMemoryInfo(card).total)


def _least(read: Callable[[Any, Any], int]) -> int | None:
    """The least of a number that NVIDIA's driver tells of each GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            return min((read(pynvml, handle) for handle in handles), default=None)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
