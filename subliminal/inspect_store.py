"""A look into the store for people: what is complete, running, failed, damaged or left over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from subliminal.store import Manifest, Store, StoreError, live

ORDER = ("model", "reference", "teacher", "generate", "filter", "train", "evaluate", "predict", "mnist", "theorem")

NOT_RUN = "not run: "  # how the state of a run begins whose inputs will not come

RESULTS = ("evaluate", "predict", "mnist", "theorem")  # what figures and tables read: kept, with all they are made from


def status(root: Path) -> str:
    """A line for each run that is not complete and a count of those that are, by stage."""
    lines = []
    for stage in _stages(root):
        states = {folder: state(folder) for folder in _folders(root, stage)}
        complete = sum(s == "complete" for s in states.values())
        lines.append(f"{stage:10} {complete} complete, {_gigabytes(root / stage):.2f} GB")
        lines += [f"  {folder.name}  {text}" for folder, text in states.items() if text != "complete"]
    return "\n".join(lines) or f"no runs in {root}; start with: make demo"


def state(folder: Path) -> str:
    """`complete`, `running (pid on host)`, `failed: ...`, `not run: stage key failed: ...`, `submitted`, `unfinished`."""
    if (folder / "manifest.json").exists():
        return "complete"
    if live(folder / "claim.json"):
        holder = json.loads((folder / "claim.json").read_text(encoding="utf-8"))
        return f"running (process {holder['pid']} on {holder['host']})"
    try:
        failure = json.loads((folder / "failure.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return _submission(folder) or "unfinished (the same command goes on from here)"
    return f"failed: {failure['error']}: {failure['message'].splitlines()[0] if failure['message'] else ''}"


def _submission(folder: Path) -> str | None:
    """What became of a run that was submitted and has not begun: waiting, or never to come because of what it reads."""
    try:
        record = json.loads((folder / "submitted.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    for stage, key in record["reads"]:
        found = state(folder.parent.parent / stage / key)
        if found.startswith(NOT_RUN):
            return found
        if found.startswith("failed"):
            return f"{NOT_RUN}{stage} {key} {found}"
    return f"submitted (job {record['job']})"


def show(root: Path, key: str) -> str:
    """The run whose key starts with `key`, as YAML: recipe, summary, files, provenance."""
    found = [m for m in Store(root).manifests() if m.key.startswith(key)]
    if len(found) != 1:
        many = ", ".join(f"{m.stage}/{m.key}" for m in found)
        raise StoreError(
            f"{many} all start with {key}; give more digits" if many else f"no complete run {key} in {root}"
        )
    text = yaml.safe_dump(found[0].content, sort_keys=False, allow_unicode=True)
    return f"# {found[0].folder}\n{text}"


def verify(root: Path) -> list[str]:
    """Every file that does not match its manifest and every upstream run that is gone."""
    store, problems = Store(root), []
    for manifest in store.manifests():
        problems += manifest.damage()
        known = {(m.stage, m.key) for m in _upstream(store, manifest)}
        wanted = set(manifest.recipe["upstream"].values())
        problems += [f"{manifest.folder}: upstream {key} is gone" for key in sorted(wanted - {key for _, key in known})]
    return problems


def collect(root: Path, *, really: bool, unreferenced: bool = False) -> str:
    """Name (and with `really` remove) unfinished runs that nobody holds and, if asked, complete ones nothing uses."""
    doomed = [f for stage in _stages(root) for f in _folders(root, stage) if not _kept(f)]
    if unreferenced:
        doomed += [m.folder for m in _unreferenced(Store(root))]
    lines = [f"{_gigabytes(folder):8.3f} GB  {folder}  {state(folder)}" for folder in doomed]
    if really:
        for folder in doomed:
            if not live(folder / "claim.json"):  # taken since we looked
                shutil.rmtree(folder)
    verb = "removed" if really else "would remove (add --yes)"
    return "\n".join([*lines, f"{verb}: {len(doomed)} runs"])


def _kept(folder: Path) -> bool:
    return (folder / "manifest.json").exists() or live(folder / "claim.json")


def _unreferenced(store: Store) -> list[Manifest]:
    everything = {m.key: m for m in store.manifests()}
    reached: set[str] = set()
    todo = [m.key for m in everything.values() if m.stage in RESULTS]
    while todo:
        key = todo.pop()
        if key in everything and key not in reached:
            reached.add(key)
            todo += everything[key].recipe["upstream"].values()
    return [m for key, m in everything.items() if key not in reached]


def _upstream(store: Store, manifest: Manifest) -> Iterator[Manifest]:
    for key in manifest.recipe["upstream"].values():
        for stage in ORDER:
            found = store.find(stage, key)
            if found:
                yield found


def _stages(root: Path) -> list[str]:
    return [stage for stage in ORDER if (root / stage).is_dir()]


def _folders(root: Path, stage: str) -> list[Path]:
    return sorted(path for path in (root / stage).iterdir() if path.is_dir())


def _gigabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
