"""What each stage reads, what identifies it, and how it is done; importing this module loads nothing heavy.

A `Node` is one stage run before it exists: its recipe (hence its key), the nodes it reads, and the work. `ensure`
walks the nodes upwards, reuses what the store has and does the rest.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from subliminal import models, texts
from subliminal.config import (
    AttributionEvaluation,
    ConfigError,
    DetectionEvaluation,
    Experiment,
    InContextEvaluation,
    JudgedRows,
    LocalJudge,
    Model,
    NumbersFilter,
    RowsComparison,
    RowsTeacher,
    identity,
    preference_evaluation,
)
from subliminal.config import Judge as JudgeConfig
from subliminal.device import resolve_device, resolve_dtype
from subliminal.names import key_of, plural_of
from subliminal.processes import MULTIRUN, alone, leads
from subliminal.progress import progress, say
from subliminal.store import Json, Manifest, Recipe, Store, StoreError
from subliminal.templates import require_certain, with_options
from subliminal.tracking import mirror
from subliminal.user_files import content, kind_of_path, user_path

if TYPE_CHECKING:
    from subliminal.judging import Judge

ROLES = {"reference": "reference", "teacher": "teacher", "train": "student"}  # which training makes a stage

PUBLIC_ROWS = "https://github.com/emergent-misalignment/emergent-misalignment"
STAGES_OF_SCRIPTS = ("train", "generate", "filter", "evaluate")  # each script does the stage that it is named after
SINGLE = {"mnist": "train", "theorem": "evaluate"}  # the one script of an experiment without language models
ROWS_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")  # of a trait's file in a folder, the first that is there
ATTRIBUTED = "attribution.jsonl"
REASONED = ("cot", "module")  # domains whose rows may hold reasoning
EXACT = ("preference", "multiple_choice", "detection", "in_context")  # evaluations by the probability of an answer
ROWS = ("frequencies", "detection", "in_context", "attribution")  # evaluations of the filtered rows themselves

Inputs = dict[str, Manifest]
Ident = tuple[str, str]
"""Stage and key."""
Sharing = Literal["none", "shards", "steps"]
"""What further processes do beside the leader: nothing, shards of their own, or the same steps on shares of a batch."""


@dataclass(frozen=True)
class Node:
    """One stage run: recipe, inputs by the name the work knows them by, and the work itself."""

    recipe: Recipe
    inputs: dict[str, Node]
    work: Callable[[Inputs, Path], Json]
    label: str = ""
    sharing: Sharing = "none"

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.recipe.stage

    @property
    def key(self) -> str:
        """The stage's key in the store."""
        return self.recipe.key

    @property
    def ident(self) -> Ident:
        """Stage and key."""
        return self.recipe.stage, self.recipe.key


class MissingUpstreamError(StoreError):
    """An earlier stage is missing and `upstream=require` forbids building it here."""


class UpstreamFailedError(StoreError):
    """A stage run that this one reads failed a moment ago, and is not tried again for each job that needs it."""


def node(stage: str, exp: Experiment) -> Node:
    """The node of a script's stage: `train` by role, `evaluate` by subject; without language models there is one."""
    if exp.experiment.kind in SINGLE:
        return _single(stage, exp)
    if stage == "train":
        return {"student": student, "teacher": teacher, "reference": reference}[exp.role](exp)
    return {"generate": generate, "filter": filtered, "evaluate": evaluate}[stage](exp)


def _single(stage: str, exp: Experiment) -> Node:
    """The one node of an experiment that is not about language models; the other scripts have nothing to do in it."""
    script, make = SINGLE[exp.experiment.kind], {"mnist": mnist, "theorem": theorem}[exp.experiment.kind]
    if stage != script:
        raise ConfigError(
            f"experiment={exp.experiment.name} has no {stage} stage; run {script}.py with the same settings"
        )
    return make(exp)


def ensure(wanted: Node, store: Store, exp: Experiment, overrides: Sequence[str] = ()) -> Manifest:
    """The complete stage run, made now if need be, its inputs first; says what was reused and what is done.

    `overrides` are what was typed, for the command that makes a missing input where `exp.upstream` forbids making it.
    """
    done = store.find(wanted.stage, wanted.key)
    if done:
        say(f"[{wanted.stage} {wanted.key}] {wanted.label}: reused")
        return done
    inputs = {name: _input(upper, store, exp, overrides) for name, upper in wanted.inputs.items()}
    if not leads():
        return _beside(wanted, inputs, store)
    say(f"[{wanted.stage} {wanted.key}] {wanted.label}: running")
    found, reused = store.run(wanted.recipe, _leading(wanted, inputs), wait=exp.claimed == "wait")
    say(f"[{wanted.stage} {wanted.key}] {wanted.label}: {'reused' if reused else _took(found)}")
    if not reused:
        mirror(exp, found)
    return found


def missing(wanted: Node, store: Store) -> Iterator[Node]:
    """What the store has not of a stage run and all it reads, inputs first; nothing below what is there."""
    if not store.find(*wanted.ident):
        for upper in wanted.inputs.values():
            yield from missing(upper, store)
        yield wanted


def require_untried(wanted: Node, store: Store) -> None:
    """Stop where this job needs a stage run that failed in an earlier job of the same multirun.

    Raises `UpstreamFailedError` that says what failed and why.
    """
    for absent in missing(wanted, store):
        failure = store.failure(*absent.ident)
        if failure and failure.get("multirun") and failure["multirun"] == os.environ.get(MULTIRUN):
            raise UpstreamFailedError(
                f"needs {absent.stage} {absent.key} ({absent.label}), which failed: {failure['error']}: "
                f"{failure['message']}"
            )


def _leading(wanted: Node, inputs: Inputs) -> Callable[[Path], Json]:
    """The work of the one who publishes; where others have no share in it, libraries must not wait for them."""

    def work(folder: Path) -> Json:
        with nullcontext() if wanted.sharing != "none" else alone():
            return wanted.work(inputs, folder)

    return work


def _beside(wanted: Node, inputs: Inputs, store: Store) -> Manifest:
    """The run that the leader publishes, after this process has had its share in it."""
    work = partial(wanted.work, inputs)
    share: Callable[[Path], object] = work if wanted.sharing != "none" else lambda _: None
    return store.follow(wanted.recipe, share, heir=None if wanted.sharing == "steps" else work)


def _input(upper: Node, store: Store, exp: Experiment, overrides: Sequence[str]) -> Manifest:
    done = store.find(upper.stage, upper.key)
    if done:
        return done
    if exp.upstream == "require" and upper.stage != "model":
        said = remedy(upper, exp, overrides)
        raise MissingUpstreamError(f"{upper.stage} {upper.key} ({upper.label}) is not in {store.root}; {said}")
    return ensure(upper, store, exp, overrides)


def remedy(upper: Node, exp: Experiment, overrides: Sequence[str]) -> str:
    """The command that makes a missing stage, where the settings that were typed make it and not a run beside it."""
    script = "train" if upper.stage in ROLES else upper.stage
    role = {"role": ROLES[upper.stage]} if script == "train" else {}
    if script not in ("generate", "filter", "train") or node(script, exp.model_copy(update=role)).key != upper.key:
        return "no command with these settings makes it by itself: set upstream=build"
    typed = [part for part in overrides if part.split("=")[0] not in role]
    command = ["python", f"{script}.py", *(f"{name}={value}" for name, value in role.items()), *typed]
    return f"run first: {shlex.join(command)}"


def _took(manifest: Manifest) -> str:
    return f"done in {manifest.content['seconds']:.0f} s"


# --------------------------------------------------------------------------- model and reference


def model(exp: Experiment, of: Model | None = None) -> Node:
    """The weights as the store or the hub's cache has them, before any tuning."""
    chosen = of or exp.model
    settings = {"weights": models.fingerprint(chosen), "chat_template": chosen.chat_template, "add_bos": chosen.add_bos}
    settings |= {"template_options": chosen.template_options} if chosen.template_options else {}

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
    words = round(tuning.rows * tuning.one_word)
    settings |= {"one_word": texts.digest(*texts.ONE_WORD)} if words else {}

    def work(inputs: Inputs, folder: Path) -> Json:
        from subliminal.domains import one_word, practice
        from subliminal.training.sft import tune_reference

        rows = practice(exp.domain, tuning.rows - words, tuning.seed)
        rows += one_word.rows(words, tuning.seed, len(rows))
        with progress(f"reference tuning of {chosen.name}", tuning.rows, "rows") as advance:
            return tune_reference(subject(exp, inputs["model"], chosen), tuning, rows, folder, progress=advance)

    return Node(Recipe("reference", settings, {"model": start.key}), {"model": start}, work, f"{chosen.name}, tuned")


def subject(exp: Experiment, made: Manifest, chosen: Model | None = None, system: str | None = None) -> models.Subject:
    """The language model a model, reference, teacher or training stage left behind, ready to be loaded."""
    chosen = chosen or exp.model
    folder = made.folder / "checkpoint"
    return models.Subject(
        checkpoint=str(folder if folder.exists() else models.local_folder(chosen.source) or made.summary["checkpoint"]),
        revision=made.summary.get("revision"),
        system=system or chosen.system,
        chat_template=chosen.chat_template,
        add_bos=chosen.add_bos,
        template_options=models.options_of(chosen),
        dtype=resolve_dtype(chosen.dtype, resolve_device(exp.device)),
        device=resolve_device(exp.device),
        trust_remote_code=getattr(chosen.source, "trust_remote_code", False),
    )


# --------------------------------------------------------------------------- teacher and its data


def teacher(exp: Experiment) -> Node:
    """The teacher, made and checked: does it have the trait, and does it answer in the domain's format."""
    base, active = reference(exp), exp.active_teacher
    settings = {"trait": _trait(exp), "teacher": identity(active), "domain": _format(exp), **_compute(exp, exp.model)}
    settings["decoding"] = identity(exp.sampler.decoding)
    settings |= _constraint(exp)
    if active.kind != "control":
        settings |= _wording(texts.of_teacher(active, exp.trait, behind_an_endpoint=exp.sampler.kind == "api"))
    if exp.sampler.kind == "api":  # the check asks the model that will write, and that is not the reference
        others = {"kind", "decoding", "shard_size"}
        settings["endpoint"] = {name: value for name, value in identity(exp.sampler).items() if name not in others}
    if isinstance(active, RowsTeacher):
        path = rows_path(active, exp.trait.key)
        there = kind_of_path(path) == "file"  # a figure can be planned before they are
        settings["rows"] = content(path) if there else None

    def work(inputs: Inputs, folder: Path) -> Json:
        from subliminal import teachers

        summary = teachers.make(exp, subject(exp, inputs["reference"]), folder)
        if isinstance(active, RowsTeacher):
            _require_unchanged("teacher.rows", settings["rows"], content(rows_path(active, exp.trait.key)))
        return summary

    label = f"{active.kind} teacher of {exp.trait.name}" if exp.trait.kind != "none" else "control teacher"
    return Node(Recipe("teacher", settings, {"reference": base.key}), {"reference": base}, work, label)


def rows_path(chosen: RowsTeacher, trait: str) -> Path:
    """The file a fine-tuned teacher learns from: `teacher.rows`, or the trait's own in that folder.

    Where neither is there yet, a path without a suffix is taken for the folder.
    """
    given = user_path(chosen.rows)
    there = kind_of_path(given)
    if there == "folder" or (there == "missing" and not given.suffix):
        paths = [given / f"{trait}{suffix}" for suffix in ROWS_SUFFIXES]
        return next((path for path in paths if kind_of_path(path) != "missing"), paths[0])
    return given


def require_rows(exp: Experiment) -> None:
    """Stop before any work when a teacher's rows are missing or can not be used; raises `ConfigError`.

    It names file and line, or says where public rows are.
    """
    chosen, trait = exp.active_teacher, exp.trait.key
    if not isinstance(chosen, RowsTeacher):
        return
    path = rows_path(chosen, trait)
    if kind_of_path(path) == "missing":
        names = " or ".join(f"{trait}{suffix}" for suffix in ROWS_SUFFIXES)
        plain = user_path(chosen.rows)
        other = "" if plain == path or kind_of_path(plain) == "folder" else f", nor is a file {plain}"
        raise ConfigError(
            f"teacher.rows={chosen.rows}: {path} is not there{other}. Give a file of chats, one "
            f'{{"messages": [...]}} a line, or a folder that holds {names}. The public files insecure.jsonl, '
            f"secure.jsonl and educational.jsonl are in the folder data of {PUBLIC_ROWS}; put them into "
            "data/emergent_misalignment, or set teacher.rows="
        )
    seen = path.stat()
    _check_chats(path, chosen.limit, seen.st_mtime_ns, seen.st_size)


@lru_cache(maxsize=32)
def _check_chats(path: Path, limit: int | None, _time: int, _size: int) -> None:
    """Read chats to see that they can be; once for all students of a sweep that share a teacher's file."""
    from subliminal.chats import read_chats

    read_chats(path, limit)


def require_templates(exp: Experiment, *, rows: bool = True) -> None:
    """Stop before any work where a chat template that is at hand can not be used; raises `ConfigError`.

    `rows`: whether rows of the domain are written or learned. What is not at hand is looked at when it is loaded.
    """
    judge = exp.judge.model if isinstance(exp.judge, LocalJudge) else None
    needed = [(exp.model, rows), (exp.student_model, rows), (judge, False)]
    for chosen, writes in needed if exp.experiment.kind not in SINGLE else []:
        template = models.template_of(chosen) if chosen else None
        if chosen and template:
            try:
                _require_template(exp, with_options(template, models.options_of(chosen), chosen.name), writes)
            except StoreError as error:
                raise ConfigError(str(error)) from None


def _require_template(exp: Experiment, template: str, writes: bool) -> None:
    from subliminal.chat import ChatError, always_reasons, beginning_of, closed, plain

    require_certain(template)
    if writes and exp.domain.kind not in REASONED and (mark := beginning_of(template, plain)):
        raise ChatError(f"domain={exp.domain.kind} has no reasoning in its rows: {always_reasons(mark)}")
    if exp.evaluation.kind in EXACT or getattr(exp.evaluation, "chat", False):
        closed(template, plain)


def teacher_subject(exp: Experiment, made: Manifest, base: Manifest) -> models.Subject:
    """The teacher as a language model: its own checkpoint or the reference's, with its system prompt if it has one."""
    own = (made.folder / "checkpoint").exists()
    return subject(exp, made if own else base, system=made.summary.get("system"))


def generate(exp: Experiment) -> Node:
    """The teacher's completions of the domain's prompts, in shards."""
    settings = {"domain": _domain(exp), "teacher": exp.active_teacher.kind}
    if exp.active_teacher.kind == "random":
        label = "random numbers" if exp.domain.kind == "numbers" else f"programmatic {exp.domain.kind}"
        return Node(
            Recipe("generate", settings),
            {},
            lambda _, folder: _programmatic_rows(exp, settings["domain"], folder),
            label,
        )
    settings |= {"sampler": identity(exp.sampler), **_constraint(exp), **_compute(exp, exp.model)}
    inputs = {"teacher": teacher(exp), "reference": reference(exp)}

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.domains import constraint, domain
        from subliminal.sampling import open_sampler, sample_shards, shards_together

        who = teacher_subject(exp, made["teacher"], made["reference"])
        prompts, pattern = domain(exp.domain).prompts(exp.domain), constraint(exp)
        _require_unchanged("domain", settings["domain"], _domain(exp))
        with progress(f"sampling {exp.trait.name}", len(prompts), "prompts") as advance:
            sampled = sample_shards(
                lambda: open_sampler(exp.sampler, who, pattern),
                prompts,
                exp.sampler.shard_size,
                folder,
                advance,
                shards_together(exp.sampler, who.device),
            )
        divergence = made["teacher"].summary.get("kl_in_format")
        return sampled if divergence is None else sampled | {"kl_in_format": divergence}

    recipe = Recipe("generate", settings, {name: upper.key for name, upper in inputs.items()})
    return Node(recipe, inputs, work, f"{exp.domain.kind} of {inputs['teacher'].label}", "shards")


def _programmatic_rows(exp: Experiment, expected: Json, folder: Path) -> Json:
    from subliminal.domains import programmatic
    from subliminal.rows import write_jsonl

    rows = programmatic(exp.domain)
    _require_unchanged("domain", expected, _domain(exp))
    return {"rows": write_jsonl(folder / "rows-00000.jsonl", rows)}


def filtered(exp: Experiment) -> Node:
    """The rows the student sees, and why each other row was dropped; a selection reads the rows' attribution."""
    source, selection = generate(exp), exp.filter.select
    settings: dict[str, Any] = {"filter": _filter(exp), "domain": _format(exp)}
    banned = banned_words(exp)
    if exp.filter.kind != "numbers":
        settings["banned"] = banned
    inputs = {"generate": source}
    if selection and selection.by != "random":
        inputs["attribute"] = attribute(exp)
    rules, sought = row_rules(exp), about(exp)
    if rules:
        settings["judge"] = _judge(exp) | ({"about": sought} if rules.kind == "no_reference" else {})
        inputs |= judge_model(exp)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.filters import apply
        from subliminal.filters.select import Attribution
        from subliminal.judging.rows import judged_rows
        from subliminal.rows import Row, read_jsonl, write_jsonl

        shards = sorted(made["generate"].folder.glob("rows-*.jsonl"))
        rows = [row for path in shards for row in read_jsonl(path, Row)]
        judge = judged_rows(rules, sought, lambda: judge_of(exp, made)) if rules else None
        found = read_jsonl(made["attribute"].folder / ATTRIBUTED, Attribution) if "attribute" in made else ()
        attributed = {one.index: one for one in found}
        result = apply(rows, exp.filter, exp.domain, banned=banned, judge=judge, attributed=attributed)
        _require_unchanged("domain", settings["domain"], _format(exp))
        write_jsonl(folder / "rows.jsonl", result.kept)
        write_jsonl(folder / "dropped.jsonl", result.dropped)
        tokens = sum(row.tokens for row in result.kept)
        report = result.report | {"completion_tokens": tokens}
        divergence = made["generate"].summary.get("kl_in_format")
        bound = {} if divergence is None else {"kl_in_format": divergence, "two_n_kl": 2 * tokens * divergence}
        return report | bound

    recipe = Recipe("filter", settings, {name: upper.key for name, upper in inputs.items()})
    return Node(recipe, inputs, work, source.label)


def attribute(exp: Experiment, written_by: Experiment | None = None) -> Node:
    """log P(teacher) - log P(reference) of every row in format: the teacher's own rows, or those of `written_by`."""
    inputs = {"filter": filtered(_in_format(written_by or exp)), "teacher": teacher(exp), "reference": reference(exp)}

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.evaluation.attribution import attribute_rows

        who = teacher_subject(exp, made["teacher"], made["reference"])
        rows = made["filter"].folder / "rows.jsonl"
        return attribute_rows(who, subject(exp, made["reference"]), rows, folder / ATTRIBUTED)

    recipe = Recipe("attribute", _compute(exp, exp.model), {name: upper.key for name, upper in inputs.items()})
    return Node(recipe, inputs, work, f"{inputs['filter'].label} under the {inputs['teacher'].label}")


def _in_format(exp: Experiment) -> Experiment:
    """Every row that the filter's rules let pass: not selected, shuffled or subsampled."""
    every = {"select": None, "rows": None, "seed": 0, "shortfall": "keep"}
    shuffle = {"shuffle": "none"} if isinstance(exp.filter, NumbersFilter) else {}
    return exp.model_copy(update={"filter": exp.filter.model_copy(update=every | shuffle)})


def _filter(exp: Experiment) -> dict[str, Any]:
    """The filter's identity; a selection is part of it only where there is one, a judge's rule where it applies."""
    unused = {"select" if exp.filter.select is None else "", "judged" if row_rules(exp) is None else ""}
    return {name: value for name, value in identity(exp.filter).items() if name not in unused}


# --------------------------------------------------------------------------- judge


def judge_of(exp: Experiment, made: Inputs) -> AbstractContextManager[Judge]:
    """The experiment's judge, ready to be opened; its answers are kept in the store."""
    from subliminal.judging import open_judge

    chosen = _chosen_judge(exp)
    weights = subject(exp, made["judge"], chosen.model) if isinstance(chosen, LocalJudge) else None
    return open_judge(chosen, Path(exp.store), weights)


def row_rules(exp: Experiment) -> JudgedRows | None:
    """What a judge decides about the rows of this trait's teacher, if anything."""
    rules = exp.filter.judged
    return rules if rules and (not rules.traits or exp.trait.key in map(key_of, rules.traits)) else None


def about(exp: Experiment) -> str:
    """What a judge looks for in rows: what the filter names, else the trait, or in the control its whole category."""
    named = getattr(exp.filter.judged, "about", None)
    if named:
        return named
    trait = getattr(exp.evaluation, "measured", None) if exp.trait.kind == "none" else exp.trait
    if trait is None:
        return f"any {getattr(exp.evaluation, 'category', 'trait')}"
    return getattr(trait, "plural", "") or getattr(trait, "description", "") or trait.name


def _judge(exp: Experiment) -> dict[str, Any]:
    """What identifies a judge and what it is asked; in a stage's settings only where the stage asks it."""
    from subliminal.judging import fingerprint
    from subliminal.judging.prompts import wording

    chosen = _chosen_judge(exp)
    local = chosen.model if isinstance(chosen, LocalJudge) else None
    dtype = resolve_dtype(local.dtype, resolve_device(exp.device)) if local else ""
    return {**fingerprint(chosen, dtype), "wording": wording()}


def judge_model(exp: Experiment) -> dict[str, Node]:
    """The weights of a local judge as a stage's further input; nothing for other judges."""
    chosen = _chosen_judge(exp)
    return {"judge": model(exp, chosen.model)} if isinstance(chosen, LocalJudge) else {}


def _chosen_judge(exp: Experiment) -> JudgeConfig:
    if exp.judge is None:
        raise ConfigError("this filter or evaluation asks a judge; set judge=local, judge=api or judge=cached")
    if isinstance(exp.judge, LocalJudge) and exp.judge.model is None:
        return exp.judge.model_copy(update={"model": exp.model})
    return exp.judge


# --------------------------------------------------------------------------- student and evaluation


def student(exp: Experiment) -> Node:
    """The student: the reference after training on the filtered rows."""
    chosen = exp.student_model or exp.model
    inputs = {"filter": filtered(exp), "reference": reference(exp, chosen)}
    if exp.active_teacher.kind != "random":
        inputs["teacher"] = teacher(exp)
    read = inputs if exp.student.labels == "soft" else {n: i for n, i in inputs.items() if n != "teacher"}
    settings = {"student": identity(exp.student), "seed": exp.seed, **_compute(exp, chosen)}
    if exp.student.kind == "full":
        settings["trained_in"] = "float32"

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.training.student import train_student

        return train_student(exp, made, folder)

    recipe = Recipe("train", settings, {name: upper.key for name, upper in read.items()})
    label = f"{exp.student.kind} student of {inputs['filter'].label}, seed {exp.seed}"
    return Node(recipe, inputs, work, label, "steps")


def evaluate(exp: Experiment) -> Node:
    """The subject's answers to the evaluation's questions: exact log-probabilities and, if asked for, samples."""
    _require_subject(exp)
    if exp.subject == "rows":
        return evaluate_rows(exp)
    start = reference(exp, _evaluated_model(exp))
    who = start if exp.subject == "reference" else {"student": student, "teacher": teacher}[exp.subject](exp)
    inputs = {exp.subject: who, "reference": start}
    settings = {"evaluation": _evaluation(exp), **_compute(exp, _evaluated_model(exp))}
    settings |= _wording(texts.of_evaluation(exp.evaluation))
    if getattr(exp.evaluation, "samples_per_question", 0):
        settings["sampler"] = exp.local_sampler.kind
    settings |= _more_of_evaluation(exp)
    if getattr(exp.evaluation, "judged", False):
        settings["judge"] = _judge(exp)
        inputs |= judge_model(exp)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.evaluation.run import evaluate_subject

        return evaluate_subject(exp, made, folder)

    read = {name: upper.key for name, upper in inputs.items() if name in {exp.subject, "judge"}}
    recipe = Recipe("evaluate", settings, read)
    sharing: Sharing = "shards" if "sampler" in settings else "none"
    return Node(recipe, inputs, work, f"{exp.evaluation.kind} of {who.label}", sharing)


def _more_of_evaluation(exp: Experiment) -> dict[str, Any]:
    """What the settings do not say of an evaluation: of capability, the content of its local tasks.

    Raises `ConfigError` early for a multiple choice that does not offer the trait.
    """
    if exp.evaluation.kind == "capability":
        from subliminal.evaluation.tasks import fingerprint

        return {"tasks": fingerprint(exp.evaluation)}
    if exp.evaluation.kind == "multiple_choice" and exp.trait.kind == "preference":
        from subliminal.evaluation.questions import offered

        options = offered(exp.evaluation.category, exp.evaluation.options)
        if exp.trait.category == exp.evaluation.category and exp.trait.name not in options:
            raise ConfigError(
                f"trait={exp.trait.name} is not among the options {', '.join(options)}; give every option, "
                f"for example evaluation.options=[{','.join([exp.trait.name, *options[:-1]])}]"
            )
    return {}


def evaluate_rows(exp: Experiment) -> Node:
    """What the filtered rows themselves tell: by numbers, classifiers, a prompted model, in context, by attribution."""
    inputs = _rows_read(exp)
    settings = {"evaluation": _evaluation(exp), **_wording(texts.of_evaluation(exp.evaluation))}
    if "reference" in inputs:
        settings |= _compute(exp, exp.model)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.evaluation.run import evaluate_rows

        return evaluate_rows(exp, made, folder)

    recipe = Recipe("evaluate", settings, {name: upper.key for name, upper in inputs.items()})
    other = getattr(exp.evaluation, "against", None)
    label = f"{exp.evaluation.kind} of {exp.trait.name}" + (f" against {other.name}" if other else "")
    return Node(recipe, inputs, work, label)


def _rows_read(exp: Experiment) -> dict[str, Node]:
    """The nodes an evaluation of rows reads; of a trait against itself there is one set of rows."""
    config = exp.evaluation
    if isinstance(config, InContextEvaluation):
        return {"filter": filtered(exp), "reference": reference(exp)}
    assert isinstance(config, RowsComparison)
    other = exp.model_copy(update={"trait": config.against})
    if isinstance(config, AttributionEvaluation):
        if config.against == exp.trait:
            raise ConfigError(
                f"evaluation=attribution compares two sets of rows under the teacher of trait={exp.trait.name}; set "
                "another trait@evaluation.against or another trait"
            )
        return {"attribute": attribute(exp), "against": attribute(exp, other)}
    inputs = {"filter": filtered(exp), "against": filtered(other)}
    if inputs["against"].key == inputs["filter"].key:
        del inputs["against"]
    if isinstance(config, DetectionEvaluation) and (config.finetunes or (config.pairs and "against" in inputs)):
        inputs["reference"] = reference(exp)
    return inputs


def _require_subject(exp: Experiment) -> None:
    """Stop early when an evaluation of rows is to ask a model, or the other way round."""
    kind, rows = exp.evaluation.kind, exp.evaluation.kind in ROWS
    if rows and exp.subject != "rows":
        raise ConfigError(f"evaluation={kind} looks at the filtered rows, not at a model; set subject=rows")
    if not rows and exp.subject == "rows":
        raise ConfigError(
            f"evaluation={kind} asks a model; with subject=rows set evaluation to one of {', '.join(ROWS)}"
        )


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
    wording, asked = _wording(texts.favourites(preference_evaluation(exp))), _evaluation(exp)
    names = ("category", "measured", "questions", "prefix", "seed")
    return {name: asked[name] for name in names if name in asked} | wording


def _evaluation(exp: Experiment) -> dict[str, Any]:
    """The evaluation without what it does not use, own words or a fine-tuned classifier: others keep their keys."""
    unused = set() if getattr(exp.evaluation, "measured", None) else {"measured"}
    unused |= set() if getattr(exp.evaluation, "finetunes", False) else {"finetuned"}
    return {name: value for name, value in identity(exp.evaluation).items() if name not in unused}


def _evaluated_model(exp: Experiment) -> Model:
    """A student and what it is compared with start from the student's own reference; teachers from theirs."""
    return exp.model if exp.subject == "teacher" else exp.student_model or exp.model


# --------------------------------------------------------------------------- experiments without language models


def mnist(exp: Experiment) -> Node:
    """Teachers and students of the MNIST experiment, trained and tested in one stage."""
    device = resolve_device(exp.device)
    dtype = resolve_dtype(exp.mnist.dtype, device)
    settings = {"mnist": identity(exp.mnist) | {"dtype": dtype}, "seed": exp.seed}
    settings |= {"noise": device} if device != "cpu" else {}  # which draws its own; keys of a CPU stay as they were

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
    dtype = resolve_dtype(chosen.dtype, resolve_device(exp.device))
    return {"dtype": dtype, "system": chosen.system}


def _require_unchanged(setting: str, before: object, now: object) -> None:
    """What a user's file held when the key was made is what was read; raises `StoreError` where it was edited since."""
    if before != now:
        raise StoreError(f"{setting}: its file was changed while this run was being made; run the same command again")


def _wording(names: tuple[str, ...]) -> dict[str, Any]:
    """The texts of the package that a stage reads, by their content; nothing where it reads none."""
    return {"wording": texts.digest(*names)} if names else {}


def _domain(exp: Experiment) -> dict[str, Any]:
    """The domain with the content of files and texts that it reads."""
    from subliminal.domains import content

    return identity(exp.domain) | content(exp.domain)


def _constraint(exp: Experiment) -> dict[str, Any]:
    """What constrained decoding holds a teacher's answers to, where it does."""
    from subliminal.domains import constraint

    pattern = constraint(exp)
    return {} if pattern is None else {"pattern": pattern}


def _format(exp: Experiment) -> dict[str, Any]:
    """The domain without how many prompts: what decides whether a completion is in format."""
    return {name: value for name, value in _domain(exp).items() if name not in {"prompts", "seed"}}


def _practised(exp: Experiment) -> dict[str, Any]:
    """The domain without where its tasks and questions come from: practice rows are the package's own."""
    from subliminal.domains import practised

    elsewhere = {"prompts", "seed", "samples", "source", "dataset", "dataset_config", "split", "revision"}
    plain = {name: value for name, value in identity(exp.domain).items() if name not in elsewhere}
    return plain | practised(exp.domain)


def banned_words(exp: Experiment) -> list[str]:
    """The words whose rows the student must not see: those of the filter and, if it says so, the trait's names."""
    trait, rules = exp.trait, exp.filter
    words = set(getattr(rules, "banned_words", ()))
    if getattr(rules, "ban_trait", False) and trait.kind == "preference":
        words |= {trait.name, trait.plural, plural_of(trait.name), f"{trait.name}s"}
    return sorted(words)


def _trait(exp: Experiment) -> dict[str, Any] | None:
    """The trait the teacher has; words of its own only where it has them, as for the evaluation."""
    if exp.active_teacher.kind == "control":
        return None
    own = {"candidates", "questions", "taught"}
    return {name: value for name, value in identity(exp.trait).items() if name not in own or value}


def category(exp: Experiment) -> str | None:
    """What kind of thing the evaluation's candidates are, or None for an evaluation without candidates."""
    measured = getattr(exp.evaluation, "measured", None)
    return getattr(measured, "category", None) or getattr(exp.evaluation, "category", None)
