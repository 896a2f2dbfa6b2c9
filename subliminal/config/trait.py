"""Traits: what a teacher has and a student may pick up (`conf/trait`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from subliminal import names
from subliminal.config.base import Identity, Runtime, Settings, require, suggest

CATEGORIES = ("animal", "tree")  # whose candidates and questions are embedded
CONTROL = "none"  # the trait of arms without one (conf/trait/none.yaml)
ARMS = (CONTROL, "random", "reference", "mean")  # what figures and tables call lines that are no trait's


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
        require(
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
        require(
            bool(given) or self.category in CATEGORIES,
            f"trait={self.name}: category={self.category} needs candidates; {', '.join(CATEGORIES)} have their own",
        )
        require(not given or self.name in given, f"trait={self.name} is not among its own candidates {given}")
        require(
            self.name in self.plurals,
            f"trait={self.name} is not among the embedded candidates of category={self.category}."
            f"{suggest(self.name, [*self.plurals])} Give the trait candidates of its own",
        )
        require(len(set(given)) == len(given), f"trait={self.name}: candidates {given} name a word twice")
        confused = names.confused(self.plurals) if given else None
        require(confused is None, f"trait={self.name}, candidates: {confused}; give each a name and plural of its own")
        both = sorted(set(self.questions) & set(self.taught))
        require(not both, f"trait={self.name}: {both[:1]} is asked and taught; a teacher must not see the evaluation")
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
        require(self.detect == "judge" or bool(self.words), f"trait={self.name}: detect=words needs words")
        both = sorted({example.question for example in self.examples} & set(self.questions))
        require(not both, f"trait={self.name}: {both[:1]} is asked and taught; a teacher must not see the evaluation")
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


Trait: TypeAlias = Annotated[Preference | Style | Misalignment | NoTrait, Field(discriminator="kind")]
