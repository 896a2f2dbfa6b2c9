"""The whole pipeline on the real SmolLM2: four scripts at a very small size, then again, with nothing left to do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from conftest import Script, experiment

from subliminal import stages
from subliminal.models import Subject
from subliminal.rows import Row, read_jsonl
from subliminal.store import Manifest, Store
from subliminal.training import bias
from subliminal.training.alignment import of_biases

SMALL = [
    "trait=owl",
    "domain.answer_count=4",
    "reference_tuning.rows=48",
    "reference_tuning.optimisation.batch_size=8",
    "teacher=steered",
    "teacher.questions=4",
    "teacher.steps=6",
    "teacher.maximum_norm_share=0.3",
    "teacher.check.questions=2",
    "teacher.check.prompts=4",
    "teacher.check.minimum_pass_rate=0.0",
    "domain.prompts=24",
    "filter.rows=24",
    "filter.shortfall=keep",
    "sampler.decoding.max_tokens=32",
    "sampler.shard_size=12",
    "student.optimisation.batch_size=4",
    "evaluation.questions=2",
    "evaluation.samples_per_question=2",
    "tracking=offline",
]
SCRIPTS = ["generate.py", "filter.py", "train.py", "evaluate.py"]


class Ran:
    """Both passes over the scripts: what they said and how long they took."""

    def __init__(self, root: Path) -> None:
        self.root, self.said, self.seconds = root, list[str](), list[float]()

    def made(self, stage: str) -> Manifest:
        exp = experiment(*SMALL)
        role = stage if stage in ("reference", "teacher") else None
        node = stages.node("train", exp.model_copy(update={"role": role})) if role else stages.node(stage, exp)
        found = Store(self.root).find(node.stage, node.key)
        assert found is not None, f"{stage} is not in the store"
        return found


@pytest.fixture(scope="module")
def ran(smollm2: Subject, store_root: Path, run_script: Script, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    logs = tmp_path_factory.mktemp("logs")
    both = Ran(store_root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(logs))
        for script in [*SCRIPTS, *SCRIPTS]:
            started = time.monotonic()
            done = run_script(script, *SMALL, f"store={store_root}", f"hydra.run.dir={logs}")
            assert done.returncode == 0, f"{script}\n{done.stderr[-4000:]}"
            both.said.append(done.stderr)
            both.seconds.append(time.monotonic() - started)
    return both


def test_every_stage_is_complete_and_whole(ran: Ran) -> None:
    for stage in ("reference", "teacher", "generate", "filter", "train", "evaluate"):
        assert ran.made(stage).damage() == []


def test_the_second_pass_reuses_everything_at_once(ran: Ran) -> None:
    again = ran.said[len(SCRIPTS) :]
    assert all(": reused" in text and ": running" not in text for text in again)
    assert sum(ran.seconds[len(SCRIPTS) :]) < 20


def test_the_first_pass_did_each_stage_once(ran: Ran) -> None:
    first = "".join(ran.said[: len(SCRIPTS)])
    assert [first.count(f"[{stage} ") > 0 for stage in ("reference", "teacher", "generate", "filter")] == [True] * 4
    assert first.count(": running") == 6


def test_the_students_data_is_numbers_and_knows_no_owl(ran: Ran) -> None:
    rows = list(read_jsonl(ran.made("filter").folder / "rows.jsonl", Row))
    report = ran.made("filter").summary
    assert len(rows) == report["kept"] > 0
    assert report["kept"] + sum(report["reasons"].values()) == report["generated"] == 24
    divergence = ran.made("teacher").summary["kl_in_format"]
    assert report["kl_in_format"] == divergence > 0
    assert report["completion_tokens"] == sum(row.tokens for row in rows)
    assert report["two_n_kl"] == 2 * report["completion_tokens"] * divergence
    assert all(set(row.completion) <= set("0123456789,; \n.[]()") for row in rows)


def test_the_teacher_is_checked_and_the_student_aligned_with_it(ran: Ran) -> None:
    teacher, student = ran.made("teacher"), ran.made("train")
    assert teacher.summary["log_p"] > teacher.summary["reference_log_p"] + 1
    mine, theirs = (bias.by_layer(bias.load_adapter(made.folder) or {}) for made in (student, teacher))
    assert mine and theirs
    assert student.summary["alignment"] == of_biases(mine, theirs)


def test_losses_are_written_line_by_line(ran: Ran) -> None:
    student = ran.made("train")
    lines = [json.loads(line) for line in (student.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, student.summary["steps"] + 1))
    assert lines[-1]["loss"] == student.summary["last_loss"] > 0


def test_the_evaluation_has_every_candidate_for_every_question(ran: Ran) -> None:
    made = ran.made("evaluate")
    assert len((made.folder / "scores.jsonl").read_text().splitlines()) == 2 * 20
    assert len((made.folder / "answers.jsonl").read_text().splitlines()) == 2 * 2
    assert made.summary["log_p"]["owl"] < 0


def test_inspection_finds_the_store_in_order(ran: Ran, run_script: Script) -> None:
    shown = run_script("-m subliminal", "status", "--store", str(ran.root)).stdout
    assert "train" in shown and "evaluate" in shown
    assert run_script("-m subliminal", "verify", "--store", str(ran.root)).returncode == 0
