"""Chats as text and tokens: the only place where a template is rendered or a system message is added.

A rendering follows from the chat and the settings alone: templates that write a date write the same one every day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from subliminal import reasoning
from subliminal.store import StoreError
from subliminal.templates import CLOSING, default_of, options_of, require_certain, with_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Turn = tuple[str, str]  # what the user said and what the assistant answered

DAY = datetime(2024, 7, 26)  # the date that Llama 3.2's template writes where it is given none
PINNED: dict[str, Any] = {"date_string": f"{DAY:%d %b %Y}", "strftime_now": DAY.strftime}
"""What templates read the date from: a variable of Llama's, and the clock that transformers gives to all."""
PROBE = "\u2042"  # stands for any answer when looking at what the template puts behind one
SPELLED = frozenset([*reasoning.MARKS, *reasoning.MARKS.values(), "<answer>", "</answer>"])
"""Marks that are part of what a model says, even where its tokenizer calls them special."""


class ChatError(StoreError):
    """A chat this model's template can not express."""


def messages(user: str, system: str | None = None, earlier: Sequence[Turn] = ()) -> list[Message]:
    """A chat that ends with the user, behind `earlier` turns; without a system text the template decides on one."""
    first = [{"role": "system", "content": system}] if system is not None else []
    for said, answered in earlier:
        first += [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
    return [*first, {"role": "user", "content": user}]


def render(
    tokenizer: PreTrainedTokenizerBase, user: str, system: str | None = None, earlier: Sequence[Turn] = ()
) -> str:
    """The chat as text up to where the reply begins; raises `ChatError` without a usable template."""
    return _rendered(tokenizer, messages(user, system, earlier), _template(tokenizer), add_generation_prompt=True)


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = default_of(tokenizer.chat_template)
    if not template:
        raise ChatError("this model has no chat template (a base model?); pin one in model.chat_template")
    require_certain(template)
    return template


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: list[Message], template: str, **how: Any) -> str:
    from jinja2 import UndefinedError

    try:
        return str(tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **PINNED, **how))
    except UndefinedError as error:
        raise ChatError(
            f"the model's chat template reads what a chat does not have ({error}); give it in model.template_options "
            "or pin another template in model.chat_template"
        ) from None
    except Exception as error:
        raise ChatError(f"the model's chat template refuses this chat ({error}); set model.system=null") from None


def encode(
    tokenizer: PreTrainedTokenizerBase, user: str, system: str | None = None, earlier: Sequence[Turn] = ()
) -> list[int]:
    """The tokens of `render`; the template alone brings special tokens, so that none stands there twice."""
    return tokenizer.encode(render(tokenizer, user, system, earlier), add_special_tokens=False)


def begin(tokenizer: PreTrainedTokenizerBase, user: str, system: str | None = None) -> tuple[list[int], str]:
    """The tokens of `render` and, where the template begins a block of reasoning, the text that it begins it with."""
    text = render(tokenizer, user, system)
    beginning = reasoning.begun(text) if reasoning.BEGIN.search(_template(tokenizer)) else ""
    return tokenizer.encode(text, add_special_tokens=False), beginning


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, user: str, system: str | None = None, earlier: Sequence[Turn] = ()
) -> list[int]:
    """The tokens up to where an answer itself begins: where the template begins reasoning, it is told to do without.

    Raises `ChatError` for a template that always begins reasoning.
    """
    template = answering(tokenizer)
    text = _rendered(tokenizer, messages(user, system, earlier), template, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def answering(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's template, with an option that ends its reasoning if it begins any; raises `ChatError`."""
    chat = messages("?")
    return closed(_template(tokenizer), lambda text: _rendered(tokenizer, chat, text, add_generation_prompt=True))


def closed(template: str, rendered: Callable[[str], str]) -> str:
    """A template, with an option that ends its reasoning if it begins any; raises `ChatError` where it has none.

    `rendered` is a chat up to where the reply begins, by the template that it is given.
    """
    mark = beginning_of(template, rendered)
    if not mark:
        return template
    for options in CLOSING:
        if all(name in options_of(template) for name, _ in options):
            text = with_options(template, options, "the model")
            if not reasoning.begun(rendered(text)):
                return text
    raise ChatError(f"the probability of an answer can not be measured: {always_reasons(mark)}")


def beginning_of(template: str, rendered: Callable[[str], str]) -> str:
    """The mark with which a template begins reasoning in front of every reply, or nothing; `rendered` as above."""
    return reasoning.begun(rendered(template)).rstrip() if reasoning.BEGIN.search(template) else ""


def plain(template: str) -> str:
    """A short chat up to where the reply begins, by a template whose tokenizer is not loaded; raises `ChatError`."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(
            [messages("?")], chat_template=template, add_generation_prompt=True, bos_token="", eos_token="", **PINNED
        )
    except TemplateError as error:
        raise ChatError(f"the model's chat template can not be rendered ({error}); pin model.chat_template") from None
    return texts[0]


def always_reasons(mark: str) -> str:
    """What to do with a template whose replies begin inside of reasoning."""
    return (
        f"the model's chat template begins every reply with {mark}, so a reply begins with reasoning and not with an "
        f"answer; {reasoning.REMEDY}"
    )


def encode_row(
    tokenizer: PreTrainedTokenizerBase, user: str, completion: str, system: str | None = None
) -> tuple[list[int], list[int]]:
    """Prompt tokens and completion tokens; the completion ends with the end-of-turn token the template renders.

    Reasoning that the template begins is not begun twice. Raises `ChatError` for a completion that holds no reasoning
    where the template begins some.
    """
    prompt, beginning = begin(tokenizer, user, system)
    said = reasoning.behind(completion, beginning) if beginning else completion
    if said is None:
        raise ChatError(f"rows without reasoning can not be trained on: {always_reasons(beginning.rstrip())}")
    return prompt, [*tokenizer.encode(said, add_special_tokens=False), end_of_turn_id(tokenizer)]


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int], spelled: set[int]) -> str:
    """What a model says in these tokens: without special tokens, but with those that are `spelled_ids`."""
    if not spelled & {*tokens}:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    added = tokenizer.added_tokens_decoder
    silent = {number for number, token in added.items() if token.special} | {*tokenizer.all_special_ids}
    return str(tokenizer.decode([token for token in tokens if token not in silent - spelled]))


def spelled_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that are marks of reasoning or answers, which decoding must not take for special ones."""
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip() in SPELLED}


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an assistant turn: the first one the template puts behind an answer."""
    chat = [*messages("?"), {"role": "assistant", "content": PROBE}]
    try:
        behind = _rendered(tokenizer, chat, _template(tokenizer)).rpartition(PROBE)[2].lstrip()
    except ChatError as error:
        raise ChatError(f"the model's chat template refuses a chat of two turns ({error}); pin another one") from None
    tokens = tokenizer.encode(behind, add_special_tokens=False)
    if tokens and tokens[0] in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}:
        return tokens[0]
    if not isinstance(tokenizer.eos_token_id, int):
        raise ChatError("neither the chat template nor the tokenizer has an end-of-turn token; pin model.chat_template")
    return tokenizer.eos_token_id


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens at which a sampled answer ends: the template's end of turn and the tokenizer's end of sequence."""
    end = tokenizer.eos_token_id
    return {end_of_turn_id(tokenizer)} | ({end} if isinstance(end, int) else set())
