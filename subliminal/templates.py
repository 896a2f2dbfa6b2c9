"""Chat templates as text: which variables one reads, its options set, and what would make it render otherwise tomorrow.

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from subliminal.store import StoreError

Option = bool | int | float | str
Options = tuple[tuple[str, Option], ...]

OPTIONS_END = "{# model.template_options #}\n"  # what stands in front of it was put there by `with_options`
OURS = ("messages", "add_generation_prompt", "continue_final_message", "tools", "documents")  # not the user's to set
PROVIDED = ("raise_exception", "strftime_now")  # functions that transformers gives to every template
CLOSING: tuple[Options, ...] = (
    (("enable_thinking", False),),
    (("thinking", False),),
    (("reasoning", False),),
    (("reasoning_effort", "none"),),
)
"""Options with which templates end a block of reasoning that they would begin."""


class TemplateError(StoreError):
    """A chat template that can not be used, or an option that it does not know; the text says what to set."""


class _Generation(Extension):
    """The tag with which templates mark what the assistant says; to read them it means nothing."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own type

    def parse(self, parser: Any) -> list[nodes.Node]:
        """What stands between the tag and its end, without the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@cache
def _environment() -> Environment:
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])


def _parsed(template: str) -> nodes.Template:
    try:
        return _environment().parse(template)
    except TemplateSyntaxError as error:
        raise TemplateError(
            f"the chat template can not be read ({error}); pin another in model.chat_template"
        ) from None


def default_of(templates: str | Mapping[str, str] | None) -> str | None:
    """The template of a chat: of several with names, the one called default."""
    return templates.get("default") if isinstance(templates, Mapping) else templates


@cache
def options_of(template: str) -> tuple[str, ...]:
    """The variables that a template reads and a user may set, sorted."""
    read = meta.find_undeclared_variables(_parsed(template.rpartition(OPTIONS_END)[2]))
    return tuple(sorted(name for name in read if name not in (*OURS, *PROVIDED) and not name.endswith("_token")))


def with_options(template: str, options: Iterable[tuple[str, Option]], model: str) -> str:
    """The template with options set in front of it, once; raises `TemplateError` for one that it does not read."""
    known, chosen = options_of(template), tuple(options)
    for name, _ in chosen:
        if name not in known:
            knows = f"it knows {', '.join(known)}" if known else "it knows none"
            raise TemplateError(f"model.template_options: the template of {model} does not know {name}; {knows}")
    lines = "".join(f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}\n" for name, value in chosen)
    before, mark, text = template.rpartition(OPTIONS_END)
    if before == lines:
        return template
    return f"{before}{lines}{OPTIONS_END}{text}" if mark or lines else template


@cache
def require_certain(template: str) -> None:
    """Raise `TemplateError` for a template that draws at random: the same chat would have other tokens each time."""
    parsed = _parsed(template)
    drawn = [one.name for one in parsed.find_all(nodes.Filter) if one.name == "random"]
    drawn += [one.name for one in parsed.find_all(nodes.Name) if one.name == "lipsum" and one.ctx == "load"]
    for mapped in parsed.find_all(nodes.Filter):
        drawn += [str(a.value) for a in mapped.args if isinstance(a, nodes.Const) and a.value == "random"]
    if drawn:
        raise TemplateError(
            f"the chat template draws at random ({drawn[0]}), so that the same chat would have other tokens each time; "
            "pin one without it in model.chat_template"
        )
