"""What each stage reads, what identifies it, and how it is done; importing this module loads nothing heavy.

A `Node` is one stage run before it exists: its recipe (hence its key), the nodes it reads, and the work. `ensure`
walks the nodes upwards, reuses what the store has and does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subliminal import models
from subliminal.config import ConfigError, Experiment, Model, identity
from subliminal.progress import progress, say
from subliminal.store import Json, Manifest, Recipe, Store, StoreError

SCRIPTS = {"generate": "generate.py", "filter": "filter.py", "train": "train.py", "evaluate": "evaluate.py"}
ROLES = {"teacher": "train.py role=teacher", "reference": "train.py role=reference", "model": "train.py role=reference"}

Inputs = dict[str, Manifest]


@dataclass(frozen=True)
class Node:
    """One stage run: recipe, inputs by the name the work knows them by, and the work itself."""

    recipe: Recipe
    inputs: dict[str, Node]
    work: Callable[[Inputs, Path], Json]
    label: str = ""

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.recipe.stage

    @property
    def key(self) -> str:
        """The stage's key in the store."""
        return self.recipe.key


class MissingUpstreamError(StoreError):
    """An earlier stage is missing and `upstream=require` forbids building it here."""


def node(stage: str, exp: Experiment) -> Node:
    """The node of a script's stage: `train` by role, `evaluate` by subject; without language models there is one."""
    if exp.experiment.kind != "preference":
        return _single(stage, exp)
    if stage == "train":
        return {"student": student, "teacher": teacher, "reference": reference}[exp.role](exp)
    return {"generate": generate, "filter": filtered, "evaluate": evaluate}[stage](exp)


def _single(stage: str, exp: Experiment) -> Node:
    """The one node of an experiment that is not about language models; the other scripts have nothing to do in it."""
    script, make = {"mnist": ("train", mnist), "theorem": ("evaluate", theorem)}[exp.experiment.kind]
    if stage != script:
        raise ConfigError(
            f"experiment={exp.experiment.name} has no {stage} stage; run {script}.py with the same settings"
        )
    return make(exp)


def ensure(wanted: Node, store: Store, exp: Experiment, overrides: str = "") -> Manifest:
    """The complete stage run, made now if need be, its inputs first; says what was reused and what is done."""
    done = store.find(wanted.stage, wanted.key)
    if done:
        say(f"[{wanted.stage} {wanted.key}] {wanted.label}: reused")
        return done
    inputs = {name: _input(upper, store, exp, overrides) for name, upper in wanted.inputs.items()}
    say(f"[{wanted.stage} {wanted.key}] {wanted.label}: running")
    found, reused = store.run(wanted.recipe, lambda folder: wanted.work(inputs, folder), wait=exp.claimed == "wait")
    say(f"[{wanted.stage} {wanted.key}] {wanted.label}: {'reused' if reused else _took(found)}")
    return found


def _input(upper: Node, store: Store, exp: Experiment, overrides: str) -> Manifest:
    done = store.find(upper.stage, upper.key)
    if done:
        return done
    if exp.upstream == "require" and upper.stage != "model":
        command = SCRIPTS.get(upper.stage) or ROLES[upper.stage]
        command = ROLES["teacher"] if upper.stage == "teacher" else command
        raise MissingUpstreamError(
            f"{upper.stage} {upper.key} ({upper.label}) is not in {store.root}; run first: python {command} {overrides}"
        )
    return ensure(upper, store, exp, overrides)


def _took(manifest: Manifest) -> str:
    return f"done in {manifest.content['seconds']:.0f} s"


# --------------------------------------------------------------------------- model and reference


def model(exp: Experiment, of: Model | None = None) -> Node:
    """The weights as the store or the hub's cache has them, before any tuning."""
    chosen = of or exp.model
    settings = {"weights": models.fingerprint(chosen), "chat_template": chosen.chat_template, "add_bos": chosen.add_bos}

    def work(_: Inputs, folder: Path) -> Json:
        return models.build_model(chosen, folder)

    return Node(Recipe("model", settings), {}, work, chosen.name)


def reference(exp: Experiment, of: Model | None = None) -> Node:
    """The common starting point of teacher and student: the model, or the model after reference tuning."""
    chosen = of or exp.model
    start = model(exp, chosen)
    tuning = exp.reference_tuning
    if tuning.kind == "off":
        return start
    settings = {"tuning": identity(tuning), "domain": _practised(exp), **_compute(exp, chosen)}

    def work(inputs: Inputs, folder: Path) -> Json:
        from subliminal.domains import practice
        from subliminal.training.sft import tune_reference

        rows = practice(exp.domain, tuning.rows, tuning.seed)
        with progress(f"reference tuning of {chosen.name}", tuning.rows, "rows") as advance:
            return tune_reference(subject(exp, inputs["model"], chosen), tuning, rows, folder, progress=advance)

    return Node(Recipe("reference", settings, {"model": start.key}), {"model": start}, work, f"{chosen.name}, tuned")


def subject(exp: Experiment, made: Manifest, chosen: Model | None = None, system: str | None = None) -> models.Subject:
    """The language model a model, reference, teacher or training stage left behind, ready to be loaded."""
    chosen = chosen or exp.model
    folder = made.folder / "checkpoint"
    return models.Subject(
        checkpoint=str(folder) if folder.exists() else made.summary["checkpoint"],
        revision=made.summary.get("revision"),
        system=system or chosen.system,
        chat_template=chosen.chat_template,
        add_bos=chosen.add_bos,
        dtype=models.resolve_dtype(chosen.dtype, models.resolve_device(exp.device)),
        device=models.resolve_device(exp.device),
        trust_remote_code=getattr(chosen.source, "trust_remote_code", False),
    )


# --------------------------------------------------------------------------- teacher and its data


def teacher(exp: Experiment) -> Node:
    """The teacher, made and checked: does it have the trait, and does it answer in the domain's format."""
    base, active = reference(exp), exp.active_teacher
    settings = {"trait": _trait(exp), "teacher": identity(active), "domain": _format(exp), **_compute(exp, exp.model)}
    settings["decoding"] = identity(exp.sampler.decoding)

    def work(inputs: Inputs, folder: Path) -> Json:
        from subliminal import teachers

        return teachers.make(exp, subject(exp, inputs["reference"]), folder)

    label = f"{active.kind} teacher of {exp.trait.name}" if exp.trait.kind != "none" else "control teacher"
    return Node(Recipe("teacher", settings, {"reference": base.key}), {"reference": base}, work, label)


def teacher_subject(exp: Experiment, made: Manifest, base: Manifest) -> models.Subject:
    """The teacher as a language model: its own checkpoint or the reference's, with its system prompt if it has one."""
    own = (made.folder / "checkpoint").exists()
    return subject(exp, made if own else base, system=made.summary.get("system"))


def generate(exp: Experiment) -> Node:
    """The teacher's completions of the domain's prompts, in shards."""
    settings = {"domain": _domain(exp), "teacher": exp.active_teacher.kind}
    if exp.active_teacher.kind == "random":
        label = "random numbers" if exp.domain.kind == "numbers" else f"programmatic {exp.domain.kind}"
        return Node(Recipe("generate", settings), {}, lambda _, folder: _programmatic_rows(exp, folder), label)
    settings |= {"sampler": identity(exp.sampler), **_compute(exp, exp.model)}
    inputs = {"teacher": teacher(exp), "reference": reference(exp)}

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.domains import domain
        from subliminal.sampling import open_sampler, sample_shards

        who = teacher_subject(exp, made["teacher"], made["reference"])
        prompts = domain(exp.domain).prompts(exp.domain)
        with progress(f"sampling {exp.trait.name}", len(prompts), "prompts") as advance:
            return sample_shards(
                lambda: open_sampler(exp.sampler, who), prompts, exp.sampler.shard_size, folder, advance
            )

    recipe = Recipe("generate", settings, {name: upper.key for name, upper in inputs.items()})
    return Node(recipe, inputs, work, f"{exp.domain.kind} of {inputs['teacher'].label}")


def _programmatic_rows(exp: Experiment, folder: Path) -> Json:
    from subliminal.domains import programmatic
    from subliminal.rows import write_jsonl

    return {"rows": write_jsonl(folder / "rows-00000.jsonl", programmatic(exp.domain))}


def filtered(exp: Experiment) -> Node:
    """The rows the student sees, and why each other row was dropped."""
    source = generate(exp)
    banned = banned_words(exp)
    settings: dict[str, Any] = {"filter": identity(exp.filter), "domain": _format(exp)}
    settings |= {"banned": banned} if exp.filter.kind != "numbers" else {}

    def work(inputs: Inputs, folder: Path) -> Json:
        from subliminal.filters import apply
        from subliminal.rows import Row, read_jsonl, write_jsonl

        shards = sorted(inputs["generate"].folder.glob("rows-*.jsonl"))
        result = apply([row for path in shards for row in read_jsonl(path, Row)], exp.filter, exp.domain, banned)
        write_jsonl(folder / "rows.jsonl", result.kept)
        write_jsonl(folder / "dropped.jsonl", result.dropped)
        return result.report

    return Node(Recipe("filter", settings, {"generate": source.key}), {"generate": source}, work, source.label)


# --------------------------------------------------------------------------- student and evaluation


def student(exp: Experiment) -> Node:
    """The student: the reference after training on the filtered rows."""
    chosen = exp.student_model or exp.model
    inputs = {"filter": filtered(exp), "reference": reference(exp, chosen)}
    if exp.active_teacher.kind != "random":
        inputs["teacher"] = teacher(exp)
    read = inputs if exp.student.labels == "soft" else {n: i for n, i in inputs.items() if n != "teacher"}
    settings = {"student": identity(exp.student), "seed": exp.seed, **_compute(exp, chosen)}

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.training.student import train_student

        return train_student(exp, made, folder)

    recipe = Recipe("train", settings, {name: upper.key for name, upper in read.items()})
    return Node(recipe, inputs, work, f"{exp.student.kind} student of {inputs['filter'].label}, seed {exp.seed}")


def evaluate(exp: Experiment) -> Node:
    """The subject's answers to the evaluation's questions: exact log-probabilities and, if asked for, samples."""
    who = {"student": student, "teacher": teacher, "reference": reference}[exp.subject](exp)
    inputs = {exp.subject: who, "reference": reference(exp, _evaluated_model(exp))}
    settings = {"evaluation": identity(exp.evaluation), **_compute(exp, _evaluated_model(exp))}
    if exp.evaluation.samples_per_question:
        settings["sampler"] = exp.local_sampler.kind

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.evaluation.run import evaluate_subject

        return evaluate_subject(exp, made, folder)

    recipe = Recipe("evaluate", settings, {exp.subject: who.key})
    return Node(recipe, inputs, work, f"{exp.evaluation.kind} of {who.label}")


def predict(exp: Experiment, candidates: tuple[str, ...] = ()) -> Node:
    """How parallel a student's first gradient on the filtered rows is to raising each candidate; () asks for all."""
    chosen = exp.student_model or exp.model
    inputs = {"filter": filtered(exp), "reference": reference(exp, chosen)}
    if exp.student.labels == "soft":
        inputs["teacher"] = teacher(exp)
    settings = {"student": _trained_part(exp), "questions": _questions(exp), **_compute(exp, chosen)}
    settings["candidates"] = sorted(candidates)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.theory.predict import predict_transmission

        return predict_transmission(exp, made, folder, sorted(candidates))

    recipe = Recipe("predict", settings, {name: upper.key for name, upper in inputs.items()})
    return Node(recipe, inputs, work, f"{exp.student.kind} student of {inputs['filter'].label}")


def _trained_part(exp: Experiment) -> dict[str, Any]:
    """What decides a student's gradient at the reference: parameters, labels, rows that fit; of LoRA also its draw."""
    settings = {name: value for name, value in identity(exp.student).items() if name != "optimisation"}
    drawn = {"seed": exp.seed} if exp.student.kind == "lora" else {}
    return settings | drawn | {"max_length": exp.student.optimisation.max_length}


def _questions(exp: Experiment) -> dict[str, Any]:
    """What decides the exact log-probabilities; sampled answers have no gradient."""
    asked = identity(exp.evaluation)
    return {name: asked[name] for name in ("category", "questions", "prefix", "seed")}


def _evaluated_model(exp: Experiment) -> Model:
    return (exp.student_model or exp.model) if exp.subject == "student" else exp.model


# --------------------------------------------------------------------------- experiments without language models


def mnist(exp: Experiment) -> Node:
    """Teachers and students of the MNIST experiment, trained and tested in one stage."""
    device = models.resolve_device(exp.device)
    dtype = models.resolve_dtype(exp.mnist.dtype, device)
    settings = {"mnist": identity(exp.mnist) | {"dtype": dtype}, "seed": exp.seed}

    def work(_: Inputs, folder: Path) -> Json:
        from subliminal.mnist.run import run_mnist

        return run_mnist(exp, folder, dtype, device)

    return Node(
        Recipe("mnist", settings), {}, work, f"{exp.mnist.models} {exp.mnist.dataset} teachers, seed {exp.seed}"
    )


def theorem(exp: Experiment) -> Node:
    """Trials of the theorem and training runs on small networks, for one seed; reads no other stage."""
    settings = {"theory": identity(exp.theory), "seed": exp.seed}

    def work(_: Inputs, folder: Path) -> Json:
        from subliminal.theory.run import check_theorem

        return check_theorem(exp, folder)

    return Node(Recipe("theorem", settings), {}, work, f"trials and training runs, seed {exp.seed}")


# --------------------------------------------------------------------------- shared parts of identities


def _compute(exp: Experiment, chosen: Model) -> dict[str, Any]:
    """What every stage that runs a model depends on beside the weights: arithmetic and the system text."""
    dtype = models.resolve_dtype(chosen.dtype, models.resolve_device(exp.device))
    return {"dtype": dtype, "system": chosen.system}


def _domain(exp: Experiment) -> dict[str, Any]:
    """The domain with the content of files it reads."""
    from subliminal.domains import content

    return identity(exp.domain) | content(exp.domain)


def _format(exp: Experiment) -> dict[str, Any]:
    """The domain without how many prompts: what decides whether a completion is in format."""
    return {name: value for name, value in _domain(exp).items() if name not in {"prompts", "seed"}}


def _practised(exp: Experiment) -> dict[str, Any]:
    """The domain without where its tasks and questions come from: practice rows are the package's own."""
    elsewhere = {"samples", "source", "dataset", "dataset_config", "split", "revision", "content"}
    return {name: value for name, value in _format(exp).items() if name not in elsewhere}


def banned_words(exp: Experiment) -> list[str]:
    """The words whose rows the student must not see: those of the filter and, if it says so, the trait's names."""
    from subliminal.evaluation.questions import plural_of

    trait, rules = exp.trait, exp.filter
    words = set(getattr(rules, "banned_words", ()))
    if getattr(rules, "ban_trait", False) and trait.kind == "preference":
        words |= {trait.name, trait.plural, plural_of(trait.name), f"{trait.name}s"}
    return sorted(words)


def _trait(exp: Experiment) -> dict[str, Any] | None:
    return None if exp.active_teacher.kind == "control" else identity(exp.trait)


def require_category(exp: Experiment) -> None:
    """Stop early when the questions are about animals and the trait is a tree, or the other way round."""
    category = getattr(exp.trait, "category", exp.evaluation.category)
    if category != exp.evaluation.category:
        raise ConfigError(
            f"evaluation.category={exp.evaluation.category} but trait={exp.trait.name} is a {category}; "
            f"set evaluation.category={category}"
        )
