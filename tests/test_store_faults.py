"""The store under fire: many workers over the same stages, killed at random, and nothing is done twice or left half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Script

from subliminal import inspect_store
from subliminal.claims import live
from subliminal.store import Store

STAGES, WORKERS, KILLS = 200, 16, 120

FIRE = """
    import json, os, random, signal, sys, time
    from pathlib import Path
    from subliminal.store import ClaimedError, Recipe, Store

    root, stages, workers, kills = Path(sys.argv[1]), *map(int, sys.argv[2:])
    store, log = Store(root / "runs"), os.open(root / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note(**what):  # one write to a file opened for appending: whole even when its writer dies
        os.write(log, (json.dumps(what) + "\\n").encode())

    def work(folder):
        busy = folder / ".busy"
        if busy.exists() and Path(f"/proc/{busy.read_text() or 0}").exists():
            note(together=folder.name)
        busy.write_text(str(os.getpid()))
        (folder / "half.jsonl").write_text("x" * random.randrange(10_000))
        time.sleep(random.random() / 50)
        (folder / "half.jsonl").write_text("whole")
        busy.unlink()
        return {"rows": 1}

    def worker():
        random.seed(os.getpid())
        left = [Recipe("generate", {"seed": seed}) for seed in range(stages)]
        while left:
            random.shuffle(left)
            for recipe in list(left):
                try:
                    made, reused = store.run(recipe, work, wait=False)
                except ClaimedError:
                    continue
                left.remove(recipe)
                if not reused:
                    note(made=made.key)
        os._exit(0)

    def start():
        pid = os.fork()
        return pid or worker()

    alive = {start() for _ in range(workers)}
    random.seed(0)
    for _ in range(kills):
        time.sleep(0.02 * random.random())
        victim = random.choice(sorted(alive))
        os.kill(victim, signal.SIGKILL)
        if os.waitpid(victim, 0)[1] == signal.SIGKILL:
            note(killed=victim)
        alive.remove(victim)
        alive.add(start())
    print(json.dumps([os.waitpid(pid, 0)[1] for pid in alive]))
"""


@pytest.fixture(scope="module")
def fire(run_code: Script, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    root = tmp_path_factory.mktemp("fire")
    done = run_code(FIRE, root, STAGES, WORKERS, KILLS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [0] * WORKERS
    return root, [json.loads(line) for line in (root / "log").read_text().splitlines()]


def test_workers_died_at_their_work(fire: tuple[Path, list[dict[str, str]]]) -> None:
    assert sum("killed" in line for line in fire[1]) > KILLS / 4  # the others had nothing left to do


def test_every_stage_is_complete_exactly_once_and_whole(fire: tuple[Path, list[dict[str, str]]]) -> None:
    root, log = fire
    runs = list(Store(root / "runs").manifests())
    assert len(runs) == STAGES
    made = [line["made"] for line in log if "made" in line]
    assert len(made) == len(set(made)), "two workers each made the same run"
    assert inspect_store.verify(root / "runs") == []
    assert {run.content["files"]["half.jsonl"]["bytes"] for run in runs} == {len("whole")}


def test_no_two_workers_were_in_one_folder(fire: tuple[Path, list[dict[str, str]]]) -> None:
    assert not [line for line in fire[1] if "together" in line]


def test_nothing_is_left_lying_about(fire: tuple[Path, list[dict[str, str]]]) -> None:
    root = fire[0] / "runs"
    claims = list(root.rglob("claim.json"))  # of a worker that was killed behind its manifest, where nobody reads it
    assert not any(map(live, claims)) and not list(root.rglob("failure.json"))
    assert "200 complete" in inspect_store.status(root)
