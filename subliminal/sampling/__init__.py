"""Sampling: one small protocol over vLLM, transformers and OpenAI-compatible endpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from subliminal.config import ApiSampler, TransformersSampler
from subliminal.config import Sampler as SamplerConfig
from subliminal.models import Subject
from subliminal.progress import Advance
from subliminal.rows import Completion, Prompt, Row, write_jsonl
from subliminal.store import Json


class Sampler(Protocol):
    """Anything that answers prompts."""

    def sample(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """One completion a prompt, in order; the prompt's seed decides its sampling."""
        ...


def open_sampler(config: SamplerConfig, subject: Subject) -> AbstractContextManager[Sampler]:
    """The sampler of a configuration, with the subject loaded (or, for an endpoint, its system text)."""
    if isinstance(config, ApiSampler):
        from subliminal.sampling.api import ApiEndpoint

        return ApiEndpoint(config, subject.system)
    if isinstance(config, TransformersSampler):
        from subliminal.sampling.local import TransformersModel

        return TransformersModel(config, subject)
    from subliminal.sampling.engine import VllmEngine

    return VllmEngine(config, subject)


def sample_shards(
    opened: Callable[[], AbstractContextManager[Sampler]],
    prompts: Sequence[Prompt],
    shard_size: int,
    folder: Path,
    advance: Advance = lambda _: None,
) -> Json:
    """Sample into `rows-00000.jsonl`, `rows-00001.jsonl`, ...: finished shards stay, so a killed run goes on there."""
    shards = [prompts[start : start + shard_size] for start in range(0, len(prompts), shard_size)]
    missing = [(number, shard) for number, shard in enumerate(shards) if not _path(folder, number).exists()]
    advance(len(prompts) - sum(len(shard) for _, shard in missing))
    if missing:
        with opened() as sampler:
            for number, shard in missing:
                _write(_path(folder, number), shard, sampler.sample(shard))
                advance(len(shard))
    return {"rows": len(prompts), "shards": len(shards), "shards_reused": len(shards) - len(missing)}


def _path(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:05d}.jsonl"


def _write(path: Path, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
    rows = [
        Row(prompt.index, prompt.text, answer.text, answer.finish_reason, answer.tokens)
        for prompt, answer in zip(prompts, completions, strict=True)
    ]
    temporary = path.with_name(f".{path.name}.tmp")
    write_jsonl(temporary, rows)
    temporary.replace(path)
