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


def imported(statements: list[ast.stmt]) -> Iterator[str]:
    """What statements import when the module is loaded, or would if the type checker loaded it."""
    for statement in statements:
        match statement:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(source), names=names):
                yield from (name for alias in names for name in (f"{source}.{alias.name}", source))
            case ast.If(body=inner) | ast.Try(body=inner):
                yield from imported(inner)
            case _:
                pass


def circle(sources: dict[str, str]) -> list[str]:
    """The modules of an import circle among sources by module, the first one again at the end; [] without a circle."""
    graph = {name: {*imported(ast.parse(text).body)} & sources.keys() - {name} for name, text in sources.items()}
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
def test_a_circle_is_seen_but_where_a_function_imports(second: str) -> None:
    assert bool(circle({"a": "from b import y", "b": second})) == (not second.startswith("def"))


@pytest.mark.parametrize("name", ["config", "graph", "stages"])
def test_settings_and_stages_load_no_deep_learning_library(name: str, run_code: Script) -> None:
    done = run_code(f"""
        import sys
        import subliminal.{name}
        print(sorted({{"torch", "transformers"}} & set(sys.modules)))
    """)
    assert done.stdout == "[]\n", done.stderr[-3000:]
