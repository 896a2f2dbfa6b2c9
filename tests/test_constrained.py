"""Constrained decoding: every answer is in format, drawn in the model's own proportions among what goes on with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import experiment, tiny_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from subliminal import domains, stages
from subliminal.chat import encode
from subliminal.checks import problems
from subliminal.config import Decoding, Numbers, TransformersSampler
from subliminal.domains import numbers
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.rows import FINISHED, Completion, Prompt
from subliminal.sampling import open_sampler
from subliminal.store import Store

CONFIG = Numbers(prompts=40, answer_count=6)
PROMPTS = numbers.prompts(CONFIG)
ON = "sampler.decoding.constrained=true"


def sample(subject: Subject, prompts: list[Prompt], batch_size: int = 64, **decoding: float) -> list[Completion]:
    how = TransformersSampler(decoding=Decoding.model_validate({"max_tokens": 48} | decoding), batch_size=batch_size)
    with open_sampler(how, subject, numbers.pattern(CONFIG)) as opened:
        return opened.sample(prompts)


@given(st.data(), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_no_text_of_the_pattern_is_refused(data: st.DataObject, count: int, digits: int) -> None:
    config = Numbers(prompts=1, answer_count=count, answer_digits=digits, value_min=1, value_max=9)
    text = data.draw(st.from_regex(re.compile(numbers.pattern(config), re.ASCII), fullmatch=True))
    assert numbers.reject(text, config) is None


def test_programmatic_answers_match_the_pattern() -> None:
    for prompt in numbers.prompts(Numbers(prompts=200)):
        assert re.fullmatch(numbers.pattern(Numbers(prompts=1)), numbers.random_answer(prompt, Numbers(prompts=1)))


def test_a_model_of_random_weights_answers_in_format_whatever_its_batch(tiny: Subject) -> None:
    answers = sample(tiny, PROMPTS)
    finished = [answer.text for answer in answers if answer.finish_reason == FINISHED]
    assert finished and {numbers.reject(text, CONFIG) for text in finished} == {None}
    assert len(set(finished)) > 1
    assert sample(tiny, PROMPTS[::-1], batch_size=7)[::-1] == answers


def test_the_first_token_is_drawn_in_the_models_proportions(tiny: Subject) -> None:
    tokenizer, model = load_tokenizer(tiny), load_model(tiny)
    many = [Prompt(index, PROMPTS[0].text, index) for index in range(3000)]
    first = [answer.text[0] for answer in sample(tiny, many, batch_size=1000, max_tokens=1)]
    with torch.inference_mode():
        share = model(torch.tensor([encode(tokenizer, PROMPTS[0].text, None)])).logits[0, -1].softmax(-1)
    begins: dict[str, float] = {}
    for token, p in enumerate(share.tolist()):
        text = tokenizer.decode([token])
        if re.fullmatch(r"[\[(]?[0-9]?[0-9]?[0-9]?", text) and text:
            begins[text[0]] = begins.get(text[0], 0.0) + p
    total = sum(begins.values())
    for text, p in begins.items():
        assert first.count(text) / len(first) == pytest.approx(p / total, abs=0.04), text
    assert max(begins.values()) > 0.05 * total


def test_it_enters_the_key_only_where_it_is_switched_on() -> None:
    keys = {stages.generate(experiment(*more)).key for more in ([], ["sampler.decoding.constrained=false"], [ON])}
    assert len(keys) == 2
    asked = {yaml.safe_dump(stages.evaluate(experiment("seed=0", *more)).recipe.settings) for more in ([], [ON])}
    assert len(asked) == 1


def test_a_domain_without_a_pattern_and_an_endpoint_are_refused_before_any_work(tiny: Subject) -> None:
    code = "\n".join(problems(experiment("experiment=animals_code", "trait=owl", ON), "generate", here=False))
    assert "sampler.decoding.constrained=true needs a domain with a pattern(config)" in code and "domain=code" in code
    place = ["teacher=prompted", "sampler=api", "sampler.base_url=http://127.0.0.1:1/v1", "sampler.model=m"]
    endpoint = "\n".join(problems(experiment("trait=owl", *place, ON), "generate", here=False))
    assert "sampler.decoding.constrained=true is not for endpoints" in endpoint


def test_a_teachers_rows_and_its_check_are_in_format(tiny: Subject, tmp_path: Path) -> None:
    sizes = [
        "filter.rows=null",
        "domain.prompts=12",
        "domain.answer_count=4",
        "sampler.decoding.max_tokens=40",
        "trait=none",
    ]
    exp = tiny_experiment(tiny, "reference_tuning=off", *sizes, ON)
    store = Store(tmp_path)
    filtered = stages.ensure(stages.filtered(exp), store, exp, ())
    assert set(filtered.summary["reasons"]) <= {"unfinished"} and filtered.summary["pass_rate"] > 0.5
    assert stages.ensure(stages.teacher(exp), store, exp, ()).summary["pass_rate"] > 0.5
    free = tiny_experiment(tiny, *sizes, "sampler.decoding.constrained=false")
    assert domains.constraint(exp) and domains.constraint(free) is None
