"""Weights as the store or the hub's cache has them, before any tuning."""

from __future__ import annotations

from pathlib import Path

from subliminal import models, weights
from subliminal.config import Experiment, LocalJudge, Model
from subliminal.graph import Inputs, Node, Stage
from subliminal.outputs import chosen_judge
from subliminal.store import Json

STAGE = Stage("model", version=1, place=10, gpu=False, here_first=True)


def node(exp: Experiment, of: Model | None = None) -> Node:
    """The weights as the store or the hub's cache has them, before any tuning."""
    chosen = of or exp.model
    settings = {
        "weights": weights.fingerprint(chosen),
        "chat_template": chosen.chat_template,
        "add_bos": chosen.add_bos,
    }
    settings |= {"template_options": chosen.template_options} if chosen.template_options else {}

    def work(_: Inputs, folder: Path) -> Json:
        return models.build_model(chosen, folder)

    return STAGE.node(settings, {}, work, chosen.name)


def judge_model(exp: Experiment) -> dict[str, Node]:
    """The weights of a local judge as a stage's further input; nothing for other judges."""
    chosen = chosen_judge(exp)
    return {"judge": node(exp, chosen.model)} if isinstance(chosen, LocalJudge) else {}
