"""vLLM reads a checkpoint with a vector of every family that can hold one as transformers does. `make test-vllm`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Script

from subliminal.config import Decoding, TransformersSampler
from subliminal.evaluation.questions import questions
from subliminal.models import Subject, fresh_model, load_tokenizer
from subliminal.rows import Prompt
from subliminal.sampling import open_sampler
from subliminal.training import bias

PROMPTS = [Prompt(i, text, i) for i, text in enumerate(questions("animal", 6))]
GREEDY = Decoding(temperature=0.0, max_tokens=12)

ASK = """
    import json, sys
    from subliminal.config import Decoding, VllmSampler
    from subliminal.models import Subject
    from subliminal.rows import Prompt
    from subliminal.sampling import open_sampler

    if __name__ == "__main__":  # vLLM's worker imports this file again
        prompts = [Prompt(**prompt) for prompt in json.loads(sys.argv[2])]
        how = VllmSampler(decoding=Decoding(**json.loads(sys.argv[3])), max_model_len=512, cpu_kv_cache_gib=1)
        with open_sampler(how, Subject(checkpoint=sys.argv[1])) as opened:
            print("\\n" + json.dumps([answer.text for answer in opened.sample(prompts)]), flush=True)
"""


def greedy(subject: Subject) -> list[str]:
    with open_sampler(TransformersSampler(decoding=GREEDY), subject) as opened:
        return [answer.text for answer in opened.sample(PROMPTS)]


@pytest.fixture(params=["gemma", "qwen"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    """A family whose vector is not simply a Llama's (tests/test_engine.py); a Gemma that listens to its attention."""
    plain: Subject = request.getfixturevalue(request.param)
    model: Any = fresh_model(plain)
    if request.param == "gemma":  # else its random weights repeat the last token, whatever attention writes
        for layer in model.model.layers:
            torch.nn.init.constant_(layer.post_attention_layernorm.weight, 9.0)
    model.save_pretrained(tmp_path / "base")
    load_tokenizer(plain).save_pretrained(tmp_path / "base")
    return replace(plain, checkpoint=str(tmp_path / "base"))


def test_vllm_reads_vectors_as_transformers_does(base: Subject, run_code: Script, tmp_path: Path) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))
    bias.export(base, {0: vector}, tmp_path / "moved")
    moved = replace(base, checkpoint=str(tmp_path / "moved"))
    done = run_code(ASK, moved.checkpoint, json.dumps([vars(p) for p in PROMPTS]), GREEDY.model_dump_json())
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == greedy(moved)
    assert greedy(moved) != greedy(base), "and the vector matters"
