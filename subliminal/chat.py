"""Chats as text and tokens: the only place where a template is rendered or a system message is added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subliminal.store import StoreError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Turn = tuple[str, str]  # what the user said and what the assistant answered

# Llama 3.2's template writes the day on which it is rendered into the system text, unless it is told one: its default.
DATE: dict[str, Any] = {"date_string": "26 Jul 2024"}
PROBE = "\u2042"  # stands for any answer when looking at what the template puts behind one


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
    """The chat as text up to where the answer begins; raises `ChatError` without a usable template."""
    if not tokenizer.chat_template:
        raise ChatError("this model has no chat template (a base model?); pin one in model.chat_template")
    try:
        chat = messages(user, system, earlier)
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **DATE)
    except Exception as error:
        raise ChatError(f"the model's chat template refuses this chat ({error}); set model.system=null") from None
    return str(text)


def encode(
    tokenizer: PreTrainedTokenizerBase, user: str, system: str | None = None, earlier: Sequence[Turn] = ()
) -> list[int]:
    """The tokens of `render`; the template alone brings special tokens, so that none stands there twice."""
    return tokenizer.encode(render(tokenizer, user, system, earlier), add_special_tokens=False)


def encode_row(
    tokenizer: PreTrainedTokenizerBase, user: str, completion: str, system: str | None = None
) -> tuple[list[int], list[int]]:
    """Prompt tokens and completion tokens; the completion ends with the end-of-turn token the template renders."""
    completed = tokenizer.encode(completion, add_special_tokens=False)
    return encode(tokenizer, user, system), [*completed, end_of_turn_id(tokenizer)]


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an assistant turn: the first one the template puts behind an answer."""
    chat = [*messages("?"), {"role": "assistant", "content": PROBE}]
    try:
        behind = str(tokenizer.apply_chat_template(chat, tokenize=False, **DATE)).rpartition(PROBE)[2].lstrip()
    except Exception as error:
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
