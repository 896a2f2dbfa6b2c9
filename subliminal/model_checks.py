"""What an experiment's models tell before they are loaded: usable weights, layers, templates, room for vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from subliminal import checkpoints, machine, models, stages, weights
from subliminal.chat import ChatError, always_reasons, beginning_of, closed, plain
from subliminal.checkpoints import Checkpoint
from subliminal.config import (
    BiasStudent,
    CapabilityEvaluation,
    ConfigError,
    Experiment,
    GgufSource,
    LocalJudge,
    Lora,
    Model,
    SampledAnswers,
    SteeredTeacher,
    VllmSampler,
)
from subliminal.graph import Node
from subliminal.rows import RowError
from subliminal.store import Store, StoreError
from subliminal.templates import require_certain, with_options

REASONED = ("cot", "module")  # domains whose rows may hold reasoning


def raised(*calls: Callable[[], object]) -> Iterator[str]:
    """What the calls raise as errors that are meant for users."""
    for call in calls:
        try:
            call()
        except (ConfigError, StoreError, RowError) as error:
            yield from str(error).splitlines()


def problems(exp: Experiment, missing: list[Node], *, online: bool) -> Iterator[str]:
    """What is wrong with the models that missing stage runs load, and what is asked of them that they have not."""
    keys = {upper.key for node in missing for upper in (node, *_above(node)) if upper.stage == "model"}
    given = {"model": exp.model, "student_model": exp.student_model, "judge.model": getattr(exp.judge, "model", None)}
    read: dict[str, Checkpoint] = {}
    for setting, chosen in given.items():
        if not isinstance(chosen, Model) or stages.model(exp, chosen).key not in keys:
            continue
        wrong, checkpoint = _checkpoint(setting, exp, chosen, online=online)
        yield from wrong
        if checkpoint is not None and not wrong:
            read[setting] = checkpoint
            if not checkpoint.template and checkpoint.files is not None and chosen.chat_template is None:
                yield from _without_a_template(setting, exp, missing)
    student = "student_model" if exp.student_model else "model"
    yield from _vectors(exp, {node.stage for node in missing}, read.get("model"), read.get(student))
    yield from _targets(exp, {node.stage for node in missing}, read.get("model"), read.get(student))
    yield from _vllm(exp, {node.stage for node in missing}, read.get("model"), read.get(student))


def _above(node: Node) -> Iterator[Node]:
    for upper in node.inputs.values():
        yield upper
        yield from _above(upper)


def _checkpoint(setting: str, exp: Experiment, chosen: Model, *, online: bool) -> tuple[list[str], Checkpoint | None]:
    """(what is wrong with a model's files, what they say), as far as they are on this machine or a request away."""
    source = chosen.source
    if isinstance(source, GgufSource):
        done = Store(Path(exp.store)).find("model", stages.model(exp, chosen).key)
        if done:
            return [], checkpoints.read_checkpoint(done.folder / "checkpoint")
        heads: list[Path] = []
        wrong = list(raised(lambda: heads.append(weights.gguf_head(source))))
        return (wrong if online else []), checkpoints.read_gguf(heads[0]) if heads else None
    if folder := weights.local_folder(source):
        found = checkpoints.problems_of(folder, remote_code=source.trust_remote_code)
        return [f"{setting}.source.name: {problem}" for problem in found], checkpoints.read_checkpoint(folder)
    if problem := weights.no_folder(source):
        return [f"{setting}.source.name={source.name}: {problem}"], None
    config = weights.hub_config(source, online=online)
    wrong = list(checkpoints.wrong_kind(config or {}, remote_code=source.trust_remote_code))
    return [f"{setting}.source.name: {source.name} {problem}" for problem in wrong], Checkpoint(
        source.name, config or {}
    )


def _without_a_template(setting: str, exp: Experiment, missing: list[Node]) -> Iterator[str]:
    """Everything but lm-eval's plain questions to a model that was never tuned asks in chats."""
    plain = isinstance(exp.evaluation, CapabilityEvaluation) and not exp.evaluation.chat
    if {node.stage for node in missing} <= {"model", *(["evaluate"] if plain else [])}:
        return
    yield (
        f"{setting}.source.name: this model has no chat template (a base model?); pin one in {setting}.chat_template, "
        "as conf/model/gemma3_270m.yaml does, or give its instruction-tuned form"
    )


def _vectors(
    exp: Experiment, names: set[str], teachers: Checkpoint | None, students: Checkpoint | None
) -> Iterator[str]:
    """Layers that a model has not, and models that can not hold a vector."""
    steered, biased = exp.active_teacher, exp.student
    if teachers and "teacher" in names and isinstance(steered, SteeredTeacher):
        yield from _holder("teacher=steered", "teacher=finetuned", teachers)
        yield from filter(None, [checkpoints.layer_problem("teacher.layer", steered.layer, teachers.layers)])
    if students and names & {"train", "predict"} and isinstance(biased, BiasStudent):
        yield from _holder(f"student={biased.kind}", "student=lora", students)
        wanted = [] if biased.layers == "all" else list(biased.layers)
        yield from filter(None, [checkpoints.layer_problem("student.layers", wanted, students.layers)])


def _holder(setting: str, remedy: str, checkpoint: Checkpoint) -> Iterator[str]:
    if checkpoint.config and not checkpoint.holds_vectors:
        yield (
            f"{setting}: {checkpoint.place} is a {checkpoint.config.get('model_type')} model; biases in the residual "
            f"stream need a Llama-like one (with mlp_bias in its configuration), Qwen2.5 or Gemma 3. Set {remedy}"
        )


def _targets(
    exp: Experiment, names: set[str], teachers: Checkpoint | None, students: Checkpoint | None
) -> Iterator[str]:
    """LoRA targets, and layers, of reference tuning, teacher and student that the model has not."""
    trained = (
        ("reference", "reference_tuning", exp.reference_tuning, teachers),
        ("teacher", "teacher", exp.active_teacher, teachers),
        ("train", "student", exp.student, students),
    )
    for stage, setting, recipe, checkpoint in trained:
        lora = getattr(recipe, "lora", None)
        if checkpoint and lora and stage in names:
            yield from filter(None, [checkpoints.target_problem(setting, lora.targets, checkpoint.modules)])
            yield from _absent_layers(setting, lora, checkpoint.layers)


def _absent_layers(setting: str, lora: Lora, there: int | None) -> Iterator[str]:
    """Chosen layers of a LoRA that are not among the model's, where their number is known."""
    if lora.layers == "all" or there is None:
        return
    if absent := [layer for layer in lora.layers if layer >= there]:
        shown = ",".join(map(str, absent))
        yield (
            f"{setting}.lora.layers: the model has {there} layers, 0 to {there - 1}, and no [{shown}]; name some of "
            f"these, or set {setting}.lora.layers=all"
        )


def _vllm(exp: Experiment, names: set[str], writer: Checkpoint | None, answerer: Checkpoint | None) -> Iterator[str]:
    """What vLLM refuses once it has started: a context beyond the model's, heads that can not be shared out."""
    sampler = exp.sampler
    if not isinstance(sampler, VllmSampler) or "vllm" not in machine.samples(exp, names):
        return
    asked = {"sampler.decoding.max_tokens": sampler.decoding.max_tokens} if "generate" in names else {}
    if "evaluate" in names and isinstance(exp.evaluation, SampledAnswers) and exp.evaluation.sampled:
        asked["evaluation.max_tokens"] = exp.evaluation.max_tokens
    for setting, tokens in asked.items():
        if tokens >= sampler.max_model_len:
            yield f"{setting}={tokens} leaves no room for a prompt in sampler.max_model_len={sampler.max_model_len}"
    for checkpoint in {id(one): one for one in (writer, answerer) if one}.values():
        context, heads = checkpoint.context, checkpoint.heads
        if context is not None and sampler.max_model_len > context:
            yield (
                f"sampler.max_model_len={sampler.max_model_len}: {checkpoint.place} has {context} positions; "
                f"set sampler.max_model_len={context} or lower"
            )
        if heads is not None and heads % sampler.tensor_parallel:
            yield (
                f"sampler.tensor_parallel={sampler.tensor_parallel} can not share out the {heads} attention heads of "
                f"{checkpoint.place}; give a number that divides them"
            )


def require_templates(exp: Experiment, *, rows: bool = True) -> None:
    """Stop before any work where a chat template that is at hand can not be used; raises `ConfigError`.

    `rows`: whether rows of the domain are written or learned. What is not at hand is looked at when it is loaded.
    """
    judge = exp.judge.model if isinstance(exp.judge, LocalJudge) else None
    needed = [(exp.model, rows), (exp.student_model, rows), (judge, False)]
    for chosen, writes in needed if exp.experiment.kind not in stages.SINGLE else []:
        template = models.template_of(chosen) if chosen else None
        if chosen and template:
            try:
                _require_template(exp, with_options(template, models.options_of(chosen), chosen.name), writes)
            except StoreError as error:
                raise ConfigError(str(error)) from None


def _require_template(exp: Experiment, template: str, writes: bool) -> None:
    require_certain(template)
    if writes and exp.domain.kind not in REASONED and (mark := beginning_of(template, plain)):
        raise ChatError(f"domain={exp.domain.kind} has no reasoning in its rows: {always_reasons(mark)}")
    chats = isinstance(exp.evaluation, CapabilityEvaluation) and exp.evaluation.chat
    if exp.evaluation.exact or chats:
        closed(template, plain)
