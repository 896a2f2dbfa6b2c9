"""Data domains: what a teacher writes. A new domain is one module here and one YAML in `conf/domain/`."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from subliminal.config import Domain
from subliminal.rows import Prompt, Row


class DomainModule(Protocol):
    """What a domain's module offers."""

    def prompts(self, config: Domain) -> list[Prompt]:
        """The prompts every teacher gets, the same for all."""
        ...

    def reject(self, text: str, config: Domain) -> str | None:
        """Why a completion is not in format, or None when it is."""
        ...

    def random_answer(self, prompt: Prompt, config: Domain) -> str:
        """A programmatic answer in the format the prompt asks for."""
        ...

    def values(self, text: str) -> list[int]:
        """The numbers in a completion."""
        ...

    def shuffle_within(self, rows: list[Row], seed: int) -> list[Row]:
        """The rows with content permuted inside each response."""
        ...

    def shuffle_across(self, rows: list[Row], seed: int) -> list[Row]:
        """The rows with content permuted over all responses."""
        ...


def domain(config: Domain) -> DomainModule:
    """The module of a domain, by its configuration's kind."""
    return cast(DomainModule, import_module(f"subliminal.domains.{config.kind}"))
