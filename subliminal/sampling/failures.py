"""What a failure behind an endpoint means: the endpoint's own words and the setting to change, in one line."""

from __future__ import annotations

import json
import re
from typing import Any

from subliminal.addresses import lacks_version
from subliminal.config import Endpoint
from subliminal.sampling.replies import ReplyError, is_filtered, words
from subliminal.store import SECRET_LENGTH

NO_SUCH_MODEL = ("model_not_found", "deploymentnotfound")
MODEL = re.compile(r"\b(models?|deployment)\b", re.IGNORECASE)
HOW_JUDGED = ("logprobs", "top_logprobs", "response_format", "structured_outputs", "prompt_logprobs")


def explain(error: BaseException, config: Endpoint, requests: int = 1, key: str = "") -> str:
    """An error with its remedy and without the key. `requests`: how many had no answer."""
    text = _explained(error, config, requests, key)
    return text.replace(key, "***") if key else text


def _explained(error: BaseException, config: Endpoint, requests: int, key: str) -> str:
    import openai

    place, group = config.base_url, config.group
    match error:
        case ReplyError():
            return f"{place} gave no answer ({_times(requests)}): {error}"
        case openai.APIStatusError():
            return f"{place} {_status(error, without_key(error.response.content, key), config)}"
        case openai.APIConnectionError():
            cause = error.__cause__
            said = f"{error} {type(cause).__name__}: {cause}" if cause else str(error)
            return (
                f"{place} can not be reached ({config.retries} retries): {' '.join(said.split())[:300]}. Check "
                f"{group}.base_url and the network"
            )
        case _:
            return f"{place} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def without_key(content: bytes, key: str) -> bytes:
    """A body without the key, before anything of it is shortened or kept; what is too short to be a key stays."""
    return content.replace(key.encode(), b"***") if len(key) >= SECRET_LENGTH else content


def _status(error: Any, content: bytes, config: Endpoint) -> str:
    """What to do about an HTTP status that is an error."""
    said, group = words(content), config.group
    match error.status_code:
        case 401 | 403:
            return f"refuses the key in {config.key_env} (HTTP {error.status_code}): {said}"
        case 402:
            return f"asks for payment: {said}"
        case 404 | 405 if not _is_about_a_model(error, said, config):
            lacks = f" The address may lack /v1: set {group}.base_url to one that ends with it."
            return (
                f"answers chat/completions with HTTP {error.status_code}: {said}."
                f"{lacks if lacks_version(config.base_url) else f' Check {group}.base_url'}"
            )
        case 404:
            return f"does not know model {config.model!r}: {said}. Set {group}.model"
        case 429 if "quota" in said.casefold():
            return f"has no quota left: {said}"
        case 429:
            return f"still limits the rate ({config.retries} retries): {said}. Lower {group}.requests_per_minute"
        case status if 400 <= status < 500 and status not in (408, 409):
            return f"refuses the request (HTTP {status}): {said}{_remedy_for_a_field(error, said, config)}"
        case status:
            return f"failed after {config.retries} retries: HTTP {status}: {said}"


def _is_about_a_model(error: Any, said: str, config: Endpoint) -> bool:
    """Does a 404 say that there is no such model, and not that there is no such page."""
    if "url" in said.casefold().split():  # OpenAI's "Invalid URL (POST /chat/completions)"
        return False
    known = str(getattr(error, "code", "")).casefold() in NO_SUCH_MODEL or getattr(error, "param", None) == "model"
    return known or config.model in said or bool(MODEL.search(said) and not said.lstrip().startswith("<"))


def _remedy_for_a_field(error: Any, said: str, config: Endpoint) -> str:
    """The setting for the field of the request that an endpoint refuses; "" where it names none."""
    ours = {config.rename.get(name, name): name for name in config.request_fields if name not in config.omit}
    sent = [*HOW_JUDGED, *config.extra, *ours]
    named = [name for name in sent if name == getattr(error, "param", None)]
    named += [name for name in sent if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)]
    return f". {_setting(named[0], ours, said, config)}" if named else ""


def _setting(field: str, ours: dict[str, str], said: str, config: Endpoint) -> str:
    group = config.group
    if field in config.extra:
        return f"Take {field} out of {group}.extra"
    if field in ("logprobs", "top_logprobs"):
        return f"Set {group}.top_logprobs=0, or lower it"
    if field in HOW_JUDGED:
        return f"Set another {group}.restrict"
    own = ours[field]
    if own == "max_tokens" and field == own and "max_completion_tokens" in said:
        return f"Set {group}.rename={{max_tokens:max_completion_tokens}}"
    leave_out = f"Leave {field} out with {group}.omit=[{own}]"
    return f"{leave_out}, or set {group}.decoding.{own}" if own in ("max_tokens", "temperature") else leave_out


def is_filter(error: Any) -> bool:
    """Is an HTTP error a filter's decision about the prompt: an answer of a kind, and no failure."""
    try:
        return is_filtered(json.loads(error.response.content))
    except (ValueError, RecursionError):
        return False


def _times(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"
