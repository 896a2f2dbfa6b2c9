"""Why a reply ended: the words that providers use, in the few words that the rest of the program goes by."""

from __future__ import annotations

import re
from typing import Any

from subliminal.rows import FINISHED

CUT = "length"  # at max_tokens, or at the end of the model's context
FILTERED = "content_filter"  # refused by the model, or taken away by a filter of the provider's
TOOLS = "tool_calls"  # the model called a tool in place of answering
REASONING = "reasoning"  # our own word: the model finished and wrote nothing but its reasoning
UNKNOWN = "unknown"  # our own word: neither a reason nor a count of tokens tells whether it is finished
BROKEN = "error"  # generation broke off on the provider's side: what came is no answer

_WORDS = {
    FINISHED: (
        "stop stopped eos eos_token eos_id stop_sequence stop_sequences stop_token stop_tokens stop_word stop_words "
        "end ended end_turn end_of_turn end_of_text end_of_sequence end_of_message end_token endoftext eot eot_id eom "
        "im_end complete completed completion finish finished done success succeeded normal natural"
    ),
    CUT: (
        "length max_length model_length max_len max_token max_tokens max_output_tokens max_new_tokens "
        "max_completion_tokens max_tokens_reached max_context max_context_length token_limit token_limit_reached limit "
        "context_length context_length_exceeded context_window_exceeded model_context_window_exceeded error_limit "
        "time_limit incomplete truncated not_finished"
    ),
    FILTERED: (
        "content_filter content_filters content_filtered content_filtering content_policy content_policy_violation "
        "content_moderation moderation safety recitation blocklist blocked prohibited_content spii image_safety "
        "language filtered flagged guardrail guardrails guardrail_intervened refusal refused sensitive error_toxic"
    ),
    TOOLS: (
        "tool_calls tool_call tool_use tool function_call function_calls malformed_function_call unexpected_tool_call "
        "too_many_tool_calls"
    ),
    BROKEN: (
        "error failed failure abort aborted cancelled canceled user_cancel network_error server_error internal_error "
        "engine_error insufficient_system_resource overloaded timeout"
    ),
}
_MEANING = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
_UNSAID = {"", "null", "none", "nil", "unspecified", "unknown", "undefined"}
_PREFIX = re.compile(r"^(finish_|stop_)?reason_")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def meaning(said: Any) -> str | None:
    """What an endpoint's `finish_reason` means; its own word where that is in no table, None where it says nothing.

    Upper and lower case, hyphens and a detail after a colon ("content_filter: SAFETY") make no difference; of an object
    its `type` counts. What is no word says nothing.
    """
    if isinstance(said, dict):
        said = said.get("type")
    if not isinstance(said, str) or _plain(said) in _UNSAID:
        return None
    for word in (said, said.split(":")[0]):
        if _plain(word) in _MEANING:
            return _MEANING[_plain(word)]
    return said.strip()


def by_count(tokens: int | None, limit: int | None) -> str:
    """What the number of tokens tells of a reply whose end nobody explains: fewer than the limit is finished."""
    if not tokens or limit is None:
        return UNKNOWN
    return FINISHED if tokens < limit else CUT


def is_known(reason: str) -> bool:
    """Is it one of our words, and not one that an endpoint alone knows."""
    return reason in {*_WORDS, REASONING, UNKNOWN}


def _plain(word: str) -> str:
    """The word in lower case, its parts joined by underscores, without `FINISH_REASON_` before it."""
    parts = re.findall(r"[a-z0-9]+", _CAMEL.sub("_", word.strip()).casefold())
    return _PREFIX.sub("", "_".join(parts))
