"""Runs from one store to another as one archive: complete runs only, everything checked before anything is taken in.

An archive comes from elsewhere and is not trusted: members that are not plain files below `<stage>/<key>/` are refused,
every file must have the sha256 that its manifest names, and every run the key that its recipe hashes to. Nothing in it
is ever unpickled or run.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp

from subliminal.claims import claim
from subliminal.store import Manifest, Recipe, Store, StoreError
from subliminal.store_index import Ident, entries

RUN = re.compile(r"^[a-z]+/[0-9a-f]{12}/")
MANIFEST = "manifest.json"


class ArchiveError(StoreError):
    """An archive that can not be written or must not be taken in; the text names the member or run."""


def export(root: Path, archive: Path, keys: Sequence[str] = ()) -> list[Manifest]:
    """Write the runs whose keys begin so (none given: all complete runs), with all they are made from.

    The archive appears under its name when it is whole; `.gz` at its end compresses it. Returns what is in it.
    """
    store, chosen = Store(root), _with_upstream(root, keys)
    if not chosen:
        raise ArchiveError(f"no complete runs in {root}")
    runs = [made for one in chosen if (made := store.find(*one))]
    if problems := [problem for made in runs for problem in made.damage()]:
        raise ArchiveError("\n".join(["damaged runs are not exported:", *problems]))
    partial = archive.with_name(f".{archive.name}.partial")
    try:
        with tarfile.open(partial, "w:gz" if archive.suffix == ".gz" else "w") as tar:
            for made in runs:
                for name in [*made.content["files"], MANIFEST]:
                    tar.add(made.folder / name, f"{made.stage}/{made.key}/{name}", recursive=False)
        partial.replace(archive)
    except OSError as error:
        raise ArchiveError(f"{archive} can not be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return runs


def take_in(root: Path, archive: Path) -> tuple[list[Ident], list[Ident]]:
    """Check an archive and publish its runs in the store; returns what is new and what was there already.

    Raises `ArchiveError`, and then nothing was taken in.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _unpacked(root, archive) as folder:
        runs = [_checked(folder, path) for path in sorted(folder.glob("*/*"))]
        store = Store(root)
        new = [made for made in runs if not store.find(made.stage, made.key)]
        for made in new:
            _publish(store, made)
    found = [(made.stage, made.key) for made in new]
    return found, [(m.stage, m.key) for m in runs if (m.stage, m.key) not in found]


def _with_upstream(root: Path, keys: Sequence[str]) -> list[Ident]:
    """The chosen runs and everything they go back to, in the store's order."""
    everything = entries(root)
    if unknown := [key for key in keys if not any(known.startswith(key) for _, known in everything)]:
        raise ArchiveError(f"no complete run in {root} begins with {', '.join(unknown)}")
    todo = [key for _, key in everything if not keys or key.startswith(tuple(keys))]
    uppers, wanted = {key: entry.upstream for (_, key), entry in everything.items()}, set[str]()
    while todo:
        key = todo.pop()
        todo += [upper for upper in uppers.get(key, ()) if upper not in wanted]
        wanted.add(key)
    if gone := sorted(wanted - set(uppers)):
        raise ArchiveError(f"what the chosen runs were made from is gone: {', '.join(gone)}")
    return [one for one in everything if one[1] in wanted]


@contextmanager
def _unpacked(root: Path, archive: Path) -> Iterator[Path]:
    """The archive's files in a folder beside the runs, on the same disk; gone at the end."""
    folder = Path(mkdtemp(prefix=".import-", dir=root))
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                _refuse_strange(member)
                tar.extract(member, folder, filter="data")
        yield folder
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveError(f"{archive} can not be read: {error}") from None
    except OSError as error:
        raise ArchiveError(f"{error.filename or archive}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_strange(member: tarfile.TarInfo) -> None:
    """Only plain files of runs: no links, no devices, no way out of the folder."""
    parts = PurePosixPath(member.name).parts
    if not member.isfile() or not RUN.match(member.name) or ".." in parts or str(PurePosixPath(*parts)) != member.name:
        raise ArchiveError(f"{member.name!r} is not a file of a run; nothing was taken in")


def _checked(folder: Path, path: Path) -> Manifest:
    """The manifest of an unpacked run whose key, files and checksums are what they claim to be."""
    name = f"{path.parent.name}/{path.name}"
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        recipe, files = content["recipe"], set(content["files"])
        _ = float(content["seconds"]), dict(content["summary"])
        key = Recipe(recipe["stage"], recipe["settings"], recipe["upstream"], recipe["schema"]).key
    except (OSError, ValueError, KeyError, TypeError):
        raise ArchiveError(f"{name} has no manifest that can be read; nothing was taken in") from None
    made = Manifest(path.parent.name, path.name, path, content)
    if (recipe["stage"], key) != (made.stage, made.key):
        raise ArchiveError(f"{name}: its recipe is that of {recipe['stage']}/{key}; nothing was taken in")
    there = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    if there != files or made.damage():
        wrong = sorted(there ^ files) or [text.removeprefix(f"{folder}/") for text in made.damage()]
        raise ArchiveError(f"{name} is not what its manifest says: {', '.join(wrong)}; nothing was taken in")
    return made


def _publish(store: Store, made: Manifest) -> None:
    """Move a run into its place, the manifest last; whoever is making it at the moment keeps it."""
    target = store.folder(made.stage, made.key)
    target.mkdir(parents=True, exist_ok=True)
    with claim(target) as taken:
        if not taken or store.find(made.stage, made.key):
            return
        for name in [*made.content["files"], MANIFEST]:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (made.folder / name).replace(target / name)
