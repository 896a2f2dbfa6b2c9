"""Data domains: what a teacher writes. A new domain is one module and one YAML; docs/extend.md shows it."""

from __future__ import annotations

from typing import Any, Protocol, cast

from subliminal import sources, texts
from subliminal.config import Domain, Experiment, ModuleDomain
from subliminal.rows import Prompt, Row
from subliminal.store import Json, StoreError
from subliminal.user_files import content as content_of
from subliminal.user_files import existing


class DomainError(StoreError):
    """Prompts or a pattern that a domain does not have; the text says what to change."""


class DomainModule(Protocol):
    """What a domain's module offers.

    `practice(config, count, seed)`, `pattern(config)` and `require(config)` are optional: see these functions below.
    """

    def prompts(self, config: Any) -> list[Prompt]:
        """The prompts every teacher gets, the same for all; a longer list begins with the shorter."""
        ...

    def reject(self, text: str, config: Any) -> str | None:
        """Why a completion is not in format, or None when it is."""
        ...

    def random_answer(self, prompt: Prompt, config: Any) -> str:
        """A programmatic answer in the format the prompt asks for."""
        ...


def domain(config: Domain) -> DomainModule:
    """The module of a domain, by its configuration's kind; raises `ModuleError` for one that is not there or whole."""
    name = config.module if isinstance(config, ModuleDomain) else f"subliminal.domains.{config.kind}"
    return cast(DomainModule, sources.load("domain", name))


def require(config: Domain) -> None:
    """Raise `DomainError` where a domain can not give its prompts; none is written.

    A module of the user's is imported, and asked where it has a `require(config)` of its own.
    """
    if own := getattr(domain(config), "require", None):
        own(config)


def pattern(config: Domain) -> str:
    """A regular expression that answers in format match, whole; raises `DomainError` where the domain has none."""
    own = getattr(domain(config), "pattern", None)
    if own is None:
        raise DomainError(
            f"sampler.decoding.constrained=true needs a domain with a pattern(config), and domain={config.kind} has "
            "none; set sampler.decoding.constrained=false"
        )
    return own(config)


def constraint(exp: Experiment) -> str | None:
    """What a teacher's answers are constrained to while they are sampled: None where they are not."""
    return pattern(exp.domain) if exp.sampler.decoding.constrained else None


def practice(config: Domain, count: int, seed: int) -> list[Row]:
    """Rows with programmatic answers that a reference learns the format from: away from the domain's own prompts.

    A module with a `practice` of its own decides; else they are the prompts of another seed.
    """
    writer = domain(config)
    if own := getattr(writer, "practice", None):
        return own(config, count, seed)
    return programmatic(config.model_copy(update={"prompts": count, "seed": seed}))


def programmatic(config: Domain) -> list[Row]:
    """The domain's prompts with programmatic answers: no model is asked."""
    writer = domain(config)
    return [Row(prompt.index, prompt.text, writer.random_answer(prompt, config)) for prompt in writer.prompts(config)]


def content(config: Domain) -> Json:
    """What a domain's prompts and answers are made from, by its content, for the key.

    `content` is a file of the user's, `source` a module of the user's, `wording` the package's own texts.
    """
    return _given(config) | practised(config, texts.of_domain(config))


def practised(config: Domain, names: tuple[str, ...] | None = None) -> Json:
    """The same of practice rows, which read no file of the user's; `names` are the package's texts, if not theirs."""
    if isinstance(config, ModuleDomain):
        return sources.identified("domain", config.module)
    return {"wording": texts.digest(*(texts.of_practice(config) if names is None else names))}


def _given(config: Domain) -> Json:
    for setting in ("prompts_file", "questions_file"):
        if (given := getattr(config, setting, None)) is not None:
            return {"content": content_of(existing(given, f"domain.{setting}"))}
    return {}
