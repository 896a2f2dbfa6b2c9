"""The experiment as frozen types: what `conf/` composes to, checked once, before anything heavy is imported.

A file of this package is a group of `conf/`, and the package has all their names. Every field is marked `Identity` (it
can change a stage's output, so it enters the stage's key) or `Runtime` (it can not: where, how fast and how loudly the
same result is computed). A test fails for a field that is neither. `Added` is an identity that enters the key only
where it has not its default: results from before there was the setting are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self, assert_never

from pydantic import ValidationError, model_validator

from subliminal.config.base import *
from subliminal.config.domain import *
from subliminal.config.errors import *
from subliminal.config.evaluation import *
from subliminal.config.figure import *
from subliminal.config.filter import *
from subliminal.config.hardware import *
from subliminal.config.judge import *
from subliminal.config.mnist import *
from subliminal.config.model import *
from subliminal.config.sampling import *
from subliminal.config.student import *
from subliminal.config.teacher import *
from subliminal.config.theory import *
from subliminal.config.training import *
from subliminal.config.trait import *
from subliminal.limits import limited

MISSING = "???"  # how a YAML file says that a value must be given


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
            *self._rank_conflicts(),
            *self._sampler_conflicts(),
            *self._teacher_model_conflicts(),
            *self._optimiser_conflicts(),
        ]
        problems = [message for broken, message in rules if broken]
        require(not problems, "\n".join(problems))
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

    def _rank_conflicts(self) -> Iterator[tuple[bool, str]]:
        """Whether the student's adapter is larger than the sampler loads."""
        rank = self.student.lora.r if isinstance(self.student, LoraStudent) else 0
        yield (
            isinstance(self.sampler, VllmSampler) and rank > VLLM_MAX_LORA_RANK,
            f"student.lora.r={rank}: vLLM loads adapters up to rank {VLLM_MAX_LORA_RANK}; "
            "lower the rank or set sampler=transformers",
        )

    def _sampler_conflicts(self) -> Iterator[tuple[bool, str]]:
        """Whether the sampler or the judge can not do what is asked of it, and what to do."""
        api = self.sampler.kind == "api"
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
        match self.sampler:
            case ApiSampler():
                return TransformersSampler(decoding=self.sampler.decoding)
            case VllmSampler() | TransformersSampler():
                return self.sampler
            case _:
                assert_never(self.sampler)

    @property
    def active_teacher(self) -> Teacher:
        """The teacher that really writes the data: without a trait, every model teacher is the control."""
        if self.trait.kind == "none" and self.teacher.kind != "random":
            return ControlTeacher()
        return self.teacher


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
        raise ConfigError("\n".join(merged([explain(item, Experiment) for item in error.errors()]))) from None


def _tuples(value: Any) -> Any:
    """Lists become tuples, which strict frozen types accept; a value still to be given is left out and so reported."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items() if item != MISSING}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
