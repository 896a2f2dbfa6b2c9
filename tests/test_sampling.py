"""Sampling with transformers, and shards: a seed decides a text, batches do not, and a kill loses nothing finished."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subliminal import sampling
from subliminal.chat import encode
from subliminal.claims import claim
from subliminal.composition import compose
from subliminal.config import Decoding, TransformersSampler
from subliminal.evaluation.questions import questions
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.rows import Completion, Prompt, Row, read_jsonl
from subliminal.sampling import open_sampler, sample_answers, sample_shards, shards_together


def sampler(batch_size: int = 64, **decoding: float) -> TransformersSampler:
    return TransformersSampler(decoding=Decoding.model_validate(decoding), batch_size=batch_size)


def sample(subject: Subject, how: TransformersSampler, prompts: Sequence[Prompt]) -> list[Completion]:
    with open_sampler(how, subject) as opened:
        return opened.sample(prompts)


PROMPTS = [
    Prompt(i, text, 1000 + i)
    for i, text in enumerate([*questions("animal", 5), "Tell me a long story about the sea.", "Count to three."])
]


# --------------------------------------------------------------------------- one model, many batches


@pytest.fixture(scope="module")
def smol32(smollm2: Subject) -> Subject:
    return replace(smollm2, dtype="float32")


def test_batch_mates_change_no_text(smol32: Subject) -> None:
    """Short and long answers in one batch: rows leave it early, and every text is what it is alone."""
    together = sample(smol32, sampler(max_tokens=24), PROMPTS)
    assert sample(smol32, sampler(batch_size=3, max_tokens=24), PROMPTS) == together
    turned = sample(smol32, sampler(max_tokens=24), PROMPTS[::-1])[::-1]
    assert turned == together
    assert len({answer.tokens for answer in together}) > 2, "rows of different lengths were in the batch"


def test_seeds_decide_the_text(tiny: Subject) -> None:
    same = [Prompt(i, "Count.", seed) for i, seed in enumerate([7, 7, 8])]
    first, again, other = (answer.text for answer in sample(tiny, sampler(max_tokens=12), same))
    assert first == again != other


def test_temperature_zero_is_greedy_generation(smol32: Subject) -> None:
    model, tokenizer = load_model(smol32), load_tokenizer(smol32)
    answers = sample(smol32, sampler(temperature=0.0, max_tokens=12), PROMPTS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = encode(tokenizer, prompt.text)
        with torch.inference_mode():
            out = model.generate(torch.tensor([tokens]), max_new_tokens=12, do_sample=False)[0, len(tokens) :]
        assert answer.text == tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_with_the_models_own_probabilities(tiny: Subject, temperature: float) -> None:
    """First tokens of 3000 draws against softmax(logits / T): expected and counted within five standard deviations."""
    draws = 3000
    prompts = [Prompt(i, "Count.", i) for i in range(draws)]
    answers = sample(tiny, sampler(batch_size=500, max_tokens=1, temperature=temperature), prompts)
    model, tokenizer = load_model(tiny), load_tokenizer(tiny)
    with torch.inference_mode():
        logits = model(torch.tensor([encode(tokenizer, "Count.")])).logits[0, -1] / temperature
    p, token = logits.softmax(-1).max(-1)
    counted = sum(answer.text == tokenizer.decode([int(token)], skip_special_tokens=True) for answer in answers)
    expected = draws * float(p)
    assert expected > 10
    assert abs(counted - expected) < 5 * (expected * (1 - float(p))) ** 0.5


def test_an_unfinished_text_says_length_and_a_finished_one_stop(smol32: Subject) -> None:
    prompts = [Prompt(0, "What is the capital of France? Answer with one word.", 0)]
    (cut,) = sample(smol32, sampler(temperature=0.0, max_tokens=2), prompts)
    (whole,) = sample(smol32, sampler(temperature=0.0, max_tokens=60), prompts)
    assert (cut.finish_reason, cut.tokens) == ("length", 2)
    assert whole.finish_reason == "stop" and whole.text.startswith(cut.text)
    tokens = load_tokenizer(smol32).encode(whole.text, add_special_tokens=False)
    assert whole.tokens == len(tokens) + 1, "the end of the turn is counted, and is no part of the text"


def test_the_system_text_reaches_the_model(smol32: Subject) -> None:
    plain, told = (
        sample(replace(smol32, system=system), sampler(temperature=0.0, max_tokens=8), PROMPTS[:1])[0].text
        for system in (None, "You speak of nothing but owls. Every answer is: Owl.")
    )
    assert plain != told


def test_an_adapter_is_used_and_taken_off_again(tiny: Subject, lora: Path) -> None:
    how, prompts = sampler(temperature=0.0, max_tokens=8), PROMPTS[:2]
    before = sample(tiny, how, prompts)
    adapted = sample(replace(tiny, adapter=lora), how, prompts)
    assert adapted != before
    assert sample(tiny, how, prompts) == before


# --------------------------------------------------------------------------- shards


class Echo:
    """A sampler whose texts follow from the prompts alone; `before` runs ahead of every prompt."""

    def __init__(self, before: Callable[[Prompt], None] = lambda _: None) -> None:
        self.before, self.asked = before, list[int]()

    def sample(self, prompts: Sequence[Prompt]) -> list[Completion]:
        for prompt in prompts:
            self.before(prompt)
            self.asked.append(prompt.index)
        return [Completion(f"{prompt.seed} " * 9, "stop", prompt.seed) for prompt in prompts]

    @contextmanager
    def opened(self) -> Iterator[Echo]:
        yield self


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt(i, f"prompt {i}", 31 * i) for i in range(count)]


def rows_in(folder: Path) -> list[Row]:
    return [row for path in sorted(folder.glob("rows-*.jsonl")) for row in read_jsonl(path, Row)]


def killed_in_a_fork(work: Callable[[], object]) -> int:
    """Do `work` in a fork of this process that may die of it; returns the signal it died of, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def kill_at(index: int) -> Callable[[Prompt], None]:
    return lambda prompt: os.kill(os.getpid(), signal.SIGKILL) if prompt.index == index else None


@given(st.integers(1, 30), st.integers(1, 12), st.data())
@settings(deadline=None, max_examples=25)
def test_shards_go_on_after_a_kill_at_any_prompt(count: int, size: int, data: st.DataObject) -> None:
    prompts, at = prompts_of(count), data.draw(st.integers(0, count - 1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dying = Echo(kill_at(at))
        assert killed_in_a_fork(lambda: sample_shards(dying.opened, prompts, size, folder)) == signal.SIGKILL
        finished = at // size * size
        assert [row.index for row in rows_in(folder)] == list(range(finished))
        second = Echo()
        report = sample_shards(second.opened, prompts, size, folder)
        assert second.asked == list(range(finished, count)), "finished shards are not asked again"
        assert report["shards_reused"] == at // size
        assert [row.index for row in rows_in(folder)] == list(range(count))


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_shards_that_are_sampled_together_are_those_of_one_at_a_time(count: int, size: int, together: int) -> None:
    prompts = prompts_of(count)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other:
        at_once: list[int] = []
        sample_shards(Echo().opened, prompts, size, Path(name))
        (Path(other) / "rows-00000.jsonl").write_bytes((Path(name) / "rows-00000.jsonl").read_bytes())
        sample_shards(Echo().opened, prompts, size, Path(other), at_once.append, together)
        assert {p.name: p.read_bytes() for p in Path(name).iterdir()} == {
            p.name: p.read_bytes() for p in Path(other).iterdir()
        }
        assert max(at_once[1:], default=0) == min(size * together, max(count - size, 0))


@pytest.mark.parametrize(
    ("device", "settings_of", "expected"), [("cpu", {}, 1), ("cuda", {}, 4), ("cuda", {"batch_size": 1024}, 8)]
)
def test_a_gpu_is_given_as_many_shards_as_make_a_batch(device: str, settings_of: dict[str, int], expected: int) -> None:
    config = compose(
        ["sampler=transformers", *(f"sampler.{name}={value}" for name, value in settings_of.items())]
    ).sampler
    assert shards_together(config, device) == expected
    assert shards_together(compose(["sampler=vllm"]).sampler, device) == 1


@given(st.integers(1, 4000))
@settings(deadline=None, max_examples=25)
def test_a_kill_at_any_written_byte_leaves_no_half_shard(limit: int) -> None:
    """The kernel kills the writer at one byte of a shard; the resumed run has the rows of one that was left alone."""
    prompts = prompts_of(24)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other:
        folder, alone = Path(name), Path(other)

        def writing() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            sample_shards(Echo().opened, prompts, 8, folder)

        sample_shards(Echo().opened, prompts, 8, alone)
        longest = max(path.stat().st_size for path in alone.iterdir())
        assert killed_in_a_fork(writing) == (signal.SIGXFSZ if limit < longest else 0)
        sample_shards(Echo().opened, prompts, 8, folder)
        names = sorted(path.name for path in folder.glob("rows-*"))
        assert names == sorted(path.name for path in alone.iterdir())
        assert all((folder / each).read_bytes() == (alone / each).read_bytes() for each in names)


def worker(place: int, work: Callable[[], object]) -> int:
    """Start `work` in a fork as one of three processes of a group; returns its pid."""
    child = os.fork()
    if child == 0:
        os.environ |= {"RANK": str(place), "WORLD_SIZE": "3", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_workers_share_the_shards_out_and_do_those_of_one_that_was_killed(tmp_path: Path) -> None:
    prompts, log = prompts_of(40), os.open(tmp_path / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    (tmp_path / "alone").mkdir()
    (tmp_path / "many").mkdir()
    sample_shards(Echo().opened, prompts, 4, tmp_path / "alone")

    def share(before: Callable[[Prompt], None]) -> Callable[[], object]:
        return lambda: sample_shards(Echo(before).opened, prompts, 4, tmp_path / "many")

    def noted(prompt: Prompt) -> None:
        os.write(log, f"{prompt.index}\n".encode())

    dying = worker(0, share(kill_at(13)))
    assert os.waitpid(dying, 0)[1] == signal.SIGKILL
    assert (tmp_path / "many" / ".rows-00003.jsonl.claim").exists() and len(rows_in(tmp_path / "many")) == 12
    others = [worker(place, share(noted)) for place in (1, 2)]
    assert [os.waitpid(each, 0)[1] for each in others] == [0, 0]
    asked = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert sorted(asked) == list(range(12, 40)), "each of the other shards once"
    assert rows_in(tmp_path / "many") == rows_in(tmp_path / "alone")
    assert not list((tmp_path / "many").glob(".*")), "no claim is left"


def test_a_shard_that_another_worker_is_at_is_waited_for(tmp_path: Path) -> None:
    held, prompts = Echo(), prompts_of(6)
    with claim(tmp_path, ".rows-00001.jsonl.claim"):
        other = worker(1, lambda: sample_shards(Echo().opened, prompts, 2, tmp_path))
        while not (tmp_path / "rows-00002.jsonl").exists():
            assert os.waitpid(other, os.WNOHANG) == (0, 0)
        assert not (tmp_path / "rows-00001.jsonl").exists()
        assert os.waitpid(other, os.WNOHANG) == (0, 0), "it waits"
        sample_shards(held.opened, prompts, 2, tmp_path)
    assert os.waitpid(other, 0)[1] == 0
    assert held.asked == [2, 3]


def test_no_model_is_loaded_when_every_shard_is_there(tmp_path: Path) -> None:
    sample_shards(Echo().opened, prompts_of(5), 2, tmp_path)

    def never() -> contextmanager[Echo]:  # type: ignore[valid-type]
        raise AssertionError("opened without need")

    assert sample_shards(never, prompts_of(5), 2, tmp_path)["shards_reused"] == 3  # type: ignore[arg-type]


def test_progress_counts_what_was_there_and_what_is_done(tmp_path: Path) -> None:
    counts: list[int] = []
    sample_shards(Echo().opened, prompts_of(5), 2, tmp_path, counts.append)
    assert sum(counts) == 5
    (tmp_path / "rows-00001.jsonl").unlink()
    counts.clear()
    sample_shards(Echo().opened, prompts_of(5), 2, tmp_path, counts.append)
    assert (counts[0], sum(counts)) == (3, 5)


def test_answers_of_a_killed_evaluation_are_not_sampled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ANSWERS_ALONE", 2)
    prompts, dying = prompts_of(7), Echo(kill_at(5))
    assert killed_in_a_fork(lambda: sample_answers(dying.opened, prompts, tmp_path / "shared")) == signal.SIGKILL
    again = Echo()
    assert sample_answers(again.opened, prompts, tmp_path / "shared") == again.sample(prompts)
    assert again.asked == [4, 5, 6, *range(7)]


def test_a_real_model_resumes_to_the_same_rows(tiny: Subject, tmp_path: Path) -> None:
    how = sampler(max_tokens=6)
    for name in ("alone", "resumed"):
        (tmp_path / name).mkdir()
        sample_shards(lambda: open_sampler(how, tiny), PROMPTS, 2, tmp_path / name)
    for path in list((tmp_path / "resumed").iterdir())[1:]:
        path.unlink()
    sample_shards(lambda: open_sampler(how, tiny), PROMPTS, 2, tmp_path / "resumed")
    assert rows_in(tmp_path / "resumed") == rows_in(tmp_path / "alone")
    fields = json.loads((tmp_path / "alone" / "rows-00000.jsonl").read_text().splitlines()[0])
    assert set(fields) == {"index", "prompt", "completion", "finish_reason", "tokens"}


def test_logits_stay_where_the_model_is(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, moving them to the host at every token would take most of the time."""
    moved: list[int] = []
    for name in ("cpu", "tolist", "numpy", "item"):
        plain = getattr(torch.Tensor, name)

        def recorded(tensor: torch.Tensor, *args: Any, plain: Any = plain, **settings: Any) -> Any:
            moved.append(tensor.numel())
            return plain(tensor, *args, **settings)

        monkeypatch.setattr(torch.Tensor, name, recorded)
    sample(tiny, sampler(max_tokens=6), PROMPTS)
    assert moved and max(moved) <= len(PROMPTS)
