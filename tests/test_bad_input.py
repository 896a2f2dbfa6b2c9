"""Bad input and bad luck through the scripts: one clear message, the next command, and nothing finished is lost."""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Script, experiment

from subliminal import stages
from subliminal.claims import live
from subliminal.composition import ROOT, compose
from subliminal.config import ConfigError
from subliminal.errors import clear_errors
from subliminal.launch import script_environment
from subliminal.models import Subject
from subliminal.store import Store

BANNED = f"filter.banned_numbers={list(range(100, 1000, 20))}".replace(" ", "")
RANDOM = ["teacher=random", "domain.prompts=20", "filter.rows=20", "trait=none"]


def start(arguments: list[str], **changes: object) -> subprocess.Popen[str]:
    """A script that is still running when this returns."""
    return subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **{"env": script_environment(), "cwd": ROOT} | changes,
    )


def heed_interrupts() -> None:
    """Whoever runs the tests in the background has interrupts ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def places(folder: Path) -> list[str]:
    return [f"store={folder / 'runs'}", f"hydra.run.dir={folder / 'logs'}"]


def folder_of(stage: str, tmp_path: Path, *overrides: str) -> Path:
    exp = experiment(*RANDOM, *overrides)
    node = stages.node(stage, exp)
    return Store(tmp_path / "runs").folder(node.stage, node.key)


def one_message(done: subprocess.CompletedProcess[str] | tuple[int, str], *said: str) -> None:
    """Exit 1, no traceback, and every part of the message."""
    code, text = (done.returncode, done.stderr) if isinstance(done, subprocess.CompletedProcess) else done
    assert (code, "Traceback" in text) == (1, False), text
    for part in said:
        assert part in text, text


def test_a_corrupt_row_names_file_and_line(run_script: Script, tmp_path: Path) -> None:
    assert run_script("generate.py", *RANDOM, *places(tmp_path)).returncode == 0
    path = folder_of("generate", tmp_path) / "rows-00000.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:25] + "\n", *lines[2:]]))
    done = run_script("filter.py", *RANDOM, *places(tmp_path))
    one_message(done, f"{path}:2: not a JSON object")
    path.write_text("".join(lines))
    assert run_script("filter.py", *RANDOM, *places(tmp_path)).returncode == 0


def test_fewer_rows_than_asked_says_how_many_more_prompts(run_script: Script, tmp_path: Path) -> None:
    done = run_script("filter.py", *RANDOM, *places(tmp_path), BANNED)
    banned = folder_of("filter", tmp_path, BANNED)
    one_message(done, "of 20 completions passed the filter", "filter.rows asks for 20", "domain.prompts=")
    assert not (banned / "manifest.json").exists()
    assert (folder_of("generate", tmp_path) / "manifest.json").exists(), "what was generated stays"


def test_a_full_disk_is_one_message_and_the_same_command_goes_on(run_script: Script, tmp_path: Path) -> None:
    """A device that is always full takes the place of the first shard."""
    folder = folder_of("generate", tmp_path)
    folder.mkdir(parents=True)
    (folder / "rows-00000.jsonl").symlink_to("/dev/full")
    one_message(run_script("generate.py", *RANDOM, *places(tmp_path)), "the disk is full", "run the same command again")
    assert not (folder / "manifest.json").exists() and not (folder / "claim.json").exists()
    (folder / "rows-00000.jsonl").unlink()
    assert run_script("generate.py", *RANDOM, *places(tmp_path)).returncode == 0


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_weights_that_do_not_fit_are_one_message(tiny: Subject, tmp_path: Path) -> None:
    """Weights are written by other hands than rows: their failure must read the same."""
    weights = ["model=hub", f"model.source.name={tiny.checkpoint}", "reference_tuning.rows=4"]
    weights.append("reference_tuning.lora.layers=all")  # the tiny model has two
    running = start(["train.py", "role=reference", *weights, *places(tmp_path)], preexec_fn=limited(1_000_000))
    _, text = running.communicate(timeout=200)
    one_message((running.returncode, text), "the disk is full")


def test_a_model_that_can_not_be_had_without_a_network_is_one_message(tmp_path: Path) -> None:
    with socket.socket() as probe:  # bound and not listening: nobody answers here
        probe.bind(("127.0.0.1", 0))
        nowhere = {"HF_ENDPOINT": f"http://127.0.0.1:{probe.getsockname()[1]}", "HF_HOME": str(tmp_path / "hub")}
        arguments = ["train.py", "role=reference", "model=hub", "model.source.name=some/model", *places(tmp_path)]
        running = start(arguments, env=script_environment() | nowhere)
        _, text = running.communicate(timeout=200)
    one_message((running.returncode, text), "model 'some/model' can not be had", "use model=smollm2_135m")


def test_an_interrupt_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    arguments = ["generate.py", "teacher=random", "trait=none", "domain.prompts=3000000", *places(tmp_path)]
    running = start(arguments, preexec_fn=heed_interrupts)
    assert running.stderr is not None
    while ": running" not in running.stderr.readline():
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    text = running.stderr.read()
    assert (running.wait(timeout=60), "Traceback" in text) == (130, False), text
    assert "interrupted; the same command goes on" in text
    assert not list((tmp_path / "runs").rglob("manifest.json"))
    assert not any(live(claim) for claim in (tmp_path / "runs").rglob("claim.json"))


def test_a_missing_stage_names_the_command_that_makes_it(run_script: Script, tmp_path: Path) -> None:
    done = run_script("filter.py", *RANDOM, *places(tmp_path), "upstream=require")
    one_message(done, "run first: python generate.py teacher=random domain.prompts=20")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["role=student", "trait=owl"], "run first: python train.py role=reference trait=owl"),
        (["filter.rows=40", "filter.select={by: log_ratio, share: 0.5}"], "set upstream=build"),
        (
            ["student_model.name=other", "+model@student_model=hub", "student_model.source.name=x/y"],
            "set upstream=build",
        ),
    ],
)
def test_a_missing_stage_is_told_how_it_is_made_by_itself(overrides: list[str], said: str) -> None:
    exp = experiment("scale=cpu", "upstream=require", *overrides)
    wanted = stages.filtered(exp) if "filter.rows=40" in overrides else stages.student(exp)
    upper = wanted.inputs["attribute" if "filter.rows=40" in overrides else "reference"]
    assert said in stages.remedy(upper, exp, overrides)


def test_more_questions_than_there_are_is_one_message(run_script: Script, tiny: Subject, tmp_path: Path) -> None:
    weights = ["model=hub", f"model.source.name={tiny.checkpoint}", "reference_tuning.rows=4"]
    done = run_script("evaluate.py", "subject=reference", "evaluation.questions=51", *weights, *places(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "evaluation.questions=51: there are 50 questions" in done.stderr


MORTAL = """
import runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python would survive a file that grows beyond its limit
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("stage", ["generate", "filter"])
def test_a_killed_stage_is_made_by_the_next_try(run_script: Script, tmp_path: Path, stage: str) -> None:
    """Killed by the kernel at some byte of its rows: nothing half-made is taken for finished."""
    if stage == "filter":
        assert run_script("generate.py", *RANDOM, *places(tmp_path)).returncode == 0
    running = start(["-c", MORTAL, f"{stage}.py", *RANDOM, *places(tmp_path)], preexec_fn=limited(1500))
    running.communicate(timeout=200)
    assert running.returncode == -signal.SIGXFSZ
    assert not (folder_of(stage, tmp_path) / "manifest.json").exists()
    assert run_script(f"{stage}.py", *RANDOM, *places(tmp_path)).returncode == 0
    assert (folder_of(stage, tmp_path) / "manifest.json").exists()
    assert not (folder_of(stage, tmp_path) / "claim.json").exists()


# --------------------------------------------------------------------------- places that can not be written

SMOKE = ["experiment=theorem", "scale=cpu", "debug=smoke"]


@pytest.mark.parametrize("setting", ["figures", "store"])
@pytest.mark.parametrize("place", ["file/inside", "/sys/forbidden"])
def test_a_sweep_that_could_not_write_is_refused_before_any_work(
    run_script: Script, tmp_path: Path, setting: str, place: str
) -> None:
    (tmp_path / "file").write_text("")
    ours = {"figures": f"{tmp_path}/figures", "store": f"{tmp_path}/runs"} | {setting: str(tmp_path / place)}
    done = run_script("-m subliminal", "sweep", *SMOKE, *(f"{name}={value}" for name, value in ours.items()))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert f"{setting}={tmp_path / place}: nothing can be written in" in done.stderr
    assert f"set {setting}= to a folder you can write to" in done.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / "figures").exists()


@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_a_folder_without_room_for_hydras_logs_says_which_setting_moves_them(
    tmp_path: Path, multirun: list[str]
) -> None:
    (tmp_path / "logs").write_text("")
    script = str(ROOT / "generate.py")
    running = start([script, *multirun, *RANDOM, f"store={tmp_path}/runs"], cwd=tmp_path)
    _, text = running.communicate(timeout=200)
    assert (running.returncode, "Traceback" in text) == (2, False), text
    assert "set hydra.run.dir=, or for several jobs hydra.sweep.dir=," in text
    elsewhere = [f"hydra.{'sweep' if multirun else 'run'}.dir={tmp_path}/elsewhere"]
    running = start([script, *multirun, *elsewhere, *RANDOM, f"store={tmp_path}/runs"], cwd=tmp_path)
    assert running.communicate(timeout=200) and running.returncode == 0


def test_a_working_folder_that_is_read_only_is_one_message(tmp_path: Path) -> None:
    running = start([str(ROOT / "generate.py"), *RANDOM, f"store={tmp_path}/runs"], cwd="/sys")
    _, text = running.communicate(timeout=200)
    assert (running.returncode, "Traceback" in text) == (2, False) and "set hydra.run.dir=" in text, text


def test_a_place_that_may_not_be_written_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, clear_errors():
        Path("/sys/forbidden").mkdir()
    assert ended.value.code == 1 and "/sys/forbidden: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student.layers=-1", "student.layers=-1: input should be a list, as in [1,2] or 'all'"),
        ("domain.random_counts=5", "domain.random_counts=5: input should be a list, as in [1,2]"),
    ],
)
def test_what_takes_a_list_says_so_in_one_line(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(["experiment=animals_numbers", "scale=cpu", "student=bias_one_layer", override])
    assert str(refused.value) == said
