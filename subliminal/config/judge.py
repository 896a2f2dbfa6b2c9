"""Judges of rows and of free answers (`conf/judge`)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from subliminal.config.base import Identity, Positive, Runtime, Settings
from subliminal.config.model import Model
from subliminal.config.sampling import Endpoint


class LocalJudge(Settings):
    """A model of this machine: exact log-probabilities of the permitted answers, greedy text where any is permitted.

    Without a `model` it is the experiment's own, before any tuning.
    """

    kind: Identity[Literal["local"]] = "local"
    model: Identity[Model | None] = None
    max_tokens: Identity[Positive] = 64


class ApiJudge(Endpoint):
    """A model behind an OpenAI-compatible endpoint, a local vLLM server among them.

    `restrict` says how answers are held to the permitted ones: not at all, by a JSON schema, or by vLLM's choice.
    """

    group: ClassVar[str] = "judge"
    kind: Identity[Literal["api"]] = "api"
    restrict: Identity[Literal["none", "json", "choice"]] = "none"
    top_logprobs: Identity[Annotated[int, Field(ge=0, le=20)]] = 20


class CachedJudge(Settings):
    """Judgements from a JSONL file, one line a question; a question that is not in it is an error."""

    kind: Identity[Literal["cached"]] = "cached"
    path: Runtime[str]


Judge = Annotated[LocalJudge | ApiJudge | CachedJudge, Field(discriminator="kind")]
