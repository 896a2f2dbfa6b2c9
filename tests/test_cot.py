"""The chain-of-thought domain: problems whose gold answers are right, sources of questions, parser and filter."""

from __future__ import annotations

import gzip
import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from conftest import Script, experiment
from hypothesis import given
from hypothesis import strategies as st
from test_code import EVERY_CANDIDATE

from subliminal import stages, sweep
from subliminal.config import ConfigError, Cot, CotFilter
from subliminal.domains import DomainError, cot, practice, programmatic
from subliminal.domains.cot import answer_of, number_of
from subliminal.domains.word_problems import STRUCTURES, Story, problem
from subliminal.filters import apply, reason
from subliminal.filters.words import holds
from subliminal.rows import Row
from subliminal.user_files import UserFileError

CONFIG = Cot(prompts=30)
RULES = CotFilter(rows=None)
EQUATION = re.compile(r": (-?\d+) ([-+*/]) (-?\d+) = (-?\d+)\.$")

seeds, indices = st.integers(0, 2**31), st.integers(0, 10_000)


def tagged(answer: object, reasoning: str = "2 + 2 = 4.") -> str:
    return f"<think>{reasoning}</think>\n<answer>{answer}</answer>"


# --------------------------------------------------------------------------- generated problems


@given(seeds, indices, st.integers(2, 4), st.integers(0, 2))
def test_every_line_of_a_solution_is_true_and_the_last_is_the_answer(
    seed: int, index: int, least: int, more: int
) -> None:
    most = min(4, least + more)
    made = problem(seed, index, least, most)
    assert least <= len(made.steps) <= most
    for step in made.steps:
        found = EQUATION.search(str(step))
        assert found is not None, step
        left, sign, right, result = int(found[1]), found[2], int(found[3]), int(found[4])
        exact = {"+": left + right, "-": left - right, "*": left * right, "/": Decimal(left) / Decimal(right)}[sign]
        assert exact == result >= 0
    assert made.answer == made.steps[-1].result


@given(seeds, indices)
def test_a_solution_uses_only_what_the_question_says_or_a_line_before(seed: int, index: int) -> None:
    made = problem(seed, index, 2, 4)
    words = {"twice": 2, "three times": 3, "four times": 4}
    known = {int(n) for n in re.findall(r"\d+", made.question)} | {n for w, n in words.items() if w in made.question}
    known |= {2 * n for n in known if "together in" in made.question}
    for step in made.steps:
        assert {step.left, step.right} <= known
        known.add(step.result)


@given(seeds, indices)
def test_a_problem_follows_from_seed_and_index_and_ends_with_its_question(seed: int, index: int) -> None:
    made = problem(seed, index, 2, 4)
    assert made == problem(seed, index, 2, 4)
    assert made.question.endswith("?") and made.question.count("?") == 1


def test_every_structure_can_be_told_in_two_three_and_four_steps() -> None:
    import random

    for structure in STRUCTURES:
        for count in (2, 3, 4):
            assert len(structure(Story(random.Random(7)), count).steps) == count


def test_problems_are_varied_and_name_no_candidate() -> None:
    texts = [problem(0, index, 2, 4).question for index in range(2000)]
    assert len(set(texts)) > 1950
    assert [text for text in texts if holds(text, EVERY_CANDIDATE)] == []


# --------------------------------------------------------------------------- prompts


def test_each_question_is_asked_as_often_as_samples_say_with_seeds_of_its_own() -> None:
    asked = cot.prompts(CONFIG)
    texts = [prompt.text for prompt in asked]
    assert texts[0] == texts[1] == texts[2] != texts[3]
    assert len(set(texts)) == 10 and len({prompt.seed for prompt in asked}) == 30
    assert all("<think>" in text and "<answer>" in text for text in texts)


def test_a_longer_list_begins_with_the_shorter_and_another_seed_asks_otherwise() -> None:
    assert cot.prompts(Cot(prompts=90))[:30] == cot.prompts(CONFIG)
    assert {p.text for p in cot.prompts(CONFIG)}.isdisjoint(p.text for p in cot.prompts(Cot(prompts=30, seed=1)))


@given(seeds, st.integers(1, 4))
def test_programmatic_answers_are_in_format_and_correct(seed: int, samples: int) -> None:
    config = Cot(prompts=8, seed=seed, samples=samples)
    rows = programmatic(config)
    assert apply(rows, RULES, config).report["reasons"] == {}


def test_practice_is_generated_whatever_the_source_and_away_from_the_domains_questions() -> None:
    config = Cot(prompts=30, source="hub", dataset="no/such")
    rows = practice(config, 40, 1_000_003)
    assert len({row.prompt for row in rows}) == 40
    assert not {row.prompt for row in rows} & {prompt.text for prompt in cot.prompts(Cot(prompts=300))}


# --------------------------------------------------------------------------- questions from elsewhere


LINES = [
    {"question": "Ann has 3 pens and buys 1,200. How many?", "answer": "3+1200=<<3+1200=1203>>1203 pens.\n#### 1,203"},
    {"question": "Half of 5?", "answer": "It is 5/2=<<5/2=2.5>>2.5.\n#### 2.5"},
]


def from_file(path: Path, *lines: object, prompts: int = 6) -> Cot:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return Cot(prompts=prompts, source="file", questions_file=str(path))


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_a_file_in_the_format_of_gsm8k_gives_questions_gold_answers_and_solutions(tmp_path: Path, name: str) -> None:
    config = from_file(tmp_path / name, *LINES)
    rows = programmatic(config)
    assert {cot.gold(row.index, config) for row in rows} == {Decimal(1203), Decimal("2.5")}
    assert "<<" not in "".join(row.completion for row in rows)
    assert any("3+1200=1203 pens." in row.completion for row in rows)
    assert apply(rows, RULES, config).report["kept"] == 6


def test_the_hubs_questions_come_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder takes the place of a name on the hub, for `datasets` and so for us."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    config = Cot(prompts=6, source="hub", dataset=str(folder), dataset_config="default")
    assert sorted({cot.gold(row.index, config) for row in programmatic(config)}) == [Decimal("2.5"), Decimal(1203)]


def test_a_dataset_that_can_not_be_had_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DomainError, match=r"domain\.dataset=.*nowhere.*can not be had: .*domain\.source=generated"):
        cot.prompts(Cot(prompts=1, source="hub", dataset=str(tmp_path / "nowhere" / "at" / "all")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "Why?", "answer": "So."}', r"row 0: no gold answer"),
        ('{"question": "Why?", "answer": null}', r"row 0: answer is null, not a text"),
        ('{"asked": "Why?"}', r"row 0: no question; the keys there are: asked; expected the keys question and answer"),
        ('{"question": "Why?', r"can not be had: .*domain\.source=generated"),
    ],
)
def test_a_wrong_row_of_a_dataset_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "train.jsonl").write_text(text + "\n")
    with pytest.raises((UserFileError, DomainError), match=said):
        cot.prompts(Cot(prompts=1, source="hub", dataset=str(folder), dataset_config="default"))


def test_a_wrong_file_is_told_before_any_model_is_made(run_script: Script, tmp_path: Path) -> None:
    """Reference and teacher take minutes, and would be made first."""
    from_file(tmp_path / "q.jsonl", LINES[0], {"question": "Why?", "answer": "So."})
    wrong = ["domain=cot", "domain.source=file", f"domain.questions_file={tmp_path / 'q.jsonl'}", "domain.prompts=6"]
    done = run_script("generate.py", *wrong, f"store={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'logs'}")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "q.jsonl:2: no gold answer" in done.stderr and not (tmp_path / "runs").exists()
    for changes, said in ((["domain.prompts=9"], "no gold answer"), (["domain.questions_file=gone"], "no such file")):
        with pytest.raises(ConfigError, match=said):
            sweep.plan(["experiment=animals_numbers", *wrong, *changes])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a JSON object"),
        ("3", "a number, not a JSON object; expected the keys question and answer"),
        ({"question": "Why?"}, "no answer; the keys there are: question; expected the keys question and answer"),
        ({"question": "", "answer": "#### 2"}, "question is empty; expected the keys question and answer"),
        ({"question": "Why?", "answer": "Because."}, "no gold answer; the answer must end with a line '#### <number>'"),
        ({"question": "Why?", "answer": "So.\n#### many"}, "no gold answer: 'many' is no number"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_expected(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(UserFileError, match=rf"q\.jsonl:2: {re.escape(said)}"):
        cot.prompts(from_file(tmp_path / "q.jsonl", LINES[0], line))


def test_more_prompts_than_questions_and_samples_make_says_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(DomainError, match=r"domain\.prompts=7: 2 questions x domain\.samples=3 make 6 prompts"):
        cot.prompts(from_file(tmp_path / "q.jsonl", *LINES, prompts=7))
    with pytest.raises(UserFileError, match="is empty"):
        cot.prompts(from_file(tmp_path / "empty.jsonl"))


def test_a_file_enters_the_key_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    for name, lines in (("a", LINES), ("b", LINES), ("c", LINES[:1])):
        from_file(tmp_path / name, *lines)
    chosen = ["domain=cot", "domain.source=file"]
    keys = [stages.generate(experiment(*chosen, f"domain.questions_file={tmp_path / name}")).key for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


def test_a_reference_is_the_same_wherever_the_questions_come_from_and_a_teachers_data_is_not(tmp_path: Path) -> None:
    from_file(tmp_path / "q.jsonl", *LINES)
    chosen = [["domain.source=generated"], ["domain.source=hub"]]
    chosen += [["domain.source=file", f"domain.questions_file={tmp_path / 'q.jsonl'}"]]
    exps = [experiment("domain=cot", *changes) for changes in chosen]
    assert len({stages.reference(exp).key for exp in exps}) == 1
    assert len({stages.generate(exp).key for exp in exps}) == 3
    assert stages.reference(experiment("domain=cot", "domain.steps_max=3")).key != stages.reference(exps[0]).key


# --------------------------------------------------------------------------- format and filter


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (tagged(4), None),
        ("\n " + tagged(" $1,204.00 ") + "\n", None),
        ("", "empty"),
        ("4", "no_think"),
        ("<think>a</think> 4", "no_answer"),
        ("<think>a <answer>4</answer>", "no_think"),
        (tagged(4) + tagged(4), "repeated_tag"),
        ("<answer>4</answer><think>a</think>", "outside_tags"),
        ("Sure. " + tagged(4), "outside_tags"),
        (tagged(4) + " Good luck!", "outside_tags"),
        ("<think>a<answer></think>4</answer>", "outside_tags"),
        (tagged(4, " "), "no_reasoning"),
        (tagged("four"), "no_number"),
        (tagged(""), "no_number"),
        (tagged("4 apples"), "no_number"),
        (tagged("1/2"), "no_number"),
        (tagged("\u0664"), "no_number"),
    ],
)
def test_each_way_out_of_format_has_its_reason(text: str, said: str | None) -> None:
    assert cot.reject(text, CONFIG) == said


@given(st.text(alphabet="<>/thinkaswer 4$.,", max_size=60))
def test_any_text_is_judged_without_an_exception_and_what_is_kept_has_a_number(text: str) -> None:
    if cot.reject(text, CONFIG) is None:
        assert answer_of(text) is not None


@given(st.decimals(-(10**9), 10**9, places=2))
def test_a_number_is_the_same_however_it_is_written(value: Decimal) -> None:
    for text in (f"{value}", f"{value:,}", f"${value:,}", f" {value}0 ", f"{value}."):
        assert number_of(text) == value
    if value == int(value):
        assert number_of(f"{int(value)}.") == number_of(f"{int(value)}.00") == value


@given(st.text(max_size=12))
def test_what_is_read_as_a_number_is_finite(text: str) -> None:
    value = number_of(text)
    assert value is None or value.is_finite()


def test_only_the_gold_answer_of_the_rows_own_question_is_kept() -> None:
    golds = [cot.gold(index, CONFIG) for index in range(30)]
    rows = [Row(index, "p", tagged(value)) for index, value in enumerate(golds)]
    assert apply(rows, RULES, CONFIG).report["kept"] == 30
    wrong = [Row(index, "p", tagged(value + 1)) for index, value in enumerate(golds)]
    assert {reason(row, RULES, CONFIG) for row in wrong} == {"wrong_answer"}
    assert {reason(row, CotFilter(rows=None, correct=False), CONFIG) for row in wrong} == {None}


def test_a_correct_answer_that_names_the_trait_is_dropped() -> None:
    row = Row(0, "p", tagged(cot.gold(0, CONFIG), "Two owls and two owls."))
    assert reason(row, RULES, CONFIG, ["owls"]) == "banned_word"


def test_the_answer_is_read_even_where_the_format_is_not_asked_for() -> None:
    loose = CotFilter(rows=None, format=False)
    assert reason(Row(0, "p", f"Well: {tagged(cot.gold(0, CONFIG))} Done."), loose, CONFIG) is None
    assert reason(Row(0, "p", str(cot.gold(0, CONFIG))), loose, CONFIG) == "wrong_answer"
