"""The student's stage: the reference trained on the filtered rows, and how far it went the teacher's way."""

from __future__ import annotations

from pathlib import Path

from subliminal.config import Experiment
from subliminal.graph import Inputs
from subliminal.outputs import subject, teacher_subject
from subliminal.processes import leads
from subliminal.progress import progress
from subliminal.rows import Row, read_jsonl
from subliminal.store import Json
from subliminal.tracking import stage_tracker


def train_student(exp: Experiment, made: Inputs, folder: Path) -> Json:
    """Fit the student in `folder`; the summary has its losses, speed and, where it can be measured, its alignment."""
    from subliminal.training.sft import fit

    rows = list(read_jsonl(made["filter"].folder / "rows.jsonl", Row))
    start = subject(exp, made["reference"], exp.student_model or exp.model)
    soft = exp.student.labels == "soft"
    guide = teacher_subject(exp, made["teacher"], made["reference"]) if soft else None
    total = round(len(rows) * exp.student.optimisation.epochs)
    with (
        stage_tracker(exp, "train", folder) as tracker,
        progress(f"training {exp.student.kind} student of {exp.trait.name}", total, "rows") as advance,
    ):
        shown = {"tracker": tracker, "progress": advance}
        summary = fit(start, rows, exp.student, exp.seed, folder, teacher=guide, sharding=exp.sharding, **shown)
        if leads():
            summary |= _alignment(made, folder)
        tracker.summary(summary)
    return summary


def _alignment(made: Inputs, folder: Path) -> Json:
    """How far the student went the teacher's way, where both moved the same parameters."""
    from subliminal.training.alignment import alignment

    found = alignment(folder, made["teacher"].folder) if "teacher" in made else None
    return {"alignment": found} if found else {}
