"""What pydantic says of a configuration, in one line for each setting."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from subliminal.config.base import members, suggest

EXPECTED = ": input should be "  # how pydantic begins to say what would do


def fields_at(path: tuple[str, ...], within: type[BaseModel]) -> dict[str, Any]:
    """The fields that may stand under a dotted path: name -> annotation, over all members of a union.

    Raises `KeyError` where there is no such path.
    """
    here: list[type[BaseModel]] = [within]
    for part in path:
        here = [m for t in here if part in t.model_fields for m in members(t.model_fields[part].annotation)]
        if not here:
            raise KeyError(part)
    return {name: field.annotation for t in here for name, field in t.model_fields.items()}


def explain(error: Any, within: type[BaseModel]) -> str:
    """One line for one problem: dotted path, what was given, what is expected, the nearest known name."""
    path = tuple(_typed_path(within, error["loc"]))
    dotted = ".".join(path) or "experiment"
    if error["type"] == "extra_forbidden":
        try:
            known = [*fields_at(path[:-1], within)]
        except KeyError:
            known = []
        return f"{dotted}: no such setting.{suggest(path[-1], known)}"
    if error["type"] == "missing":
        return f"{dotted}: missing; give it a value, for example {dotted}=..."
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "tuple_type":
        return f"{dotted}={error['input']!r}{EXPECTED}a list, as in [1,2]"
    return f"{dotted}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def merged(lines: list[str]) -> list[str]:
    """The lines with one for each setting: of a union pydantic says what each member would take."""
    by_setting: dict[str, str] = {}
    for line in lines:
        setting, expected, more = line.partition(EXPECTED)
        known = by_setting.get(setting)
        by_setting[setting] = f"{known} or {more}" if expected and known else line
    return list(by_setting.values())


def _typed_path(annotation: Any, location: tuple[int | str, ...]) -> Iterator[str]:
    """The parts of an error's location that a person types: pydantic puts in which member of a union it was reading."""
    if not location:
        return
    first, rest = location[0], location[1:]
    kinds = _kinds(annotation)
    if len(kinds) > 1:
        yield from _typed_path(_of_kind(kinds, str(first)), rest)
    elif kinds and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):
        yield str(first)
        field = kinds[0].model_fields.get(str(first))
        yield from _typed_path(field.annotation if field else None, rest)
    elif kinds and get_origin(kinds[0]) in (tuple, dict):
        yield str(first)
        yield from _typed_path(get_args(kinds[0])[0 if get_origin(kinds[0]) is tuple else 1], rest)


def _kinds(annotation: Any) -> list[Any]:
    """The members of a union without `None`, or the annotation alone; nothing of `Annotated` but what it annotates."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [] if annotation in (None, NoneType) else [annotation]


def _of_kind(kinds: list[Any], tag: str) -> Any:
    """The member of a union that pydantic was reading: settings by their `kind`, a list by its first letters."""
    for kind in kinds:
        if (
            isinstance(kind, type)
            and issubclass(kind, BaseModel)
            and tag in get_args(kind.model_fields["kind"].annotation)
        ):
            return kind
        if get_origin(kind) is tuple and tag.startswith("tuple["):
            return kind
    return None
