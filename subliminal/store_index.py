"""What all complete runs of a store say of themselves in brief, kept in one file so that large stores stay quick.

The file is a cache of the manifests and never the truth: an entry counts only while its manifest has the size and time
that it had when it was read. A lost, old or damaged index is made anew, and a store that can only be read does without.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from subliminal.store import Json, Manifest, Store, StoreError, write_atomically

INDEX = ".index.json"
VERSION = 1  # of the file's content
UNLIKE = ("seed", "trait")  # settings in which two runs may differ that cost about the same

Ident = tuple[str, str]
"""Stage and key."""


@dataclass(frozen=True)
class Entry:
    """A complete run in brief: `alike` is the same for runs whose settings differ in seed and trait alone.

    Seconds it took, bytes of its files, tokens it trained on (None: it has none), keys of what its recipe reads.
    """

    seconds: float
    size: int
    tokens: int | None
    alike: str
    upstream: tuple[str, ...]


def entries(root: Path) -> dict[Ident, Entry]:
    """Every complete run by stage and key; reads only manifests that the index does not know yet."""
    old, store = _load(root), Store(root)
    seen = ((name, _known(old, name, mark) or _read(store, name, mark)) for name, mark in _marks(root))
    now = {name: found for name, found in seen if found}
    if now != old:
        with suppress(OSError):  # a store that can only be read
            write_atomically(root / INDEX, json.dumps({"version": VERSION, "runs": now}, separators=(",", ":")))
    return {_ident(name): _entry(found) for name, found in now.items()}


def alike(settings: Json) -> str:
    """A digest of the settings without seed and trait."""
    kept = {name: value for name, value in settings.items() if name not in UNLIKE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _entry(found: Json) -> Entry:
    return Entry(found["seconds"], found["size"], found["tokens"], found["alike"], tuple(found["upstream"]))


def _ident(name: str) -> Ident:
    stage, _, key = name.partition("/")
    return stage, key


def _load(root: Path) -> Json:
    try:
        found = json.loads((root / INDEX).read_text(encoding="utf-8"))
        return found["runs"] if found["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _marks(root: Path) -> Iterator[tuple[str, list[int]]]:
    """`stage/key` of every manifest with its time and size, by one look at each folder."""
    for stage in sorted(folders(root)):
        for key in folders(root / stage):
            with suppress(OSError):
                seen = os.stat(f"{root}/{stage}/{key}/manifest.json")  # noqa: PTH116 - 50,000 Path objects cost a second
                yield f"{stage}/{key}", [seen.st_mtime_ns, seen.st_size]


def folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out; none where there is no folder."""
    with suppress(OSError), os.scandir(folder) as found:
        return [entry.name for entry in found if entry.is_dir() and not entry.name.startswith(".")]
    return []


def _known(old: Json, name: str, mark: list[int]) -> Json | None:
    found = old.get(name)
    return found if found and found["mark"] == mark else None


def _read(store: Store, name: str, mark: list[int]) -> Json | None:
    """A manifest in brief; None when it is damaged or went away while we looked."""
    try:
        made = store.find(*_ident(name))
        return {"mark": mark, **asdict(_brief(made))} if made else None
    except (StoreError, KeyError, TypeError):  # not JSON, or not what a manifest holds
        return None


def _brief(made: Manifest) -> Entry:
    size = sum(entry["bytes"] for entry in made.content["files"].values())
    recipe, tokens = made.recipe, made.summary.get("tokens")
    return Entry(made.content["seconds"], size, tokens, alike(recipe["settings"]), tuple(recipe["upstream"].values()))
