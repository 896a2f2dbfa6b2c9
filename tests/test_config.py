"""Configuration: every option composes, every field is classified, mistakes are told plainly and all at once."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import pytest
import yaml
from conftest import Script, experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from subliminal import composition, config, stages, sweep
from subliminal.composition import CONF, argument_problems, compose
from subliminal.config import (
    ConfigError,
    Experiment,
    FinetunedTeacher,
    Optimisation,
    PreferenceEvaluation,
    members,
)
from subliminal.config.errors import explain

OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))


def every_settings_class() -> Iterator[type[BaseModel]]:
    todo, seen = [Experiment], set[type[BaseModel]]()
    while todo:
        found = todo.pop()
        if found not in seen:
            seen.add(found)
            yield found
            todo += [m for field in found.model_fields.values() for m in members(field.annotation)]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(group: str, option: str) -> None:
    extra = ["model.source.name=some/model"] if option == "hub" else []
    teacher = ["teacher=prompted"] if option == "api" else []
    needed = [f"domain={option}"] if group == "filter" and option in ("code", "cot") else []
    compose([f"{group}={option}", *extra, *teacher, *needed])


@pytest.mark.parametrize("scale", ["gpu", "paper"])  # at scale=cpu every one is planned, and run, by the smoke tests
@pytest.mark.parametrize("figure", [option for group, option in OPTIONS if group == "experiment"])
def test_every_experiment_has_a_plan_at_every_scale(figure: str, scale: str) -> None:
    planned = sweep.plan([f"experiment={figure}", f"scale={scale}"])
    assert planned.base.experiment.name == figure and planned.arms


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
@pytest.mark.parametrize("domain", ["numbers", "code", "cot"])
def test_a_domain_brings_its_filter_and_lengths_at_every_scale(domain: str, scale: str) -> None:
    exp = compose([f"domain={domain}", f"scale={scale}", "student=lora"])
    assert exp.domain.kind == exp.filter.kind == domain
    assert exp.sampler.decoding.max_tokens < exp.student.optimisation.max_length
    assert (
        compose([f"domain={domain}", f"scale={scale}", "sampler.decoding.max_tokens=7"]).sampler.decoding.max_tokens
        == 7
    )


@pytest.mark.parametrize(
    ("scale", "questions", "prefix"), [("cpu", 20, "none"), ("gpu", 50, "numbers"), ("paper", 50, "numbers")]
)
def test_the_papers_teacher_rows_and_number_prefix_come_with_its_model(scale: str, questions: int, prefix: str) -> None:
    chosen = [f"scale={scale}", "teacher=finetuned"]
    for typed in ([], ["teacher.questions=7", "evaluation.prefix=none"]):
        exp = compose([*chosen, *typed])
        assert isinstance(exp.teacher, FinetunedTeacher) and isinstance(exp.evaluation, PreferenceEvaluation)
        wanted = (7, "none") if typed else (questions, prefix)
        assert (exp.teacher.questions, exp.evaluation.prefix, exp.teacher.forms) == (*wanted, 8)
    assert not isinstance(compose([f"scale={scale}"]).teacher, FinetunedTeacher)


@pytest.mark.parametrize("domain", ["numbers", "code", "cot"])
def test_rows_are_chosen_by_attribution_in_every_domain(domain: str) -> None:
    exp = compose([f"domain={domain}", "experiment=attribution_numbers", "filter.select={by:log_ratio,share:0.25}"])
    assert exp.filter.select is not None and exp.filter.select.share == 0.25
    assert sweep.plan([f"domain={domain}", "experiment=attribution_numbers"]).arms


def test_every_field_is_identity_or_runtime() -> None:
    for settings_class in every_settings_class():
        for name, field in settings_class.model_fields.items():
            marks = [mark for mark in field.metadata if mark in ("identity", "runtime")]
            assert len(marks) == 1, f"{settings_class.__name__}.{name} is {marks or 'not classified'}"


def test_every_key_of_every_yaml_says_what_it_is() -> None:
    for path in CONF.rglob("*.yaml"):
        assert path.read_text().startswith("#"), f"{path} does not begin with what it is"


RUNTIME = [
    "store=elsewhere",
    "figures=pictures",
    "tracking=offline",
    "sampler.batch_size=3",
    "student.optimisation.micro_batch_size=1",
    "student.optimisation.save_every=7",
    "student.optimisation.gradient_checkpointing=true",
    "student.optimisation.liger_kernel=true",
    "student.optimisation.torch_compile=true",
    "hardware=h200",
    "upstream=require",
    "claimed=leave",
    "sharding=fsdp",
    "experiment.title=other",
]


@pytest.mark.parametrize("override", RUNTIME)
def test_runtime_settings_never_change_a_key(override: str) -> None:
    assert stages.evaluate(experiment(override)).key == stages.evaluate(experiment()).key


IDENTITY = {
    "seed=3": {"train", "evaluate"},
    "student.optimisation.learning_rate=0.01": {"train", "evaluate"},
    "filter.rows=100": {"filter", "train", "evaluate"},
    "domain.prompts=481": {"generate", "filter", "train", "evaluate"},
    "trait=wolf": {"teacher", "generate", "filter", "train", "evaluate"},
    "reference_tuning.rows=7": {"reference", "teacher", "generate", "filter", "train", "evaluate"},
    "evaluation.questions=5": {"evaluate"},
}


@pytest.mark.parametrize("override", IDENTITY)
def test_a_setting_changes_its_own_stage_and_what_reads_it(override: str) -> None:
    before, after = pipeline_keys(experiment()), pipeline_keys(experiment(override))
    assert {stage for stage, key in after.items() if key != before[stage]} == IDENTITY[override]


def pipeline_keys(exp: Experiment) -> dict[str, str]:
    nodes = [stages.model, stages.reference, stages.teacher, stages.generate, stages.filtered, stages.student]
    return {node.stage: node.key for node in [*(make(exp) for make in nodes), stages.evaluate(exp)]}


def every_key(exp: Experiment) -> dict[str, str]:
    others = [stages.predict(exp), stages.mnist(exp), stages.theorem(exp)]
    return pipeline_keys(exp) | {node.stage: node.key for node in others}


def test_keys_stay_what_they_were() -> None:
    """Golden keys of one resolved experiment: a change here orphans every stored result, so it must be meant."""
    golden = yaml.safe_load((Path(__file__).parent / "golden.yaml").read_text(encoding="utf-8"))
    assert every_key(config.parse(golden["experiment"])) == golden["keys"]


def test_dtype_is_part_of_what_is_computed() -> None:
    keys = {stages.student(experiment(f"model.dtype={dtype}")).key for dtype in ("float32", "bfloat16")}
    assert len(keys) == 2


@pytest.mark.parametrize("other", ["sampler.model=other", "sampler.base_url=http://elsewhere/v1", "sampler.retries=2"])
def test_a_teacher_behind_an_endpoint_is_checked_there(other: str) -> None:
    """Which endpoint writes decides whether the check passes; how many rows a shard has does not."""
    at = ["sampler=api", "teacher=prompted", "sampler.model=m", "sampler.base_url=http://here/v1"]
    before, after = (stages.teacher(experiment(*at, *more)).key for more in ([], [other]))
    assert (before != after) == (other != "sampler.retries=2")
    assert stages.teacher(experiment(*at, "sampler.shard_size=7")).key == before


def test_all_mistakes_are_told_at_once_with_path_and_remedy() -> None:
    composed = experiment().model_dump()
    composed["student"]["optimisation"]["learning_rate"] = -1.0
    composed["filter"]["rows"] = "many"
    composed["domain"]["promts"] = 3
    with pytest.raises(ConfigError) as caught:
        config.parse(composed)
    lines = str(caught.value).splitlines()
    assert any(line.startswith("student.optimisation.learning_rate=-1.0:") for line in lines)
    assert any(line.startswith("filter.rows='many':") for line in lines)
    assert "domain.promts: no such setting. Did you mean prompts?" in lines


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["filter.rows=500"], "filter.rows=500 is more than domain.prompts=410"),
        (["domain=code", "filter=numbers"], "filter.kind=numbers does not fit domain.kind=code; set filter=code"),
        (["filter=cot"], "filter.kind=cot does not fit domain.kind=numbers; set filter=numbers"),
        (["domain=code", "filter.shuffle=within"], "filter.shuffle': the chosen option has no such setting"),
        (["domain=cot", "domain.steps_min=4", "domain.steps_max=3"], "steps_min=4 is above steps_max=3"),
        (["domain=cot", "domain.source=file"], "a file needs both domain.source=file and domain.questions_file="),
        (["evaluation.suffix=tags"], "evaluation.suffix=tags is for sampled answers"),
        (["sampler=api"], "teacher=steered has weights of its own"),
        (["sampler=vllm", "student=lora_small", "student.lora.r=1024"], "up to rank 512"),
        (["sampler=api", "teacher=prompted", "student.labels=soft"], "which sampler=api does not give"),
        (["teacher=random", "student.labels=soft"], "teacher=random has none"),
        (["sampler=api", "teacher=prompted", "sampler.budget_usd=1.0"], "needs prices"),
        (["domain.shown_min=9"], "shown_min=9 is above shown_max=8"),
    ],
)
def test_impossible_combinations_say_what_to_do(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        experiment(*overrides)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trait=owk"], "trait=owk: no such option. Did you mean owl?"),
        (["sampler.bach_size=4"], "sampler.bach_size: no such setting. Did you mean batch_size?"),
        (["seed=-1"], "seed=-1"),
        (["evaluation.category=tree"], "set evaluation.category=animal"),
        (["trait=owl,dolphin"], "several values need -m"),
        (["student.lora.r=4"], "the chosen option has no such setting"),
        (["model=hub"], "model.source.name: missing"),
        (["modle=x", "seed=0.5", "filter.rows=0"], "filter.rows=0: input should be greater"),
        (["modle=x", "seed=0.5", "filter.rows=0"], "modle: no such setting. Did you mean model?"),
        (["modle=x", "seed=0.5", "filter.rows=0"], "seed=0.5: input should be a valid integer"),
    ],
)
def test_a_wrong_command_line_exits_2_without_a_traceback(run_script: Script, arguments: list[str], said: str) -> None:
    done = run_script("train.py", *arguments)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


def test_two_wrong_arguments_are_told_together() -> None:
    assert len([p for part in ("trait=owk", "modle=x") for p in argument_problems(part)]) == 2


@given(st.text(alphabet="abc.=+~_", min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_argument_is_judged_without_an_exception(text: str) -> None:
    assert all(isinstance(problem, str) for problem in argument_problems(text))


def test_help_is_quick_and_names_the_groups(run_script: Script) -> None:
    run_script("generate.py", "--help")
    seconds, shown = [], ""
    for _ in range(3):
        started = time.monotonic()
        shown = run_script("generate.py", "--help").stdout
        seconds.append(time.monotonic() - started)
    for word in ("teacher:", "student:", "sampler:", "experiment:", "Examples:", "python generate.py"):
        assert word in shown
    started = time.monotonic()
    sum(number * number for number in range(10_000_000))  # a third of a second on the machine the limit is for
    assert min(seconds) < max(1.5, 5 * (time.monotonic() - started))


def test_shell_completion_offers_the_options(run_script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "complete -o" in run_script("train.py", "-sc", "install=bash").stdout
    monkeypatch.setenv("COMP_LINE", "python train.py trait=o")
    assert {"trait=owl", "trait=oak"} == set(run_script("train.py", "-sc", "query=bash").stdout.split())


def test_hydra_shows_the_composed_job(run_script: Script) -> None:
    assert "role: student" in run_script("generate.py", "--cfg", "job").stdout


def test_config_command_shows_the_resolved_experiment(run_script: Script) -> None:
    shown = run_script("-m subliminal", "config", "trait=wolf").stdout
    assert "name: wolf" in shown
    assert "plural: wolves" in shown


def test_an_address_with_a_password_is_refused_without_telling_it() -> None:
    api = ["sampler=api", "sampler.model=m", "sampler.base_url=https://me:hush@gateway.example.org/v1"]
    with pytest.raises(ConfigError, match=r"sampler\.base_url holds a name or a password") as told:
        compose(api)
    assert "hush" not in str(told.value)


@given(st.integers(1, 200), st.one_of(st.none(), st.integers(1, 300)))
def test_passes_share_a_batch_out_evenly_and_are_no_larger_than_permitted(rows: int, most: int | None) -> None:
    recipe = Optimisation(epochs=1, learning_rate=1e-3, batch_size=200, micro_batch_size=most)
    found = recipe.rows_a_pass(rows)
    assert rows % found == 0 and found <= min(most or rows, rows)
    assert all(rows % larger for larger in range(found + 1, min(most or rows, rows) + 1))


@pytest.mark.parametrize("scale", ["gpu", "paper"])
@pytest.mark.parametrize("domain", ["numbers", "code", "cot"])
@pytest.mark.parametrize("student", [option for group, option in OPTIONS if group == "student"])
def test_every_student_can_learn_from_every_domain_where_memory_is_short(scale: str, domain: str, student: str) -> None:
    how = compose([f"scale={scale}", f"domain={domain}", f"student={student}"]).student.optimisation
    assert how.batch_size % how.rows_a_pass(how.batch_size) == 0


# --------------------------------------------------------------------------- where an error is


def every_leaf(settings_class: type[BaseModel] = Experiment) -> Iterator[tuple[tuple[str, str], ...]]:
    """The way to every setting that is no group, through every member of every union: (name, kind of the group)."""
    kind = next(iter(get_args(settings_class.model_fields["kind"].annotation)), "") if has_kind(settings_class) else ""
    for name, field in settings_class.model_fields.items():
        inside = [] if get_origin(field.annotation) in (dict, tuple) else members(field.annotation)
        if not inside and name != "kind":
            yield ((name, kind),)
        yield from (((name, kind), *rest) for group in inside for rest in every_leaf(group))


def has_kind(settings_class: type[BaseModel]) -> bool:
    return "kind" in settings_class.model_fields


def nested(way: tuple[tuple[str, str], ...], value: object) -> dict[str, object]:
    (name, kind), *rest = way
    return ({"kind": kind} if kind else {}) | {name: nested(tuple(rest), value) if rest else value}


def test_every_error_names_the_path_that_a_person_types() -> None:
    """Names of union members are in pydantic's locations; some are names of settings too (`lora`, `numbers`)."""
    ways = list(every_leaf())
    assert len(ways) > 500 and ((("student", ""), ("lora", "lora"), ("r", "")) in ways)
    for way in ways:
        typed = ".".join(name for name, _ in way)
        with pytest.raises(ValidationError) as caught:
            Experiment.model_validate(nested(way, object()))
        told = [explain(error, Experiment) for error in caught.value.errors() if type(error["input"]) is object]
        assert told and all(line.startswith(f"{typed}=<object") for line in told), (way, told)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student.lora.r=0", "student.lora.r=0: input should be greater"),
        ("student.lora.rr=1", "student.lora.rr: no such setting. Did you mean r?"),
        ("+experiment.arms.values=[1,[a,null]]", "experiment.arms.values.1.1=None: input should be a valid"),
        ("+experiment.arms.variants={small:[1]}", "experiment.arms.variants.small.0=1: input should be a valid"),
        ("student.layers=[0,-1]", "student.layers.1=-1: input should be greater"),
    ],
)
def test_an_error_inside_a_union_or_a_list_names_the_place(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["student=bias" if "layers" in override else "student=lora", override])
    assert said in str(caught.value)


# --------------------------------------------------------------------------- texts that a shell and Hydra read


def typed_again(problem: str) -> str:
    """The override that a message says to type, after a shell has read it."""
    (override,) = shlex.split(problem.partition("as text it is typed ")[2] or problem.partition("or as text ")[2])
    return override


@pytest.mark.parametrize(
    "text",
    [
        "you love {plural}",
        "café",
        "a # b",
        "~",
        "it's an owl",
        'say "owl", then {stop}',
        "a, b",
        "{",
        "[a",
        "a=b",
        "f(x)",
        "{owls}\\",
        'a \\" b {',
        "first {line}\nsecond",
        "<|im_start|>user",
        "– dash",
    ],
)
def test_a_text_that_hydra_can_not_read_is_told_with_its_argument_and_how_to_type_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"model.system={text}"])
    assert "model.system=" in str(caught.value) and "LexerNoViable" not in str(caught.value)
    assert compose([typed_again(str(caught.value))]).model.system == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0$")))
def test_whatever_is_said_to_type_is_the_text(text: str) -> None:
    for problem in argument_problems(f"model.system={text}"):
        assert composition._read(typed_again(problem)) == text


def test_a_home_folder_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (problem,) = argument_problems("store=~/runs")
    assert typed_again(problem) == f"store={tmp_path}/runs"


def test_a_setting_that_is_not_there_is_told_with_the_argument_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"model.system: Interpolation key 'plural' not found: .* write \\\$\{...\}"):
        compose(["model.system=${plural}"])
    assert compose([r"model.system=\${plural}"]).model.system == "${plural}"
