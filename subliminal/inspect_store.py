"""A look into the store for people: what is complete, running, failed, damaged or left over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from subliminal.claims import claim, live
from subliminal.stages import STAGES
from subliminal.store import Json, Manifest, Store, StoreError
from subliminal.store_index import entries, folders

DEFAULT = Path("runs")  # the store of the commands, as of the scripts; the first run makes it
NOT_RUN = "not run: "  # how the state of a run begins whose inputs will not come


def existing(root: Path) -> Path:
    """The folder of a store; raises `StoreError` where there is none."""
    if root.is_dir():
        return root
    if root.exists():
        raise StoreError(f"{root} is a file and no store; give the folder of the runs with --store")
    said = "nothing has been run here yet; start with: make demo, or give" if root == DEFAULT else "give"
    raise StoreError(f"there is no store {root}: {said} the folder of the runs with --store")


def status(root: Path) -> str:
    """A line for each run that is not complete and a count of those that are, by stage.

    Raises `StoreError` for a store that does not exist, unless it is the one that the first run will make.
    """
    if root != DEFAULT or root.exists():
        existing(root)
    lines, complete = [], entries(root)
    for stage in _stages(root):
        sizes = [entry.size for (of, _), entry in complete.items() if of == stage]
        others = [root / stage / key for key in sorted(folders(root / stage)) if (stage, key) not in complete]
        lines.append(f"{stage:10} {len(sizes)} complete, {sum(sizes) / 1e9 + sum(map(_gigabytes, others)):.2f} GB")
        lines += [f"  {folder.name}  {_unusable(folder) or state(folder)}" for folder in others]
    return "\n".join(lines) or f"no runs in {root}: nothing has been run; start with: make demo"


def _unusable(folder: Path) -> str | None:
    """What is said of a run that has a manifest which the index could not take."""
    damaged = (folder / "manifest.json").exists()
    return "damaged: its manifest can not be read; remove the folder and run the stage again" if damaged else None


def state(folder: Path) -> str:
    """`complete`, `running`, `failed: ...`, `not run: stage key failed: ...`, `submitted` or `unfinished`."""
    if (folder / "manifest.json").exists():
        return "complete"
    if live(folder / "claim.json"):
        holder = _record(folder / "claim.json")  # gone, or not filled, for a moment
        return f"running (process {holder['pid']} on {holder['host']})" if holder else "running"
    failure = _record(folder / "failure.json")
    if not failure:
        return _submission(folder) or "unfinished (the same command goes on from here)"
    return f"failed: {failure['error']}: {failure['message'].splitlines()[0] if failure['message'] else ''}"


def _submission(folder: Path) -> str | None:
    """What became of a run that was submitted and has not begun: waiting, or never to come because of what it reads."""
    record = _record(folder / "submitted.json")
    if not record:
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
    store = Store(existing(root))
    found = [m for path in root.glob(f"*/{key}*") if (m := store.find(path.parent.name, path.name))]
    if len(found) != 1:
        many = ", ".join(f"{m.stage}/{m.key}" for m in found)
        raise StoreError(
            f"{many} all start with {key}; give more digits" if many else f"no complete run {key} in {root}"
        )
    text = yaml.safe_dump(found[0].content, sort_keys=False, allow_unicode=True)
    return f"# {found[0].folder}\n{text}"


def verify(root: Path) -> list[str]:
    """Every file that does not match its manifest and every upstream run that is gone."""
    store = Store(existing(root))
    runs = [(path.parent.parent.name, path.parent.name) for path in sorted(root.glob("*/*/manifest.json"))]
    return [problem for stage, key in runs for problem in _problems(store, stage, key)]


def _problems(store: Store, stage: str, key: str) -> Iterator[str]:
    try:
        manifest = store.find(stage, key)
        if manifest is None:
            return
        known = {m.key for m in _upstream(store, manifest)}
    except StoreError as error:
        yield str(error)
        return
    yield from manifest.damage()
    gone = {*manifest.recipe["upstream"].values()} - known
    yield from (f"{manifest.folder}: upstream {upper} is gone" for upper in sorted(gone))


def collect(root: Path, *, really: bool, unreferenced: bool = False) -> str:
    """Name (and with `really` remove) unfinished runs that nobody holds and, if asked, complete ones nothing uses."""
    existing(root)
    doomed = [f for stage in _stages(root) for f in _folders(root, stage) if not _kept(f)]
    if unreferenced:
        doomed += _unreferenced(root)
    lines = [f"{_gigabytes(folder):8.3f} GB  {folder}  {state(folder)}" for folder in doomed]
    if not really:
        return "\n".join([*lines, f"would remove (add --yes): {len(doomed)} runs"])
    return "\n".join([*lines, f"removed: {sum(map(_removed, doomed))} runs"])


def _removed(folder: Path) -> bool:
    """Remove a run; False when somebody has begun it.

    It is moved out of sight under its own claim first, so that nobody goes on in a folder that is half removed.
    """
    moved = folder.with_name(f".removed-{folder.name}")
    with claim(folder) as taken:
        if taken:
            shutil.rmtree(moved, ignore_errors=True)  # of a removal that was cut short
            folder.rename(moved)
    shutil.rmtree(moved, ignore_errors=True)
    return taken


def _kept(folder: Path) -> bool:
    """Complete, being made, or waiting in a scheduler's queue with what it has done so far."""
    begun = (folder / "manifest.json").exists() or live(folder / "claim.json")
    return begun or ((folder / "submitted.json").exists() and not (folder / "failure.json").exists())


def _unreferenced(root: Path) -> list[Path]:
    everything = {key: (stage, entry) for (stage, key), entry in entries(root).items()}
    unfinished = [f for stage in _stages(root) for f in _folders(root, stage) if f.name not in everything]
    reached: set[str] = set()
    todo = [key for key, (stage, _) in everything.items() if stage in STAGES and STAGES[stage].result]
    todo += [key for folder in unfinished for key in _being_read(folder)]
    while todo:
        key = todo.pop()
        if key in everything and key not in reached:
            reached.add(key)
            todo += everything[key][1].upstream
    return [root / stage / key for key, (stage, _) in everything.items() if key not in reached]


def _being_read(folder: Path) -> list[str]:
    """The keys that a run which is under way, or submitted, reads."""
    if live(folder / "claim.json"):
        recipe = folder / "recipe.yaml"
        return list(yaml.safe_load(recipe.read_text(encoding="utf-8"))["upstream"].values()) if recipe.exists() else []
    record = _record(folder / "submitted.json")
    return [key for _, key in record["reads"]] if record else []


def _record(path: Path) -> Json | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _upstream(store: Store, manifest: Manifest) -> Iterator[Manifest]:
    for key in manifest.recipe["upstream"].values():
        for stage in STAGES:
            found = store.find(stage, key)
            if found:
                yield found


def _stages(root: Path) -> list[str]:
    return [stage for stage in STAGES if (root / stage).is_dir()]


def _folders(root: Path, stage: str) -> list[Path]:
    return [root / stage / key for key in sorted(folders(root / stage))]


def _gigabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
