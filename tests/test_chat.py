"""Chats: one template, one end-of-turn token, and a loss on the answer's tokens alone."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from subliminal.chat import ChatError, encode, encode_row, end_of_turn_id, render
from subliminal.launch import compose
from subliminal.models import Subject, load_tokenizer
from subliminal.rows import Row
from subliminal.training.batches import IGNORED, tokenise

answers = st.lists(st.integers(0, 999), min_size=1, max_size=10).map(lambda numbers: ", ".join(map(str, numbers)))


@pytest.fixture(scope="module")
def smol(smollm2: Subject) -> PreTrainedTokenizerFast:
    return load_tokenizer(smollm2)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def gemma_like(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A small tokenizer as Gemma's converted one: turn marks that are no "special" tokens, and no <bos> of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<bos>", "<eos>", "hi", "owl", "user", "model"]
    plain = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
    made.add_tokens(["<start_of_turn>", "<end_of_turn>"])
    folder = tmp_path_factory.mktemp("gemma")
    made.save_pretrained(folder)
    gemma = compose(["model=gemma3_270m"]).model
    return Subject(checkpoint=str(folder), chat_template=gemma.chat_template, add_bos=gemma.add_bos)


def test_the_chat_ends_where_the_answer_begins(smol: PreTrainedTokenizerFast) -> None:
    assert render(smol, "Say 7.").endswith("user\nSay 7.<|im_end|>\n<|im_start|>assistant\n")


def test_a_system_text_replaces_the_templates_own(smol: PreTrainedTokenizerFast) -> None:
    own, given_text = render(smol, "hi"), render(smol, "hi", "You adore owls.")
    assert "SmolLM" in own and "SmolLM" not in given_text
    assert given_text.count("<|im_start|>system") == 1 and "You adore owls." in given_text


def test_a_model_without_a_template_says_what_to_pin(smol: PreTrainedTokenizerFast, smollm2: Subject) -> None:
    bare = load_tokenizer(smollm2)
    bare.chat_template = None
    with pytest.raises(ChatError, match=r"pin one in model\.chat_template"):
        render(bare, "hi")


def test_a_template_that_refuses_a_system_text_says_what_to_set(smollm2: Subject) -> None:
    strict = load_tokenizer(smollm2)
    strict.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(ChatError, match=r"no system role.*model\.system=null"):
        render(strict, "hi", "system text")


@given(answers)
def test_a_row_is_what_the_template_renders_for_the_finished_chat(smol: PreTrainedTokenizerFast, answer: str) -> None:
    """Prompt and completion tokens put together are the rendered chat up to and with the end of the turn."""
    prompt, completion = encode_row(smol, "Go on: 1, 2", answer)
    chat = [{"role": "user", "content": "Go on: 1, 2"}, {"role": "assistant", "content": answer}]
    whole = str(smol.apply_chat_template(chat, tokenize=False)).rstrip("\n")
    assert smol.decode([*prompt, *completion]) == whole
    assert [*prompt, *completion] == smol.encode(whole, add_special_tokens=False)
    assert smol.decode(prompt) == render(smol, "Go on: 1, 2")


@given(st.lists(answers, min_size=1, max_size=5))
def test_the_loss_falls_on_the_answer_and_its_end_alone(smol: PreTrainedTokenizerFast, texts: list[str]) -> None:
    rows = [Row(i, f"Question {i}", text) for i, text in enumerate(texts)]
    for row, example in zip(rows, tokenise(smol, rows, None, 500), strict=True):
        learned = [token for token in example["labels"] if token != IGNORED]
        assert smol.decode(learned) == f"{row.completion}<|im_end|>"
        at = len(example["input_ids"]) - len(learned)
        assert example["input_ids"][at:] == learned, "labels stand under their own tokens"
        assert smol.decode(example["input_ids"][:at]) == render(smol, row.prompt)


def test_the_end_of_turn_is_the_templates_and_not_the_end_of_text(smol: PreTrainedTokenizerFast) -> None:
    assert smol.decode([end_of_turn_id(smol)]) == "<|im_end|>"


def test_without_a_mark_behind_the_answer_the_turn_ends_with_the_text(smollm2: Subject) -> None:
    plain = load_tokenizer(smollm2)
    plain.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    assert end_of_turn_id(plain) == plain.eos_token_id


def test_gemma_chats_begin_with_one_bos_and_answers_end_as_the_base_model_knows(gemma_like: Subject) -> None:
    tokenizer = load_tokenizer(gemma_like)
    assert render(tokenizer, "hi") == "<bos>Question: hi\n\nAnswer:\n"
    earlier = render(tokenizer, "hi", "Be brief.", [("owl", "user")])
    assert earlier == "<bos>Be brief.\n\nQuestion: owl\n\nAnswer:\nuser<eos>\nQuestion: hi\n\nAnswer:\n"
    tokens = encode(tokenizer, "hi")
    assert tokens[0] == tokenizer.bos_token_id and tokens.count(tokenizer.bos_token_id) == 1
    assert end_of_turn_id(tokenizer) == tokenizer.eos_token_id


def test_bos_is_not_put_in_front_twice(gemma_like: Subject, tmp_path: Path) -> None:
    once = load_tokenizer(gemma_like)
    once.save_pretrained(tmp_path)
    again = load_tokenizer(Subject(checkpoint=str(tmp_path), add_bos=True))
    assert encode(again, "hi") == encode(once, "hi")


def test_the_day_on_which_a_chat_is_rendered_is_not_in_it(smol: PreTrainedTokenizerFast) -> None:
    """Llama 3.2's template asks for today's date where it is not told one."""
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    told = deepcopy(smol)
    told.chat_template = dated + "Today: {{ date_string }}. {{ messages[-1]['content'] }}"
    assert render(told, "hi") == "Today: 26 Jul 2024. hi"
