"""What all groups of settings share: how a field is marked, plain types, errors, and what of them enters a key."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")
Identity = Annotated[T, "identity"]
Runtime = Annotated[T, "runtime"]
Added = Annotated[T, "identity", "added"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1e36)]  # a learning rate; optimisers compute with ten times as much in float32
One = Annotated[float, Field(ge=1, le=1)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]  # dotted, of a user's Python module
Options = dict[str, bool | int | float | str]  # plain values that a user's module reads


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ConfigError(Exception):
    """A configuration that can not run; the text lists every problem with its dotted path."""


def require(condition: bool, message: str) -> None:
    """Raise `ValueError`, which pydantic reports with the other problems of a configuration, unless it holds."""
    if not condition:
        raise ValueError(message)


def identity(settings: BaseModel) -> dict[str, Any]:
    """Every setting that can change a result, resolved and plain, nested like the settings.

    Runtime ones are left out, and added ones at their default.
    """
    fields = {name: field for name, field in type(settings).model_fields.items() if "identity" in field.metadata}
    values = {name: getattr(settings, name) for name in fields}
    kept = [name for name, field in fields.items() if "added" not in field.metadata or values[name] != field.default]
    return {name: _plain(values[name]) for name in kept}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def members(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes inside an annotation: itself, or the members of a union, without `Annotated` and `None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in members(part)]


def suggest(name: str, known: list[str]) -> str:
    """The sentence that helps after a wrong name: the nearest known one, or all of them when they are few."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Known: {', '.join(sorted(known))}." if 0 < len(known) <= 12 else ""
