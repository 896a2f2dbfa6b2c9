"""Nothing falls through: a dispatch on a union of settings names every kind, and a new one is a type error there."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo

from subliminal import config
from subliminal.composition import ROOT
from subliminal.config.base import members

PACKAGE = ROOT / "subliminal"
FILES = sorted(PACKAGE.rglob("*.py"))
PARTS = ("ModelEvaluation", "RowsEvaluation")  # of the union of evaluations
UNIONS = {
    name: frozenset(member.__name__ for member in members(union))
    for name, union in vars(config).items()
    if name in PARTS or (name != "Evaluation" and any(isinstance(part, FieldInfo) for part in get_args(union)[1:]))
    if len(members(union)) > 1
}
"""The names of the members of every union of settings, by its name in `config`."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def classes(pattern: ast.pattern) -> Iterator[str]:
    """The classes that a case names."""
    for part in ast.walk(pattern):
        if isinstance(part, ast.MatchClass):
            yield ast.unparse(part.cls).rpartition(".")[2]


def dispatches() -> Iterator[tuple[Path, ast.Match, frozenset[str]]]:
    """Every match on settings: its file, itself, and the settings classes that its cases name."""
    every = frozenset[str]().union(*UNIONS.values())
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Match):
                named = frozenset(name for case in node.cases for name in classes(case.pattern))
                if named & every:
                    yield path, node, named


def last_line(match: ast.Match) -> ast.stmt:
    """What a match does where no case before its last one fits."""
    return match.cases[-1].body[-1]


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_unions_and_dispatches_are_found() -> None:
    assert {"Domain", "Student", "Teacher", "Trait", "Filter", "Sampler", "Judge", *PARTS} <= {*UNIONS}
    assert len(list(dispatches())) > 30


def test_every_dispatch_on_settings_ends_in_assert_never() -> None:
    open_ended = [
        place(path, match)
        for path, match, _ in dispatches()
        if not ast.unparse(last_line(match)).startswith("assert_never(") or ast.unparse(match.cases[-1].pattern) != "_"
    ]
    assert open_ended == []


def kinds(union: str) -> set[str]:
    return {str(member.model_fields["kind"].default) for member in members(getattr(config, union))}


def asked_of(node: ast.AST) -> tuple[str, str, set[str]] | None:
    """Of a question by isinstance or by `kind`: the value that is looked at, the answer, the unions it is about."""
    match node:
        case ast.Call(func=ast.Name(id="isinstance"), args=[value, kind]):
            named = {part.strip() for part in ast.unparse(kind).split("|")}
            return ast.unparse(value), ast.unparse(kind), {union for union in UNIONS if named & UNIONS[union]}
        case ast.Compare(left=ast.Attribute(value=value, attr="kind"), comparators=[ast.Constant(value=str(text))]):
            return ast.unparse(value), text, {union for union in UNIONS if text in kinds(union)}
        case _:
            return None


def chains(path: Path) -> Iterator[str]:
    """Functions that ask of one value for two or more kinds of one union."""
    for function in (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)):
        found: dict[tuple[str, str], set[str]] = {}
        for value, answer, unions in filter(None, map(asked_of, ast.walk(function))):
            for union in unions:
                found.setdefault((value, union), set()).add(answer)
        several = {value: sorted(answers) for (value, _), answers in found.items() if len(answers) > 1}
        yield from (f"{place(path, function)} {function.name}: {value} {answers}" for value, answers in several.items())


def test_no_function_tells_kinds_apart_without_a_match() -> None:
    assert [found for path in FILES for found in chains(path)] == []


def with_new_members(folder: Path) -> None:
    """Add to each union of `config/` in a copy of the package a member that no dispatch knows."""
    for path in (folder / "config").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for union in UNIONS:
            start = rf"^{union}(: TypeAlias)? = (Annotated\[|\()?\s*"
            base = "AnyEvaluation" if union in PARTS else "Settings"
            new = f'class New{union}({base}):\n    kind: Literal["new"] = "new"\n    name: str = ""\n\n\n'
            text = re.sub(
                start, lambda found, n=new, u=union: f"{n}{found[0]}New{u} | ", text, count=1, flags=re.MULTILINE
            )
        path.write_text(text, encoding="utf-8")


def same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def test_a_new_member_of_any_union_is_named_at_every_dispatch_on_it(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "subliminal", ignore=shutil.ignore_patterns("__pycache__"))
    with_new_members(tmp_path / "subliminal")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}', encoding="utf-8")
    whole = {
        (str(path.relative_to(ROOT)), last_line(match).lineno)
        for path, match, named in dispatches()
        if any(union <= named for union in UNIONS.values())
    }
    assert len({file for file, _ in whole}) > 10
    files = sorted(file for file in {file for file, _ in whole} if same(ROOT / file, tmp_path / file))
    command = [sys.executable, "-m", "pyright", "-p", str(tmp_path), "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    errors = json.loads(done.stdout)["generalDiagnostics"]
    named = {
        (str(Path(error["file"]).relative_to(tmp_path)), error["range"]["start"]["line"] + 1)
        for error in errors
        if "assert_never" in error["message"]
    }
    assert {found for found in whole if found[0] in files} - named == set()
