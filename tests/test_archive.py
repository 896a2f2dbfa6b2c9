"""Archives of runs, and the index of large stores: what goes in comes out, and nothing strange comes in."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from subliminal import archive, inspect_store, store_index, sweep
from subliminal.__main__ import main
from subliminal.archive import ArchiveError
from subliminal.store import Json, Manifest, Recipe, Store


def work(text: str) -> Callable[[Path], Json]:
    def make(folder: Path) -> Json:
        (folder / "adapter").mkdir(exist_ok=True)
        (folder / "adapter" / "rows.jsonl").write_text(text)
        return {"tokens": len(text)}

    return make


@pytest.fixture
def full(tmp_path: Path) -> tuple[Path, dict[str, Manifest]]:
    """A chain of three runs and one beside it."""
    store, made = Store(tmp_path / "runs"), dict[str, Manifest]()
    upstream: dict[str, str] = {}
    for stage in ("filter", "train", "evaluate"):
        made[stage], _ = store.run(Recipe(stage, {"seed": 0, "rate": 0.1}, upstream), work(stage))
        upstream = {stage: made[stage].key}
    made["other"], _ = store.run(Recipe("filter", {"seed": 5}), work("other"))
    return store.root, made


@pytest.mark.parametrize("name", ["runs.tar", "runs.tar.gz"])
def test_what_is_exported_comes_in_whole_with_all_it_was_made_from(
    full: tuple[Path, dict[str, Manifest]], tmp_path: Path, name: str
) -> None:
    root, made = full
    sent = archive.export(root, tmp_path / name, [made["evaluate"].key[:8]])
    assert {m.key for m in sent} == {made[stage].key for stage in ("filter", "train", "evaluate")}
    new, there = archive.take_in(tmp_path / "copy", tmp_path / name)
    assert {key for _, key in new} == {m.key for m in sent} and not there
    assert inspect_store.verify(tmp_path / "copy") == []
    found = Store(tmp_path / "copy").find("evaluate", made["evaluate"].key)
    assert found and found.content == made["evaluate"].content
    assert archive.take_in(tmp_path / "copy", tmp_path / name) == ([], new), "nothing happens twice"
    assert not list((tmp_path / "copy").glob(".import-*"))


def test_everything_is_exported_unless_keys_are_named(full: tuple[Path, dict[str, Manifest]], tmp_path: Path) -> None:
    assert len(archive.export(full[0], tmp_path / "all.tar")) == 4
    with pytest.raises(ArchiveError, match="begins with abcabc"):
        archive.export(full[0], tmp_path / "none.tar", ["abcabc"])
    assert not (tmp_path / "none.tar").exists()


def test_damaged_runs_are_not_exported(full: tuple[Path, dict[str, Manifest]], tmp_path: Path) -> None:
    root, made = full
    (made["train"].folder / "adapter" / "rows.jsonl").write_text("changed")
    with pytest.raises(ArchiveError, match="changed since it was written"):
        archive.export(root, tmp_path / "runs.tar")


def rewritten(
    source: Path, target: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes]]
) -> Path:
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file
            info, content = change(member, file.read())
            info.size = len(content) if info.isfile() else 0
            new.addfile(info, io.BytesIO(content))
    return target


def named(name: str) -> Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes]]:
    def change(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        return info.replace(name=name), content

    return change


def link(kind: bytes) -> Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes]]:
    def change(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        changed = info.replace()
        changed.type, changed.linkname = kind, "/etc/passwd"
        return changed, b""

    return change


def swapped(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return info, content.replace(b"filter", b"FILTER") if info.name.endswith("rows.jsonl") else content


def other_recipe(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return info, content.replace(b'"rate": 0.1', b'"rate": 0.9') if info.name.endswith("manifest.json") else content


STRANGE = {
    "a way up": named("filter/0123456789ab/../../../../escaped"),
    "an absolute path": named("/tmp/escaped"),
    "a file outside a run": named("escaped"),
    "a symbolic link": link(tarfile.SYMTYPE),
    "a hard link": link(tarfile.LNKTYPE),
    "a device": link(tarfile.CHRTYPE),
    "another content": swapped,
    "another recipe": other_recipe,
    "an uncalled-for file": named("filter/0123456789ab/more"),
}


@pytest.mark.parametrize("how", STRANGE)
def test_an_archive_with_anything_strange_is_refused_whole(
    full: tuple[Path, dict[str, Manifest]], tmp_path: Path, how: str
) -> None:
    root, _ = full
    archive.export(root, tmp_path / "good.tar")
    bad = rewritten(tmp_path / "good.tar", tmp_path / "bad.tar", STRANGE[how])
    with pytest.raises(ArchiveError, match="nothing was taken in"):
        archive.take_in(tmp_path / "below" / "copy", bad)
    assert list((tmp_path / "below").rglob("*")) == [tmp_path / "below" / "copy"]
    assert not list(tmp_path.glob("*escaped"))


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_what_is_no_archive_is_one_message(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "runs.tar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"runs\.tar"):
        archive.take_in(tmp_path / "copy", path)


def test_half_an_archive_is_refused(full: tuple[Path, dict[str, Manifest]], tmp_path: Path) -> None:
    archive.export(full[0], tmp_path / "runs.tar.gz")
    whole = (tmp_path / "runs.tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArchiveError, match="can not be read"):
        archive.take_in(tmp_path / "copy", tmp_path / "half.tar.gz")
    assert list((tmp_path / "copy").iterdir()) == []


# --------------------------------------------------------------------------- the index


def test_the_index_says_what_the_manifests_say_and_is_made_anew_when_lost(
    full: tuple[Path, dict[str, Manifest]],
) -> None:
    root, made = full
    found = store_index.entries(root)
    assert set(found) == {(m.stage, m.key) for m in made.values()}
    assert found["train", made["train"].key].upstream == (made["filter"].key,)
    assert found["train", made["train"].key].tokens == 5
    for damage in (None, "{", '{"version": 0, "runs": {}}', "[]"):
        (root / store_index.INDEX).unlink()
        if damage:
            (root / store_index.INDEX).write_text(damage)
        assert store_index.entries(root) == found


def test_the_index_follows_runs_that_come_go_and_change(full: tuple[Path, dict[str, Manifest]]) -> None:
    root, made = full
    before = store_index.entries(root)
    added, _ = Store(root).run(Recipe("train", {"seed": 3, "rate": 0.1}), work("three"))
    assert set(store_index.entries(root)) - set(before) == {("train", added.key)}
    (added.folder / "manifest.json").unlink()
    assert store_index.entries(root) == before
    path = made["other"].folder / "manifest.json"
    path.write_text(json.dumps(made["other"].content | {"seconds": 77.0}))
    assert store_index.entries(root)["filter", made["other"].key].seconds == 77.0


def test_runs_that_differ_in_seed_and_trait_alone_are_alike() -> None:
    assert store_index.alike({"seed": 1, "rate": 2}) == store_index.alike({"seed": 3, "rate": 2, "trait": "owl"})
    assert store_index.alike({"seed": 1, "rate": 2}) != store_index.alike({"seed": 1, "rate": 3})


def test_an_unchanged_store_reads_no_manifest_again(
    full: tuple[Path, dict[str, Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store_index.entries(full[0])
    monkeypatch.setattr(Store, "find", lambda *_: pytest.fail("a manifest was read"))
    assert store_index.entries(full[0]) == first


@cache
def _opened() -> list[str]:
    """Every file this process opens from now on, in order; a hook can not be taken off again."""
    files: list[str] = []
    sys.addaudithook(lambda event, values: files.append(str(values[0])) if event == "open" else None)
    return files


def manifests_opened(root: Path, *command: str) -> set[Path]:
    """The runs whose manifests one command of `python -m subliminal` opens."""
    files = _opened()
    before = len(files)
    main(list(command))
    seen = {Path(name) for name in files[before:] if name.endswith("manifest.json")}
    return {path.parent for path in seen if path.is_relative_to(root)}


def made_up(root: Path, count: int) -> None:
    """Complete runs of nothing, written as the store leaves them."""
    for seed in range(count):
        recipe = Recipe("train", {"seed": seed})
        folder = Store(root).folder("train", recipe.key)
        folder.mkdir(parents=True)
        content = {"recipe": recipe.as_json(), "summary": {}, "files": {}, "seconds": 1.0}
        (folder / "manifest.json").write_text(json.dumps(content))


def test_a_look_at_a_large_store_opens_the_manifests_of_what_it_shows_alone(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    settings, status = ["experiment=theorem", "seed=0,1", f"store={root}"], ["status", "--store", str(root)]
    made_up(root, 200)
    nodes = sweep.plan(settings).steps[0].nodes
    mine = {Store(root).folder(node.stage, node.key) for node in nodes}
    assert len(manifests_opened(root, *status)) == 200, "the index is made"
    assert manifests_opened(root, *status) == set()
    assert manifests_opened(root, "plan", *settings) == mine, "looked for, and not there"
    for node in nodes:
        Store(root).run(node.recipe, lambda _: {})
    assert manifests_opened(root, "plan", *settings) == mine
    assert manifests_opened(root, "gc", "--unreferenced", "--store", str(root)) == mine, "new to the index"
    assert manifests_opened(root, "gc", "--unreferenced", "--store", str(root)) == set()


def test_status_tells_a_damaged_manifest_and_goes_on(full: tuple[Path, dict[str, Manifest]]) -> None:
    root, made = full
    (made["train"].folder / "manifest.json").write_text("{")
    told = inspect_store.status(root)
    assert f"{made['train'].key}  damaged: its manifest can not be read" in told
    assert "filter     2 complete" in told and "train      0 complete" in told


def test_whatever_else_lies_in_a_store_is_no_stage(full: tuple[Path, dict[str, Manifest]]) -> None:
    (full[0] / store_index.INDEX).unlink(missing_ok=True)
    os.mkfifo(full[0] / "in_the_way")
    assert len(store_index.entries(full[0])) == 4
