"""What every benchmark shares: the model, ways of doing the same work timed in turn, and results as a table and JSON.

Ways are timed in one process and in turn (first to last, then last to first), so that a slow minute of the machine
falls on all of them; what is compared is the ratio, not the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from subliminal import outputs, stages
from subliminal.composition import compose
from subliminal.config import Experiment
from subliminal.launch import QUIET
from subliminal.models import Subject
from subliminal.provenance import versions
from subliminal.store import Store

Way = Callable[[], float]
"""Does the work once and returns how much of it was done (tokens, questions, runs)."""


@dataclass(frozen=True)
class Measurement:
    """One way of doing the work: how much, how long (seconds), and how many times the baseline's speed."""

    benchmark: str
    way: str
    baseline: str
    amount: float
    unit: str
    seconds: float
    speed: float
    ratio: float
    goal: float | None = None


def options(description: str, **sizes: int) -> argparse.ArgumentParser:
    """A benchmark's command line: its sizes as options, Hydra overrides for another model, recipe or store."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=" ")
    parser.add_argument("overrides", nargs="*", help="model=... student=... store=..., as for the root scripts")
    return parser


def starting_point(overrides: Sequence[str]) -> tuple[Experiment, Subject]:
    """The experiment at cpu scale with overrides, and its reference (made once, then found in the store)."""
    os.environ.update(QUIET | os.environ)
    exp = compose(["scale=cpu", *overrides])
    return exp, outputs.subject(exp, stages.ensure(stages.reference(exp), Store(Path(exp.store)), exp))


def timed(ways: dict[str, Way], rounds: int) -> dict[str, tuple[float, float]]:
    """Run every way `rounds` times, in turn; returns amount and seconds by way."""
    totals = dict.fromkeys(ways, (0.0, 0.0))
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            amount = ways[name]()
            done, seconds = totals[name]
            totals[name] = done + amount, seconds + time.perf_counter() - started
    return totals


def compare(
    benchmark: str, unit: str, totals: dict[str, tuple[float, float]], baseline: str, goals: dict[str, float]
) -> list[Measurement]:
    """Speeds and their ratios to the baseline's."""
    plain = totals[baseline][0] / totals[baseline][1]
    return [
        Measurement(
            benchmark, way, baseline, amount, unit, seconds, amount / seconds, amount / seconds / plain, goals.get(way)
        )
        for way, (amount, seconds) in totals.items()
    ]


def report(measurements: Sequence[Measurement]) -> None:
    """A plain table, then a JSON line a measurement with the versions that were measured."""
    width = max(len(m.way) for m in measurements)
    for m in measurements:
        goal = "" if m.goal is None else f"  goal {m.goal:g}: {'met' if m.ratio >= m.goal else 'NOT met'}"
        print(f"{m.way:<{width}}  {m.seconds:7.1f} s  {m.speed:9.2f} {m.unit}/s  {m.ratio:6.2f} x{goal}")
    for m in measurements:
        numbers = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(m).items()}
        print(json.dumps(numbers | {"versions": versions()}), flush=True)
