"""A store of 50,000 runs: how long `status`, `plan` and `plot` take, with the index and when it was lost.

The runs are made up, but for those that `plot` shows. Beside it, how many small runs a second 16 processes make.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory

from side_by_side import compare, options, report

from subliminal.composition import ROOT
from subliminal.launch import script_environment
from subliminal.store import Recipe, Store
from subliminal.store_index import INDEX

GOAL_SECONDS = 3.0
WORKERS = 16
STAGES = ("teacher", "generate", "filter", "train", "evaluate")
SMALL = [
    "experiment=theorem",
    "seed=0,1",
    "theory.trials=1",
    "theory.architectures=[mlp]",
    "theory.losses=[squared_error]",
    "theory.matched=[all]",
    "theory.run.teacher_steps=2",
    "theory.run.student_steps=3",
    "theory.run.points=2",
]


def fill(root: Path, runs: int) -> None:
    """Complete runs in chains of five stages, their manifests written as a stage would have left them."""
    before: dict[str, str] = {}
    for number in range(runs):
        stage = STAGES[number % len(STAGES)]
        recipe = Recipe(stage, {"seed": number, "rate": 0.1, "layers": list(range(20))}, dict(before))
        folder = root / stage / recipe.key
        folder.mkdir(parents=True)
        files = {f"rows-{shard:05d}.jsonl": {"bytes": 100, "sha256": "0" * 64} for shard in range(4)}
        content = {"recipe": recipe.as_json(), "summary": {"tokens": 100}, "files": files, "seconds": 1.0}
        (folder / "manifest.json").write_text(json.dumps(content, indent=1))
        before = {} if stage == STAGES[-1] else {stage: recipe.key}


def cpu_seconds() -> float:
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: list[str]) -> tuple[float, float]:
    """One run of `python -m subliminal ...` and its CPU seconds: it is one process, and other work does not count."""
    before = cpu_seconds()
    full = [sys.executable, "-m", "subliminal", *command]
    subprocess.run(full, cwd=ROOT, env=script_environment(), check=True, stdout=subprocess.DEVNULL)
    return 1.0, cpu_seconds() - before


def small_runs(root: str, first: int, count: int) -> int:
    """Make `count` runs of one small file each."""
    store = Store(Path(root))
    for seed in range(first, first + count):
        store.run(
            Recipe("generate", {"seed": seed}), lambda folder: {"bytes": (folder / "rows.jsonl").write_text("{}")}
        )
    return count


def main() -> None:
    chosen = options(__doc__ or "", runs=50_000, made=800).parse_args()
    with TemporaryDirectory() as place:
        root, own = Path(place) / "runs", [f"store={place}/runs", f"figures={place}/figures", *chosen.overrides]
        timed(["sweep", *SMALL, *own])
        fill(root, chosen.runs)
        (root / INDEX).unlink(missing_ok=True)
        status, plan, plot = ["status", "--store", str(root)], ["plan", *SMALL, *own], ["plot", *SMALL, *own]
        totals = {"status, index lost": timed(status)}
        totals |= {"status": timed(status), "plan": timed(plan), "plot": timed(plot)}
        totals |= {"plan of language models": timed(["plan", "experiment=animals_numbers", "scale=cpu", *own])}
        each, started = chosen.made // WORKERS, time.perf_counter()
        with ProcessPoolExecutor(WORKERS) as pool:
            done = sum(pool.map(small_runs, [place] * WORKERS, range(0, chosen.made, each), [each] * WORKERS))
        rate = done / (time.perf_counter() - started)
    report(compare("store", "commands", totals, "status, index lost", {}))
    for name, (_, seconds) in totals.items():
        met = "met" if seconds < GOAL_SECONDS else "NOT met"
        print(f"{name}: {seconds:.1f} s of CPU" + ("" if "lost" in name else f", goal below {GOAL_SECONDS:g} s: {met}"))
    print(f"{WORKERS} processes: {rate:.0f} small runs a second")


if __name__ == "__main__":
    main()
