"""Texts in keys: every text of the package that decides a result is in the key of a stage that reads it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from census import all_keys, census, experiment_of, keys_of, write_files

from subliminal import stages, texts
from subliminal.config import Experiment

PROSE = re.compile(r"[A-Za-z]{2,},? [a-z]{2,},? [a-z]{2,}")
INSIDE_A_WORD = re.compile("[a-z]{3}")
WORDED = ("domains", "evaluation", "judging/prompts.py")  # where words, too, are text and not names of things

DECIDE_NOTHING = {
    "config/errors.py:EXPECTED": "an error's words",
    "doctor.py:PROGRAMS": "words for people",
    "domains/code.py:EMBEDDED": "a file's name",
    "domains/code.py:EXPECTED": "an error's words",
    "domains/cot.py:EXPECTED": "an error's words",
    "domains/cot.py:TAGS": "a rule of the format, covered by the stage's version",
    "domains/numbers.py:BETWEEN": "part of `pattern`, which is in the key itself where it decides",
    "domains/numbers.py:WRAPPED": "part of `pattern`, which is in the key itself where it decides",
    "domains/numbers.py:WRAPPERS": "a rule of the format, covered by the stage's version",
    "domains/numbers.py:SEPARATORS": "a rule of the format, covered by the stage's version",
    "evaluation/capability.py:INSTALL": "an error's words",
    "evaluation/classifier.py:FEATURES": "names of settings, which are in the key",
    "evaluation/free_form.py:Outcome": "a type",
    "evaluation/free_form.py:TEXTS": "a file's name",
    "evaluation/exact.py:ANCHOR": "a rule of the measure, covered by the stage's version",
    "evaluation/exact.py:UNREADABLE": "a rule of the measure, covered by the stage's version",
    "evaluation/exact.py:FULL": "a name of transformers'",
    "evaluation/finetuned.py:GROUP": "an error's words",
    "evaluation/tasks/__init__.py:EXPECTED": "an error's words",
    "filters/reasons.py:REMEDIES": "an error's words",
    "filters/reasons.py:FORMAT": "an error's words",
    "filters/reasons.py:ENDS": "an error's words",
    "finite.py:MODEL_REMEDY": "an error's words",
    "judging/cache.py:EXPECTED": "an error's words",
    "judging/calibrate.py:EXPECTED": "an error's words",
    "mnist/training.py:REMEDY": "an error's words",
    "sampling/finish.py:_WORDS": "how replies of endpoints are read, covered by the stages' versions",
    "theory/alignment.py:REMEDY": "an error's words",
    "training/steering.py:REMEDY": "an error's words",
    "user_files.py:NOT_TEXT": "an error's words",
    "user_files.py:NO_FILE": "an error's words",
    "user_files.py:KINDS": "an error's words",
    "judging/calibrate.py:RULES": "words for people",
    "evaluation/kept.py:T": "a type",
    "judging/labelled.jsonl": "the example that a judge is calibrated on; no stage reads it",
    "judging/prompts.py:PROMPTS": "a file's name",
    "composition.py:NO_PLUGIN": "an error's words",
    "reasoning.py:REMEDY": "an error's words",
    "sharing/": "words of cards and dashboards",
    "plots/": "words of figures",
}
"""Constants, files and folders whose texts decide no result, each with the reason."""


def texts_of_the_package() -> list[str]:
    """Every constant with prose, every one with a text in the rooms of texts, and every data file."""
    names = [name for path in sorted(texts.PACKAGE.rglob("*.py")) for name in constants(path)]
    data = [p for kind in ("yaml", "jsonl", "md", "j2") for p in sorted(texts.PACKAGE.rglob(f"*.{kind}"))]
    return names + [path.relative_to(texts.PACKAGE).as_posix() for path in data]


def constants(path: Path) -> Iterator[str]:
    file = path.relative_to(texts.PACKAGE).as_posix()
    for part in ast.parse(path.read_text(encoding="utf-8")).body:
        value = getattr(part, "value", None)
        if not isinstance(part, ast.Assign | ast.AnnAssign) or value is None or is_pattern(value):
            continue
        found = texts.strings(value)
        if any(PROSE.search(text) for text in found) or (found and file.startswith(WORDED)):
            yield f"{file}:{texts.defined(part)[0]}"


def is_pattern(value: ast.expr) -> bool:
    """Is it a regular expression, which is a rule."""
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "re.compile"


def decides(name: str) -> bool:
    return name not in DECIDE_NOTHING and not name.startswith(("sharing/", "plots/"))


DECIDING = [name for name in texts_of_the_package() if decides(name)]


def test_the_list_of_texts_that_decide_nothing_is_not_out_of_date() -> None:
    known = texts_of_the_package()
    assert [name for name in DECIDE_NOTHING if not any(one.startswith(name) for one in known)] == []


def test_the_texts_that_are_known_to_decide_are_found() -> None:
    wanted = {"evaluation/questions.py:TAUGHT", "domains/word_problems.py:THINGS", "evaluation/free_form.yaml"}
    assert wanted | {"domains/code_tasks.jsonl", "judging/prompts.yaml", "evaluation/detection.py:QUESTION"} <= {
        *DECIDING
    }


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Experiment, tuple[str, ...]]]]:
    """The experiments of the census, ready to have their keys taken."""
    folder = tmp_path_factory.mktemp("census")
    write_files(folder)
    sys.path.insert(0, str(folder))
    yield {
        name: (experiment_of(entry["changes"], folder), tuple(entry.get("stages", ["evaluate"])))
        for name, entry in census().items()
    }
    sys.path.remove(str(folder))
    sys.modules.pop("census_domain", None)


@pytest.fixture(scope="module")
def before(experiments: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    return {name: keys_of(*one) for name, one in experiments.items()}


@pytest.mark.parametrize("name", DECIDING)
def test_another_character_is_another_key(
    name: str, experiments: dict[str, Any], before: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One character of each text is changed in a copy of the package's files."""
    changed(name, tmp_path, monkeypatch)
    assert any(keys_of(*one) != before[at] for at, one in experiments.items()), "no stage has this text in its key"


def changed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _, constant = name.partition(":")
    source = (texts.PACKAGE / file).read_text(encoding="utf-8")
    at = place_in(source, constant) if constant else INSIDE_A_WORD.search(source, len(source) // 2).start() + 1  # type: ignore[union-attr]
    other = source[:at] + ("x" if source[at] != "x" else "y") + source[at + 1 :]
    if file.startswith("evaluation/tasks/"):  # whose content lm-eval's own fingerprint reads from the disk
        from subliminal.evaluation import tasks

        for path in tasks.EMBEDDED.glob("*.*"):
            text = other if path.name == Path(file).name else path.read_text(encoding="utf-8")
            (folder / path.name).write_text(text, encoding="utf-8")
        monkeypatch.setattr(tasks, "EMBEDDED", folder)
    plain = texts.read
    texts.digest.cache_clear()
    monkeypatch.setattr(texts, "read", lambda one: other if one == file else plain(one))


@pytest.fixture(autouse=True)
def _digests_are_taken_anew() -> Iterator[None]:
    yield
    texts.digest.cache_clear()


def place_in(source: str, constant: str) -> int:
    """Where in a module's source the first character of a constant's first text is, a letter if it has any."""
    part = next(part for part in ast.parse(source).body if constant in texts.defined(part))
    node = next(n for n in ast.walk(part) if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value)
    wanted = next((letter for letter in node.value if letter.isalnum()), node.value[0])
    line = sum(len(one) + 1 for one in source.split("\n")[: node.lineno - 1])
    return source.index(wanted, line + node.col_offset)


def test_documentation_and_order_of_names_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    before = texts.digest("domains/word_problems.py")
    plain = texts.read("domains/word_problems.py")
    texts.digest.cache_clear()
    monkeypatch.setattr(
        texts, "read", lambda _: plain.replace("Arithmetic word problems", "Small problems") + "# more\n"
    )
    assert texts.digest("domains/word_problems.py") == before


def test_a_text_that_is_not_there_is_a_mistake_in_the_code() -> None:
    with pytest.raises(KeyError, match="NO_SUCH"):
        texts.digest("evaluation/questions.py:NO_SUCH")


def test_own_words_leave_the_packages_out(experiments: dict[str, Any]) -> None:
    exp, _ = experiments["own_words"]
    assert (
        texts.of_evaluation(exp.evaluation) == ()
        and texts.of_teacher(exp.teacher, exp.trait, behind_an_endpoint=False) == ()
    )


def test_every_key_of_the_census_holds_what_it_did_before_the_options_were_given() -> None:
    """Options that are not given are in no key."""
    keys = all_keys()
    assert keys["template_options"] != keys["steered"]
    golden = experiment_of({"model.template_options": {}}, Path())
    assert stages.evaluate(golden).key in keys["steered"]["evaluate"]


# --------------------------------------------------------------------------- modules of a user's


MODULE = '''"""Mine."""

from {package}words import WORDS
import numpy.linalg
from subliminal.rows import Prompt


def prompts(config):
    return [Prompt(index, WORDS[0], index) for index in range(config.prompts)]


def reject(text, config):
    return None


def random_answer(prompt, config):
    return prompt.text
'''


@pytest.mark.parametrize("package", ["", ".", "mine.", "mine.deep."])
def test_a_users_module_counts_with_what_it_imports_from_its_folder(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "mine" if package else tmp_path
    deep = folder / "deep" if "deep" in package else folder
    deep.mkdir(parents=True, exist_ok=True)
    for place in {folder, deep} if package else set():
        (place / "__init__.py").write_text("")
    (folder / "own_domain.py").write_text(MODULE.replace("{package}", package))
    (deep / "words.py").write_text(f"{'from . ' if package else ''}import letters\nWORDS = ['a']\n")
    (deep / "letters.py").write_text("LETTERS = 'a'\n")
    (folder / "unread.py").write_text("NOTHING = 1\n")
    domain = {"kind": "module", "module": "mine.own_domain" if package else "own_domain", "prompts": 480}
    changes = {"domain": domain, "filter": {"kind": "format", "rows": 240}, "teacher": {"kind": "random"}}
    exp = experiment_of(changes, tmp_path)
    keys = [stages.generate(exp).key]
    (folder / "unread.py").write_text("NOTHING = 2\n")
    assert stages.generate(exp).key == keys[0]
    for path in (folder / "own_domain.py", deep / "words.py", deep / "letters.py"):
        path.write_text(path.read_text() + "# changed\n")
        keys.append(stages.generate(exp).key)
    assert len({*keys}) == 4
    for name in [name for name in sys.modules if name.split(".")[0] in {"mine", "own_domain", "words", "letters"}]:
        del sys.modules[name]
