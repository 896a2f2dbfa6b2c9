"""Addresses of endpoints: what makes one unusable or unsafe to write down, and its parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

ROUTE = "/chat/completions"  # what the client adds
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = {
    *("key", "keys", "token", "secret", "password", "passwd", "passphrase", "pass", "pwd", "pw", "pat", "auth", "jwt"),
    *("authorization", "authorisation", "bearer", "credential", "credentials", "sig", "signature", "sas", "code"),
    *("session", "sid", "cookie"),
}
_SECRET_ENDS = ("key", "token", "secret", "password", "passwd", "signature", "credential", "credentials")
_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(sk|gsk|xai|hf|ghp|nvapi|pplx)[-_](?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}"
    r"|AIza[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]{20,}"
)
_NO_SECRETS = {"prompt_cache_key"}  # fields of a request that only sound like one


def names_a_secret(name: str) -> bool:
    """Does a field's name say that its value is a credential: `api-key`, `accessToken`, `sig`, ..."""
    parts = [word.casefold() for word in _WORD.findall(name)]
    return name not in _NO_SECRETS and any(part in _SECRET_WORDS or part.endswith(_SECRET_ENDS) for part in parts)


def secrets_named(fields: Mapping[str, Any]) -> list[str]:
    """The names of credentials among a request's fields, in objects inside them too."""
    inside = [name for value in fields.values() if isinstance(value, Mapping) for name in secrets_named(value)]
    return [name for name in fields if names_a_secret(name)] + inside


def holds_a_secret(address: str) -> bool:
    """Does an address hold a credential: a user or password, a query's field that is one, or a value that is a key."""
    place, _, query = address.partition("?")
    authority, _, path = place.rpartition("//")[2].partition("/")
    fields = [name for name, _ in parse_qsl(query.replace(";", "&"), keep_blank_values=True)]
    secret_value = _SECRET_VALUE.search(path) or _SECRET_VALUE.search(unquote(query))
    return "@" in authority or "#" in address or any(map(names_a_secret, fields)) or bool(secret_value)


def is_usable(address: str) -> bool:
    """Is it `http(s)://host[:port][/path][?query]`."""
    parts = _split(address)
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in address


def is_whole_route(address: str) -> bool:
    """Does it go on to the route that the client adds itself."""
    parts = _split(address)
    return parts is not None and parts.path.rstrip("/").endswith(ROUTE)


def without_query(address: str) -> tuple[str, dict[str, str]]:
    """The address before its query, and the query's fields."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(query="")), dict(parse_qsl(parts.query, keep_blank_values=True))


def lacks_version(address: str) -> bool:
    """Is there no `/v1` or other version at the end of its path, where OpenAI-compatible servers have one."""
    return not re.search(r"/v\d+\w*/?$", urlsplit(address).path)


def _split(address: str) -> SplitResult | None:
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises where it is no port
    except ValueError:
        return None
    return parts
