"""`debug=smoke`: the same experiment with upper limits on its sizes, so that its whole path runs in no time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def limited(composed: Mapping[str, Any]) -> dict[str, Any]:
    """The composed configuration without its group `debug`, whose limits are applied where a setting is there.

    A number is at most its limit, a list or a table keeps at most so many entries, null becomes the limit, a word is
    replaced.
    """
    plain = {key: value for key, value in composed.items() if key != "debug"}
    for dotted, limit in (composed.get("debug") or {}).items():
        plain = _with_limit(plain, str(dotted).split("."), limit)
    return plain


def _with_limit(settings: dict[str, Any], path: list[str], limit: Any) -> dict[str, Any]:
    """The settings with one limit applied; as they are where the path does not lead to a setting."""
    head, rest = path[0], path[1:]
    if head not in settings or (rest and not isinstance(settings[head], dict)):
        return settings
    found = settings[head]
    return settings | {head: _with_limit(found, rest, limit) if rest else _smaller(found, limit)}


def _smaller(value: Any, limit: Any) -> Any:
    if isinstance(value, list):
        return value[:limit]
    if isinstance(value, dict):
        return dict(list(value.items())[:limit])
    if isinstance(value, int | float) and isinstance(limit, int | float):
        return min(value, type(value)(limit))
    return limit
