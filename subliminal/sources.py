"""The Python source of a user's module: what it computes with is part of a key, as its settings are."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec, resolve_name
from pathlib import Path


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
