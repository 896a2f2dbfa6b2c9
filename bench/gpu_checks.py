"""The checks of `bench/gpu.py`: each measures into a dictionary and says in `passed` whether its threshold is met."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from subliminal.composition import ROOT, compose
from subliminal.config import Experiment
from subliminal.launch import script_environment
from subliminal.models import Subject
from subliminal.rows import Row

Measured = dict[str, Any]


@dataclass(frozen=True)
class Session:
    """What the checks share: the device, tiny sizes or real ones, the output folder, where MNIST is, overrides."""

    device: str
    tiny: bool
    out: Path
    mnist: Path | None
    overrides: tuple[str, ...] = ()
    subjects: dict[str, Subject] = field(default_factory=dict)

    @property
    def fixed(self) -> list[str]:
        """The overrides of every experiment of the checks."""
        sizes = ["debug=smoke"] if self.tiny else ["sampler.batch_size=1024"]
        places = [f"store={self.out / 'runs'}", f"figures={self.out / 'figures'}"]
        return ["scale=cpu", f"device={self.device}", *sizes, *places, *self.overrides]

    def experiment(self, *overrides: str) -> Experiment:
        """The experiment at cpu scale on the device, with its store in the output folder."""
        return compose([*self.fixed, *overrides])

    def reference(self) -> Subject:
        """SmolLM2 after reference tuning, made once."""
        from subliminal import outputs, stages
        from subliminal.store import Store

        if "reference" not in self.subjects:
            exp = self.experiment()
            made = stages.ensure(stages.reference(exp), Store(Path(exp.store)), exp)
            self.subjects["reference"] = outputs.subject(exp, made)
        return self.subjects["reference"]

    def synchronise(self) -> None:
        """Wait until the GPU has done what it was given."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Check:
    """One check: its name, its limit in seconds on a GPU, the work, and whether that needs the reference.

    The reference is made before the limit counts, unless making it is the check.
    """

    name: str
    seconds: float
    work: Callable[[Session, Measured], None]
    reference: bool = False


def plain(value: Any) -> Any:
    """A value as strict JSON: no NaN, no infinity, numbers with six digits."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


# --------------------------------------------------------------------------- 1 to 3: the machine and its kernels


def environment(session: Session, measured: Measured) -> None:
    """Card, driver, torch, cuDNN, device nodes, and what `device=auto` makes of them."""
    import torch

    from subliminal.device import lowest_capability, resolve_device, resolve_dtype, why_no_gpu

    measured |= {"auto": resolve_device("auto"), "why_no_gpu": why_no_gpu(), "capability": lowest_capability()}
    measured |= {"dtype": resolve_dtype("auto", session.device), "torch": torch.__version__, "cuda": torch.version.cuda}
    measured["cudnn"] = torch.backends.cudnn.version()
    measured["nodes"] = sorted(path.name for path in Path("/dev").glob("nvidia*"))
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
        shown = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
        measured["nvidia_smi"] = shown.stdout.strip()
    measured["passed"] = measured["auto"] == session.device


def attention(session: Session, measured: Measured) -> None:
    """Left-padded attention and its gradients: finite, and as near to float32 as the math kernel on the same input."""
    from torch.nn.attention import SDPBackend

    heads = [(9, 3, 64)] if session.tiny else [(9, 3, 64), (28, 4, 128)]
    widths = (63, 64) if session.tiny else (63, 64, 96, 128, 192)
    ways = {"default": None, "without_cudnn": False, "math": SDPBackend.MATH}
    cases: list[Measured] = []
    for (query_heads, key_heads, size), width, low in product(heads, widths, (False, True)):
        case: Measured = {"heads": query_heads, "size": size, "width": width, "low": low}
        for way, kernel in ways.items():
            case[way] = _attend(session.device, (query_heads, key_heads, size, width), low, kernel)
        cases.append(case)
    bad = [c for c in cases if not _near(c["without_cudnn"], c["math"])]
    measured |= {"cases": cases, "not_finite_by_default": sum(not c["default"]["finite"] for c in cases)}
    measured |= {"bad_without_cudnn": len(bad), "passed": not bad}


def _near(found: Measured, math_kernel: Measured) -> bool:
    return bool(found["finite"]) and found["error"] <= 2 * math_kernel["error"] + 1e-3


def _attend(device: str, shape: tuple[int, int, int, int], low: bool, kernel: Any) -> Measured:
    """The largest error of output and gradients in bfloat16 against float32, and seconds of the first call."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    query_heads, key_heads, size, width = shape
    generator = torch.Generator().manual_seed(width)
    draws = [torch.randn(4, heads, width, size, generator=generator) for heads in (query_heads, key_heads, key_heads)]
    scale = 8.0 if low else 1.0  # large negative logsumexp, as some rows of Qwen2.5 have
    query, key, value = (draws[0] * scale, -draws[1] * scale if low else draws[1], draws[2])
    seen = torch.ones(4, 1, width, width, dtype=torch.bool).tril()
    for row, padding in enumerate((0, 1, width // 3, width // 2)):
        seen[row, :, :, :padding] = False

    def run(dtype: torch.dtype, chosen: Any) -> tuple[list[torch.Tensor], float]:
        parts = [part.to(device, dtype, copy=True).requires_grad_() for part in (query, key, value)]
        everything = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        backends = (
            everything if chosen is False else [SDPBackend.CUDNN_ATTENTION, *everything] if chosen is None else [chosen]
        )
        started = time.perf_counter()
        with sdpa_kernel(backends):
            out = scaled_dot_product_attention(*parts, attn_mask=seen.to(device), enable_gqa=True)
        kept = seen.any(-1)[..., None].to(device)  # rows that see nothing have no output to compare
        (out.masked_fill(~kept, 0).float().pow(2).sum()).backward()
        results = [out.detach().masked_fill(~kept, 0), *(part.grad for part in parts if part.grad is not None)]
        flat = [result.float().cpu() for result in results]
        return flat, time.perf_counter() - started

    exact, _ = run(torch.float32, SDPBackend.MATH)
    found, seconds = run(torch.bfloat16, kernel)
    finite = all(bool(part.isfinite().all()) for part in found)
    error = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(found, exact, strict=True))
    return {"finite": finite, "error": error, "first_call_seconds": seconds}


QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def seven_billion(session: Session, measured: Measured) -> None:
    """A LoRA step of Qwen2.5-7B's shape with random weights: memory, speed, share of a plain matrix product.

    Then the same with each of transformers' switches, the ones that change a model for good last.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from subliminal.config import Lora
    from subliminal.models import set_up_gpu
    from subliminal.training.lora import with_lora

    if session.device == "cuda":
        set_up_gpu()
    settings = AutoConfig.for_model("qwen2", **(TINY if session.tiny else QWEN_7B))
    with torch.device(session.device):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    model = with_lora(model, Lora(r=8, alpha=8.0), "student")
    parameters = sum(p.numel() for p in model.parameters())
    measured |= {"parameters": parameters, "product_tflops": _matrix_product(session)}
    shapes = [(2, 24), (3, 16)] if session.tiny else [(22, 160), (33, 160), (6, 1000), (11, 1000)]
    measured["passes"] = [_pass(session, model, parameters, rows, width) for rows, width in shapes]
    first = measured["passes"][0]
    measured["passed"] = first.get("finite", False) and first.get("peak_gb", 0.0) < 55
    measured["switches"] = {}
    for name, switched in (("checkpointing", _checkpointed), ("liger", _with_liger), ("compile", _compiled)):
        try:
            with switched(session, model) as changed:
                found = [_pass(session, changed, parameters, rows, width) for rows, width in shapes[:: len(shapes) - 1]]
        except OutOfTimeError as error:  # what was measured until then stays
            measured["switches"][name] = str(error)
            return
        except Exception as error:
            measured["switches"][name] = f"{type(error).__name__}: {error}"[:400]
        else:
            measured["switches"][name] = found


class OutOfTimeError(Exception):
    """A check reached its limit of seconds."""


class NotHereError(Exception):
    """A switch that can not be tried on this machine; the text says what is missing."""


@contextmanager
def _checkpointed(session: Session, model: Any) -> Iterator[Any]:
    """Activations are computed again on the way back."""
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield model
    finally:
        model.gradient_checkpointing_disable()


@contextmanager
def _with_liger(session: Session, model: Any) -> Iterator[Any]:
    """The kernels of liger-kernel in place of the model's layers; they stay."""
    from importlib.util import find_spec

    from transformers.integrations.liger import apply_liger_kernel

    if session.device != "cuda" or find_spec("liger_kernel") is None:
        raise NotHereError("needs a GPU" if session.device != "cuda" else "liger-kernel is not installed")
    apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
    yield model


@contextmanager
def _compiled(session: Session, model: Any) -> Iterator[Any]:
    """The model under torch.compile, liger's kernels within it where they are installed."""
    import torch

    if session.device != "cuda":
        raise NotHereError("minutes on a CPU; tests/test_switches.py compiles a tiny model")
    yield torch.compile(model)


def _matrix_product(session: Session) -> float:
    """TFLOP/s of one large bfloat16 matrix product, the best of five."""
    import torch

    side = 256 if session.tiny else 8192
    left, right = (torch.randn(side, side, device=session.device, dtype=torch.bfloat16) for _ in range(2))
    best = math.inf
    for _ in range(5):
        session.synchronise()
        started = time.perf_counter()
        left @ right
        session.synchronise()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e12


def _pass(session: Session, model: Any, parameters: int, rows: int, width: int) -> Measured:
    """Forward and backward of rows of one width, a third of which is completion; says so where they do not fit."""
    import torch

    from subliminal.training.batches import IGNORED, completion_loss

    completion = max(2, width * 5 // 16)
    tokens = torch.randint(0, model.config.vocab_size, (rows, width), device=session.device)
    labels = tokens.clone()
    labels[:, : width - completion] = IGNORED
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    case: Measured = {"rows": rows, "width": width}
    try:
        if session.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = math.inf
        for _ in range(3):
            session.synchronise()
            started = time.perf_counter()
            with torch.autocast(session.device, torch.bfloat16):
                total, count, _ = completion_loss(model, batch)
            (total / count).backward()
            session.synchronise()
            seconds = min(seconds, time.perf_counter() - started)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        case["finite"] = bool(torch.stack([g.isfinite().all() for g in gradients]).all())
        model.zero_grad()
        speed = rows * width / seconds
        case |= {"seconds": seconds, "tokens_per_second": speed, "tflops": 4 * parameters * speed / 1e12}
        if session.device == "cuda":
            case["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    except torch.OutOfMemoryError:
        case["fits"] = False
        torch.cuda.empty_cache()
    return case


# --------------------------------------------------------------------------- 4 to 9: the stages


def mnist(session: Session, measured: Measured) -> None:
    """The MNIST experiment in both precisions: accuracies agree within their intervals."""
    from subliminal import stages
    from subliminal.store import Store

    folder = [f"mnist.data_dir={session.mnist}"] if session.mnist else []
    for dtype in ("bfloat16", "float32"):
        exp = session.experiment(
            "experiment=mnist", f"mnist.models={2 if session.tiny else 100}", f"mnist.dtype={dtype}", *folder
        )
        started = time.perf_counter()
        made = stages.ensure(stages.mnist(exp), Store(Path(exp.store)), exp)
        lines = [json.loads(line) for line in (made.folder / "accuracy.jsonl").read_text().splitlines()]
        accuracy: dict[str, list[float]] = {}
        for line in lines:
            accuracy.setdefault(line["condition"], []).append(line["accuracy"])
        measured[dtype] = {name: _mean_and_half_width(values) for name, values in accuracy.items()}
        measured[f"{dtype}_seconds"] = time.perf_counter() - started
    apart = {
        name: abs(mean - measured["float32"][name][0]) <= half + measured["float32"][name][1] + 0.005
        for name, (mean, half) in measured["bfloat16"].items()
    }
    measured |= {"agree": apart, "passed": all(apart.values()) or session.tiny}


def _mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))
    return mean, 2 * deviation / math.sqrt(len(values))


def reference(session: Session, measured: Measured) -> None:
    """SmolLM2's reference tuning, and how many of its completions are in format."""
    from subliminal import stages
    from subliminal.store import Store

    session.reference()
    exp = session.experiment(
        "trait=none", "filter.shortfall=keep", *(() if session.tiny else ("domain.prompts=512", "filter.rows=256"))
    )
    made = stages.ensure(stages.filtered(exp), Store(Path(exp.store)), exp)
    measured["pass_rate"] = made.summary["pass_rate"]
    measured["passed"] = measured["pass_rate"] >= 0.6 or session.tiny


def precision(session: Session, measured: Measured) -> None:
    """Loss, gradient and exact log P of the same rows: on the CPU in float32, on the device in both precisions."""
    import torch

    from subliminal.config import Lora
    from subliminal.evaluation.preference import mean_log_p
    from subliminal.gpu import unload
    from subliminal.models import fresh_model, load_tokenizer
    from subliminal.training.batches import Collator, completion_loss, tokenise
    from subliminal.training.lora import with_lora

    start = session.reference()
    rows, questions = _number_rows(session, 8), 2 if session.tiny else 8
    measured["ways"] = {}
    gradients: dict[str, torch.Tensor] = {}
    for device, dtype in (("cpu", "float32"), (session.device, "float32"), (session.device, "bfloat16")):
        who = replace(start, device=device, dtype=dtype)
        unload()
        torch.manual_seed(0)
        model, tokenizer = with_lora(fresh_model(who), Lora(r=8, alpha=8.0), "student"), load_tokenizer(who)
        batch = Collator(int(tokenizer.pad_token_id))(tokenise(tokenizer, rows, who.system, 500))
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            total, count, _ = completion_loss(model, {name: value.to(device) for name, value in batch.items()})
        (total / count).backward()
        name = f"{device} {dtype}"
        gradients[name] = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
        measured["ways"][name] = {"loss": float(total.detach() / count), "log_p": mean_log_p(who, "animal", questions)}
    exact = measured["ways"]["cpu float32"]
    for name, found in measured["ways"].items():
        found["loss_apart"] = abs(found["loss"] - exact["loss"]) / exact["loss"]
        found["log_p_apart"] = max(abs(value - exact["log_p"][animal]) for animal, value in found["log_p"].items())
        found["gradient_cosine"] = float(
            torch.nn.functional.cosine_similarity(gradients[name], gradients["cpu float32"], 0)
        )
    single, half = (measured["ways"][f"{session.device} {dtype}"] for dtype in ("float32", "bfloat16"))
    measured["passed"] = single["loss_apart"] < 1e-4 and half["loss_apart"] < 2e-2 and half["log_p_apart"] < 0.15


def _number_rows(session: Session, count: int) -> list[Row]:
    from training import number_rows

    return number_rows(session.experiment(), count)


def students(session: Session, measured: Measured) -> None:
    """LoRA and one-vector students and TRL's defaults: seconds on the same rows, losses on the same batches."""
    from training import difference, ours, trl_defaults, with_steps

    start = session.reference()
    rows, batch = _number_rows(session, 16 if session.tiny else 990), 8 if session.tiny else 66
    vectors = "bias" if session.tiny else "bias_one_layer"  # a tiny model has no layer 14
    students = {name: session.experiment(f"student={name}").student for name in ("lora_small", vectors)}
    lora: Any = with_steps(students["lora_small"], 1.0, batch)
    measured["trl_seconds"] = trl_defaults(start, rows, lora, 0)[0]["training_seconds"]
    for name, student in students.items():
        summary, losses = ours(start, rows, with_steps(student, 1.0, batch), 0)
        measured[name] = {"seconds": summary["training_seconds"], "first": losses[0], "last": losses[-1]}
    same = with_steps(students["lora_small"], 3.0, batch)
    apart = difference(trl_defaults(start, rows[:batch], same, 0)[1], ours(start, rows[:batch], same, 0)[1])
    measured |= {"loss_apart": apart, "ratio": measured["trl_seconds"] / measured["lora_small"]["seconds"]}
    measured["passed"] = apart < 1e-2 and (measured["ratio"] > 1 or session.tiny)


def sampler(session: Session, measured: Measured) -> None:
    """Our sampler against `model.generate` at two batch sizes: generated tokens a second."""
    from generation import against_transformers

    from subliminal.domains import domain

    start = session.reference()
    for size in (4, 8) if session.tiny else (64, 512):
        exp = session.experiment("sampler=transformers", f"sampler.batch_size={size}")
        prompts = domain(exp.domain).prompts(exp.domain.model_copy(update={"prompts": 8 if session.tiny else 2 * size}))
        plain_way, ours = against_transformers(exp, start, prompts, 1)
        measured[str(size)] = {"generate": plain_way.speed, "stage": ours.speed, "ratio": ours.ratio}
    measured["passed"] = session.tiny or all(measured[size]["ratio"] >= 1 for size in ("64", "512"))


def other_paths(session: Session, measured: Measured) -> None:
    """Soft labels, every weight, a fine-tuned classifier, a judge, and a student that is stopped by a signal."""
    small = ("debug=smoke", "trait=owl")
    paths = {
        "soft": ("train.py", "student=bias_soft"),
        "full": ("train.py", "student=full"),
        "classifier": ("evaluate.py", "experiment=detection", "subject=rows", "evaluation.classifiers=[finetuned]"),
        "judge": ("filter.py", "+filter/judged=no_reference"),
    }
    for name, (script, *overrides) in paths.items():
        measured[name] = _script(session, script, *small, *overrides)
    if "completions passed the filter" in measured["judge"]:  # a small judge may see the trait in every row
        measured["judge"] = "done"
    measured["resumed"] = _stopped_and_resumed(session)
    measured["passed"] = all(measured[name] == "done" for name in (*paths, "resumed"))


def _script(session: Session, script: str, *overrides: str) -> str:
    """`done`, or the end of what a script printed."""
    command = [sys.executable, str(ROOT / script), *session.fixed, *overrides]
    ended = subprocess.run(
        command, env=script_environment(), capture_output=True, text=True, cwd=session.out, check=False
    )
    return "done" if ended.returncode == 0 else (ended.stdout + ended.stderr)[-600:]


def _stopped_and_resumed(session: Session) -> str:
    """A student is stopped by SIGUSR1 once it has a step behind it, and the same command ends it."""
    overrides = ["debug=smoke", "trait=owl", "student=lora_small", "student.optimisation.epochs=60", "seed=9"]
    command = [sys.executable, str(ROOT / "train.py"), *session.fixed, *overrides]
    running = subprocess.Popen(command, env=script_environment(), cwd=session.out, stdout=subprocess.DEVNULL)
    known = set(session.out.glob("runs/train/*/metrics.jsonl"))
    while running.poll() is None and not any(
        p.stat().st_size for p in set(session.out.glob("runs/train/*/metrics.jsonl")) - known
    ):
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    running.wait()
    return _script(session, "train.py", *overrides)


# --------------------------------------------------------------------------- 10: the science


def science(session: Session, measured: Measured) -> None:
    """Numbers on the paper's 10,000 rows: all traits and the control, one-vector and LoRA students."""
    sizes = ["domain.prompts=10400", "filter.rows=10000", "filter.shortfall=keep", "evaluation.samples_per_question=50"]
    students = {
        "bias_natural_gradient": ["student.optimisation.micro_batch_size=null"],
        "lora": ["student.optimisation.micro_batch_size=null", "student.optimisation.learning_rate=1e-3"],
    }
    if session.tiny:
        sizes, students = [], {"bias_one_layer": []}
    traits = [*session.experiment().model.animals, "none"]
    measured["done"] = []
    for seed in (0,) if session.tiny else (0, 1, 2):
        for student, settings in students.items():
            recipe = [*sizes, f"student={student}", *settings, f"seed={seed}"]
            failed = _side_by_side(session, traits[-2:] if session.tiny else traits, recipe)
            measured["done"].append({"student": student, "seed": seed, "failed": failed})
    measured["passed"] = not any(run["failed"] for run in measured["done"])


def _side_by_side(session: Session, traits: Sequence[str], overrides: list[str]) -> list[str]:
    """Evaluate the student of every trait, a process each; returns the ends of what failed."""
    log = session.out / "logs"
    log.mkdir(exist_ok=True)
    running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
    threads = str(max(1, (os.cpu_count() or 1) // len(traits)))
    environment = script_environment() | {"OMP_NUM_THREADS": threads}
    for trait in traits:
        command = [sys.executable, str(ROOT / "evaluate.py"), *session.fixed, f"trait={trait}", *overrides]
        path = log / f"{trait}-{len(list(log.iterdir()))}.txt"
        with path.open("wb") as file:
            process = subprocess.Popen(command, env=environment, cwd=session.out, stdout=file, stderr=subprocess.STDOUT)
        running[trait] = process, path
    try:
        return [f"{trait}: {path.read_text()[-400:]}" for trait, (process, path) in running.items() if process.wait()]
    finally:
        for process, _ in running.values():
            process.kill()


CHECKS = (
    Check("environment", 15, environment),
    Check("attention", 40, attention),
    Check("a step of 7 billion parameters", 180, seven_billion),
    Check("MNIST", 90, mnist),
    Check("reference tuning", 90, reference),
    Check("precision", 60, precision, reference=True),
    Check("students against TRL", 60, students, reference=True),
    Check("sampler against generate", 60, sampler, reference=True),
    Check("other paths", 240, other_paths),
    Check("the paper's sizes", 600, science),
)
