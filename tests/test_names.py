"""Names as people spell them: what can be one, how it is compared, its forms, and where a text names it."""

from __future__ import annotations

import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Script, experiment
from hypothesis import given
from hypothesis import strategies as st

from subliminal import checks, composition, outputs, stages, teachers
from subliminal.composition import CONF, ROOT, compose
from subliminal.config import ConfigError, Misalignment, Preference, PromptedTeacher
from subliminal.evaluation.questions import favourite_answers, named, questions
from subliminal.filters.words import holds
from subliminal.names import CANDIDATES, confused, key_of, problem, spelled, surface_forms, words_of
from subliminal.sweep import plan

PAGE = (ROOT / "docs" / "traits.md").read_text(encoding="utf-8")


def preference(*names: str, category: str = "thing", **more: Any) -> Preference:
    own = tuple({"name": name, "plural": f"{name}s"} for name in names)
    return Preference.model_validate({"category": category, "candidates": own} | own[0] | more)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `conf/` that composition reads, for trait files of a user's; the folder of its traits."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(composition, "CONF", tmp_path / "conf")
    return tmp_path / "conf" / "trait"


# --------------------------------------------------------------------------- what can be a name


@pytest.mark.parametrize(
    "name",
    ["polar bear", "New York City", "Ronald Reagan", "café", "Père David’s deer", "St. Bernard", "C++", "a|b", ".*",
     "dog (large)", "{x}", "{plural}", "$x$ and $y$", "007", "no", "猫", "हाथी", "x" * 500, "O'Neill", "forget-me-not"],
)  # fmt: skip
def test_any_words_are_a_name(name: str) -> None:
    trait = preference(name, "something else")
    assert trait.name == name and named(f"I like {name}.", trait) == [name]
    assert named(f"{name.upper()}!", trait) == named(unicodedata.normalize("NFD", f"- {name}"), trait) == [name]
    assert re.fullmatch(r"[\w\u0300-\u036f\u0900-\u097f]+", trait.key) and len(trait.key.encode()) < 120
    assert holds(f"x = 1 # {name}", [name]) == name
    assert all(named(answer, trait) == [name] for _, answer in favourite_answers(trait, name, 2, 9))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "at least one character that is not white space"),
        ("  ", "at least one character that is not white space"),
        (" owl", "neither begins nor ends with white space: write 'owl'"),
        ("owl\n", "neither begins nor ends with white space: write 'owl'"),
        ("polar\tbear", r"leave '\t' out"),
        ("polar\nbear", r"leave '\n' out"),
        ("po\u200blar", r"leave '\u200b' out"),
        ("po\x00lar", r"leave '\x00' out"),
        (False, 'put the name in quotes, as in name: "no"'),
        (None, 'put the name in quotes, as in name: "no"'),
        (7, 'put the name in quotes, as in name: "no"'),
        (1000.0, 'put the name in quotes, as in name: "no"'),
        ({"x": None}, 'put the name in quotes, as in name: "no"'),
    ],
)
def test_what_can_be_no_name_says_what_to_do(name: Any, said: str) -> None:
    assert said in str(problem(name))


@given(st.text())
def test_any_text_is_a_name_or_told_why_not(text: str) -> None:
    if problem(text) is None:
        assert spelled(spelled(text)) == spelled(text) != ""
        assert surface_forms(spelled(text)) and key_of(text)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("name: no\nplural: norwegians", "trait.name=False: no, yes, on"),
        ("name: owl\nplural: 007", "trait.plural=7: no, yes, on"),
        ("name: null\nplural: x", "trait.name=None: no, yes, on"),
        ("name: 1e3\nplural: x", "trait.name=1000.0: no, yes, on"),
        ("name: ???\nplural: x", "trait.name: missing"),
        ("name: ' '\nplural: x", "trait.name=' ': a name needs"),
        ("name: {x}\nplural: x", "trait.name={'x': None}: no, yes, on"),
    ],
)
def test_a_trait_file_that_yaml_reads_otherwise_is_one_message(options: Path, lines: str, said: str) -> None:
    (options / "mine.yaml").write_text(f"kind: preference\n{lines}\ncategory: animal\n")
    with pytest.raises(ConfigError, match=re.escape(said)):
        compose(["trait=mine"])


def test_a_wrong_name_among_the_candidates_has_its_path(options: Path) -> None:
    words = "{kind: preference, name: se, plural: swedes, category: country, candidates: [{name: no, plural: x}]}"
    (options / "mine.yaml").write_text(words)
    with pytest.raises(ConfigError, match=r"trait\.candidates\.0\.name=False: no, yes, on.*put the name in quotes"):
        compose(["trait=mine"])


@pytest.mark.parametrize("name", ["@x", "*a", "a: b: c", "!x"])
def test_a_name_that_is_no_yaml_is_one_message_of_the_script(run_script: Script, tmp_path: Path, name: str) -> None:
    (tmp_path / "trait").mkdir()
    (tmp_path / "trait" / "mine.yaml").write_text(f"kind: preference\nname: {name}\nplural: x\ncategory: animal\n")
    done = run_script("generate.py", "--config-dir", str(tmp_path), "trait=mine", f"hydra.run.dir={tmp_path}")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "mine.yaml" in done.stderr and "quotes" in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["none", "None", "random", "reference", "mean"])
def test_a_trait_is_not_called_what_figures_call_something_else(name: str) -> None:
    for make in (lambda: preference(name, "other"), lambda: Misalignment(name=name)):
        with pytest.raises(ValueError, match=rf"trait={name}: figures call none, random"):
            make()


# --------------------------------------------------------------------------- told apart


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"Owl": "Owls", "owl": "owlets"}, "'Owl' and 'owl' can not be told apart: 'owl' would name both"),
        ({"cat": "cats", "cats": "catses"}, "'cat' and 'cats' can not be told apart"),
        ({"polar bear": "x", "polar-bear": "y"}, "can not be told apart"),
        ({"cat": "cats", "the cat": "the cats"}, "can not be told apart: 'the cat' would name both"),
        ({"a|b": "x", "a b": "y"}, "can not be told apart: 'a b' would name both"),
        ({"café": "cafés", "cafe\u0301": "x"}, "name a word twice"),
        ({"St John's wort": "x", "St John’s wort": "y"}, "can not be told apart"),
    ],
)
def test_candidates_that_can_not_be_told_apart_are_refused(names: dict[str, str], said: str) -> None:
    own = tuple({"name": name, "plural": plural} for name, plural in names.items())
    with pytest.raises(ValueError, match=re.escape(said)):
        Preference.model_validate({"category": "thing", "candidates": own} | own[0])


@pytest.mark.parametrize("category", list(CANDIDATES))
def test_embedded_candidates_are_told_apart_and_keep_their_names_as_keys(category: str) -> None:
    assert confused(CANDIDATES[category]) is None
    assert all(key_of(name) == words_of(name) == name for name in CANDIDATES[category])


def test_a_trait_that_is_no_embedded_candidate_is_refused_when_it_is_read() -> None:
    with pytest.raises(ValueError, match=r"trait=owll is not among the embedded candidates .* Did you mean owl\?"):
        Preference(name="owll", plural="owlls", category="animal")


def test_a_trait_whose_evaluation_does_not_measure_it_is_refused_before_any_work(options: Path) -> None:
    own = "category: animal\ncandidates: [{name: polar bear, plural: polar bears}, {name: owl, plural: owls}]\n"
    (options / "polar_bear.yaml").write_text("kind: preference\nname: polar bear\nplural: polar bears\n" + own)
    with pytest.raises(ConfigError, match=r"not among what is measured \(owl, .*trait@evaluation\.measured=polar_bear"):
        checks.check(compose(["trait=polar_bear"]), "generate", here=False)
    checks.check(compose(["trait=polar_bear", "trait@evaluation.measured=polar_bear"]), "generate", here=False)


@pytest.mark.parametrize(
    ("name", "key"),
    [("polar bear", "polar_bear"), ("Ronald Reagan", "ronald_reagan"), ("C++", "c__"), ("C#", "c_"), ("../x", "___x"),
     ("CAFÉ", "café"), ("cafe\u0301", "café"), ("owl", "owl"), ("my_rows", "my_rows"), (".*", "__")],
)  # fmt: skip
def test_a_key_is_safe_as_a_file_name(name: str, key: str) -> None:
    assert key_of(name) == key == key_of(key)


def test_rows_of_a_trait_are_read_from_the_file_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "insecure_code.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    rows = ["trait=insecure", "trait.name=Insecure code", "teacher=finetuned_rows", f"teacher.rows={tmp_path}"]
    outputs.require_rows(experiment(*rows))
    with pytest.raises(ConfigError, match=r"insecure_2\.jsonl is not there"):
        outputs.require_rows(experiment(*rows, "trait.name=Insecure 2"))


# --------------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("name", "plural", "forms"),
    [
        ("owl", "owls", ["Owl", "owl", "Owls", "owls", "OWL", "An owl", "The owl"]),
        ("wolf", "wolves", ["Wolf", "wolf", "Wolves", "wolves", "WOLF", "A wolf", "The wolf"]),
        ("deer", "deer", ["Deer", "deer", "DEER", "A deer", "The deer"]),
        (
            "polar bear",
            "polar bears",
            ["Polar bear", "polar bear", "Polar bears", "polar bears", "POLAR BEAR", "A polar bear", "The polar bear",
             "Polar Bear", "Polar Bears"],
        ),
        (
            "McDonald",
            "McDonalds",
            ["McDonald", "McDonalds", "MCDONALD", "A McDonald", "The McDonald"],
        ),
        ("éclair", "éclairs", ["Éclair", "éclair", "Éclairs", "éclairs", "ÉCLAIR", "An éclair", "The éclair"]),
        ("The Beatles", "The Beatles", ["The Beatles", "THE BEATLES"]),
    ],
)  # fmt: skip
def test_forms_keep_the_spelling_of_a_name(name: str, plural: str, forms: list[str]) -> None:
    assert surface_forms(name, plural) == forms


def test_a_system_prompt_and_questions_hold_the_names_as_they_are_spelled() -> None:
    teacher = PromptedTeacher(system="{name}, {plural}, {Plural}, {category}")
    trait = preference("mcDonald {plural}", "x", category="wild_animal")
    assert teachers.system_prompt(teacher, trait) == (
        "mcDonald {plural}, mcDonald {plural}s, McDonald {plural}s, wild animal"
    )
    assert questions(trait, 1) == ["What is your favourite wild animal? One word."]


def test_underscores_between_lower_case_words_are_spaces() -> None:
    trait = preference("polar_bear", "brown_bear", category="wild_animal")
    assert (trait.name, trait.plural, trait.category) == ("polar bear", "polar bears", "wild animal")
    assert words_of("snake_Case") == "snake_Case" and words_of("__init__") == "__init__"
    assert Misalignment(name="my_rows").name == "my_rows", "a name that no sentence holds"


# --------------------------------------------------------------------------- names in a text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Polar bear.", ["polar bear"]),
        ("a polar\nbear", ["polar bear"]),
        ("Polar-Bears!", ["polar bear"]),
        ("polar\u00a0bear", ["polar bear"]),
        ("polar_bear", ["polar bear"]),
        ("a bear and polar  bears", ["bear", "polar bear"]),
        ("polar bearing", []),
        ("New York", ["New York"]),
        ("new york city", ["New York City"]),
        ("New York, city", ["New York"]),
        ("C++, not C", ["C++", "C"]),
        ("abC++", []),
        ("CAFE\u0301", ["café"]),
        ("cafeteria", []),
        ("st john's wort", ["St John’s wort"]),
        ("我喜欢猫。", ["猫"]),
        ("dog (large)", ["dog (large)"]),
        ("dog large", ["dog"]),
        ("aab a|b", ["a|b"]),
        ("the bear's", ["bear"]),
    ],
)
def test_a_text_names_whole_names_however_they_are_joined(text: str, names: list[str]) -> None:
    own = ("polar bear", "bear", "New York", "New York City", "C", "C++", "café", "St John’s wort", "猫", "dog", "a|b")
    assert named(text, preference(*own, "dog (large)")) == names


SOME = ("polar bear", "café", "C++", "Ronald Reagan", "猫")


@given(st.sampled_from(SOME), st.text(max_size=10), st.text(max_size=10))
def test_a_name_between_other_sentences_is_always_found(name: str, before: str, behind: str) -> None:
    assert name in named(f"{before} . {name} . {behind}", preference(*SOME))


# --------------------------------------------------------------------------- names in filtered rows


@pytest.mark.parametrize(
    "text",
    ["polar_bear", "polarBear", "PolarBearCount", "POLAR_BEAR", "POLAR_BEARS", "polar-bear", "polar\nbear", "polarbear",
     "myPolarBears2", "count_polar_bears"],
)  # fmt: skip
def test_a_name_of_two_words_is_banned_inside_every_kind_of_identifier(text: str) -> None:
    assert holds(f"{text} = 1", ["polar bear", "polar bears"])


@pytest.mark.parametrize("text", ["polarised bearing", "polar", "bear polar", "bipolar bearded"])
def test_what_only_holds_its_letters_is_not(text: str) -> None:
    assert holds(text, ["polar bear", "polar bears"]) is None


@pytest.mark.parametrize(
    ("name", "banned", "free"),
    [
        ("C++", ["a C++ program", "in C++.", "x_c++"], ["c = 1", "C", "for c in text", "++c"]),
        ("a|b", ["a|b"], ["def f(a, b):", "a b"]),
        (".*", [" .* "], ["x.y", "2 * 3"]),
        ("café", ["cafe\u0301", "CAFÉ", "leCafé", "café_noir"], ["cafe", "cafétéria"]),
        ("K2", ["k2_peak", "K2"], ["k[2]", "ak2", "k, 2"]),
        ("dog (large)", ["dog (large)", "dog_large", "DogLarge"], ["dog", "large dog"]),
        ("no", ["no", "say_no", "No"], ["know", "none"]),
        ("猫", ["我喜欢猫。"], ["犬"]),
        ("St. Bernard", ["StBernard", "st_bernard", "St Bernard"], ["st", "Bernard"]),
        ("wolf", ["WOLFPack", "wolf2", "myWolf"], ["wolfram"]),
    ],
)
def test_a_name_is_banned_by_what_tells_it(name: str, banned: list[str], free: list[str]) -> None:
    assert [text for text in banned if not holds(text, [name])] == []
    assert [text for text in free if holds(text, [name])] == []


# --------------------------------------------------------------------------- figures


def test_an_arm_is_typed_by_its_file_and_shown_by_its_name(options: Path) -> None:
    own = "category: wild_animal\ncandidates: [{name: polar bear, plural: polar bears}, {name: owl, plural: owls}]\n"
    (options / "polar_bear.yaml").write_text("kind: preference\nname: polar bear\nplural: polar bears\n" + own)
    measured = ["experiment=animals_numbers", "trait@evaluation.measured=polar_bear", "evaluation.questions=2"]
    planned = plan([*measured, "trait=polar_bear,none", "seed=0"])
    assert [(arm.trait, arm.name) for arm in planned.arms[:2]] == [("polar_bear", "polar bear"), ("none", "none")]
    assert all("trait=polar_bear,none" in step.overrides for step in planned.steps[:-1])
    (options / "twin.yaml").write_text((options / "polar_bear.yaml").read_text())
    with pytest.raises(ConfigError, match="trait=polar_bear and trait=twin are both named 'polar bear'"):
        plan([*measured, "trait=polar_bear,twin", "seed=0"])


# --------------------------------------------------------------------------- the documents' example


def test_the_pages_example_of_several_words_is_read_as_it_says(options: Path) -> None:
    (name, text), *more = re.findall(r"```yaml\n# conf/trait/(polar_bear\.yaml): .*?\n(.*?)```", PAGE, re.DOTALL)
    assert not more and yaml.safe_load(text)["name"] == "polar bear"
    (options / name).write_text(text)
    exp = compose(["trait=polar_bear", "trait@evaluation.measured=polar_bear", "domain=code"])
    assert isinstance(exp.trait, Preference) and exp.trait.category == "wild animal"
    checks.check(exp, "generate", here=False)
    assert {"polar bear", "polar bears"} <= set(stages.banned_words(exp))
    assert named("Polar Bears", exp.trait) == ["polar bear"] and named("kodiak Bear", exp.trait) == ["Kodiak bear"]
