"""A user's Python module: how it is imported, and its source, which is part of a key as its settings are."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from subliminal.store import Json, StoreError


class ModuleError(StoreError):
    """A user's module that can not be imported or lacks what its kind needs; the text says what to change."""


NEEDED = {
    "domain": ("prompts", "reject", "random_answer"),
    "evaluation": ("questions", "evaluate"),
    "student": ("choose",),
    "experiment": ("plan", "collect", "table", "verdicts", "subtitle", "picture", "section"),
}
"""The functions that the module of each group of settings must have."""


def load(group: str, name: str) -> Any:
    """The module that `<group>.module` names; raises `ModuleError` where it is not there or lacks a needed function."""
    needed = NEEDED[group]
    try:
        module = import_module(name)
    except ImportError as error:
        raise _not_there(group, name, error) from None
    if missing := [function for function in needed if not callable(getattr(module, function, None))]:
        raise ModuleError(f"{group}.module={name} has no function {missing[0]}; it needs {', '.join(needed)}")
    return module


def identified(group: str, name: str) -> Json:
    """A user's module by its source, for a key; raises `ModuleError` where it is not there."""
    try:
        return {"source": digest(name)}
    except ImportError as error:
        raise _not_there(group, name, error) from None


def _not_there(group: str, name: str, error: ImportError) -> ModuleError:
    return ModuleError(f"{group}.module={name} can not be imported ({error}); put it on PYTHONPATH")


def digest(module: str) -> str:
    """A sha256 over a module's source and that of the modules of its own folder that it imports, directly or not.

    Raises `ImportError` where there is no such module.
    """
    start = _path(module)
    if start is None:
        raise ImportError(f"no module of Python source is called {module}")
    total = hashlib.sha256()
    for name, path in sorted(_with_imports(module, start).items()):
        total.update(f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _with_imports(module: str, start: Path) -> dict[str, Path]:
    """The module and those of its folder, or of folders in it, that are imported from it, by name."""
    found, todo = {module: start}, [module]
    while todo:
        name = todo.pop()
        for imported in _imports(name, found[name], found[name].stat().st_mtime_ns):
            path = _path(imported) if imported not in found and _near(imported, module, start.parent) else None
            if path is not None and path.is_relative_to(start.parent):
                found[imported] = path
                todo.append(imported)
    return found


def _near(name: str, module: str, folder: Path) -> bool:
    """Can a name be one of the module's folder; others are not looked for, which would import their packages."""
    top = name.partition(".")[0]
    return top == module.partition(".")[0] or (folder / f"{top}.py").is_file() or (folder / top).is_dir()


@lru_cache(maxsize=64)
def _imports(module: str, path: Path, _: int) -> tuple[str, ...]:
    """The names that a module's source may import modules by."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return ()  # importing it says what is wrong with it
    return tuple(name for node in ast.walk(tree) for name in _imported(node, package))


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=base, names=names, level=level):
            if level and not package:
                return
            full = resolve_name("." * level + (base or ""), package) if level else str(base)
            yield full
            yield from (f"{full}.{alias.name}" for alias in names)


def _path(module: str) -> Path | None:
    """The file of a module's source, or None where there is none."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    path = Path(spec.origin) if spec and spec.origin else None
    return path.resolve() if path is not None and path.suffix == ".py" and path.is_file() else None
