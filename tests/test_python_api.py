"""The Python API on a small experiment: what is run is found again, its files are frames, its models answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from subliminal import api
from subliminal.composition import ROOT
from subliminal.models import Subject
from subliminal.store import StoreError


@pytest.fixture(scope="module")
def student(counting: Subject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, api.Run]:
    """A student's evaluation and the student, on a model of two layers."""
    store = tmp_path_factory.mktemp("api") / "runs"
    model = ["model=hub", f"model.source.name={counting.checkpoint}", "reference_tuning=off", f"store={store}"]
    small = ["teacher.layer=1", "domain.prompts=32", "filter.rows=16", "trait=owl", "device=cpu"]
    overrides = ["experiment=animals_numbers", "scale=cpu", "debug=smoke", "student=lora_small", *model, *small]
    evaluated = api.run("evaluate", *overrides)
    return {"evaluate": evaluated, "train": api.run("train", *overrides)}


def test_a_run_knows_what_it_was_made_from(student: dict[str, api.Run]) -> None:
    upstream = student["evaluate"].upstream()
    assert {"train", "filter", "generate", "teacher", "model"} <= upstream.keys()
    assert upstream["train"].key == student["train"].key and student["train"].settings["seed"] == 0


def test_files_are_frames(student: dict[str, api.Run]) -> None:
    scores = student["evaluate"].rows("scores.jsonl")
    assert set(scores.columns) >= {"question", "candidate", "log_p"} and (scores.log_p <= 0).all()
    rows = student["evaluate"].upstream()["filter"].rows("rows.jsonl")
    assert len(rows) == student["train"].summary["rows"] and all(isinstance(text, str) for text in rows.completion)
    with pytest.raises(StoreError, match=r"has no rows\.jsonl; it has .*metrics\.jsonl"):
        student["train"].rows("rows.jsonl")


def test_runs_are_a_line_each(student: dict[str, api.Run]) -> None:
    store = student["train"].store.root
    table = api.runs(store)
    assert len(table) == len(list(student["train"].store.manifests()))
    line = table[table.stage == "train"].iloc[0]
    assert (line["trait"], line["domain"], line["student"], line["seed"]) == ("owl", "numbers", "lora", 0)
    assert line["rows"] == 16 and isinstance(table, pandas.DataFrame)
    assert api.open_run(line["key"][:6], store).folder == student["train"].folder


def test_a_student_is_loaded_with_its_adapter(student: dict[str, api.Run]) -> None:
    model, tokenizer = student["train"].load()
    base, _ = student["train"].upstream()["model"].load()
    inputs = tokenizer("1, 2,", return_tensors="pt")
    with torch.inference_mode():
        moved = (model(**inputs).logits - base(**inputs).logits).abs().max()
    assert moved > 0 and not model.training


def test_the_tutorials_code_runs(student: dict[str, api.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for the experiment, which is the small one."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setattr(api, "run", lambda *_: student["train"])
    monkeypatch.setattr(api, "STORE", student["train"].store.root)
    namespace: dict[str, Any] = {}
    exec(compile(code, "tutorial.md", "exec"), namespace)
    assert len(namespace["rows"]) == 16 and len(namespace["losses"]) == student["train"].summary["steps"]
    assert namespace["answer"].shape[1] > namespace["inputs"]["input_ids"].shape[1]
    assert "train" in set(namespace["runs"].stage)


@pytest.mark.parametrize(("key", "message"), [("zz", "no complete run"), ("", "several runs begin so")])
def test_a_key_that_names_no_run_is_refused(key: str, message: str, student: dict[str, api.Run]) -> None:
    with pytest.raises(StoreError, match=message):
        api.open_run(key, student["train"].store.root)


def test_rows_are_no_model_and_a_figure_must_be_drawn(student: dict[str, api.Run], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no model"):
        student["evaluate"].load()
    with pytest.raises(StoreError, match="make fig-shuffle SCALE=cpu"):
        api.figure("fig-shuffle", figures=tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "fig-shuffle.csv").write_text("arm,value\nowl,1\n")
    assert api.figure("fig-shuffle", figures=tmp_path).value.tolist() == [1]
