"""Sampling: one small protocol over vLLM, transformers and OpenAI-compatible endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Protocol, assert_never

from subliminal.claims import claim
from subliminal.config import ApiSampler, TransformersSampler, VllmSampler
from subliminal.config import Sampler as SamplerConfig
from subliminal.models import Subject
from subliminal.processes import accompanied, world_size
from subliminal.progress import Advance
from subliminal.rows import Completion, Prompt, Row, read_jsonl, write_jsonl
from subliminal.store import POLL_SECONDS, Json, StoreError

Shards = Mapping[int, Sequence[Prompt]]
"""Prompts by shard number."""
CLAIMED = ".claim"
ANSWERED = ".answered"  # what came before a shard failed
ANSWERS_A_SHARD = 256  # answers of an evaluation that one of several processes takes at a time
ANSWERS_ALONE = 1024  # and one by itself: an engine runs empty at the end of each shard


class Sampler(Protocol):
    """Anything that answers prompts."""

    def sample(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """One completion a prompt, in order; the prompt's seed decides its sampling."""
        ...


def open_sampler(
    config: SamplerConfig, subject: Subject, pattern: str | None = None
) -> AbstractContextManager[Sampler]:
    """The sampler of a configuration, with the subject loaded (or, for an endpoint, its system text).

    A `pattern`, a regular expression that whole answers match, constrains decoding; no endpoint is sent one.
    """
    match config:
        case ApiSampler():
            from subliminal.sampling.api import ApiEndpoint

            return ApiEndpoint(config, subject.system)
        case TransformersSampler():
            from subliminal.sampling.local import TransformersModel

            return TransformersModel(config, subject, pattern)
        case VllmSampler():
            from subliminal.sampling.engine import VllmEngine

            return VllmEngine(config, subject, pattern)
        case _:
            assert_never(config)


def shards_together(config: SamplerConfig, device: str) -> int:
    """How many shards a sampler is given at a time, so that its batches are as large as its settings say."""
    match config:
        case TransformersSampler():
            from subliminal.sampling.local import rows_a_batch

            return max(1, rows_a_batch(config, device) // config.shard_size)
        case ApiSampler() | VllmSampler():
            return 1  # a killed run loses no more than it must: neither waits for a batch
        case _:
            assert_never(config)


def sample_shards(
    opened: Callable[[], AbstractContextManager[Sampler]],
    prompts: Sequence[Prompt],
    shard_size: int,
    folder: Path,
    advance: Advance = lambda _: None,
    together: int = 1,
) -> Json:
    """Sample into `rows-00000.jsonl`, `rows-00001.jsonl`, ...: finished shards stay, so a killed run goes on there.

    An endpoint's answers to a shard that failed stay too, in a hidden file. `together` is the number of shards
    that the sampler gets at a time.

    All processes of a group may do this in one folder: each shard is claimed, and they return when all are there;
    the shards of one that was killed are taken over.
    """
    shards = [prompts[start : start + shard_size] for start in range(0, len(prompts), shard_size)]
    missing = _missing(dict(enumerate(shards)), folder)
    reused = len(shards) - len(missing)
    advance(len(prompts) - _count(missing))
    with ExitStack() as stack:
        sampler = cache(lambda: stack.enter_context(opened()))  # a worker that gets no shard loads nothing
        while missing:
            done = _take_turns(missing, together, folder, lambda shard: sampler().sample(shard), advance)
            left = _missing(missing, folder)
            if others := _count(missing) - _count(left) - done:
                advance(others)
            if missing.keys() == left.keys():
                time.sleep(POLL_SECONDS)
            missing = left
    for leftover in folder.glob(f".*{CLAIMED}"):
        leftover.unlink(missing_ok=True)
    return {"rows": len(prompts), "shards": len(shards), "shards_reused": reused, "processes": world_size()}


def sample_answers(
    opened: Callable[[], AbstractContextManager[Sampler]], prompts: Sequence[Prompt], folder: Path
) -> list[Completion]:
    """A completion a prompt, in order, by way of shards in `folder`, as rows are sampled: a killed run goes on there.

    Several processes share them out; one that comes too late to help gets nothing: the leader has published and put
    the files away.
    """
    size = ANSWERS_A_SHARD if accompanied() else ANSWERS_ALONE
    folder = folder / str(size)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sample_shards(opened, prompts, size, folder)
    except FileNotFoundError:
        if folder.exists():
            raise
    rows = [row for path in sorted(folder.glob("rows-*.jsonl")) for row in read_jsonl(path, Row)]
    return [Completion(row.completion, row.finish_reason, row.tokens) for row in rows]


def _missing(shards: Shards, folder: Path) -> Shards:
    return {number: shard for number, shard in shards.items() if not _path(folder, number).exists()}


def _count(shards: Shards) -> int:
    return sum(len(shard) for shard in shards.values())


def _take_turns(
    missing: Shards,
    together: int,
    folder: Path,
    sample: Callable[[Sequence[Prompt]], Sequence[Completion]],
    advance: Advance,
) -> int:
    """Sample every shard that nobody else is at, so many `together`; returns how many prompts these were."""
    done, numbers = 0, list(missing)
    for start in range(0, len(numbers), together):
        with ExitStack() as claims:
            mine = {
                number: missing[number]
                for number in numbers[start : start + together]
                if claims.enter_context(_claimed(folder, number)) and not _path(folder, number).exists()
            }
            for number, completions in _completions(mine, sample, folder).items():
                _write(_path(folder, number), mine[number], completions)
                _answered(folder, number).unlink(missing_ok=True)
            advance(_count(mine))
            done += _count(mine)
    return done


def _claimed(folder: Path, number: int) -> AbstractContextManager[bool]:
    """Whether this process may sample a shard, while the body runs."""
    return claim(folder, f".{_path(folder, number).name}{CLAIMED}") if accompanied() else nullcontext(True)


def _completions(
    shards: Shards, sample: Callable[[Sequence[Prompt]], Sequence[Completion]], folder: Path
) -> dict[int, list[Completion]]:
    """The completions of shards that are sampled together; those that a failed try had paid for are not sampled again.

    A row of the file that holds those has its place in the shard for an index.
    """
    before: dict[tuple[int, int], Completion] = {}
    for number in shards:
        if (kept := _answered(folder, number)).exists():
            rows = read_jsonl(kept, Row)
            before |= {(number, row.index): Completion(row.completion, row.finish_reason, row.tokens) for row in rows}
    places = [(number, place) for number, shard in shards.items() for place in range(len(shard))]
    left = [place for place in places if place not in before]
    try:
        sampled = sample([shards[number][place] for number, place in left]) if left else []
    except StoreError as error:
        answered: dict[int, Completion] = getattr(error, "answered", {})
        now = before | {left[at]: completion for at, completion in answered.items()}
        for number, shard in shards.items():
            if own := {place: completion for (of, place), completion in now.items() if of == number}:
                prompts = [replace(shard[place], index=place) for place in own]
                _write(_answered(folder, number), prompts, list(own.values()))
        raise
    now = before | dict(zip(left, sampled, strict=True))
    return {number: [now[number, place] for place in range(len(shard))] for number, shard in shards.items()}


def _answered(folder: Path, number: int) -> Path:
    """The hidden file that holds an endpoint's answers to a shard that failed."""
    return folder / f".{_path(folder, number).name}{ANSWERED}"


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
