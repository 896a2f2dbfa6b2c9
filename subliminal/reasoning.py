"""Reasoning that a model writes in front of its answer, between marks such as <think> and </think>: it is no answer."""

from __future__ import annotations

import re
from typing import Literal

MARKS = {
    "<think>": "</think>",  # DeepSeek-R1, Qwen3, SmolLM3
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<|thinking|>": "<|/thinking|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",  # OpenThinker, Sky-T1
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A Reasoning
    "[THINK]": "[/THINK]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi
}
"""What begins a block of reasoning and what ends it, in any case of their letters."""


REASONING: Literal["reasoning"] = "reasoning"  # why a completion is out of format, or an answer is none
REMEDY = (
    "set an option of the model's chat template that turns reasoning off, for example "
    "model.template_options={enable_thinking:false}, or pin a template without it in model.chat_template"
)


def _any(marks: list[str]) -> str:
    return "|".join(map(re.escape, marks))


BEGIN = re.compile(_any([*MARKS]), re.IGNORECASE)
END = re.compile(_any([*MARKS.values()]), re.IGNORECASE)
BLOCK = re.compile(
    "|".join(rf"{re.escape(begin)}.*?{re.escape(end)}" for begin, end in MARKS.items()), re.IGNORECASE | re.DOTALL
)
BEGUN = re.compile(rf"({_any([*MARKS])})\s*\Z", re.IGNORECASE)


def outside(text: str) -> str | None:
    """What a text says outside its reasoning, or None where the reasoning has no end; other texts as they are.

    An end without a beginning ends a block that the prompt has begun.
    """
    outside = END.split(BLOCK.sub("", text))[-1]
    return None if BEGIN.search(outside) else outside


def reasons(text: str) -> bool:
    """Does a text begin with reasoning: with the mark of its beginning, or with what an end mark closes."""
    begin, end = BEGIN.search(text), END.search(text)
    if begin and (end is None or begin.start() < end.start()):
        return not text[: begin.start()].strip()
    return end is not None


def begun(prompt: str) -> str:
    """The mark, with the white space behind it, at the end of a rendered prompt: it begins the reply's reasoning."""
    mark = BEGUN.search(prompt)
    return mark[0] if mark else ""


def behind(completion: str, beginning: str) -> str | None:
    """A completion without the `beginning` that its prompt ends with; None where it does not begin with that mark."""
    mark, text = beginning.rstrip(), completion.lstrip()
    if not text.lower().startswith(mark.lower()):
        return None
    rest = text[len(mark) :]
    blank = beginning[len(mark) :]
    shared = next(size for size in range(len(blank), -1, -1) if rest.startswith(blank[:size]))
    return rest[shared:]
