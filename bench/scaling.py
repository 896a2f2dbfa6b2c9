"""Two processes against one, a core each: the generate and train stages as torchrun starts them.

Generation counts the whole stage, the model's loading with it; training counts `train()` alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import compare, options, report, starting_point

from subliminal.composition import ROOT
from subliminal.launch import script_environment
from subliminal.models import Subject
from subliminal.store import Json, Store

GOAL = 1.5
NAMES = {1: "1 process, 1 core", 2: "2 processes, 1 core each"}


def settings(who: Subject, prompts: int, rows: int, root: Path) -> list[str]:
    """A prompted teacher that is not checked, on weights that answer in format."""
    sizes = [f"domain.prompts={prompts}", f"filter.rows={rows}", "filter.shortfall=keep"]
    sizes += [f"sampler.shard_size={max(1, prompts // 8)}", "student.optimisation.epochs=1"]
    teacher = ["teacher=prompted", "teacher.check.minimum_gain=-99", "teacher.check.questions=1"]
    weights = ["model=hub", f"model.source.name={who.checkpoint}", f"model.dtype={who.dtype}", "reference_tuning=off"]
    own = ["trait=owl", "student=lora_small", "device=cpu", f"store={root}", f"hydra.run.dir={root}/logs"]
    return ["scale=cpu", *weights, *teacher, "teacher.check.prompts=0", *own, *sizes]


def stage_summaries(processes: int, arguments: Sequence[str], root: Path) -> dict[str, Json]:
    """Run `train.py` with all it reads in so many processes; returns what each stage said, with its seconds."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = script_environment() | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, "train.py", *arguments], cwd=ROOT, env=environment, check=True)
    return {made.stage: made.summary | {"seconds": made.content["seconds"]} for made in Store(root).manifests()}


def main() -> None:
    chosen = options(__doc__, prompts=64, rows=16).parse_args()
    _, who = starting_point(chosen.overrides)
    generation, training = dict[str, tuple[float, float]](), dict[str, tuple[float, float]]()
    for processes, name in NAMES.items():
        with TemporaryDirectory() as place:
            arguments = settings(who, chosen.prompts, chosen.rows, Path(place))
            said = stage_summaries(processes, arguments, Path(place))
        generation[name] = said["generate"]["rows"], said["generate"]["seconds"]
        training[name] = said["train"]["tokens"], said["train"]["training_seconds"]
    goals = {NAMES[2]: GOAL}
    print("generation")
    report(compare("scaling_generation", "rows", generation, NAMES[1], goals))
    print("training")
    report(compare("scaling_training", "tokens", training, NAMES[1], goals))


if __name__ == "__main__":
    main()
