"""A user's chats as rows: one question and one answer each, in the formats people have them in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from subliminal.rows import Row
from subliminal.store import Json
from subliminal.user_files import UserFileError, keys_of, kind_of, records

EXPECTED = (
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, '
    '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]} '
    'or {"prompt": "...", "completion": "..."}'
)
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
TEXT_PARTS = ("text", "input_text", "output_text")
SHOWN = 40  # characters of a text in a message

Turn = tuple[str, str]
"""Role (user, assistant, system) and text."""


def read_chats(path: Path, limit: int | None = None) -> list[Row]:
    """The first `limit` chats of a file as rows (None: all), whatever stands beside them in their records.

    Formats: `messages` (arXiv 2502.17424), `conversations` (ShareGPT), `prompt` and `completion` as texts or as lists
    of messages (TRL). Raises `UserFileError` naming file and line.
    """
    chats = islice(records(path, EXPECTED), limit)
    rows = [Row(index, *_exchange(value, place)) for index, (place, value) in enumerate(chats)]
    if not rows:
        raise UserFileError(f"{path} holds no chat; expected {EXPECTED}")
    return rows


def _exchange(value: Json, place: str) -> tuple[str, str]:
    """The question and the answer of a record that holds just these."""
    turns = list(_turns(value, place))
    for role, text in turns:
        if role == "system":
            _refuse_system(text, place)
    roles = [role for role, _ in turns]
    if roles != ["user", "assistant"]:
        raise UserFileError(f"{place}: {_wrong_order(roles)}")
    for name, (_, text) in zip(("question", "answer"), turns, strict=True):
        if not text.strip():
            holds = "holds white space alone" if text else "is empty"
            raise UserFileError(f"{place}: the {name} {holds}; fill it in or remove the chat")
    return turns[0][1], turns[1][1]


def _turns(value: Json, place: str) -> Iterator[Turn]:
    if value.get("system"):
        _refuse_system(value["system"], place)
    for key in ("messages", "conversations"):
        if value.get(key) is not None:
            yield from _listed(value[key], key, place)
            return
    if any(value.get(key) is None for key in ("prompt", "completion")):
        nulls = [key for key in ("messages", "conversations", "prompt", "completion") if value.get(key, "") is None]
        _refuse(place, f"no chat; {keys_of(value)}" + (f" ({', '.join(nulls)}: null)" if nulls else ""))
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(value[key], str):
            yield role, value[key]
        else:
            yield from _listed(value[key], key, place)


def _listed(turns: Any, key: str, place: str) -> Iterator[Turn]:
    if not isinstance(turns, list):
        wanted = "a list of turns" if key in {"messages", "conversations"} else "a text or a list of turns"
        _refuse(place, f"{key} is {kind_of(turns)}, not {wanted}")
    if not turns:
        _refuse(place, f"{key} is an empty list")
    for number, turn in enumerate(turns, 1):
        yield _turn(turn, f"turn {number} of {key}", place)


def _turn(turn: Any, name: str, place: str) -> Turn:
    if not isinstance(turn, dict):
        _refuse(place, f"{name} is {kind_of(turn)}, not an object with role and content")
    given = _first(turn, ("role", "from"), name, place)
    if not isinstance(given, str):
        _refuse(place, f"the role of {name} is {kind_of(given)}, not a text")
    role = ROLES.get(given)
    if role is None:
        _refuse(place, f"{name} has the role {given[:SHOWN]!r}; known are {', '.join(ROLES)}")
    return role, _text(_first(turn, ("content", "value"), name, place), name, place)


def _first(turn: Json, keys: tuple[str, str], name: str, place: str) -> Any:
    found = [key for key in keys if key in turn]
    if not found:
        _refuse(place, f"{name} has no {' (or '.join(keys)}); {keys_of(turn)}")
    return turn[found[0]]


def _text(content: Any, name: str, place: str) -> str:
    """The text of a turn: as it is, or the parts of a list put together."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        _refuse(place, f"the content of {name} is {kind_of(content)}, not a text or a list of text parts")
    return "".join(_part(part, f"part {number} of {name}", place) for number, part in enumerate(content, 1))


def _part(part: Any, name: str, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        _refuse(place, f"{name} is {kind_of(part)}, not a text part")
    if part.get("type", "text") not in TEXT_PARTS:
        raise UserFileError(f"{place}: {name} is of type {part['type']!r}; only text can be trained on")
    if not isinstance(part.get("text"), str):
        _refuse(place, f"{name} has no text; {keys_of(part)}")
    return part["text"]


def _wrong_order(roles: list[str]) -> str:
    listed = ", ".join(roles)
    if len(roles) > 2:
        return (
            f"{len(roles)} turns ({listed}): only one question with its answer can be trained on. Make a chat of each "
            "exchange, or keep the first"
        )
    if len(roles) == 1:
        return f"the only turn is the {roles[0]}'s: {'the answer' if roles == ['user'] else 'the question'} is missing"
    return f"the turns are {listed}; the user's question comes first, then the assistant's answer"


def _refuse_system(text: Any, place: str) -> NoReturn:
    shown = repr(text[:SHOWN]) if isinstance(text, str) else kind_of(text)
    raise UserFileError(
        f"{place}: a system text ({shown}), which would not be trained on. Remove it, or put it into the user's turn "
        "before the question"
    )


def _refuse(place: str, problem: str) -> NoReturn:
    """Refuse a record that is no chat of a known format."""
    raise UserFileError(f"{place}: {problem}; expected {EXPECTED}")
