"""Figures of the filtered rows themselves: from stored comparisons to picture, table and section, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from subliminal import config
from subliminal.plots import style
from subliminal.plots.parts import Heading
from subliminal.plots.report import Grid, PlainSection
from subliminal.plots.table import Line, Table
from subliminal.plots.verdict import Verdict
from subliminal.store import Manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

WIDTH, TOP = 9.0, 0.95
MODULES = {"frequencies": "frequencies", "detection": "detection", "in_context": "in_context"}
MODULES |= {"attribution": "attribution"}
SEEDS = "No student is trained: the units are prompts, or resampled contexts, as each interval says."


@dataclass(frozen=True)
class Compared:
    """One stored comparison: the trait whose rows they are, what they are compared with ("" for nothing), its run."""

    trait: str
    against: str
    manifest: Manifest

    @property
    def null(self) -> bool:
        """Whether one set of rows was compared with itself."""
        return self.trait == self.against

    @property
    def prompts(self) -> int:
        """How many prompts the rows answer: one with a row on either side counts once."""
        return sum(self.manifest.summary["rows"].values()) - self.manifest.summary["pairs"]

    @property
    def label(self) -> str:
        """The comparison in words."""
        if self.null:
            return f"{rows_name(self.trait)}, half against half"
        return f"{rows_name(self.trait)} against {rows_name(self.against)}" if self.against else rows_name(self.trait)


class RowsPlot(Protocol):
    """What the module of one kind offers."""

    RULE: tuple[str, ...]
    PANELS: str

    def table(self, runs: Sequence[Compared]) -> Table:
        """Every number of the figure."""
        ...

    def verdicts(self, runs: Sequence[Compared], table: Table) -> list[Verdict]:
        """The rule applied."""
        ...

    def picture(self, runs: Sequence[Compared], table: Table, heading: Heading) -> Canvas:
        """The panels, below `TOP` inches for the heading."""
        ...

    def grids(self, runs: Sequence[Compared], table: Table, name: str) -> list[Grid]:
        """The report's tables."""
        ...


def module(kind: str) -> RowsPlot:
    """The module that draws one kind of evaluation of rows."""
    return cast(RowsPlot, import_module(f"subliminal.plots.{MODULES[kind]}"))


def rows_figure(runs: Sequence[Compared], figure: config.Figure, folder: Path, name: str) -> Table:
    """Write `folder/name` as .png, .svg and .csv and return the table; all runs must be of one kind."""
    drawn = module(kind_of(runs))
    table = drawn.table(runs)
    folder.mkdir(parents=True, exist_ok=True)
    table.write(folder / f"{name}.csv")
    with style.styled():
        heading = Heading(figure.title or name, f"Scale {folder.name}. {drawn.PANELS}")
        style.save(drawn.picture(runs, table, heading), folder / name)
    return table


def rows_section(
    name: str, figure: config.Figure, table: Table, runs: Sequence[Compared], missing: Sequence[str]
) -> PlainSection:
    """The figure's section of the report."""
    drawn = module(kind_of(runs))
    made = [(run.manifest, run.label) for run in runs]
    found, grids = drawn.verdicts(runs, table), drawn.grids(runs, table, name)
    return PlainSection(name, figure, found, drawn.RULE, drawn.PANELS, SEEDS, grids, made, missing)


def kind_of(runs: Sequence[Compared]) -> str:
    """The evaluation's kind, the same for all runs of a figure."""
    return str(runs[0].manifest.summary["kind"])


def rows_name(trait: str) -> str:
    """Whose rows, in words."""
    return "control" if trait == "none" else trait


def ranged(line: Line | None, digits: int = 2, sign: str = "") -> str:
    """A value with its interval and a true minus; empty where there is none."""
    if line is None:
        return ""
    ends = "" if line.low != line.low else f" [{line.low:{sign}.{digits}f}, {line.high:{sign}.{digits}f}]"
    return f"{line.value:{sign}.{digits}f}{ends}".replace("-", "\N{MINUS SIGN}")
