"""No module of the package imports itself through others, and what plans runs loads no deep-learning library."""

from __future__ import annotations

import ast
import re
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


PAGE = ROOT.parent / "docs" / "design.md"


def picture(page: str) -> tuple[dict[str, set[str]], set[tuple[str, str]]]:
    """The rooms of the page's diagram with the modules that they hold, and the arrows between them."""
    (drawn,) = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    labels = re.findall(r'(\w+)\["<b>\w+</b><br/>(.*?)"\]', drawn)
    rooms = {name: set(label.replace("<br/>", " ").split()) for name, label in labels}
    return rooms, set(re.findall(r"(\w+) --> (\w+)", drawn))


def room_of(name: str, rooms: dict[str, set[str]]) -> str | None:
    """The room that holds a module or a package around it, the narrowest one that is named."""
    inner = name.partition(".")[2]
    holding = {held: room for room, modules in rooms.items() for held in modules}
    around = [inner.rsplit(".", cut)[0] for cut in range(inner.count(".") + 1)]
    return next((holding[part] for part in around if part in holding), None)


def below(room: str, arrows: set[tuple[str, str]]) -> set[str]:
    """The rooms that arrows lead to, directly or not."""
    direct = {lower for upper, lower in arrows if upper == room}
    return direct.union(*(below(lower, arrows) for lower in direct))


def untrue(page: str, sources: dict[str, str]) -> list[str]:
    """What a page's picture says of the modules that is not so."""
    rooms, arrows = picture(page)
    imports = {(name, read) for name, text in sources.items() for read in read_by(name, text) if read in sources}
    inside = [(name, read, room_of(name, rooms), room_of(read, rooms)) for name, read in imports]
    between = [found for found in inside if found[2] and found[3] and found[2] != found[3]]
    drawn = {(upper, lower) for _, _, upper, lower in between}
    known = {name.partition(".")[2] for name in sources}
    return [
        *(f"{name} is in no room" for name in sources if "." in name and room_of(name, rooms) is None),
        *(f"{held} is no module" for modules in rooms.values() for held in modules - known),
        *(
            f"{a} imports {b}, and {lower} is not below {upper}"
            for a, b, upper, lower in between
            if lower not in below(str(upper), arrows)
        ),
        *(f"nothing in {upper} imports anything in {lower}" for upper, lower in arrows - drawn),
    ]


def test_the_picture_of_the_rooms_is_true() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(picture(page)[0]) > 8
    assert untrue(page, {module(path): path.read_text(encoding="utf-8") for path in FILES}) == []


def test_a_picture_that_is_not_true_is_seen() -> None:
    page = '```mermaid\nhigh["<b>high</b><br/>a"]\nlow["<b>low</b><br/>b"]\nhigh --> low\n```'
    assert untrue(page, {"p": "", "p.a": "import p.b", "p.b": "", "p.b.c": ""}) == []
    assert untrue(page, {"p.a": "import p.b", "p.b": "import p.a"}) == ["p.b imports p.a, and high is not below low"]
    assert untrue(page, {"p.a": "", "p.b": "", "p.c": ""}) == [
        "p.c is in no room",
        "nothing in high imports anything in low",
    ]
    assert untrue(page, {"p.a": "import p.b"}) == ["b is no module", "nothing in high imports anything in low"]


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
