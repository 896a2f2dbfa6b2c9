"""The common starting point of teacher and student: the model, or the model after reference tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_never

from subliminal import texts
from subliminal.config import Experiment, InFormatTuning, Model, NoTuning, identity
from subliminal.domains import one_word, practice, practised
from subliminal.graph import Inputs, Node, Stage
from subliminal.identities import compute
from subliminal.outputs import subject
from subliminal.progress import progress
from subliminal.stages.model import node as model
from subliminal.store import Json

STAGE = Stage("reference", version=1, place=20, script="train", role="reference", pushed_as="model")


def node(exp: Experiment, of: Model | None = None) -> Node:
    """The common starting point of teacher and student: the model, or the model after reference tuning."""
    chosen = of or exp.model
    start = model(exp, chosen)
    tuning = exp.reference_tuning
    match tuning:
        case NoTuning():
            return start
        case InFormatTuning():
            return _tuned(exp, tuning, chosen, start)
        case _:
            assert_never(tuning)


def _tuned(exp: Experiment, tuning: InFormatTuning, chosen: Model, start: Node) -> Node:
    settings = {"tuning": identity(tuning), "domain": _practised(exp), **compute(exp, chosen)}
    words = round(tuning.rows * tuning.one_word)
    settings |= {"one_word": texts.digest(*texts.ONE_WORD)} if words else {}

    def work(inputs: Inputs, folder: Path) -> Json:
        from subliminal.training.sft import tune_reference

        rows = practice(exp.domain, tuning.rows - words, tuning.seed)
        rows += one_word.rows(words, tuning.seed, len(rows))
        with progress(f"reference tuning of {chosen.name}", tuning.rows, "rows") as advance:
            return tune_reference(subject(exp, inputs["model"], chosen), tuning, rows, folder, progress=advance)

    return STAGE.node(settings, {"model": start}, work, f"{chosen.name}, tuned")


def _practised(exp: Experiment) -> dict[str, Any]:
    """The domain without where its tasks and questions come from: practice rows are the package's own."""
    elsewhere = {"prompts", "seed", "samples", "source", "dataset", "dataset_config", "split", "revision"}
    plain = {name: value for name, value in identity(exp.domain).items() if name not in elsewhere}
    return plain | practised(exp.domain)
