"""A finished sweep run again: every stage is found in the store, only the figure is drawn anew.

The first run is made as small as it goes; the second one costs the same at any size.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import Way, compare, options, report, timed

from subliminal.composition import ROOT
from subliminal.launch import script_environment

GOAL_SECONDS = 20.0
SMALL = (
    "reference_tuning=off",
    "teacher=random",
    "domain.prompts=16",
    "filter.rows=8",
    "evaluation.questions=2",
)


def run(command: list[str], overrides: list[str], place: Path) -> Way:
    """A command of the repository with its own store and figures; counts as one run."""
    own = ["scale=cpu", *SMALL, f"store={place}/runs", f"figures={place}/figures"]

    def once() -> float:
        full = [sys.executable, *command, *own, *overrides]
        subprocess.run(full, cwd=ROOT, env=script_environment(), check=True, stdout=subprocess.DEVNULL)
        return 1.0

    return once


def main() -> None:
    parser = options(__doc__)
    chosen = parser.parse_args()
    arms = ["trait=owl,dolphin,none", "seed=0"]
    with TemporaryDirectory() as folder:
        place = Path(folder)
        sweep = run(["-m", "subliminal", "sweep", "experiment=animals_numbers", *arms], chosen.overrides, place)
        stage = run(["generate.py"], chosen.overrides, place)
        totals = timed({"sweep, first run": sweep}, 1)
        totals |= timed({"sweep, second run": sweep, "one stage, second run": stage}, 2)
    second = totals["sweep, second run"]
    report(compare("noop", "runs", totals, "sweep, first run", {}))
    met = second[1] / second[0] < GOAL_SECONDS
    print(f"second run {second[1] / second[0]:.1f} s, goal below {GOAL_SECONDS:g} s: {'met' if met else 'NOT met'}")


if __name__ == "__main__":
    main()
