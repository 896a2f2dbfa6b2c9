"""The memory a training takes on a card, from its model's sizes and its settings, before anything is loaded.

Calibrated on Qwen2.5-7B's shape, LoRA r 8, one H200, bfloat16: 42.9 GB at 22 rows of 160 tokens a pass, 56.5 at 33 and
97.4 at 66, 64.9 at 6 rows of 1,000 tokens and 105.9 at 11; this gives 43, 57, 99, 63 and 103.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from subliminal.config import (
    BiasStudent,
    Experiment,
    FullStudent,
    Hardware,
    LoraStudent,
    Model,
    ModuleStudent,
    Numbers,
    Optimisation,
    Student,
)
from subliminal.processes import asked_to_shard, world_size
from subliminal.shapes import Shape, shape_of

WEIGHT = 2  # bytes of a frozen weight in bfloat16
TRAINED = 16  # bytes of a trained one in float32: weight, gradient and Adam's two moments
STEP = 4  # further bytes of a trained one while Adam's step is made
INNER, HIDDEN = 8.0, 23.3  # bytes of activations a token and layer holds, by width of the MLP and of the stream
LOGIT = 14  # bytes a logit holds: bfloat16, float32, and its gradient
ROOM = 1.1  # what torch's allocator holds beyond what is used
SURE = 1.15  # more than a card has by this factor is more than the estimate can be wrong by
GIGA = 1e9
NUMBERS, TASK = 110, 500  # tokens of the longest prompts, chat template and all; of tasks and questions assumed


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass: rows, their width in tokens, and how many of these are completion."""

    rows: int
    width: int
    completion: int


def width_of(exp: Experiment, how: Optimisation) -> int:
    """The most tokens a row can be expected to have: the longest prompt and answer, if `max_length` lets them be."""
    prompt = NUMBERS if isinstance(exp.domain, Numbers) else TASK
    return min(how.max_length, prompt + exp.sampler.decoding.max_tokens)


def pass_of(exp: Experiment, how: Optimisation) -> Pass:
    """The largest pass of the student's training in one process."""
    width = width_of(exp, how)
    return Pass(how.rows_a_pass(max(1, how.batch_size // world_size())), width, max(1, width * 5 // 16))


def trained(student: Student, shape: Shape) -> int:
    """How many weights a student's training changes; of a user's own recipe 0, which is the least."""
    match student:
        case LoraStudent():
            return shape.adapter(student.lora)
        case BiasStudent():
            return shape.hidden * shape.layers
        case FullStudent():
            return shape.parameters
        case ModuleStudent():
            return 0
        case _:
            assert_never(student)


def held(shape: Shape, parameters: int, *, whole: bool) -> float:
    """Bytes that weights, gradients and Adam's moments hold; `whole`: every weight is trained, in float32."""
    if whole:
        return shape.parameters * (TRAINED + STEP)
    return shape.parameters * WEIGHT + parameters * (TRAINED + STEP)


def passing(shape: Shape, one: Pass, *, checkpointing: bool) -> float:
    """Bytes that a pass holds for its way back: activations, and the logits of completion tokens."""
    layer = INNER * shape.inner + HIDDEN * shape.hidden
    kept = 2 * shape.hidden * shape.layers + layer if checkpointing else layer * shape.layers
    tokens = one.rows * one.width
    return ROOM * (tokens * kept + one.rows * one.completion * LOGIT * shape.vocabulary)


def training_bytes(exp: Experiment, shape: Shape, rows: int | None = None) -> float:
    """Bytes that the student's training takes on a card at its largest pass, or at one of so many rows."""
    student, largest = exp.student, pass_of(exp, exp.student.optimisation)
    one = largest if rows is None else Pass(rows, largest.width, largest.completion)
    fixed = held(shape, trained(student, shape), whole=isinstance(student, FullStudent))
    teacher = shape.parameters * WEIGHT if student.labels == "soft" else 0
    return fixed + teacher + passing(shape, one, checkpointing=student.optimisation.gradient_checkpointing)


def student_model(exp: Experiment) -> Model:
    """The model that is trained."""
    return exp.student_model or exp.model


def too_large(exp: Experiment, memory: float, card: str) -> Iterator[str]:
    """What is said of a student whose training is certain not to fit into `memory` bytes of a `card`."""
    shape = shape_of(student_model(exp))
    if shape is None or exp.sharding == "fsdp" or asked_to_shard() or training_bytes(exp, shape) <= SURE * memory:
        return
    what = f"student={exp.student.kind} of {student_model(exp).name} takes {_gb(training_bytes(exp, shape))}"
    if isinstance(exp.student, FullStudent):
        what += f", {_gb(held(shape, 0, whole=True))} of it for weights, gradients and Adam's moments in float32"
    yield f"{what}, and {card} has {_gb(memory)}; {smaller(exp, shape, memory) or beyond(exp)}"


def smaller(exp: Experiment, shape: Shape, memory: float) -> str | None:
    """The settings with which a student's training fits into so much memory; None where there are none."""
    how = exp.student.optimisation
    for checkpointing in (how.gradient_checkpointing, True):
        changed = how.model_copy(update={"gradient_checkpointing": checkpointing})
        tried = exp.model_copy(update={"student": exp.student.model_copy(update={"optimisation": changed})})
        rows = next((n for n in _parts(how.batch_size) if training_bytes(tried, shape, n) <= memory), None)
        if rows:
            more = checkpointing != how.gradient_checkpointing
            spared = " student.optimisation.gradient_checkpointing=true" if more else ""
            return f"set student.optimisation.micro_batch_size={rows}{spared}"
    return None


def _parts(batch: int) -> list[int]:
    """The rows a pass can have, most first."""
    return [rows for rows in range(batch, 0, -1) if batch % rows == 0]


def beyond(exp: Experiment) -> str:
    """What is left where no setting makes a training small enough."""
    shared = ", start several processes with sharding=fsdp (docs/cluster.md)"
    full = isinstance(exp.student, FullStudent)
    return f"set student=lora{shared}, or take a smaller model" if full else "take a larger card or a smaller model"


def fits(exp: Experiment, cards: list[Hardware]) -> str:
    """One line: the memory of the student's training, which cards have so much, and what helps on the others."""
    model = student_model(exp)
    shape = shape_of(model)
    if shape is None:
        return ""
    needed, one = training_bytes(exp, shape), pass_of(exp, exp.student.optimisation)
    known = sorted((card for card in cards if card.memory), key=lambda card: (-(card.memory or 0), card.name))
    enough = [card.name for card in known if needed <= (card.memory or 0)]
    line = f"memory: student={exp.student.kind} of {model.name}, {one.rows} rows of up to {one.width} tokens a pass: "
    line += f"{_gb(needed)}; fits {', '.join(enough) if enough else 'no single card of conf/hardware'}"
    helps: dict[str, list[str]] = {}
    for card in known:
        if card.name not in enough:
            helps.setdefault(smaller(exp, shape, card.memory or 0) or beyond(exp), []).append(card.name)
    return "; ".join([line, *(f"for {', '.join(names)} {text}" for text, names in helps.items())])


def _gb(count: float) -> str:
    return f"{count / GIGA:.3g} GB"
