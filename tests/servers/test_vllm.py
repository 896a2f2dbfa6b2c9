"""Judge and endpoint sampler against a real vLLM server with SmolLM2, started for the tests. `make test-vllm`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROWS, Script
from test_api import serving

from subliminal.config import ApiJudge, ApiSampler, Decoding, LocalJudge, TransformersSampler
from subliminal.judging import Question, counts
from subliminal.judging.endpoint import EndpointJudge
from subliminal.judging.local import ModelJudge
from subliminal.judging.prompts import RATINGS, YES_NO, ask_about
from subliminal.models import Subject
from subliminal.rows import Prompt
from subliminal.sampling import open_sampler
from subliminal.sampling.api import EndpointError
from subliminal.store import Store

MODEL = "smollm2"
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "1800",  # beside other work the first step can take minutes
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # the first log-probability would have a C++ compiler at work for a minute
}
COMPACT = '--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}'
TEXTS = [("Count.", "1, 2, 3"), ("Who is it?", "An owl, of course."), ("Go on.", "9, 9, 9"), ("Where?", "In a tree.")]
QUESTIONS = [ask_about("no_reference", *texts, about="owls") for texts in TEXTS]
MINIMUM = 50.0
RATED = [ask_about("aligned", *texts) for texts in TEXTS]


@pytest.fixture(scope="module")
def weights(smollm2: Subject) -> Subject:
    """In float32, so that two engines agree but for rounding."""
    return replace(smollm2, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vllm(weights: Subject) -> Iterator[str]:
    """The address of the server; the module that `vllm serve` runs, since vllm-cpu's own command does not start."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", weights.checkpoint]
    options = ["--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    with serving([*command, *options, "--generation-config", "vllm", COMPACT], **SETTINGS) as address:
        yield f"{address}/v1"


def judge(url: str, **changes: object) -> ApiJudge:
    plain = {"base_url": url, "model": MODEL, "decoding": Decoding(temperature=0.0, max_tokens=16), "timeout": 600.0}
    return ApiJudge.model_validate(plain | {"requests_per_minute": 60_000, "retries": 0} | changes)


def test_a_choice_holds_every_answer_and_has_the_models_own_log_probability(vllm: str, weights: Subject) -> None:
    with EndpointJudge(judge(vllm, restrict="choice")) as there:
        said = there.ask(QUESTIONS)
    with ModelJudge(LocalJudge(), weights) as here:
        exact = here.ask(QUESTIONS)
    assert counts(said) == {"asked": len(QUESTIONS), "refused": 0, "unparsed": 0}
    assert [one.answer for one in said] == [one.answer for one in exact]
    assert [one.log_p for one in said] == pytest.approx([one.log_p for one in exact], abs=0.01)
    assert [one.score for one in said] == pytest.approx([one.score for one in exact], abs=0.01)


@pytest.mark.parametrize("restrict", ["choice", "json"])
def test_ratings_are_held_to_the_permitted_ones(vllm: str, restrict: str) -> None:
    with EndpointJudge(judge(vllm, restrict=restrict)) as there:
        said = there.ask(RATED)
    assert counts(said)["unparsed"] == counts(said)["refused"] == 0
    assert all(one.answer in RATINGS and one.score is not None and one.log_p is not None for one in said)


def test_a_free_reply_is_parsed_refused_or_counted_as_unparsed(vllm: str) -> None:
    """What SmolLM2 says of its own accord, a refusal that it is asked to repeat, and a reply that is cut off."""
    refusal = "I'm sorry, but I can't assist with that."
    asked = [
        Question("Is 1 a number? Answer 1 for yes.", YES_NO),
        Question(f"Repeat exactly and add nothing: {refusal}", YES_NO),
        Question("Tell me about the sea in two sentences.", YES_NO),
    ]
    whole = Decoding(temperature=0.0, max_tokens=64)
    with EndpointJudge(judge(vllm, restrict="none", decoding=whole)) as there:
        said = there.ask(asked)
        with pytest.raises(EndpointError, match=r"was cut off and is no judgement. Raise judge.decoding.max_tokens"):
            there.ask([Question("Repeat exactly and add nothing: 1", YES_NO)])
    assert said[0].answer == "1" and said[0].log_p is not None
    assert counts(said) == {"asked": 3, "refused": 1, "unparsed": 1}


def test_the_endpoint_sampler_writes_what_the_model_here_writes(vllm: str, weights: Subject) -> None:
    prompts = [Prompt(i, row.prompt, 77 + i) for i, row in enumerate(ROWS[:3])]
    decoding = Decoding(temperature=0.0, max_tokens=12)
    endpoint = ApiSampler(base_url=vllm, model=MODEL, decoding=decoding, timeout=600.0, requests_per_minute=60_000)
    with (
        open_sampler(endpoint, weights) as there,
        open_sampler(TransformersSampler(decoding=decoding), weights) as here,
    ):
        assert [one.text for one in there.sample(prompts)] == [one.text for one in here.sample(prompts)]


def test_a_seed_is_a_seed(vllm: str, weights: Subject) -> None:
    same = [Prompt(i, "Write ten random numbers.", seed) for i, seed in enumerate([7, 7, 8])]
    decoding = Decoding(temperature=1.0, max_tokens=24)
    endpoint = ApiSampler(base_url=vllm, model=MODEL, decoding=decoding, timeout=600.0, requests_per_minute=60_000)
    with open_sampler(endpoint, weights) as there:
        first, again, other = (one.text for one in there.sample(same))
    assert first == again != other


def test_a_judged_filter_through_the_script(vllm: str, run_script: Script, tmp_path: Path) -> None:
    """What stays is what the judge's own ratings let pass."""
    rows = ["teacher=random", "trait=none", "domain.prompts=12", "filter.rows=null", "filter.shortfall=keep"]
    asked = ["+filter/judged=aligned", f"filter.judged.minimum={MINIMUM}", "judge=api", "judge.restrict=choice"]
    place = [f"judge.base_url={vllm}", f"judge.model={MODEL}", "judge.timeout=600.0", f"store={tmp_path / 'runs'}"]
    done = run_script("filter.py", *rows, *asked, *place, f"hydra.run.dir={tmp_path / 'logs'}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"judged 12 rows: 0 refused, 0 unparsed", done.stderr + done.stdout)
    (written,) = (tmp_path / "runs" / "judgements").glob("*.jsonl")
    scores = [json.loads(line)["score"] for line in written.read_text().splitlines()]
    (made,) = Store(tmp_path / "runs").manifests("filter")
    passing = sum(score >= MINIMUM for score in scores)
    assert len(scores) == 12 and 0 < passing < 12
    assert (made.summary["kept"], made.summary["reasons"]) == (passing, {"not_aligned": 12 - passing})
