"""The documents' commands, run in a copy of the repository: light ones for real, heavy ones as far as their plan."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from subliminal.composition import ROOT
from subliminal.launch import script_environment

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
NEW_FILE = re.compile(r"[Oo]ne file, `([\w/.]+)`:\n\n```(?:yaml|python)\n(.*?)```", re.DOTALL)


BROUGHT = {
    "tasks.jsonl": "".join(f'{{"task": "Add {n}.", "template": "def add_{n}(x):"}}\n' for n in range(200)),
    "questions.jsonl": "".join(f'{{"question": "{n} and 1?", "answer": "#### {n + 1}"}}\n' for n in range(400)),
}
"""Files that the documents' reader has, by name."""


def commands() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for block in BLOCK.findall(document.read_text(encoding="utf-8")):
            for line in block.splitlines():
                command = line.split("  #")[0].strip()
                if command:
                    yield document.name, command


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository without its results, with the files that the documents tell their reader to add."""
    target = tmp_path_factory.mktemp("copy") / "subliminal"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "figures", "logs", "outputs", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, target, ignore=ignored)
    for place, text in NEW_FILE.findall("".join(page.read_text(encoding="utf-8") for page in DOCUMENTS)):
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_text(text, encoding="utf-8")
    for place, text in BROUGHT.items():
        (target / place).write_text(text, encoding="utf-8")
    (target / "runs").mkdir()
    return target


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return _ran(tuple(command), folder)


@cache
def _ran(command: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    """What documents repeat is run once: each of these commands only looks."""
    own = [str(folder / part.removeprefix("PYTHONPATH=")) for part in command if part.startswith("PYTHONPATH=")]
    environment = script_environment() | {"PYTHONPATH": os.pathsep.join([str(folder), *own])}
    command = command[len(own) :]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("document", "command"), list(commands()))
def test_command_of_the_documents_works(document: str, command: str, copy: Path) -> None:
    for runnable in runnable_forms(command, copy):
        done = run(runnable, copy)
        assert done.returncode == 0, f"{document}: {command}\n{done.stdout}{done.stderr}"


def runnable_forms(command: str, folder: Path) -> Iterator[list[str]]:
    """What of a command can be run in seconds: itself, or the plan of what it would do."""
    words = shlex.split(command)
    if words[0].startswith("PYTHONPATH="):
        yield from ([words[0], *form] for form in runnable_forms(shlex.join(words[1:]), folder))
    elif words[0] == "make":
        yield ["make", "-n", *words[1:]]
        yield from planned_sweeps(words, folder)
    elif words[:3] == ["python", "-m", "subliminal"]:
        heavy = words[3] in {"sweep", "plot", "predict"}
        yield [sys.executable, *words[1:3], "plan" if heavy else words[3], *words[4:]]
    elif words[1].startswith("bench/"):
        yield [sys.executable, *words[1:], "--help"]
    else:
        script = words.index(next(word for word in words if word.endswith(".py")))
        yield [sys.executable, *words[script:], "--cfg", "job"]


def planned_sweeps(words: list[str], folder: Path) -> Iterator[list[str]]:
    for line in run(["make", "-n", *words[1:]], folder).stdout.splitlines():
        if " -m subliminal sweep " in line:
            yield [sys.executable, "-m", "subliminal", "plan", *shlex.split(line.split(" sweep ")[1].split(" || ")[0])]


def test_the_documents_have_commands() -> None:
    assert len(list(commands())) > 10


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), f"{document.name} links {link}"


ANCHOR = re.compile(r"\]\((?!https?:)([^)#]*)#([^)]+)\)")


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_heading_finds_it(document: Path) -> None:
    for page, anchor in ANCHOR.findall(document.read_text(encoding="utf-8")):
        assert anchor in anchors(document.parent / page if page else document), f"{document.name}: {page}#{anchor}"


def test_every_figure_target_is_in_the_readme() -> None:
    targets = re.findall(r"^((?:fig|table)-[a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert targets and all(f"make {target}" in text for target in targets)
