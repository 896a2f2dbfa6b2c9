"""The store: keys, claims, resume, damage, and the guarantee that work is done once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subliminal import claims, inspect_store
from subliminal.__main__ import main
from subliminal.claims import claim, live
from subliminal.launch import script_environment
from subliminal.store import ClaimedError, Recipe, Store, StoreError, write_atomically

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def recipe(**settings: object) -> Recipe:
    """A recipe of a made-up stage."""
    return Recipe("generate", dict(settings))


@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=5))
def test_key_does_not_depend_on_the_order_of_settings(settings: dict[str, object]) -> None:
    turned = dict(reversed(settings.items()))
    assert Recipe("train", settings).key == Recipe("train", turned).key


@given(st.integers(), st.integers())
def test_key_tells_different_settings_apart(a: int, b: int) -> None:
    assert (recipe(seed=a).key == recipe(seed=b).key) == (a == b)


def test_key_depends_on_stage_and_upstream() -> None:
    keys = {Recipe("train", {}).key, Recipe("filter", {}).key, Recipe("train", {}, {"filter": "0"}).key}
    assert len(keys) == 3


def test_second_run_is_reused_and_work_is_not_called(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def work(folder: Path) -> dict[str, int]:
        calls.append(folder)
        (folder / "rows.jsonl").write_text("{}\n")
        return {"rows": 1}

    first, was_reused = store.run(recipe(), work)
    second, is_reused = store.run(recipe(), work)
    assert (was_reused, is_reused, len(calls)) == (False, True, 1)
    assert first.content == second.content
    assert set(first.content["files"]) == {"rows.jsonl", "recipe.yaml"}


def test_failure_is_recorded_and_leaves_no_manifest_and_no_claim(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def broken(folder: Path) -> dict[str, int]:
        (folder / "rows-00000.jsonl").write_text("kept\n")
        raise ValueError("the cable came out")

    with pytest.raises(ValueError, match="cable"):
        store.run(recipe(), broken)
    folder = store.folder("generate", recipe().key)
    assert json.loads((folder / "failure.json").read_text())["message"] == "the cable came out"
    assert not (folder / "manifest.json").exists() and not (folder / "claim.json").exists()
    assert "failed: ValueError: the cable came out" in inspect_store.status(tmp_path)
    manifest, _ = store.run(recipe(), lambda f: {"found": (f / "rows-00000.jsonl").read_text()})
    assert manifest.summary == {"found": "kept\n"}, "what was finished before the failure is there for the next try"
    assert not (folder / "failure.json").exists()


RACER = """
    import sys, time
    from pathlib import Path
    from subliminal.store import Recipe, Store

    def work(folder):
        with (folder.parent.parent / "calls").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        (folder / "rows.jsonl").write_text("done")
        return {"rows": 1}

    manifest, reused = Store(Path(sys.argv[1])).run(Recipe("generate", {"seed": 0}), work)
    print(manifest.key, manifest.summary["rows"])
"""


def test_eight_processes_make_the_same_dataset_exactly_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RACER), str(tmp_path)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    answers = {racer.communicate(timeout=60)[0] for racer in racers}
    assert {racer.returncode for racer in racers} == {0}
    assert len(answers) == 1
    assert (tmp_path / "calls").read_text() == "x"


def test_live_claim_makes_others_leave_when_asked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.folder("generate", recipe().key)
    folder.mkdir(parents=True)
    with claim(folder) as taken:
        assert taken
        with pytest.raises(ClaimedError, match=str(os.getpid())):
            store.run(recipe(), lambda _: {}, wait=False)
        assert inspect_store.collect(tmp_path, really=True).endswith("removed: 0 runs")
    assert not (folder / "claim.json").exists()


def test_claim_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from subliminal.store import Recipe, Store
        store = Store(Path({str(tmp_path)!r}))
        store.run(Recipe("generate", {{}}), lambda folder: os.kill(os.getpid(), signal.SIGKILL))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == -9
    path = Store(tmp_path).folder("generate", recipe().key) / "claim.json"
    assert path.exists() and not live(path)
    _, reused = Store(tmp_path).run(recipe(), lambda _: {"rows": 3}, wait=False)
    assert not reused


ELSEWHERE = json.dumps({"host": "elsewhere", "pid": 1, "started": "1"})


def test_claim_from_another_host_that_nobody_kept_for_long_is_dead_at_first_sight(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    path.write_text(ELSEWHERE)
    assert live(path)
    forgotten = tmp_path / "forgotten.json"
    forgotten.write_text(ELSEWHERE)
    os.utime(forgotten, (1, 1))
    assert not live(forgotten) and not live(forgotten)


@pytest.mark.parametrize("skew", [-3000, 0, 3000])
def test_claim_from_another_host_lives_as_long_as_its_heartbeat_moves_whatever_its_clock_says(
    skew: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.0)  # at the next look without a new heartbeat
    path, now = tmp_path / "claim.json", path_time(tmp_path)
    path.write_text(ELSEWHERE)
    for beat in range(3):
        os.utime(path, (now + skew + beat,) * 2)
        assert live(path)
    assert not live(path)


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the second of two; what it forks is the first."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


def led(store: Store, work: Callable[[Path], dict[str, Any]]) -> None:
    """A leader's run in a fork, to its end."""
    child = os.fork()
    if child == 0:
        try:
            store.run(recipe(), work)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.usefixtures("follower")
def test_another_process_makes_the_run_of_a_leader_that_was_killed(tmp_path: Path) -> None:
    store, done = Store(tmp_path), list[str]()
    led(store, lambda _: os.kill(os.getpid(), signal.SIGKILL) or {})
    with pytest.raises(StoreError, match="the leading process did not finish"):
        store.follow(recipe(), lambda _: done.append("beside"), whole=None)
    made = store.follow(recipe(), lambda _: done.append("beside"), lambda _: {"alone": os.environ.get("WORLD_SIZE")})
    assert made.summary == {"alone": None} and done == []


@pytest.mark.usefixtures("follower")
def test_a_leader_that_failed_is_not_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    led(store, lambda _: {"rows": 1 / 0})
    with pytest.raises(StoreError, match="the leading process failed"):
        store.follow(recipe(), lambda _: None, whole=None)


@pytest.mark.usefixtures("follower")
def test_what_the_leader_published_is_the_followers_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    led(store, lambda _: {"rows": 3})
    assert store.follow(recipe(), lambda _: None, whole=None).summary == {"rows": 3}


def path_time(folder: Path) -> float:
    """What time it is where the file is."""
    return folder.stat().st_mtime


FAR = """
    import os, socket, sys, time
    from pathlib import Path
    from subliminal import claims, store

    root, role, skew = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    socket.gethostname = lambda: role
    claims.HEARTBEAT_SECONDS, claims.STALE_SECONDS = 0.05, 2.0
    true_utime, start = os.utime, time.time()
    os.utime = lambda path: true_utime(path, (time.time() + skew,) * 2)

    def work(folder):
        if role == "dies":
            print("at work", flush=True)
            sys.stdin.read()  # for ever: the one who reads its output kills it
        return {"made by": role}

    def watched(path, true_live=claims.live):
        if time.time() > start + 1.5 * claims.STALE_SECONDS and role == "waits":
            print("still waits", flush=True)
            claims.live = true_live
        return true_live(path)

    claims.live = watched
    print(store.Store(root).run(store.Recipe("generate", {}), work)[0].summary["made by"])
"""


def test_claim_of_a_dead_host_is_taken_over_once_its_heartbeat_has_stopped(tmp_path: Path) -> None:
    """Two processes that take each other for other hosts; the clock of the first is 50 minutes slow."""

    def start(role: str, skew: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(FAR), str(tmp_path), role, str(skew)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    dying = start("dies", -3000)
    assert dying.stdout and dying.stdout.readline() == "at work\n"
    waiting = start("waits", 0)
    assert waiting.stdout and waiting.stdout.readline() == "still waits\n"
    dying.kill()
    dying.communicate()
    assert waiting.communicate(timeout=60)[0] == "waits\n"
    assert not list(tmp_path.rglob("claim.json")) and not list(tmp_path.rglob(".stale-*"))


def test_damage_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def work(folder: Path) -> dict[str, int]:
        (folder / "a.jsonl").write_text("one")
        (folder / "b.jsonl").write_text("two")
        return {}

    manifest, _ = store.run(recipe(), work)
    assert inspect_store.verify(tmp_path) == []
    (manifest.folder / "a.jsonl").write_text("changed")
    (manifest.folder / "b.jsonl").unlink()
    assert [p.split(": ")[1] for p in inspect_store.verify(tmp_path)] == ["changed since it was written", "missing"]


@pytest.mark.parametrize("command", ["status", "show 0", "verify", "gc", "export x.tar", "push me/x 0"])
def test_a_store_that_does_not_exist_is_no_store_in_which_all_is_well(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name, said in (("gone", "there is no store gone: give"), ("file", "file is a file and no store")):
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--store", name])
        assert ended.value.code == 1 and said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_before_the_first_run_the_commands_say_that_nothing_has_been_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["status"])
    assert "nothing has been run" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["verify"])
    assert ended.value.code == 1 and "nothing has been run here yet" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["verify"])
    assert ended.value.code == 0 and "no complete runs in runs: nothing to verify" in capsys.readouterr().out
    Store(Path("runs")).run(recipe(), lambda _: {})
    with pytest.raises(SystemExit) as ended:
        main(["verify"])
    assert ended.value.code == 0 and "1 complete runs: every file matches" in capsys.readouterr().out


def test_one_damaged_manifest_does_not_hide_the_damage_of_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    runs = [store.run(recipe(seed=seed), lambda folder: {"n": (folder / "a").write_text("a")})[0] for seed in (0, 1)]
    (runs[0].folder / "manifest.json").write_text("{")
    (runs[1].folder / "a").unlink()
    said = "\n".join(inspect_store.verify(tmp_path))
    assert f"{runs[0].folder}/manifest.json is damaged" in said and f"{runs[1].folder}/a: missing" in said


def test_a_claim_from_another_process_table_lives_by_its_heartbeat(tmp_path: Path) -> None:
    with claim(tmp_path) as taken:
        ours = json.loads((tmp_path / "claim.json").read_text())
    assert taken
    path = tmp_path / "other.json"
    path.write_text(json.dumps(ours | {"pid": 2**22, "started": "1"}))
    assert not live(path), "a pid of ours that is gone"
    path.write_text(json.dumps(ours | {"pid": 2**22, "started": "1", "space": "another container"}))
    assert live(path), "a pid that means another process there"


def test_a_heartbeat_survives_a_file_server_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, enough = iter([OSError(116, "Stale file handle"), OSError(5, "Input/output error")]), threading.Event()

    def touch(_: Path) -> None:
        if error := next(beats, None):
            raise error
        enough.set()

    monkeypatch.setattr(claims.os, "utime", touch)
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    with claim(tmp_path):
        assert enough.wait(30)


def test_damaged_manifest_says_what_to_do(tmp_path: Path) -> None:
    manifest, _ = Store(tmp_path).run(recipe(), lambda _: {})
    (manifest.folder / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="remove the folder"):
        Store(tmp_path).find("generate", recipe().key)


def test_gc_shows_first_and_keeps_what_is_complete(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.run(recipe(seed=1), lambda _: {})
    left = store.folder("generate", "0123456789ab")
    left.mkdir(parents=True)
    assert "would remove (add --yes): 1 runs" in inspect_store.collect(tmp_path, really=False)
    assert left.exists()
    inspect_store.collect(tmp_path, really=True)
    assert not left.exists() and len(list(store.manifests())) == 1


def test_gc_keeps_what_waits_in_a_queue_until_it_has_failed(tmp_path: Path) -> None:
    folder = Store(tmp_path).folder("train", "0123456789ab")
    (folder / ".checkpoints").mkdir(parents=True)
    (folder / "submitted.json").write_text(json.dumps({"job": "7", "reads": []}))
    assert inspect_store.collect(tmp_path, really=True).endswith("removed: 0 runs") and folder.exists()
    (folder / "failure.json").write_text(json.dumps({"error": "KilledError", "message": ""}))
    assert inspect_store.collect(tmp_path, really=True).endswith("removed: 1 runs") and not folder.exists()
    assert list(folder.parent.iterdir()) == []


def test_the_place_of_a_claim_that_is_looked_at_is_not_free(tmp_path: Path) -> None:
    path, aside = tmp_path / "claim.json", tmp_path / ".stale-claim.json-1-1"
    with claim(tmp_path) as taken:
        path.rename(aside)  # somebody moved it to see whether it is stale
        with claim(tmp_path) as also:
            assert taken and not also and not path.exists()
        assert not claims._put_back(aside, aside), "not over another's"
        assert claims._put_back(aside, path) and path.exists()
    assert list(tmp_path.iterdir()) == [], "let go of wherever it is"


def test_claims_exclude_each_other_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    with claim(tmp_path) as taken, claim(tmp_path) as also:
        assert taken and not also
        assert live(tmp_path / "claim.json")
        (tmp_path / "claim.json").rename(tmp_path / ".stale-claim.json-1-1")
        assert claims._put_back(tmp_path / ".stale-claim.json-1-1", tmp_path / "claim.json")
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_is_let_go_is_ones_own(tmp_path: Path) -> None:
    with claim(tmp_path):
        (tmp_path / "claim.json").rename(tmp_path / "moved.json")
        (tmp_path / "claim.json").write_text("another's")
    assert (tmp_path / "claim.json").read_text() == "another's"


def test_gc_unreferenced_keeps_the_chain_of_an_evaluation(tmp_path: Path) -> None:
    store = Store(tmp_path)
    used, _ = store.run(Recipe("train", {"seed": 0}), lambda _: {})
    unused, _ = store.run(Recipe("train", {"seed": 1}), lambda _: {})
    store.run(Recipe("evaluate", {}, {"student": used.key}), lambda _: {})
    inspect_store.collect(tmp_path, really=True, unreferenced=True)
    assert used.folder.exists() and not unused.folder.exists()


def test_gc_unreferenced_keeps_what_running_and_submitted_runs_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [store.run(Recipe("filter", {"seed": seed}), lambda _: {})[0] for seed in range(3)]
    for number, kind in enumerate(("running", "submitted")):
        student = Recipe("train", {"seed": number}, {"filter": rows[number].key})
        folder = store.folder("train", student.key)
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(json.dumps(student.as_json()))
        if kind == "submitted":
            (folder / "submitted.json").write_text(json.dumps({"job": "7", "reads": [["filter", rows[number].key]]}))
    with claim(store.folder("train", Recipe("train", {"seed": 0}, {"filter": rows[0].key}).key)):
        inspect_store.collect(tmp_path, really=True, unreferenced=True)
        assert [made.folder.exists() for made in rows] == [True, True, False]


def test_gc_removes_nothing_that_is_taken_after_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Store(tmp_path).folder("generate", "0123456789ab")
    folder.mkdir(parents=True)
    with claim(folder):
        monkeypatch.setattr(inspect_store, "live", lambda _: False)  # as gc saw it a moment before
        assert inspect_store.collect(tmp_path, really=True).endswith("removed: 0 runs")
    assert folder.exists()


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path: Path) -> None:
    for seed in range(2):
        Store(tmp_path).folder("generate", f"{seed:012d}").mkdir(parents=True)
    command = [sys.executable, "-m", "subliminal", "status", "--store", str(tmp_path)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, env=script_environment(), stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_atomic_write_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_store_that_can_not_be_written_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="set store="):
        Store(tmp_path / "file").run(recipe(), lambda _: {})
