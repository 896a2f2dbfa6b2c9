"""No module of the package imports itself through others, and what plans runs loads no deep-learning library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import Script

import subliminal

ROOT = Path(subliminal.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module or a part of it imports, on its top level, in functions, or for the type checker alone."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(source), names=names):
                yield from (name for alias in names for name in (f"{source}.{alias.name}", source))
            case _:
                pass


def read_by(name: str, text: str) -> Iterator[str]:
    """The modules that a module needs; not those of its own package that a function opens when their kind is wanted."""
    for part in ast.parse(text).body:
        below = f"{name}." if isinstance(part, ast.FunctionDef) else "\n"
        yield from (module for module in imported(part) if not module.startswith(below))


def circle(sources: dict[str, str]) -> list[str]:
    """The modules of an import circle among sources by module, the first one again at the end; [] without a circle."""
    graph = {name: {*read_by(name, text)} & sources.keys() - {name} for name, text in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_through_others() -> None:
    assert circle({module(path): path.read_text(encoding="utf-8") for path in FILES}) == []


@pytest.mark.parametrize(
    "second", ["import a", "from a import x", "if TYPE_CHECKING:\n    from a import x", "def f():\n    import a"]
)
def test_a_circle_is_seen_wherever_its_imports_stand(second: str) -> None:
    assert circle({"a": "from b import y", "b": second, "c": "import a"})
    assert not circle({"a": "from b import y", "b": "import d", "c": second})


def test_a_package_may_open_its_kinds_when_they_are_wanted() -> None:
    assert not circle({"a": "def f():\n    import a.b", "a.b": "from a import x"})
    assert circle({"a": "import a.b", "a.b": "from a import x"})


@pytest.mark.parametrize("name", ["config", "graph", "stages"])
def test_settings_and_stages_load_no_deep_learning_library(name: str, run_code: Script) -> None:
    done = run_code(f"""
        import sys
        import subliminal.{name}
        print(sorted({{"torch", "transformers"}} & set(sys.modules)))
    """)
    assert done.stdout == "[]\n", done.stderr[-3000:]
