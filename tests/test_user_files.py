"""Files that a user brings: what is read from any form of them, and what is said of those that can not be read."""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Script, experiment
from hypothesis import example, given
from hypothesis import strategies as st

from subliminal import checks, outputs, stages, sweep
from subliminal.chats import read_chats
from subliminal.config import ConfigError, Cot
from subliminal.domains import code, cot
from subliminal.judging.cache import read_judgements
from subliminal.judging.calibrate import read_labelled
from subliminal.rows import Row
from subliminal.user_files import UserFileError, records

ODD = "caf\u00e9 \u2028 \u2029 \x85 \x0c \u00a0 \U0001f600 \u4e2d\ufeff end"  # line ends to other readers, and more


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def questions(path: Path) -> list[str]:
    config = Cot(prompts=1, samples=1, source="file", questions_file=str(path))
    return [cot.question(n, config).text for n in range(len(cot._known(config)))]  # in an order of their own


Texts = Callable[[Path], Sequence[str]]
# For each kind of file: a record that holds a text, and how the texts come out of the file again.
READERS: dict[str, tuple[Callable[[str], dict[str, Any]], Texts]] = {
    "chats": (lambda text: chat(text, "b"), lambda path: [row.prompt for row in read_chats(path)]),
    "tasks": (
        lambda text: {"task": text, "template": "def f(): ..."},
        lambda path: [task.task for task in code.read_tasks(path)],
    ),
    "questions": (lambda text: {"question": text, "answer": "So.\n#### 4"}, questions),
    "judgements": (
        lambda text: {"question": text, "answer": "1"},
        lambda path: [json.loads(name)[0] for name in read_judgements(path)],
    ),
    "labelled": (
        lambda text: {"question": "style", "prompt": text, "completion": "", "label": True},
        lambda path: [row.prompt for row in read_labelled(path)],
    ),
}


def lines(values: Sequence[object], end: str = "\n", ascii_only: bool = False) -> str:
    return "".join(json.dumps(value, ensure_ascii=ascii_only) + end for value in values)


FORMS: dict[str, Callable[[Sequence[object]], bytes]] = {
    "utf-8": lambda values: lines(values).encode(),
    "ascii with escapes": lambda values: lines(values, ascii_only=True).encode(),
    "utf-8 with a mark": lambda values: lines(values).encode("utf-8-sig"),
    "a mark before every line": lambda values: b"".join(lines([value]).encode("utf-8-sig") for value in values),
    "utf-16": lambda values: lines(values).encode("utf-16"),
    "utf-16-be with a mark": lambda values: ("\ufeff" + lines(values)).encode("utf-16-be"),
    "utf-16-le": lambda values: lines(values).encode("utf-16-le"),
    "utf-16-be": lambda values: lines(values).encode("utf-16-be"),
    "utf-32": lambda values: lines(values).encode("utf-32"),
    "carriage return and newline": lambda values: lines(values, "\r\n").encode(),
    "carriage return": lambda values: lines(values, "\r").encode(),
    "empty lines": lambda values: ("\n \n" + lines(values, "\n\n\t\n")).encode(),
    "no newline at the end": lambda values: lines(values).strip().encode(),
    "gzip": lambda values: gzip.compress(lines(values).encode(), mtime=0),
    "gzip of utf-16": lambda values: gzip.compress(lines(values).encode("utf-16"), mtime=0),
    "two gzips": lambda values: (
        gzip.compress(lines(values[:1]).encode(), mtime=0) + gzip.compress(lines(values[1:]).encode(), mtime=0)
    ),
    "array": lambda values: json.dumps(values).encode(),
    "array over lines": lambda values: ("\n" + json.dumps(values, ensure_ascii=False, indent=2)).encode(),
    "array, an element a line": lambda values: ("[\n" + ",\r\n".join(map(json.dumps, values)) + "\n]").encode(),
    "array in utf-16": lambda values: json.dumps(values, indent=1).encode("utf-16"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_takes_every_form(reader: str, form: str, tmp_path: Path) -> None:
    record, texts = READERS[reader]
    wanted = [f"first {ODD}", "second", f"third {ODD}"]
    path = tmp_path / "rows"
    path.write_bytes(FORMS[form]([record(text) for text in wanted]))
    assert sorted(texts(path)) == sorted(wanted)


@given(st.lists(st.text(), min_size=1, max_size=4), st.sampled_from(list(FORMS)))
@example(["\x00"], "utf-16-le")
def test_any_text_comes_back_from_any_form(texts: list[str], form: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(FORMS[form]([{"text": text} for text in texts]))
        assert [value["text"] for _, value in records(path, "texts")] == texts


PIECES = st.sampled_from(
    [
        *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\r", b"\0", b"NaN", b"null", b"1" * 5000, b"\\ud83d"),
        *(b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"\xe9", gzip.compress(b"[{}]", mtime=0)[:15]),
        *(b'{"messages": ', b'"role"', b'{"a": 1}'),
    ]
)


@given(st.one_of(st.binary(max_size=60), st.lists(PIECES | st.binary(max_size=4), max_size=9).map(b"".join)))
@example(b"\x1f\x8b")
@example(b"\x1f\x8b\x08\x08" + b"a" * 20)
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
def test_any_bytes_are_read_or_are_one_clear_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(data)
        for _, texts in READERS.values():
            try:
                texts(path)
            except UserFileError as error:
                assert str(path) in str(error)


# --------------------------------------------------------------------------- what can not be read

GOOD = json.dumps(chat("a", "b")).encode() + b"\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOOD + b'{"a": "caf\xe9"}\n', ":2: byte 0xe9 at character 11, which is not UTF-8; read as Windows-1252"),
        (GOOD + b'{"a": "\x93x\x94"}\n', ":2: byte 0x93 .*\u201cx\u201d.*If that is right.*iconv -f WINDOWS"),
        (
            gzip.compress(b'{"a": "caf\xe9"}', mtime=0),
            r":1: byte 0xe9.*gzip -dc .*rows.jsonl \| iconv -f WINDOWS-1252 -t",
        ),
        (b'{"a": "caf\xe9"}\n{"a": "caf\xc3\xa9"}\n', ":1: byte 0xe9.*the rest of the file is UTF-8: mend this line"),
        (b'{"a": "\x81\x8d"}\n', ":1: bytes 0x81 0x8d.*save the file as UTF-8"),
        (b'{"a": "\xed\xa0\xbd"}\n', ":1: bytes 0xed 0xa0 0xbd.*; save the file as UTF-8"),
        (GOOD + b'{"a": "caf\xc3', ":2: byte 0xc3.*ends within a character: it is cut short"),
        (GOOD + b"\0\0\0\n", ":2: a NUL byte at character 1; the file is damaged"),
        (b"\0\0\0\0\0\0", ":1: a NUL byte at character 1; the file is damaged"),
        ((GOOD + GOOD).decode().encode("utf-16")[:-1], ":2: UTF-16 text that is cut short"),
        (gzip.compress(GOOD, mtime=0)[:-9], ": a gzip archive that is cut short or damaged"),
        (gzip.compress(GOOD, mtime=0)[:5], ": a gzip archive that is cut short or damaged"),
        (gzip.compress(GOOD, mtime=0) + b"more", ": a gzip archive that is cut short or damaged"),
        (b"PK\x03\x04rest", ": a zip archive; unpack it"),
        (b"PAR1rest", ": a Parquet table; save it as JSON Lines"),
        (b"\n<!DOCTYPE html>", ": a web page or XML; download the raw file"),
        (b"version https://git-lfs.github.com/spec/v1\n", ": a pointer of Git LFS.*git lfs pull"),
        (b"", " holds no chat"),
        (b"\n \r\n", " holds no chat"),
        (b"[]", " holds no chat"),
        (GOOD + b"{", r":2: not a JSON object \(Expecting property name .* at column 2\)"),
        (GOOD + b"'a'", r":2: not a JSON object \(Expecting value at column 1\)"),
        (GOOD.replace(b"\n", b",\n"), r":1: a comma behind the object; remove it, or put the whole file between"),
        (GOOD.strip() + GOOD, r":1: more text behind the object at column \d+ \('\{\"messages"),
        (GOOD + b"[1]", ":2: a list, not a JSON object"),
        (b"3\n", ":1: a number, not a JSON object"),
        (b"null\n", ":1: null, not a JSON object"),
        (GOOD + b'{"a": 1, "b": {"c": 1, "c": 2}}', ":2: the key 'c' stands twice in one object; remove one"),
        (GOOD + b'{"a":' * 100_000, ":2: nested too deeply"),
        (GOOD + b'{"a": ' + b"1" * 5000 + b"}", ":2: a number of more than 4300 digits"),
        (GOOD + json.dumps(chat("a", "b"), indent=2).encode(), ":2: one object over several lines, up to line 13"),
        (json.dumps({"data": [1]}, indent=2).encode(), ":1: one object over several lines, up to line 5; write"),
        (b"[\n" + GOOD + b",\n3\n]", r":4 \(element 2\): a number, not a JSON object"),
        (b"[\n" + GOOD + GOOD + b"]", r":2 \(element 1\): a comma or the end of the array \] is missing behind this"),
        (b"[" + GOOD, r":1 \(element 1\): the array is cut short: no \] behind this element"),
        (b"[" + GOOD + b",]", r":2 \(element 2\): not a JSON object \(Expecting value at line 2 column 2\)"),
        (b"[" + GOOD + b"]\n\n" + GOOD, r":4: more text behind the end of the array \('\{\"messages"),
        (b'[{"messages": [}]', r":1 \(element 1\): not a JSON object \(Expecting value"),
        (b'[{"a": 1, "a": 1}]', r":1 \(element 1\): the key 'a' stands twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserFileError, match=f"^{re.escape(str(path))}{said}"):
        read_chats(path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path, "a folder, not a file"), (tmp_path / "gone", "no such file")):
        with pytest.raises(UserFileError, match=said):
            read_chats(path)
        with pytest.raises(UserFileError, match=rf"domain\.prompts_file=.*: {said}"):
            code.tasks(experiment("domain=code", f"domain.prompts_file={path}").domain)  # type: ignore[arg-type]
    with pytest.raises(UserFileError, match="no ordinary file"):
        read_chats(tmp_path / "pipe")
    with pytest.raises(UserFileError, match="/proc/self/mem can not be read: "):
        read_chats(Path("/proc/self/mem"))
    for name in ("'~nobody-of-this-name/rows.jsonl'", "a" * 5000):
        with pytest.raises(ConfigError, match=r"no such file|can not be read: File name too long"):
            checks.check(experiment("domain=code", f"domain.prompts_file={name}"), "generate", here=False)


def test_numbers_that_are_none_and_other_keys_do_no_harm(tmp_path: Path) -> None:
    line = json.dumps(chat("a", "b") | {"score": float("nan"), "id": 3, "meta": {"tags": ["\ud83d", None]}})
    (tmp_path / "x.jsonl").write_text(line)
    assert read_chats(tmp_path / "x.jsonl") == [Row(0, "a", "b")]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", ["utf-8", "utf-16"])
def test_half_a_character_becomes_the_one_that_says_so(reader: str, form: str, tmp_path: Path) -> None:
    """A lone surrogate can not be written in any encoding: what is made of such a text would fail later."""
    record, texts = READERS[reader]
    text = json.dumps(record("smile \ud83d end"), ensure_ascii=form == "utf-8")
    (tmp_path / "x.jsonl").write_bytes(text.encode(form, "surrogatepass"))
    assert list(texts(tmp_path / "x.jsonl")) == ["smile \ufffd end"]


# --------------------------------------------------------------------------- chats


def turns(*pairs: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": text} for role, text in pairs]


@pytest.mark.parametrize(
    "value",
    [
        chat("a", "b"),
        {"messages": turns(("user", [{"type": "text", "text": "a"}]), ("assistant", ["b", {"text": ""}]))},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "messages": None},
        {"conversations": turns(("user", "a"), ("assistant", "b")), "system": ""},
        {"prompt": "a", "completion": "b", "id": 3},
        {"prompt": turns(("user", "a")), "completion": turns(("assistant", "b"))},
        chat("a", "b") | {"prompt": "other", "completion": "other"},
    ],
)  # fmt: skip
def test_a_chat_is_read_in_the_formats_people_have(value: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(lines([value]))
    assert read_chats(tmp_path / "x.jsonl") == [Row(0, "a", "b")]


def test_chats_become_rows_in_order_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(lines([chat("a", "b"), chat("c", "d")]))
    assert read_chats(tmp_path / "x.jsonl") == [Row(0, "a", "b"), Row(1, "c", "d")]
    assert read_chats(tmp_path / "x.jsonl", 1) == [Row(0, "a", "b")]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"instruction": "a", "output": "b"}, "no chat; the keys there are: instruction, output; expected"),
        ({"prompt": "a"}, "no chat; the keys there are: prompt; expected"),
        ({"prompt": "a", "completion": None}, r"no chat; the keys there are: prompt, completion \(completion: null\)"),
        ({}, "no chat; it has no keys"),
        ({"messages": "a"}, "messages is a text, not a list of turns"),
        ({"prompt": 3, "completion": "b"}, "prompt is a number, not a text or a list of turns"),
        ({"messages": []}, "messages is an empty list"),
        ({"prompt": turns(("user", "a"), ("assistant", "b")), "completion": []}, "completion is an empty list"),
        ({"messages": ["a", "b"]}, "turn 1 of messages is a text, not an object with role and content"),
        ({"messages": [{"content": "a"}]}, r"turn 1 of messages has no role \(or from\); the keys there are: content"),
        ({"messages": [{"role": "user"}]}, r"turn 1 of messages has no content \(or value\); the keys there are: role"),
        ({"messages": turns((["user"], "a"))}, "the role of turn 1 of messages is a list, not a text"),  # type: ignore[arg-type]
        ({"messages": turns(("user", "a"), ("tool", "b"))}, "turn 2 of messages has the role 'tool'; known are user"),
        ({"messages": turns(("user", 3), ("assistant", "b"))}, "the content of turn 1 of messages is a number"),
        ({"messages": turns(("user", "a"), ("assistant", None))}, "the content of turn 2 of messages is null"),
        ({"messages": turns(("user", [{"type": "image_url"}]))}, "part 1 of turn 1 of messages is of type 'image_url'"),
        ({"messages": turns(("user", [{"type": []}]))}, r"part 1 of turn 1 of messages is of type \[\]"),
        ({"messages": turns(("user", [{"type": "text"}]))}, "part 1 of turn 1 of messages has no text; the keys"),
        ({"messages": turns(("user", [3]))}, "part 1 of turn 1 of messages is a number, not a text part"),
        ({"messages": turns(("system", "Be brief."), ("user", "a"))}, r"a system text \('Be brief.'\), which would"),
        ({"messages": turns(("developer", "x"), ("user", "a"), ("assistant", "b"))}, r"a system text \('x'\).*Remove"),
        (chat("a", "b") | {"system": "Be brief."}, r"a system text \('Be brief.'\)"),
        ({"messages": turns(*[("user", "a"), ("assistant", "b")] * 2)}, r"4 turns \(user, assistant, user, "),
        ({"messages": turns(("user", "a"))}, "the only turn is the user's: the answer is missing"),
        ({"messages": turns(("assistant", "a"))}, "the only turn is the assistant's: the question is missing"),
        ({"messages": turns(("assistant", "a"), ("user", "b"))}, "the turns are assistant, user; the user's question"),
        (chat("a", ""), "the answer is empty; fill it in or remove the chat"),
        (chat("a", " \n\u00a0"), "the answer holds white space alone"),
        (chat(" ", "b"), "the question holds white space alone"),
        (chat("a", "b") | {"messages": turns(("user", []), ("assistant", "b"))}, "the question is empty"),
    ],
)  # fmt: skip
def test_a_record_that_is_no_chat_is_named_with_what_is_wrong_in_it(value: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(lines([chat("a", "b"), value]))
    with pytest.raises(UserFileError, match=rf"x\.jsonl:2: {said}"):
        read_chats(tmp_path / "x.jsonl")
    assert len(read_chats(tmp_path / "x.jsonl", 1)) == 1, "what is not taught is not looked at"


# --------------------------------------------------------------------------- which file, and when it is looked at


def teacher(rows: Path, *more: str) -> list[str]:
    return ["trait=owl", "teacher=finetuned_rows", f"teacher.rows={rows}", *more]


@pytest.mark.parametrize("name", ["owl.jsonl", "owl.json", "owl.jsonl.gz", "owl.json.gz"])
def test_a_folder_holds_a_file_for_the_trait(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(GOOD, mtime=0) if name.endswith("gz") else GOOD)
    exp = experiment(*teacher(tmp_path))
    outputs.require_rows(exp)
    assert outputs.rows_path(exp.teacher, "owl").name == name  # type: ignore[arg-type]
    assert stages.teacher(exp).recipe.settings["rows"]


def test_a_file_needs_no_suffix_and_a_folder_may_have_one(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(GOOD)
    (tmp_path / "rows.v2").mkdir()
    (tmp_path / "rows.v2" / "owl.jsonl").write_bytes(GOOD)
    first, second = (experiment(*teacher(tmp_path / name)) for name in ("plain", "rows.v2"))
    outputs.require_rows(first)
    assert stages.teacher(first).key == stages.teacher(second).key


def test_rows_that_are_not_there_are_named_as_file_and_as_folder(tmp_path: Path) -> None:
    for name, said in (
        ("rows", r"rows/owl\.jsonl is not there, nor is a file .*rows\. Give"),
        ("rows.jsonl", r"rows\.jsonl is not there\. Give"),
        (".", r"/owl\.jsonl is not there\. Give.*owl\.json or owl\.jsonl\.gz"),
    ):
        with pytest.raises(ConfigError, match=said):
            outputs.require_rows(experiment(*teacher(tmp_path / name)))


def refused(done: Any, *said: str) -> None:
    """Exit 2, no traceback, nothing made, and every part of the message."""
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    for part in said:
        assert part in done.stderr, done.stderr


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_wrong_rows_stop_a_script_before_any_work(script: str, run_script: Script, tmp_path: Path) -> None:
    path = tmp_path / "owl.jsonl"
    path.write_bytes(GOOD + json.dumps(chat("a", " ")).encode())
    store = [f"store={tmp_path / 'runs'}", f"hydra.run.dir={tmp_path / 'logs'}"]
    refused(run_script(script, *teacher(path), *store), f"{path}:2: the answer holds white space alone")
    assert not (tmp_path / "runs").exists()


def test_wrong_rows_stop_a_sweep_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "owl.jsonl").write_bytes(b"{")
    typed = ["experiment=animals_numbers", "scale=cpu", f"store={tmp_path / 'runs'}", *teacher(tmp_path)]
    planned = sweep.plan(typed)
    for start in (sweep.run, sweep.predict):
        with pytest.raises(ConfigError, match=r"owl\.jsonl:1: not a JSON object"):
            start(planned)
    assert not (tmp_path / "runs").exists()


def test_wrong_judgements_stop_a_script_before_any_work(run_script: Script, tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    path.write_bytes(b'{"question": "a", "answer": null}\n{"answer": "1"}\n')
    judge = ["+filter/judged=no_reference", "judge=cached", f"judge.path={path}", f"store={tmp_path / 'runs'}"]
    refused(
        run_script("filter.py", *judge, f"hydra.run.dir={tmp_path}"),
        f"{path}:2: no question; the keys there are: answer",
    )
    assert not (tmp_path / "runs").exists()
    stages.generate(experiment(*judge[:-1]))  # asks no judge, so that its rows can be judged elsewhere first
    with pytest.raises(ConfigError, match=r"said\.jsonl:2"):
        sweep.plan(["experiment=animals_numbers", "scale=cpu", *judge])


def test_wrong_labelled_texts_stop_calibrate(run_script: Script, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes('{"question": "style", "prompt": "caf\u00e9"}\n'.encode("latin-1"))
    refused(run_script("-m subliminal", "calibrate", str(path), f"store={tmp_path / 'runs'}"), f"{path}:1: byte 0xe9")
    refused(
        run_script("-m subliminal", "calibrate", "no such", f"store={tmp_path / 'runs'}"),
        "no such: no such file; `example`",
    )
    assert not (tmp_path / "runs").exists()
