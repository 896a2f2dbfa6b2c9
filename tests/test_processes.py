"""Two processes at one stage run: the batches, losses and rows of one, one writer, however the weights are held."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import Script, tiny_experiment
from safetensors.torch import load_file

from subliminal import inspect_store, processes, stages
from subliminal.composition import ROOT
from subliminal.config import ConfigError
from subliminal.launch import script_environment
from subliminal.models import Subject
from subliminal.sampling.engine import EngineError, own_gpus
from subliminal.store import Manifest, Store

SIZES = ["trait=owl", "reference_tuning=off", "domain.prompts=24", "filter.rows=24"]
RANDOM = [*SIZES, "teacher=random"]
SMALL = [*RANDOM, "student.optimisation.batch_size=8", "student.optimisation.epochs=2"]
LORA = [*SMALL, "student=lora_small"]
FULL = [*SMALL, "student=full", "student.optimisation.learning_rate=0.01"]
PROMPTED = [
    "teacher=prompted",
    "teacher.check.minimum_gain=-99",
    "teacher.check.questions=1",
    "teacher.check.prompts=0",
]
ROWS = [*SIZES, *PROMPTED, "sampler=transformers", "sampler.shard_size=4", "sampler.decoding.max_tokens=6"]
COUNTS = ["evaluation.questions=30", "evaluation.samples_per_question=9", "evaluation.max_tokens=3"]
ASKED = [*ROWS, "subject=reference", *COUNTS]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FILES = ROOT / "cluster" / "accelerate"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]


def settings(model: Subject, store: Path, *overrides: str) -> list[str]:
    weights = ["model=hub", f"model.source.name={model.checkpoint}", "model.dtype=float32", "device=cpu"]
    return ["experiment=animals_numbers", "scale=cpu", *weights, *overrides, f"store={store}"]


def together(launcher: list[str], script: str, *arguments: str) -> None:
    done = subprocess.run(
        [*launcher, script, *arguments],
        cwd=ROOT, env=script_environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


ENSURE = """
import json, sys
from pathlib import Path
from subliminal import stages
from subliminal.composition import compose
from subliminal.store import Store

for stage, overrides in json.loads(sys.argv[1]):
    exp = compose(overrides)
    stages.ensure(stages.node(stage, exp), Store(Path(exp.store)), exp)
"""
WANTED = [("train", LORA), ("generate", ROWS), ("evaluate", ASKED)]
Stores = tuple[Store, Store]


@pytest.fixture(scope="module")
def stores(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """The store of one process, and of two that began with nothing, after they made the same stage runs."""
    one, two = (Store(tmp_path_factory.mktemp(name)) for name in ("one", "two"))
    for stage, overrides in WANTED:
        exp = tiny_experiment(tiny, *overrides, f"store={one.root}")
        stages.ensure(stages.node(stage, exp), one, exp)
    script = tmp_path_factory.mktemp("code") / "ensure.py"
    script.write_text(ENSURE)
    together(TORCHRUN, str(script), json.dumps([(stage, settings(tiny, two.root, *own)) for stage, own in WANTED]))
    yield one, two


def both(stores: Stores, tiny: Subject, stage: str, overrides: list[str]) -> tuple[Manifest, Manifest]:
    node = stages.node(stage, tiny_experiment(tiny, *overrides))
    one, two = (store.find(node.stage, node.key) for store in stores)
    assert one and two and one.content["files"].keys() == two.content["files"].keys()
    return one, two


def losses(made: Manifest) -> list[float]:
    return [json.loads(line)["loss"] for line in (made.folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_see_the_batches_of_one_and_have_its_losses(stores: Stores, tiny: Subject) -> None:
    one, two = both(stores, tiny, "train", LORA)
    assert (one.summary["processes"], two.summary["processes"]) == (1, 2)
    assert len(losses(one)) == 6 == two.summary["steps"]
    assert losses(two) == pytest.approx(losses(one), abs=1e-3)


def test_two_processes_write_the_rows_of_one(stores: Stores, tiny: Subject) -> None:
    one, two = both(stores, tiny, "generate", ROWS)
    assert (one.summary["processes"], two.summary["processes"]) == (1, 2)
    assert one.summary["shards"] == 6
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in one.content["files"])


def test_two_processes_give_the_answers_of_one(stores: Stores, tiny: Subject) -> None:
    one, two = both(stores, tiny, "evaluate", ASKED)
    assert one.summary["samples"] == 270 == len((one.folder / "answers.jsonl").read_text().splitlines())
    assert (one.folder / "answers.jsonl").read_text() == (two.folder / "answers.jsonl").read_text()
    assert one.summary["log_p"] == pytest.approx(two.summary["log_p"], abs=1e-4)


def test_only_one_process_writes_and_its_files_are_whole(stores: Stores) -> None:
    root = stores[1].root
    made = {each.stage for each in stores[1].manifests()}
    assert made == {"model", "teacher", "generate", "filter", "train", "evaluate"}
    assert inspect_store.verify(root) == []
    assert not list(root.glob("*/*/.*")) and not list(root.glob("*/*/claim.json"))


def test_weights_shared_out_by_fsdp_train_as_those_of_one(stores: Stores, tiny: Subject) -> None:
    """Every weight of a student in two processes, which `accelerate launch` with the FSDP file starts."""
    one, two = stores
    exp = tiny_experiment(tiny, *FULL, f"store={one.root}")
    stages.ensure(stages.student(exp), one, exp)
    launcher = [*ACCELERATE, str(FILES / "fsdp.yaml")]
    together(launcher, "train.py", *settings(tiny, two.root, *FULL), f"hydra.run.dir={two.root}/logs")
    alone, shared = both(stores, tiny, "train", FULL)
    assert (alone.summary["sharding"], shared.summary["sharding"]) == ("none", "fsdp")
    assert losses(shared) == pytest.approx(losses(alone), abs=1e-3)
    assert losses(alone)[0] - losses(alone)[-1] > 0.1, "it learns"
    ours, theirs = (load_file(each.folder / "checkpoint" / "model.safetensors") for each in (alone, shared))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)
    configs = [(each.folder / "checkpoint" / "config.json").read_text() for each in (alone, shared)]
    assert configs[0] == configs[1], "nothing of how it was trained"


def test_a_batch_that_can_not_be_shared_out_is_one_message(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    from subliminal.training import TrainingError
    from subliminal.training.sft import shared_out

    exp = tiny_experiment(tiny, *LORA, "student.optimisation.batch_size=9")
    assert shared_out(exp.student.optimisation) == (9, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="9 can not be shared out evenly to 2 processes"):
        shared_out(exp.student.optimisation)


TOLD = """
    import os, signal, sys
    from types import SimpleNamespace
    import torch
    from subliminal.stopping import held_signals
    from subliminal.training.trainer import SaveAndStop

    def process(rank):
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
        torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
        args = SimpleNamespace(device=torch.device("cpu"), save_strategy="steps")
        with held_signals() as held:
            stop = SaveAndStop(held)
            for step in (1, 2, 3):
                if (rank, step) == (1, 2):
                    os.kill(os.getpid(), signal.SIGUSR1)
                control = SimpleNamespace(should_save=False)
                stop.on_step_end(args, None, control)
                os.write(1, f"{rank} {step} {control.should_save}\\n".encode())  # whole, whoever writes beside it
                if control.should_save:
                    stop.on_save(args, None, control)

    def started(rank):
        child = os.fork()
        if child == 0:
            try:
                process(rank)
            except SystemExit as end:
                os._exit(end.code)
            os._exit(0)
        return child

    print("ends", [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in [started(0), started(1)]])
"""


def test_a_signal_to_one_process_stops_all_after_the_same_step(run_code: Script, tmp_path: Path) -> None:
    done = run_code(TOLD, tmp_path / "meeting")
    said = sorted(done.stdout.splitlines())
    assert said == ["0 1 False", "0 2 True", "1 1 False", "1 2 True", "ends [138, 138]"], done.stderr[-2000:]


def test_weights_are_shared_out_for_whole_students_only(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    from subliminal.training import TrainingError
    from subliminal.training.recipes import shares

    exp = tiny_experiment(tiny, *LORA, "sharding=fsdp")
    assert shares(exp.student, exp.sharding, None) == {}, "one process holds all"  # type: ignore[arg-type]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="for student=full only"):
        shares(exp.student, exp.sharding, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_zero3"])
def test_accelerate_reads_the_files_for_it(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(FILES / f"{name}.yaml"))
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero3": "DEEPSPEED"}[name]
    assert (read.distributed_type, read.num_processes, read.mixed_precision) == (kind, 2, "no")


def test_each_process_has_gpus_of_its_own() -> None:
    assert [own_gpus(None, place, 2, 2) for place in (0, 1)] == [["0", "1"], ["2", "3"]]
    assert own_gpus("5,3", 1, 2, 1) == ["3"]
    with pytest.raises(EngineError, match="need 4 GPUs of this machine, CUDA_VISIBLE_DEVICES has 2"):
        own_gpus("0,1", 1, 2, 2)


def test_a_process_can_be_by_itself_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "7"}.items():
        monkeypatch.setenv(name, value)
    assert (processes.leads(), processes.meeting_point()) == (False, "here:7")
    with processes.alone():
        with processes.alone():
            assert processes.leads() and processes.meeting_point() == ""
        assert processes.accompanied(), "others may still be at the same files"
    assert processes.rank() == 1


def test_slurm_tasks_without_submitit_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setitem(sys.modules, "submitit.helpers", None)
    with pytest.raises(ConfigError, match="several SLURM tasks need submitit"):
        processes.join()
