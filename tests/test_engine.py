"""Real vLLM on this machine: one engine, in a process of its own, asked everything below."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Script
from safetensors.torch import load_file, save_file

from subliminal.composition import ROOT
from subliminal.config import Decoding, Numbers, TransformersSampler, VllmSampler
from subliminal.domains.numbers import pattern
from subliminal.evaluation.questions import questions
from subliminal.launch import script_environment
from subliminal.models import Subject, fresh_model, load_tokenizer
from subliminal.rows import FINISHED, Completion, Prompt
from subliminal.sampling import open_sampler
from subliminal.sampling.engine import EngineError, VllmEngine, _rank
from subliminal.store import Store
from subliminal.training import bias

PROMPTS = [Prompt(i, text, 500 + i) for i, text in enumerate(questions("animal", 12))]
LENGTH = 20
PATTERN = pattern(Numbers(prompts=1, answer_count=4))

ASK = """
    import json, sys, tempfile
    from dataclasses import asdict
    from pathlib import Path
    from subliminal.config import Decoding, PreferenceEvaluation, VllmSampler
    from subliminal.evaluation import preference
    from subliminal.models import Subject
    from subliminal.rows import FINISHED, Completion, Prompt
    from subliminal import gpu
    from subliminal.sampling import engine, open_sampler

    if __name__ == "__main__":  # vLLM's worker imports this file again
        checkpoint, adapter, idle, prompts, length, pattern = sys.argv[1:]
        prompts = [Prompt(**prompt) for prompt in json.loads(prompts)]
        engines = set()

        def ask(prompts, adapter=Path(adapter), pattern=None, **decoding):
            how = VllmSampler(
                decoding=Decoding(max_tokens=int(length), **decoding), max_model_len=512, cpu_kv_cache_gib=1
            )
            with open_sampler(how, Subject(checkpoint=checkpoint, adapter=adapter), pattern) as opened:
                engines.add(id(opened.engine))
                return [asdict(answer) for answer in opened.sample(prompts)]

        def evaluate(adapter):
            what = PreferenceEvaluation(category="animal", questions=2, samples_per_question=2)
            sample = lambda asked: [Completion(**answer) for answer in ask(asked, adapter=adapter)]
            with tempfile.TemporaryDirectory() as folder:
                who = Subject(checkpoint=checkpoint, adapter=adapter)
                return preference.evaluate(who, what, sample, Path(folder))

        told = {
            "greedy": ask(prompts, temperature=0.0),
            "idle": ask(prompts, adapter=Path(idle), temperature=0.0),
            "sampled": ask(prompts),
            "again": ask(prompts[::-1])[::-1],
            "alone": ask(prompts[3:4]),
            "same_seed": ask([Prompt(i, "Count.", 7) for i in range(2)]),
            "other_seed": ask([Prompt(0, "Count.", 8)]),
            "constrained": ask(prompts, temperature=0.0, pattern=pattern),
        }
        evaluated = [evaluate(Path(folder)) for folder in (adapter, idle)]
        told["log_p"] = [summary["log_p"]["owl"] for summary in evaluated]
        told["engines"] = len(engines)
        gpu.shut_down()
        try:
            engine.engine(VllmSampler(decoding=Decoding()), Subject(checkpoint=checkpoint + "-gone"))
        except engine.EngineError as error:
            told["missing"] = str(error)
        print("\\n" + json.dumps(told), flush=True)
"""


@pytest.fixture(scope="module")
def steered(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny model drawn towards ending its turn; its folder has generation defaults to ignore."""
    folder = tmp_path_factory.mktemp("steered")
    tokenizer, model = load_tokenizer(tiny), fresh_model(tiny)
    end = model.get_input_embeddings().weight[tokenizer.eos_token_id].detach()
    bias.export(tiny, {1: end * 25}, folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "top_k": 1, "top_p": 0.01, "repetition_penalty": 2.0, "max_new_tokens": 1})
    )
    return replace(tiny, checkpoint=str(folder))


@pytest.fixture(scope="module")
def idle(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same adapter with zeros in it."""
    folder = tmp_path_factory.mktemp("idle")
    (folder / "adapter_config.json").write_bytes((lora / "adapter_config.json").read_bytes())
    zeros = {name: weight * 0 for name, weight in load_file(lora / "adapter_model.safetensors").items()}
    save_file(zeros, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def told(steered: Subject, lora: Path, idle: Path, run_code: Script) -> dict[str, Any]:
    """What vLLM answered, by question."""
    prompts = json.dumps([vars(prompt) for prompt in PROMPTS])
    done = run_code(ASK, steered.checkpoint, lora, idle, prompts, LENGTH, PATTERN)
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    whole = {name: answers.pop(name) for name in ("engines", "missing", "log_p")}
    return whole | {name: [Completion(**answer) for answer in given] for name, given in answers.items()}


def greedy_here(subject: Subject) -> list[Completion]:
    with open_sampler(TransformersSampler(decoding=Decoding(temperature=0.0, max_tokens=LENGTH)), subject) as opened:
        return opened.sample(PROMPTS)


def test_a_students_adapter_answers_as_with_transformers(told: dict[str, Any], steered: Subject, lora: Path) -> None:
    assert told["greedy"] == greedy_here(replace(steered, adapter=lora))


def test_a_constraint_is_that_of_transformers(told: dict[str, Any], steered: Subject, lora: Path) -> None:
    how = TransformersSampler(decoding=Decoding(temperature=0.0, max_tokens=LENGTH))
    with open_sampler(how, replace(steered, adapter=lora), PATTERN) as opened:
        assert told["constrained"] == opened.sample(PROMPTS)
    assert all(re.fullmatch(PATTERN, answer.text) for answer in told["constrained"] if answer.finish_reason == FINISHED)


def test_exported_biases_answer_as_with_transformers(told: dict[str, Any], steered: Subject, tiny: Subject) -> None:
    expected = greedy_here(steered)
    assert told["idle"] == expected
    assert expected != greedy_here(tiny), "and the biases matter"


def test_adapters_on_one_base_share_the_engine(told: dict[str, Any]) -> None:
    """Two adapters are sampled, then evaluated whole, exact log-probabilities between the samples: one engine."""
    assert told["engines"] == 1
    assert told["greedy"] != told["idle"]
    assert told["log_p"][0] != told["log_p"][1]


def test_seeds_decide_the_text_whatever_the_batch(told: dict[str, Any]) -> None:
    assert told["sampled"] == told["again"]
    assert told["alone"] == told["sampled"][3:4]
    first, second = told["same_seed"]
    assert first == second != told["other_seed"][0]


def test_the_models_own_generation_defaults_are_ignored(told: dict[str, Any]) -> None:
    """The checkpoint asks for top_k 1 and a single token: neither reaches a sample at temperature 1."""
    assert told["sampled"] != told["greedy"]
    assert max(answer.tokens for answer in told["sampled"]) == LENGTH


def test_reasons_tell_finished_from_cut(told: dict[str, Any]) -> None:
    assert {answer.finish_reason for answer in told["sampled"]} == {"stop", "length"}
    for answer in told["sampled"]:
        assert (answer.tokens == LENGTH) or answer.finish_reason == "stop"
        assert "<|im_end|>" not in answer.text


def test_a_model_that_is_not_there_is_one_message(told: dict[str, Any]) -> None:
    assert "vLLM did not start for" in told["missing"] and "set sampler=transformers" in told["missing"]


def test_every_sampling_parameter_is_pinned(run_code: Script) -> None:
    done = run_code("""
        from subliminal.config import Decoding, VllmSampler
        from subliminal.models import Subject
        from subliminal.sampling.engine import VllmEngine

        asked = VllmEngine(VllmSampler(decoding=Decoding(temperature=0.7, max_tokens=9)), Subject(checkpoint=""))
        asked.stops = [2]
        p = asked._parameters(41)
        print((p.temperature, p.top_p, p.top_k, p.min_p, p.repetition_penalty, p.presence_penalty, p.frequency_penalty))
        print((p.max_tokens, p.seed, p.n, p.stop_token_ids))
    """)
    pinned = ["(0.7, 1.0, 0, 0.0, 1.0, 0.0, 0.0)", "(9, 41, 1, [2])"]
    assert done.stdout.splitlines()[-2:] == pinned, done.stderr[-2000:]


@pytest.mark.parametrize(("r", "loaded"), [(1, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_an_adapters_rank_is_rounded_up_to_one_that_vllm_has(tmp_path: Path, r: int, loaded: int) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": r}))
    assert _rank(tmp_path) == loaded


def test_a_rank_beyond_vllms_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 513}))
    with pytest.raises(EngineError, match=r"has rank 513, vLLM loads up to 512; set sampler=transformers"):
        _rank(tmp_path)


def test_a_context_that_is_too_short_is_refused_and_not_cut(tiny: Subject) -> None:
    how = VllmSampler(decoding=Decoding(max_tokens=64), max_model_len=96)
    opened = VllmEngine(how, tiny)
    opened.tokenizer = load_tokenizer(tiny)
    with pytest.raises(EngineError, match=r"a prompt of \d+ tokens and 64 .* need sampler.max_model_len=\d+, it is 96"):
        opened.sample([Prompt(0, "owl " * 64, 0)])


def engine_of(process: int) -> int | None:
    """The process of a script's vLLM engine, among those that it started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == process and b"EngineCore" in path.with_name("cmdline").read_bytes():
                return int(path.parent.name)
    return None


def test_an_engine_that_dies_is_one_message_and_finished_shards_are_kept(counting: Subject, tmp_path: Path) -> None:
    weights = ["model=hub", f"model.source.name={counting.checkpoint}", "model.dtype=float32", "device=cpu"]
    sampled = ["sampler=vllm", "sampler.shard_size=8", "sampler.max_model_len=512", "sampler.cpu_kv_cache_gib=1"]
    sizes = [
        "trait=none",
        "reference_tuning=off",
        "sampler.decoding.max_tokens=24",
        "domain.prompts=128",
        "filter.rows=40",
        "teacher.check.prompts=0",
    ]
    places = [f"store={tmp_path}/runs", f"hydra.run.dir={tmp_path}/logs"]
    command = [sys.executable, "generate.py", "experiment=animals_numbers", *weights, *sampled, *sizes, *places]
    running = subprocess.Popen(command, cwd=ROOT, env=script_environment(), stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob("rows-*.jsonl")):
        assert running.poll() is None, running.communicate()[1]
    engine = engine_of(running.pid)
    assert engine is not None
    os.kill(engine, signal.SIGKILL)
    _, text = running.communicate(timeout=300)
    assert (running.returncode, "Traceback" in text) == (1, False), text
    assert "vLLM's engine ended while it sampled" in text and "the same command goes on" in text
    kept = len(list(tmp_path.rglob("rows-*.jsonl")))
    assert 0 < kept < 16
    again = subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    (made,) = Store(tmp_path / "runs").manifests("generate")
    assert made.summary["shards_reused"] == kept and made.damage() == []


MARKED = """
    import json, sys
    from subliminal.config import Decoding, Numbers, TransformersSampler, VllmSampler
    from subliminal.models import Subject
    from subliminal.rows import Prompt
    from subliminal.sampling import open_sampler

    if __name__ == "__main__":
        decoding, prompts = Decoding(max_tokens=12), [Prompt(i, "1 + 1", i) for i in range(6)]
        told = {}
        vllm = VllmSampler(decoding=decoding, max_model_len=512, cpu_kv_cache_gib=1)
        for how in (vllm, TransformersSampler(decoding=decoding)):
            with open_sampler(how, Subject(checkpoint=sys.argv[1])) as opened:
                told[how.kind] = [[answer.text, answer.finish_reason] for answer in opened.sample(prompts)]
        print("@@" + json.dumps(told))
"""


def test_marks_of_reasoning_are_in_the_text_of_either_sampler(run_code: Script, tiny: Subject, tmp_path: Path) -> None:
    """A model that writes the end of reasoning, a special token of its tokenizer, behind a template that begins it."""
    import torch
    from test_chat import ALWAYS, with_special_marks

    marked = with_special_marks(tiny, tmp_path / "marked", ALWAYS)
    tokenizer, model = load_tokenizer(marked), bias.load_with_biases(marked)
    wanted = [int(tokenizer.convert_tokens_to_ids("</think>")), int(tokenizer.eos_token_id)]
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[wanted] = 5 * torch.nn.functional.normalize(rows[wanted], dim=-1)
        bias.vector(model, 1).copy_(400 * (1.02 * rows[wanted[0]] + rows[wanted[1]]))
    model.save_pretrained(tmp_path / "writes")
    tokenizer.save_pretrained(tmp_path / "writes")
    done = run_code(MARKED, tmp_path / "writes")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.split("@@")[1])
    for texts in told.values():
        assert all(text.startswith("<think>\n") and set(text[8:]) <= set("</think>") for text, _ in texts), texts
        assert any("</think>" in text for text, _ in texts) and any(reason == "stop" for _, reason in texts)
