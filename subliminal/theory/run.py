"""The theorem's stage: trials on random networks and training runs for one seed, as rows in the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from subliminal.config import AlignmentRun, Experiment, Theory
from subliminal.finite import require_finite
from subliminal.progress import progress
from subliminal.rows import write_jsonl
from subliminal.store import Json
from subliminal.theory import alignment, theorem
from subliminal.theory.theorem import Measurement
from subliminal.tracking import stage_tracker

SMALL = 1e-4  # teacher steps at most this long (as a share of |theta_0|) count as small: the claim is about these


def check_theorem(exp: Experiment, folder: Path) -> Json:
    """Write `trials.jsonl` and `alignment.jsonl` for `exp.seed`; returns counts, failures and final cosines."""
    with stage_tracker(exp, "theorem", folder) as tracker:
        with one_thread():
            measured = _trials(exp.theory, exp.seed)
            points, sizes = _run(exp.theory.run, exp.seed, exp.mnist.data_dir)
        write_jsonl(folder / "trials.jsonl", measured)
        write_jsonl(folder / "alignment.jsonl", points)
        summary = {"small": SMALL, **failures(measured), **sizes, "cosine": _final(points)}
        tracker.summary(summary)
    return summary


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for small tensors: several only wait for each other, for minutes where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def failures(measured: Sequence[Measurement]) -> Json:
    """How many trials there were, and in how many the product was negative or L_T rose at any small step."""
    small = [m for m in measured if m.initialisation == "same" and m.step <= SMALL]
    ratios = np.array([m.measured / m.predicted for m in small if m.step == min(s.step for s in small)])
    return {
        "trials": len({m.trial for m in measured}),
        "negative": len({m.trial for m in small if m.measured < 0}),
        "risen": len({m.trial for m in small if m.loss_change > 0}),
        "largest_ratio_error": float(np.abs(ratios - 1).max()) if len(ratios) else None,
    }


def _trials(config: Theory, seed: int) -> list[Measurement]:
    total = config.trials * len(theorem.cases(config))
    measured: list[Measurement] = []
    with progress("imitation steps", total, "trials") as advance:
        for found in theorem.trials(config, seed):
            for one in found:
                _require_finite(one)
            measured += found
            advance(1)
    return measured


def _require_finite(one: Measurement) -> None:
    """Raise `NonFiniteError` for a trial that measured no numbers; some are nan by definition (`Measurement`)."""
    values = {"d_S . d_T": one.measured, "the change of L_T": one.loss_change}
    if one.initialisation == "same":
        values |= {"its prediction": one.predicted, "the error of its direction": one.direction_error}
    where = f"trial {one.trial} ({one.architecture}, {one.loss}, {one.matched}) at step {one.step:g}"
    require_finite(values, where, "Lower theory.steps or theory.student_rate")


def _run(config: AlignmentRun, seed: int, data_dir: str | None) -> tuple[list[alignment.Point], Json]:
    examples = alignment.load(config, seed, data_dir)
    steps = len(config.optimisers) * (config.teacher_steps + 2 * config.student_steps)
    with progress("training runs", steps, "steps") as advance:
        points = list(alignment.run(config, examples, seed, advance))
    return points, {"parameters": alignment.network_of(config, examples).size, "examples": len(examples.inputs)}


def _final(points: list[alignment.Point]) -> Json:
    """The cosine at the end of each student's run, by optimiser and initialisation."""
    last = {(point.optimiser, point.initialisation): point.cosine for point in points}  # points come in order
    return {optimiser: {i: c for (o, i), c in last.items() if o == optimiser} for optimiser, _ in last}
