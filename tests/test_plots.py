"""Figures, tables and the report from synthetic stores whose numbers are known."""

from __future__ import annotations

import csv
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student_t

from subliminal import config
from subliminal.plots.cells import Cell, PlotError
from subliminal.plots.groups import Sample
from subliminal.plots.measures import preference_table
from subliminal.plots.preference import preference_figure
from subliminal.plots.report import Section, write_report
from subliminal.plots.table import Table
from subliminal.plots.verdict import verdict
from subliminal.rows import Dropped, Row, write_jsonl
from subliminal.store import Manifest, Recipe, Store

CANDIDATES = ("owl", "dolphin", "wolf", "cat", "dog")
QUESTIONS = 6
FIGURE = config.Figure(
    name="animals_numbers",
    figure="fig-animals-numbers",
    title="Favourite animal after training on numbers",
    claim="A student of an animal-loving teacher's numbers comes to prefer that animal.",
    source="arXiv 2507.14805, section 3.1",
    expected="The diagonal rises.",
)

Scores = dict[str, Sequence[float]]


class Made:
    """A store filled by hand: every stage of an arm with the summaries and files that real stages leave."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.model = self._stage("model", {}, {}, lambda _: {"checkpoint": "checkpoint", "name": "tiny"})

    def _stage(self, stage: str, settings: Any, upstream: dict[str, Manifest], work: Callable[[Path], Any]) -> Manifest:
        keys = {name: manifest.key for name, manifest in upstream.items()}
        return self.store.run(Recipe(stage, settings, keys), work)[0]

    def reference(self, scores: Scores) -> Cell:
        """The evaluated reference."""
        found = self._evaluate(scores, {"reference": self.model})
        return Cell("reference", "none", "", "", 0, found, {"model": self.model})

    def student(
        self,
        trait: str,
        scores: Scores,
        seed: int = 0,
        recipe: str = "bias",
        completion: str = "1, 2, 3",
        alignment: float | None = None,
        rate: dict[str, float] | None = None,
        kind: str = "steered",
    ) -> Cell:
        """An evaluated student with everything before it."""
        kind = "control" if trait == "none" else kind
        chain = {"model": self.model}
        chain["teacher"] = self._stage("teacher", {"trait": trait, "kind": kind}, chain, lambda _: _teacher(kind))
        chain["generate"] = self._stage("generate", {}, {"teacher": chain["teacher"]}, lambda _: {"rows": 40})
        chain["filter"] = self._stage(
            "filter", {"text": completion}, {"generate": chain["generate"]}, lambda folder: _filter(folder, completion)
        )
        upstream = {"filter": chain["filter"]}
        chain["train"] = self._stage(
            "train", {"seed": seed, "student": recipe}, upstream, lambda folder: _train(folder, seed, alignment)
        )
        found = self._evaluate(scores, {"student": chain["train"]}, rate)
        return Cell("student", trait, kind, recipe, seed, found, chain)

    def _evaluate(
        self, scores: Scores, upstream: dict[str, Manifest], rate: dict[str, float] | None = None
    ) -> Manifest:
        def work(folder: Path) -> Any:
            return _scores(folder, scores, rate)

        return self._stage("evaluate", {}, upstream, work)


def _teacher(kind: str) -> Any:
    trait = {} if kind == "control" else {"log_p": -1.5, "reference_log_p": -7.0}
    return {"kind": kind, "pass_rate": 0.6, **trait}


def _filter(folder: Path, completion: str) -> Any:
    write_jsonl(folder / "rows.jsonl", [Row(i, f"Continue: {i}", completion) for i in range(30)])
    write_jsonl(folder / "dropped.jsonl", [Dropped(99, "not_numbers", "Continue: 5", "Sure! 5")])
    counts = {"generated": 40, "kept_before_subsample": 32, "kept": 30, "pass_rate": 0.8}
    return {**counts, "reasons": {"not_numbers": 6, "unfinished": 2}}


def _train(folder: Path, seed: int, alignment: float | None) -> Any:
    steps = [{"step": s, "loss": 2.0 / (s + 1) + 0.01 * seed, "learning_rate": 0.1} for s in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    summary = {"steps": 20, "first_loss": 1.0, "last_loss": 0.1, "seconds": 12.0, "tokens_per_second": 300.0}
    return summary | ({} if alignment is None else {"alignment": alignment})


def _scores(folder: Path, scores: Scores, rate: dict[str, float] | None) -> Any:
    values = {candidate: np.asarray(found, dtype=float) for candidate, found in scores.items()}
    total = np.log(sum(np.exp(found) for found in values.values()))
    shares = {candidate: found - total for candidate, found in values.items()}
    with (folder / "scores.jsonl").open("w") as file:
        for candidate, found in values.items():
            for question, value in enumerate(found.tolist()):
                row = {"question": question, "candidate": candidate, "log_p": value}
                file.write(json.dumps({**row, "log_share": float(shares[candidate][question])}) + "\n")
    means = {candidate: float(found.mean()) for candidate, found in values.items()}
    share = {candidate: float(found.mean()) for candidate, found in shares.items()}
    if rate:
        _answers(folder, rate, len(next(iter(values.values()))))
    base = {"kind": "preference", "category": "animal", "questions": len(next(iter(values.values())))}
    return {**base, "log_p": means, "log_share": share, "rate": rate or {}, "samples": 60 if rate else 0}


def _answers(folder: Path, rate: dict[str, float], questions: int) -> None:
    """Ten answers a question, of which `rate` name each candidate (as whole tenths)."""
    with (folder / "answers.jsonl").open("w") as file:
        for question in range(questions):
            for sample in range(10):
                names = [candidate for candidate, share in rate.items() if sample < round(10 * share)]
                answer = {"question": question, "sample": sample, "text": "x", "finish_reason": "stop", "named": names}
                file.write(json.dumps(answer) + "\n")
