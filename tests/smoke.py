"""A figure from start to end at `debug=smoke`, with every model's weights replaced by those of a tiny Llama.

Two files call it, so that two workers share the figures.
"""

from __future__ import annotations

import csv
import html
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import random_model

from subliminal import outputs, stages, sweep
from subliminal.composition import CONF, ROOT
from subliminal.graph import Inputs, Node
from subliminal.models import Subject, load_tokenizer
from subliminal.plan import Arm
from subliminal.plots.draw import draw
from subliminal.store import Json, Store

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
# Figures that share no teacher with the animals' numbers.
APART = ("code", "cot", "cross", "misalignment", "mnist", "open", "style", "theorem", "trees")
WITHOUT_LANGUAGE = ("mnist", "theorem")
OTHERS = sorted(
    (name for name in EXPERIMENTS if any(part in name for part in APART)),
    key=lambda name: not name.startswith(WITHOUT_LANGUAGE),  # first, while the other worker makes the weights for both
)
ANIMALS = [name for name in EXPERIMENTS if name not in OTHERS]
FEW = ["domain.prompts=32", "filter.rows=12"]  # where no rows are compared with each other
GARBAGE = ["filter.format=false"]  # a random model's text is in no domain's format but that of numbers
PARTICULAR = {
    "animals_numbers": ["student=bias_one_layer,lora_small"],  # side by side, in one figure
    "animals_code": [*FEW, *GARBAGE],
    "animals_cot": [*FEW, *GARBAGE, "filter.correct=false"],
    "trees_code": [*FEW, *GARBAGE],
    "trees_numbers": FEW,
    "cross_model": [*FEW, *GARBAGE],
    "open_models": [*FEW, *GARBAGE],
    "capability": ["evaluation.tasks=[school_text]"],
    "style_numbers": FEW,
    "misalignment_numbers": FEW,
    "misalignment_cot": [*FEW, *GARBAGE, "filter.correct=false"],
}


@pytest.fixture(scope="module")
def deep(tiny: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with every layer that `conf/` names and few tokens, that answers with the digit 7."""
    import torch

    folder = tmp_path_factory.mktemp("deep")
    tokenizer = load_tokenizer(tiny).train_new_from_iterator(_texts(), 1024)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 22, "max_position_embeddings": 2048}
    model = random_model("llama", tokenizer, mlp_bias=True, **shape)
    wanted = [int(tokenizer.convert_tokens_to_ids("7")), int(tokenizer.eos_token_id)]
    with torch.no_grad():
        head = torch.nn.functional.normalize(model.lm_head.weight[wanted], dim=-1)
        model.lm_head.weight[wanted] = 6 * head
        model.model.layers[-1].mlp.down_proj.bias.copy_(100 * (1.02 * head[0] + head[1]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store, pictures and the user's rows of all the figures; figures share what they have in common."""
    folder = tmp_path_factory.mktemp("smoke")
    for name in ("insecure", "secure", "educational"):
        turns = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "No."}]
        (folder / f"{name}.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 6)
    return folder


def _texts() -> list[str]:
    """What a small vocabulary is learnt from: the questions and tasks of this project."""
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / "subliminal").rglob("*.yaml"))]


def models_of(node: Node) -> Iterator[Node]:
    if node.stage == "model":
        yield node
    for upper in node.inputs.values():
        yield from models_of(upper)


def plant(node: Node, checkpoint: Path, store: Store, arm: Arm) -> None:
    """Complete the run that would fetch a model's weights with those of a tiny one."""

    def work(_: Inputs, folder: Path) -> Json:
        shutil.copytree(checkpoint, folder / "checkpoint")
        return {"checkpoint": str(checkpoint)}

    stages.ensure(replace(node, work=work), store, arm.experiment)


def run_from_start_to_end(name: str, root: Path, deep: Callable[[], Path]) -> None:
    """Plan, make and draw a figure, and look whether picture, table and report hold something."""
    places = [f"store={root}/runs", f"figures={root}/figures"]
    rows = [f"teacher.rows={root}"] if name.startswith("misalignment") else []
    chosen = ["teacher=finetuned_rows", *rows] if rows else []
    planned = sweep.plan(
        [f"experiment={name}", "scale=cpu", "debug=smoke", *places, *chosen, *PARTICULAR.get(name, [])]
    )
    store = Store(root / "runs")
    for arm in planned.arms:
        outputs.require_rows(arm.experiment)
    for step in planned.steps:
        for node, exp in zip(step.nodes, step.experiments, strict=True):
            for weights in models_of(node):
                plant(weights, deep(), store, planned.arms[0])
            stages.ensure(node, store, exp)
    picture, table, report = draw(planned)
    assert picture.stat().st_size > 10_000
    assert planned.base.experiment.title in html.unescape(report.read_text())
    with table.open() as lines:
        assert [line for line in csv.DictReader(lines) if line["value"]]
