"""Strict reading of a chat-completions reply: an answer that is really in the body, or a `ReplyError`.

The `openai` client takes any JSON for a completion. Here every node that is used is checked first, so that a sampler
and a judge never keep an answer that nobody gave.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from subliminal.sampling.finish import BROKEN, CUT, FILTERED, REASONING, TOOLS, by_count, meaning
from subliminal.store import Json
from subliminal.user_files import well_formed

MOST_TOKENS = 10_000_000  # of one reply; no model's context is that long, so a larger count is no count
SHOWN = 300  # characters of an endpoint's own words in a message
SUM_TOLERANCE = 0.01  # of probabilities at one place, which are rounded
LOG_TOLERANCE = 1e-3  # nats above 0 that rounding explains
LOWEST = -1e5  # nats; servers write -9999 for what can hardly come
FILTER_CODES = {"content_filter", "content_policy_violation"}  # of an error that is a filter's decision (Azure, OpenAI)
WORTH_RETRYING = {408, 409, 425, 429}  # the 4xx that may pass
REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
REASONING_PARTS = {"thinking", "reasoning", "reasoning_text", "redacted_thinking"}


class ReplyError(Exception):
    """A reply that holds no answer; the text has the endpoint's own words.

    `retries` is how often asking again makes sense: None for as often as the settings allow. `instead` is what holds
    when it did not help.
    """

    def __init__(self, text: str, retries: int | None = None, instead: Any = None) -> None:
        super().__init__(text)
        self.retries, self.instead = retries, instead


@dataclass(frozen=True)
class Reply:
    """An answer: its text, why it ended, how many tokens the endpoint counts (None: it does not say).

    `reasoned`: there is reasoning beside the text, which is no part of the answer.
    """

    text: str
    finish_reason: str
    tokens: int | None = None
    reasoned: bool = False


@dataclass(frozen=True)
class Usage:
    """The tokens that a reply is paid by."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Token:
    """One token of a reply: its text, its log-probability in nats and those of the likeliest tokens at its place."""

    text: str
    log_p: float
    others: dict[str, float]


def parsed(content: bytes) -> Json:
    """The body of a reply as a JSON object; raises `ReplyError` where it is none, or an error in place of a completion.

    A filter's decision that comes as an error passes: it is an answer to `reply_of`.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise ReplyError(f"it sent no JSON: {words(content)}") from None
    if not isinstance(body, dict):
        raise ReplyError(f"it sent no completion: {words(body)}")
    if body.get("error") and not is_filtered(body):
        raise ReplyError(f"it sent an error in place of a completion: {words(body)}", _retries_after(body))
    return body


def reply_of(body: Json, limit: int | None) -> Reply:
    """The answer in a parsed body; raises `ReplyError` where there is none. `limit` is the request's, in tokens.

    An answer is text, or the fact that there is none: a filter or the model refused (`content_filter`), the model
    called a tool (`tool_calls`), it reached the limit while reasoning (`length`), it wrote nothing but reasoning
    (`reasoning`), or it said nothing (an empty text that ended with `stop`). Where the endpoint gives no reason for the
    end of a text, the number of tokens tells: fewer than the limit is finished.
    """
    if is_filtered(body):
        return Reply("", FILTERED, 0)
    choice = _choice(body)
    reason, message = meaning(choice.get("finish_reason")), _message(choice)
    text, refusal, reasoned = _content(message, body)
    tokens = _count(_object(body.get("usage")).get("completion_tokens"))
    if refusal or reason == FILTERED:
        return Reply(text or refusal, FILTERED, tokens)
    if message is None:
        raise ReplyError(f"it sent a choice without a message: {words(choice)}")
    if text:
        return Reply(text, reason or by_count(tokens, limit), tokens, reasoned)
    return Reply("", _end_without_text(choice, reason, text, reasoned, by_count(tokens, limit)), tokens, reasoned)


def _end_without_text(choice: Json, reason: str | None, text: str | None, reasoned: bool, counted: str) -> str:
    """Why there is no text, where the body says so; an empty text is one only where the end was said."""
    if reason in {TOOLS, CUT}:
        return str(reason)
    if text is not None and reason is not None:
        return reason
    if _object(choice.get("message")).get("tool_calls"):
        return TOOLS
    if reasoned:
        return CUT if reason is None and counted == CUT else REASONING
    raise ReplyError(f"it sent a message without text: {words(choice)}")


def _choice(body: Json) -> Json:
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise ReplyError(f"it sent no completion: {words(body)}", _retries_after(body))
    if choice.get("error"):
        raise ReplyError(f"it sent an error in place of an answer: {words(choice)}", _retries_after(choice))
    if meaning(choice.get("finish_reason")) == BROKEN:
        raise ReplyError(f"it broke off with finish_reason {choice['finish_reason']!r}: {words(choice)}")
    return choice


def _message(choice: Json) -> Json | None:
    message = choice.get("message")
    if message is not None and not isinstance(message, dict):
        raise ReplyError(f"it sent a choice without a message: {words(choice)}")
    return message


# --------------------------------------------------------------------------- content


def _content(message: Json | None, body: Json) -> tuple[str | None, str, bool]:
    """A message's text (None: it has none), its refusal ("" for none), and whether there is reasoning."""
    message = message or {}
    content, refusal = message.get("content"), message.get("refusal")
    reasoned = any(message.get(name) for name in REASONING_FIELDS) or _reasoning_tokens(body) > 0
    said = well_formed(refusal).strip() if isinstance(refusal, str) else ""
    if isinstance(content, str):
        return well_formed(content), said, reasoned
    if content is None or content == []:
        return None, said, reasoned
    if not isinstance(content, list):
        raise ReplyError(f"it sent a content that is no text: {words(message)}")
    parts = [_part(part) for part in content]
    text = [text for kind, text in parts if kind == "text"]
    said = said or "".join(text for kind, text in parts if kind == "refusal").strip()
    reasoned = reasoned or any(kind == "reasoning" for kind, _ in parts)
    return (well_formed("".join(text)) if text else None), well_formed(said), reasoned


def _part(part: Any) -> tuple[str, str]:
    """One part of a content: its kind (text, refusal, reasoning) and its text; raises `ReplyError` for any other."""
    if isinstance(part, str):
        return "text", part
    part = _object(part)
    kind, text, refusal = part.get("type", "text"), part.get("text"), part.get("refusal")
    if kind in ("text", "output_text") and isinstance(text, str):
        return "text", text
    if kind == "refusal" and isinstance(refusal, str):
        return "refusal", refusal
    if isinstance(kind, str) and kind in REASONING_PARTS:
        return "reasoning", ""
    named = isinstance(kind, str) and kind not in ("text", "output_text", "refusal")
    what = f"a part of type {kind!r}, which is no text" if named else "a part that is no text"
    raise ReplyError(f"it sent {what}: {words(part)}", 0 if named else None)


def _reasoning_tokens(body: Json) -> int:
    details = _object(_object(body.get("usage")).get("completion_tokens_details"))
    return _count(details.get("reasoning_tokens")) or 0


# --------------------------------------------------------------------------- tokens


def usage_of(body: Json) -> Usage | None:
    """What a reply is paid by; None where a count is missing or can not be true."""
    usage = _object(body.get("usage"))
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    return None if prompt is None or completion is None else Usage(prompt, completion)


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None


def tokens_of(body: Json) -> list[Token]:
    """The tokens of an answer with log-probabilities; none where the endpoint gives none.

    Raises `ReplyError` where they can not be log-probabilities: a token that is no text, a value that is no finite
    number or above 0, alternatives with probabilities that add up to more than 1.
    """
    given = _choice(body).get("logprobs")
    if given is None or (isinstance(given, dict) and given.get("content") is None):
        return []
    content = given.get("content") if isinstance(given, dict) else None
    if not isinstance(content, list):
        raise _malformed(given)
    return [_token(place, place) for place in content]


def _token(place: Any, given: Any) -> Token:
    text, log_p, others = (_object(place).get(name) for name in ("token", "logprob", "top_logprobs"))
    if not isinstance(text, str) or not isinstance(others, list | None):
        raise _malformed(given)
    return Token(text, _log_p(log_p, given), _alternatives(others or [], given))


def _alternatives(places: list[Any], given: Any) -> dict[str, float]:
    """Log-probabilities by text; two tokens of one text add up, and a token that can not come is none."""
    found: dict[str, float] = {}
    for place in places:
        text, log_p = (_object(place).get(name) for name in ("token", "logprob"))
        if not isinstance(text, str):
            raise _malformed(given)
        if log_p == -math.inf:
            continue
        value = _log_p(log_p, given)
        found[text] = added(found[text], value) if text in found else value
    if sum(map(math.exp, found.values())) > 1 + SUM_TOLERANCE:
        raise _malformed(given)
    return found


def prompt_tokens_of(body: Json) -> list[Token]:
    """The tokens of the prompt with the model's log-probability of each (vLLM's `prompt_logprobs`), if it gives them.

    Raises `ReplyError` where the body is no completion or the values can not be log-probabilities.
    """
    _choice(body)
    given = body.get("prompt_logprobs")
    if given is None:
        return []
    if not isinstance(given, list):
        raise _malformed(given)
    return [_prompt_token(place) for place in given if place is not None]


def _prompt_token(place: Any) -> Token:
    chosen = next(iter(_object(place).values()), None)
    text, log_p = (_object(chosen).get(name) for name in ("decoded_token", "logprob"))
    if not isinstance(text, str):
        raise _malformed(place)
    return Token(text, _log_p(log_p, place), {})


def added(first: float, second: float) -> float:
    """The log-probability of either of two events that exclude each other, at most 0."""
    high, low = max(first, second), min(first, second)
    return min(0.0, high + math.log1p(math.exp(low - high)))


def _log_p(value: Any, given: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not LOWEST < value <= LOG_TOLERANCE:
        raise _malformed(given)
    return min(0.0, float(value))


def _malformed(given: Any) -> ReplyError:
    return ReplyError(f"it sent log-probabilities that can not be any: {words(given)}")


# --------------------------------------------------------------------------- the endpoint's own words


def words(body: Any) -> str:
    """What an endpoint says in a body, in one short line: its error's message where it has one, else the body."""
    if isinstance(body, bytes):
        try:
            return words(json.loads(body))
        except (ValueError, RecursionError):
            return _line(body.decode("utf-8", "replace")) or "(nothing)"
    message = _message_in(body)
    if message:
        return _line(message)
    try:
        return _line(body if isinstance(body, str) else json.dumps(body, ensure_ascii=False))
    except RecursionError:
        return "(deeply nested JSON)"


def _message_in(body: Any) -> str:
    """The message of an error's object, by the names that servers give it; "" where there is none."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error")
    if isinstance(error, str):
        return error
    inner = error if isinstance(error, dict) and error else body
    readers: dict[str, Callable[[Any], str]] = {"message": _text, "detail": _detail, "msg": _text, "errors": _detail}
    message = next((read(inner[name]) for name, read in readers.items() if inner.get(name)), "")
    code = inner.get("code") if isinstance(inner.get("code"), str | int) else None
    plain = isinstance(code, str | int) and str(code).strip() and message and str(code) not in message
    return f"{message} (code {code})" if plain else message


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _detail(value: Any) -> str:
    """What FastAPI says is wrong with a request: a text, or a list of places with a message each."""
    if not isinstance(value, list):
        return _text(value)
    return "; ".join(filter(None, map(_place_and_message, value)))


def _place_and_message(item: Any) -> str:
    if not isinstance(item, dict):
        return _text(item)
    place = item.get("loc") if isinstance(item.get("loc"), list) else []
    said = _text(item.get("msg")) or _text(item.get("message"))
    return ": ".join(filter(None, [".".join(map(str, place or [])), said]))


def _line(text: str) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in well_formed(text[: 9 * SHOWN])).split())
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]} ..."


def _retries_after(body: Json) -> int | None:
    """How often to ask again after an error in a body: never where its code is that of a request that is refused."""
    error = _object(body.get("error")) or body
    for name in ("code", "status", "status_code"):
        code = str(error.get(name, ""))
        if re.fullmatch(r"4\d\d", code) and int(code) not in WORTH_RETRYING:
            return 0
    return None


def is_filtered(body: Any) -> bool:
    """Is the body an error that says that a filter refused the request."""
    code = _object(_object(body).get("error")).get("code")
    return isinstance(code, str) and code.casefold() in FILTER_CODES


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}
