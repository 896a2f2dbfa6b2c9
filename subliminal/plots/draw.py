"""From a sweep's plan to its picture, table and report: the one driver of every kind of figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subliminal import config
from subliminal.errors import require_writable
from subliminal.plan import Plan
from subliminal.plots import style
from subliminal.plots.collect import typed
from subliminal.plots.figure import Drawn, figure_of
from subliminal.plots.parts import Heading
from subliminal.plots.report import write_report
from subliminal.plots.table import mirrored
from subliminal.progress import say
from subliminal.store import Store, StoreError
from subliminal.tracking import figure_id, open_tracker


def draw(planned: Plan) -> list[Path]:
    """Draw the plan's figure from the store alone; returns picture, table and report. Missing arms are listed in it."""
    exp, figure = planned.base, planned.base.experiment
    store, folder, name = Store(Path(exp.store)), Path(exp.figures) / exp.scale, figure.file
    require_writable(folder, "figures")
    collected = figure_of(figure).collect(planned, store)
    if collected.data is None:
        raise StoreError(f"nothing of {name} is in {store.root}; run: python -m subliminal sweep {typed(planned)}")
    drawn = render(collected.data, figure, folder, name, collected.missing)
    for verdict in drawn.verdicts:
        say(f"{name}{f' {verdict.group}' if verdict.group else ''}: {verdict.sentence}")
    report = write_report([drawn], folder)
    picture, table = folder / f"{name}.png", folder / f"{name}.csv"
    settings = {"scale": exp.scale, "arms": len(planned.arms)}
    with open_tracker(exp.tracking, "plot", figure_id(exp), figure.name, settings) as tracker:
        tracker.image(name, picture)
        tracker.table(f"{name}-table", table)
        tracker.summary(mirrored(table))
    return [picture, table, report]


def render(data: Any, figure: config.Figure, folder: Path, name: str, missing: Sequence[str] = ()) -> Drawn:
    """Write `folder/name` as .csv, .png and .svg; `folder`'s name is the scale in the subtitle.

    Raises `PlotError` when the data do not fit together.
    """
    kind = figure_of(figure)
    table = kind.table(data)
    folder.mkdir(parents=True, exist_ok=True)
    table.write(folder / f"{name}.csv")
    with style.styled():
        heading = Heading(figure.title or name, kind.subtitle(data, table, folder.name))
        style.save(kind.picture(data, table, heading), folder / name)
    verdicts, section = kind.verdicts(data, table), kind.section(data, table, name)
    return Drawn(name, figure, heading.text, table, verdicts, section, missing)
