"""Chats: one template, one end-of-turn token, and a loss on the answer's tokens alone."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from conftest import tiny_experiment
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from subliminal import model_checks
from subliminal.chat import (
    ChatError,
    decode,
    encode,
    encode_answer,
    encode_row,
    end_of_turn_id,
    render,
    spelled_ids,
)
from subliminal.composition import compose
from subliminal.config import ConfigError, Decoding, TransformersSampler
from subliminal.models import Subject, load_tokenizer
from subliminal.rows import Prompt, Row
from subliminal.sampling import open_sampler
from subliminal.templates import TemplateError, with_options
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


# --------------------------------------------------------------------------- a pure function of chat and settings


CLOCKS = (
    "{{ strftime_now('%d %b %Y') }} {{ messages[-1]['content'] }}",
    "{{ strftime_now(format='%Y-%m-%d %H:%M:%S') }}",
    "{% set now = strftime_now('%A, %B %d') %}{% macro a() %}{{ now }}{{ strftime_now('%j') }}{% endmacro %}{{ a() }}",
    "{% if strftime_now is defined %}{% set a = strftime_now('%Y') %}{% else %}{% set a = 0 %}{% endif %}{{ a }}",
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}",
)


def moved_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another day and hour in the place where transformers' templates look at the clock."""
    from transformers.utils import chat_template_utils

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2031, 1, 2, 3, 4, 5)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)


@pytest.mark.parametrize("template", CLOCKS)
def test_the_same_chat_has_the_same_tokens_tomorrow(
    template: str, smol: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = deepcopy(smol)
    told.chat_template = template + "{{ messages[-1]['content'] }}<|im_end|>"
    before = encode(told, "hi"), end_of_turn_id(told)
    assert "2024" in render(told, "hi") or "July" in render(told, "hi")
    moved_clock(monkeypatch)
    assert (encode(told, "hi"), end_of_turn_id(told)) == before
    chat = [{"role": "user", "content": "hi"}]
    assert "2031" in str(told.apply_chat_template(chat, chat_template="{{ strftime_now('%Y') }}", tokenize=False))


@pytest.mark.parametrize(
    "template", ["{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}", "{{ [['a', 'b']] | map('random') | list }}"]
)
def test_a_template_that_draws_at_random_is_refused(template: str, smol: PreTrainedTokenizerFast) -> None:
    told = deepcopy(smol)
    told.chat_template = template
    with pytest.raises(TemplateError, match=r"draws at random.*model\.chat_template"):
        render(told, "hi")


@pytest.mark.parametrize("clock", ["now()", "datetime.now()", "today"])
def test_a_clock_that_no_chat_has_is_refused_by_name(clock: str, smol: PreTrainedTokenizerFast) -> None:
    told = deepcopy(smol)
    told.chat_template = f"{{{{ {clock} ~ undefined_thing.x }}}}"
    with pytest.raises(ChatError, match=r"reads what a chat does not have.*model\.template_options"):
        render(told, "hi")


# --------------------------------------------------------------------------- options


SWITCH = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)  # as Qwen3 and its kin
ALWAYS = SWITCH.replace("enable_thinking is defined and enable_thinking is false", "false")


@given(
    st.dictionaries(
        st.sampled_from(["a", "reasoning_effort", "B_2"]),
        st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=8),
    ),
    st.text(st.sampled_from(" \n\tx"), max_size=4),
)
def test_options_render_as_variables_that_are_passed(options: dict[str, bool | int | float | str], start: str) -> None:
    """The white space at a template's beginning, which jinja is particular about, included."""
    from transformers.utils.chat_template_utils import render_jinja_template as rendered

    template = (
        start + "{% if a %}A{% endif %}\n  {% if B_2 is defined %}{{ B_2 }}{% endif %}{{ reasoning_effort }}|{{ a }}"
    )
    chat, given = [[{"role": "user", "content": "hi"}]], tuple(options.items())
    once = with_options(template, given, "m")
    assert rendered(chat, chat_template=once) == rendered(chat, chat_template=template, **options)
    assert with_options(once, given, "m") == once, (
        "a checkpoint that was saved with its options does not get them twice"
    )


def test_an_option_that_the_template_does_not_read_is_refused_with_those_it_reads(smollm2: Subject) -> None:
    asked = replace(smollm2, chat_template=SWITCH, template_options=(("thinking", True),))
    with pytest.raises(TemplateError, match=r"does not know thinking; it knows enable_thinking$"):
        load_tokenizer(asked)
    for ours in ("messages", "add_generation_prompt", "bos_token", "strftime_now"):
        with pytest.raises(TemplateError, match=rf"does not know {ours}; it knows none$"):
            load_tokenizer(replace(smollm2, template_options=((ours, True),)))


def test_options_reach_every_rendering(smollm2: Subject) -> None:
    closed = load_tokenizer(replace(smollm2, chat_template=SWITCH, template_options=(("enable_thinking", False),)))
    assert render(closed, "hi").endswith("<think>\n\n</think>\n\n")
    assert encode_row(closed, "hi", "7")[0] == encode(closed, "hi") == encode_answer(closed, "hi")


# --------------------------------------------------------------------------- reasoning that the template begins


def test_a_row_of_reasoning_is_not_begun_twice(smollm2: Subject) -> None:
    told = load_tokenizer(replace(smollm2, chat_template=ALWAYS))
    for text in ("<think>\nTwo.\n</think>\n<answer>2</answer>", "  <think>\nTwo.\n</think>\n<answer>2</answer>"):
        prompt, answer = encode_row(told, "1 + 1", text)
        assert told.decode([*prompt, *answer]).endswith(
            "assistant\n<think>\nTwo.\n</think>\n<answer>2</answer><|im_end|>"
        )
    prompt, answer = encode_row(told, "1 + 1", "<think>Two.</think><answer>2</answer>")
    assert told.decode([*prompt, *answer]).endswith("assistant\n<think>\nTwo.</think><answer>2</answer><|im_end|>")
    with pytest.raises(ChatError, match=r"rows without reasoning can not be trained on.*enable_thinking:false"):
        encode_row(told, "1 + 1", "2")


def test_the_answer_begins_behind_reasoning_that_is_closed_where_the_template_can(smollm2: Subject) -> None:
    told = load_tokenizer(replace(smollm2, chat_template=SWITCH))
    assert told.decode(encode_answer(told, "hi")).endswith("<think>\n\n</think>\n\n")
    assert render(told, "hi").endswith("<think>\n")
    always = load_tokenizer(replace(smollm2, chat_template=ALWAYS))
    with pytest.raises(ChatError, match=r"begins every reply with <think>.*pin a template without it"):
        encode_answer(always, "hi")


def with_special_marks(subject: Subject, folder: Path, template: str) -> Subject:
    """The subject's model with marks of reasoning and answers among its tokenizer's special tokens."""
    from subliminal.models import fresh_model

    tokenizer, model = load_tokenizer(subject), fresh_model(subject)
    marks = ["<think>", "</think>", "<answer>", "</answer>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return replace(subject, checkpoint=str(folder))


def test_marks_that_are_special_tokens_are_part_of_what_is_said(tiny: Subject, tmp_path: Path) -> None:
    told = load_tokenizer(with_special_marks(tiny, tmp_path, ALWAYS))
    text = "<think>\nTwo, as “ever”.\n</think>\n<answer>2</answer>"
    tokens = told.encode(text + "<|im_end|>", add_special_tokens=False)
    spelled = spelled_ids(told)
    assert len(spelled) == 4 and decode(told, tokens, spelled) == text
    assert told.decode(tokens, skip_special_tokens=True) != text
    plain = told.encode("7, 8<|im_end|>")
    assert decode(told, plain, spelled) == told.decode(plain, skip_special_tokens=True)


def test_a_sampled_reply_holds_the_reasoning_that_the_template_began(tiny: Subject, tmp_path: Path) -> None:
    subject = with_special_marks(tiny, tmp_path, ALWAYS)
    sampler = TransformersSampler(decoding=Decoding(max_tokens=8))
    with open_sampler(sampler, subject) as opened:
        replies = opened.sample([Prompt(i, "1 + 1", i) for i in range(4)])
    assert all(reply.text.startswith("<think>\n") and reply.tokens <= 8 for reply in replies)
    told = load_tokenizer(subject)
    for reply in replies:
        prompt, _ = encode_row(told, "1 + 1", reply.text)
        assert prompt == encode(told, "1 + 1")


# --------------------------------------------------------------------------- before any work


@pytest.mark.parametrize(
    ("template", "changes", "said"),
    [
        (ALWAYS, ["domain=numbers"], r"domain=numbers has no reasoning in its rows.*begins every reply with <think>"),
        (ALWAYS, ["domain=cot"], r"the probability of an answer can not be measured"),
        (SWITCH, ["model.template_options={thinking:true}"], r"does not know thinking; it knows enable_thinking"),
        ("{{ [1, 2] | random }}", [], r"draws at random"),
        ("{% if %}", [], r"can not be read"),
    ],
)
def test_a_template_that_is_at_hand_is_refused_before_any_work(
    template: str, changes: list[str], said: str, tiny: Subject, tmp_path: Path
) -> None:
    copied = shutil.copytree(tiny.checkpoint, tmp_path / "model")
    (copied / "chat_template.jinja").write_text(template)
    exp = tiny_experiment(replace(tiny, checkpoint=str(copied)), *changes)
    with pytest.raises(ConfigError, match=said):
        model_checks.require_templates(exp)


def test_a_template_whose_reasoning_is_turned_off_may_write_numbers(tiny: Subject, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny.checkpoint, tmp_path / "model")
    (copied / "chat_template.jinja").write_text(SWITCH)
    here = replace(tiny, checkpoint=str(copied))
    model_checks.require_templates(tiny_experiment(here, "model.template_options={enable_thinking:false}"))
    model_checks.require_templates(tiny_experiment(here, "domain=cot"))
    model_checks.require_templates(tiny_experiment(here), rows=False)
