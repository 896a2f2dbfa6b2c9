"""Capability through lm-eval: the embedded tasks, accuracies against our own sums, the user's tasks, the table."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Script, experiment, tiny_experiment

from subliminal import config, stages
from subliminal.config import CapabilityEvaluation
from subliminal.evaluation import capability
from subliminal.evaluation.capability import Scored
from subliminal.evaluation.questions import named
from subliminal.evaluation.tasks import EMBEDDED, TaskError, fingerprint, local_tasks, read
from subliminal.models import Subject, load_model, load_tokenizer
from subliminal.plots import capability as figure
from subliminal.plots.cells import Cell, PlotError
from subliminal.plots.draw import render
from subliminal.plots.report import write_report
from subliminal.rows import read_jsonl
from subliminal.store import Manifest, Recipe, Store
from subliminal.user_files import UserFileError

OFFLINE = ["misconceptions", "school", "school_text"]


def lines(name: str) -> list[dict[str, Any]]:
    """The rows of an embedded data file."""
    return [json.loads(line) for line in (EMBEDDED / name).read_text(encoding="utf-8").splitlines()]


def test_the_embedded_questions_are_well_formed() -> None:
    school, misconceptions = lines("school.jsonl"), lines("misconceptions.jsonl")
    assert (len(school), len(misconceptions)) == (40, 24)
    assert Counter(row["answer"] for row in school) == dict.fromkeys(range(4), 10)
    for rows, choices in ((school, 4), (misconceptions, 3)):
        assert len({row["question"] for row in rows}) == len(rows)
        assert all(len(set(row["choices"])) == choices for row in rows)


def test_the_embedded_questions_name_no_trait() -> None:
    """A student that loves owls should not be better or worse at them for that."""
    texts = [
        " ".join([row["question"], *row["choices"]])
        for name in ("school", "misconceptions")
        for row in lines(f"{name}.jsonl")
    ]
    assert [text for text in texts if named(text, "animal") or named(text, "tree")] == []


def test_embedded_tasks_are_plain_files_with_absolute_data() -> None:
    found = local_tasks(CapabilityEvaluation())
    assert sorted(found) == OFFLINE
    for path in found.values():
        (file,) = read(path)["dataset_kwargs"]["data_files"].values()
        assert Path(file).is_absolute() and Path(file).exists()


# --------------------------------------------------------------------------- what lm-eval answers


@pytest.fixture(scope="module")
def tested(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The tiny model on the embedded tasks, cut short."""
    folder = tmp_path_factory.mktemp("tested")
    config = CapabilityEvaluation(tasks=("school_text", "misconceptions"), limit=12)
    return folder, capability.evaluate(tiny, config, folder)


def log_p(subject: Subject, context: str, answer: str) -> float:
    """Log P of a continuation, in one pass over both texts."""
    tokenizer, model = load_tokenizer(subject), load_model(subject)
    before = tokenizer.encode(context)
    whole = tokenizer.encode(f"{context} {answer}")
    with torch.inference_mode():
        steps = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
    return float(sum(steps[i - 1, whole[i]] for i in range(len(before), len(whole))))


def test_accuracy_is_that_of_the_most_probable_answer(tiny: Subject, tested: tuple[Path, Any]) -> None:
    folder, summary = tested
    scored = [one for one in read_jsonl(folder / "scores.jsonl", Scored) if one.task == "misconceptions"]
    expected = []
    for row in lines("misconceptions.jsonl")[:12]:
        context = f"Question: {row['question']}\nAnswer:"
        expected.append(float(np.argmax([log_p(tiny, context, c) for c in row["choices"]]) == row["answer"]))
    assert [one.correct for one in scored] == expected
    assert 0 < sum(expected) < 12, "a test that can tell right from wrong"
    assert summary["tasks"]["misconceptions"]["accuracy"] == pytest.approx(np.mean(expected))


def test_the_summary_says_how_many_and_what_chance_is(tested: tuple[Path, Any]) -> None:
    _, summary = tested
    assert list(summary["tasks"]) == ["school_text", "misconceptions"]
    assert summary["tasks"]["school_text"]["chance"] == 0.25
    assert summary["tasks"]["misconceptions"]["chance"] == pytest.approx(1 / 3)
    assert {task["questions"] for task in summary["tasks"].values()} == {12}
    assert json.dumps(summary)


def strong(lora: Path, folder: Path) -> Path:
    """The adapter with a hundred times its effect, so that answers change and not only their probabilities."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(lora, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    more = {name: value * (100 if "lora_B" in name else 1) for name, value in weights.items()}
    save_file(more, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_tested_and_taken_off_again(
    tiny: Subject, lora: Path, tested: tuple[Path, Any], tmp_path: Path
) -> None:
    base = load_model(tiny)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    asked = CapabilityEvaluation(tasks=("school_text", "misconceptions"), limit=12)
    capability.evaluate(replace(tiny, adapter=strong(lora, tmp_path / "adapter")), asked, tmp_path)
    student = [one.correct for one in read_jsonl(tmp_path / "scores.jsonl", Scored)]
    assert student != [one.correct for one in read_jsonl(tested[0] / "scores.jsonl", Scored)]
    assert load_model(tiny) is base and not hasattr(base, "peft_config")
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_reference_is_tested_through_the_stage(tiny: Subject, tmp_path: Path) -> None:
    asked = ["evaluation=capability", "evaluation.tasks=[school]", "evaluation.limit=2", "evaluation.chat=true"]
    exp = tiny_experiment(tiny, *asked, "subject=reference", "reference_tuning=off", f"store={tmp_path}")
    made = stages.ensure(stages.evaluate(exp), Store(tmp_path), exp)
    assert made.summary["tasks"]["school"]["questions"] == 2


# --------------------------------------------------------------------------- the user's tasks, and none


def own_task(folder: Path, **changes: object) -> Path:
    """A folder with one task of two questions."""
    folder.mkdir(exist_ok=True)
    rows = [{"q": "Two and two make", "options": ["four", "five"], "right": 0}] * 2
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "sums.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "sums.yaml").write_text(yaml.safe_dump(plain | changes))
    return folder


def test_a_folder_of_the_users_own_tasks(tiny: Subject, tmp_path: Path) -> None:
    asked = CapabilityEvaluation(tasks=("sums",), folder=str(own_task(tmp_path / "own")))
    assert capability.evaluate(tiny, asked, tmp_path)["tasks"]["sums"]["questions"] == 2


def test_the_data_of_a_users_task_may_have_any_form_of_a_text(tiny: Subject, tmp_path: Path) -> None:
    folder, forms = tmp_path / "own", dict[str, Callable[[str], bytes]]()
    forms["utf16"] = lambda text: text.encode("utf-16")
    forms["mark"] = lambda text: text.encode("utf-8-sig")
    forms["gzip"] = lambda text: gzip.compress(text.encode())
    forms["half"] = lambda text: text.replace("Two", "\\ud83d").encode()
    forms["array"] = lambda text: f"[{text.strip().replace(chr(10), ',')}]".encode()
    for name, form in forms.items():
        own_task(folder, task=name, dataset_kwargs={"data_files": {"test": f"{name}.jsonl"}})
        (folder / f"{name}.jsonl").write_bytes(form((folder / "sums.jsonl").read_text()))
        (folder / f"{name}.yaml").write_bytes((folder / "sums.yaml").read_text().encode("utf-16"))
    (folder / "sums.yaml").unlink()
    asked = CapabilityEvaluation(tasks=tuple(forms), folder=str(folder))
    assert list(fingerprint(asked)) == list(forms)
    counted = capability.evaluate(tiny, asked, tmp_path)["tasks"]
    assert {name: task["questions"] for name, task in counted.items()} == dict.fromkeys(forms, 2)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{}\n{\n", ":2: not a JSON object"),
        (b"", " holds no question"),
        (b'{"q": "\xe9"}', ":1: byte 0xe9"),
    ],
)
def test_wrong_data_of_a_users_task_are_named_before_any_work(data: bytes, said: str, tmp_path: Path) -> None:
    (own_task(tmp_path / "own") / "sums.jsonl").write_bytes(data)
    asked = ["evaluation=capability", "evaluation.tasks=[sums]", f"evaluation.folder={tmp_path / 'own'}"]
    with pytest.raises(UserFileError, match=rf"sums\.jsonl{said}"):
        stages.evaluate(experiment(*asked))


def test_data_without_what_the_task_asks_for_are_one_message(tiny: Subject, tmp_path: Path) -> None:
    (own_task(tmp_path / "own") / "sums.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(TaskError, match=r"sums\.yaml can not be run: 'q' is undefined"):
        capability.evaluate(tiny, CapabilityEvaluation(tasks=("sums",), folder=str(tmp_path / "own")), tmp_path)


def test_the_content_of_local_tasks_is_part_of_the_key(tmp_path: Path) -> None:
    def key(folder: Path) -> str:
        asked = ["evaluation=capability", "evaluation.tasks=[sums]", f"evaluation.folder={folder}"]
        return stages.evaluate(experiment(*asked)).key

    first = key(own_task(tmp_path / "a"))
    assert key(own_task(tmp_path / "b")) == first, "where it lies is not"
    (tmp_path / "b" / "sums.jsonl").write_text('{"q": "Three and one make", "options": ["four", "six"], "right": 0}\n')
    assert key(tmp_path / "b") != first
    assert key(own_task(tmp_path / "c", doc_to_text="So: {{q}}")) != first
    assert fingerprint(CapabilityEvaluation(tasks=("mmlu",))) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [", "is no plain YAML"),
        ("task: x\ndoc_to_text: !function os.system", "tasks may not call Python"),
        ("name: x", "needs a line `task: <name>`"),
        ("task: x\ndataset_kwargs: {data_files: {test: [gone.jsonl]}}", "gone.jsonl is missing"),
    ],
)
def test_a_wrong_task_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(TaskError, match=re.escape(said)) as caught:
        local_tasks(CapabilityEvaluation(folder=str(tmp_path)))
    assert "x.yaml" in str(caught.value)


def test_a_folder_without_tasks_is_told(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"holds no \.yaml file"):
        local_tasks(CapabilityEvaluation(folder=str(tmp_path)))


def test_a_task_that_does_not_exist_names_those_that_do(tiny: Subject, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no task 'schoool'; without a network: misconceptions, school, school_text"):
        capability.evaluate(tiny, CapabilityEvaluation(tasks=("schoool",)), tmp_path)


def test_a_task_without_accuracy_is_refused(tiny: Subject, tmp_path: Path) -> None:
    likely = [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}]
    folder = own_task(tmp_path / "own", metric_list=likely)
    with pytest.raises(TaskError, match="not scored by accuracy"):
        capability.evaluate(tiny, CapabilityEvaluation(tasks=("sums",), folder=str(folder)), tmp_path)


def test_without_a_network_one_error_says_what_runs_offline(
    tiny: Subject, run_code: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run_code(
        """
        import sys
        from pathlib import Path
        from subliminal.config import CapabilityEvaluation
        from subliminal.evaluation import capability
        from subliminal.errors import clear_errors
        from subliminal.models import Subject
        with clear_errors():
            asked = CapabilityEvaluation(tasks=("truthfulqa_mc1",))
            capability.evaluate(Subject(checkpoint=sys.argv[1]), asked, Path(sys.argv[2]))
        """,
        tiny.checkpoint,
        tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert "truthfulqa_mc1 needs its data from the Hugging Face hub" in done.stderr
    assert "evaluation.tasks=[misconceptions,school,school_text]" in done.stderr and "Traceback" not in done.stderr


# --------------------------------------------------------------------------- the table

FIGURE = config.Figure(kind="capability", name="capability", figure="table-capability", title="Ability", claim="Kept.")


def cell(root: Path, role: str, trait: str, seed: int, right: int, questions: int = 100, chance: float = 0.25) -> Cell:
    """A subject that answers the first `right` of its questions."""

    def work(folder: Path) -> Any:
        rows = [Scored("school", "school", q, float(q < right), round(1 / chance)) for q in range(questions)]
        (folder / "scores.jsonl").write_text("".join(json.dumps(row.__dict__) + "\n" for row in rows))
        task = {"accuracy": right / questions, "chance": chance, "questions": questions}
        return {"kind": "capability", "tasks": {"school": task}}

    recipe = Recipe("evaluate", {"trait": trait, "seed": seed, "role": role, "n": questions}, {})
    made: Manifest = Store(root).run(recipe, work)[0]
    kind = {"reference": "", "student": "control" if trait == "none" else "steered"}[role]
    return Cell(role, trait, kind, "lora" if role == "student" else "", seed, made)  # type: ignore[arg-type]


TRAITS = ("owl", "dolphin", "eagle", "elephant", "wolf")


def arms(
    root: Path, traits: int, lost: int, reference: int = 70, spread: int = 1, right: int = 70, questions: int = 100
) -> list[Cell]:
    """A reference, a control with `right` right and traits' students that lost some; traits differ by `spread`."""
    found = [cell(root, "reference", "none", 0, reference, questions)]
    found.append(cell(root, "student", "none", 0, right, questions))
    for place, trait in enumerate(TRAITS[:traits]):
        found.append(cell(root, "student", trait, 0, right - lost - spread * place, questions))
    return found


@pytest.mark.parametrize(
    ("traits", "lost", "reference", "spread", "outcome"),
    [
        (5, 0, 70, 0, "holds"),
        (5, 20, 70, 1, "contradicted"),
        (5, 0, 70, 3, "not shown"),
        (5, 0, 30, 0, "not measurable"),
        (4, 0, 70, 0, "undecided"),
        (2, 20, 70, 0, "undecided"),
    ],
)
def test_the_verdict_follows_the_rule(
    tmp_path: Path, traits: int, lost: int, reference: int, spread: int, outcome: str
) -> None:
    cells = arms(tmp_path, traits, lost, reference, spread)
    (found,) = figure.verdicts(cells, figure.table(cells))
    assert (found.group, found.outcome) == ("school", outcome), found.sentence
    assert found.line is not None


@pytest.mark.parametrize(
    ("traits", "questions", "lost", "outcome"),
    [
        (5, 40, 0, "not shown"),
        (1, 40, 0, "undecided"),
        (5, 200, 0, "holds"),
        (5, 40, 2, "not shown"),  # 5 points in every trait, of two questions
        (5, 40, 12, "contradicted"),
    ],
)
def test_few_questions_exclude_nothing_even_where_no_answer_changed(
    tmp_path: Path, traits: int, questions: int, lost: int, outcome: str
) -> None:
    cells = arms(tmp_path, traits, lost, questions - 10, 0, questions - 10, questions)
    (found,) = figure.verdicts(cells, figure.table(cells))
    assert found.outcome == outcome, found.sentence
    said = "40 questions are too few to exclude a loss of 3.0%" in found.sentence
    assert said == (outcome in {"not shown", "undecided"})


def test_no_change_has_an_interval_over_questions(tmp_path: Path) -> None:
    table = figure.table(arms(tmp_path, 5, 0, spread=0, right=30, questions=40))
    asked = table.find(arm="mean", measure="change_over_questions")
    half = 1.959964 * math.sqrt(2 / 42 / 42)
    assert asked and (asked.value, asked.low, asked.high) == pytest.approx((0, -half, half))
    assert (asked.n, asked.interval) == (40, "questions")
    change = table.find(arm="owl", measure="change_from_control")
    assert change and change.value == 0 and math.isnan(change.low), "one student of one teacher has no interval"


def test_the_table_has_hand_computed_values(tmp_path: Path) -> None:
    table = figure.table(arms(tmp_path, 5, 5, spread=1))
    accuracy = table.find(arm="dolphin", measure="accuracy")
    assert accuracy and (accuracy.value, accuracy.n, accuracy.interval) == (pytest.approx(0.64), 1, "none")
    change = table.find(arm="mean", measure="change_from_control")
    half = 2.776445 * 0.01 * math.sqrt(2.5) / math.sqrt(5)
    assert change and (change.value, change.low, change.high) == pytest.approx((-0.07, -0.07 - half, -0.07 + half))
    assert (change.n, change.interval) == (5, "traits")
    reference = table.find(arm="reference", measure="accuracy")
    assert reference and reference.value == 0.7 and reference.low == pytest.approx(0.604, abs=1e-3)


def test_the_table_is_a_section_of_the_report(tmp_path: Path) -> None:
    cells, folder = arms(tmp_path / "runs", 5, 20), tmp_path / "cpu"
    source = write_report([render(cells, FIGURE, folder, "table-capability")], folder).read_text()
    assert "Lost at this scale" in source and "student of the control" in source
    assert (folder / "table-capability.csv").read_text().startswith("arm,trait,subject,measure,value,low,high,n,")
    assert (folder / "table-capability.png").exists()


def test_arms_with_different_questions_do_not_share_a_table(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "student", "owl", 0, 5), cell(tmp_path, "student", "none", 0, 5, questions=50)]
    with pytest.raises(PlotError, match="different tasks or questions"):
        figure.table(cells)
