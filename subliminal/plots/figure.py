"""What the module of a figure's kind offers to the driver, and what the report shows of a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from subliminal import config, plots, sources
from subliminal.config import ConfigError, suggest
from subliminal.plots.parts import Heading
from subliminal.plots.table import Line, Table
from subliminal.store import Manifest, Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from subliminal.arms import Request
    from subliminal.plan import Plan


SEEDS = "Seeds vary the student's training; all seeds of an arm share one teacher and one set of rows."


Outcome = Literal["holds", "contradicted", "not shown", "undecided", "suggestive", "not measurable"]


@dataclass(frozen=True)
class Verdict:
    """What the rule says of a group of students, or of two compared, and the number that decided where it is one.

    `p` is the one-sided p of the claim where a test decides.
    """

    group: str
    outcome: Outcome
    sentence: str
    line: Line | None = None
    p: float | None = None
    compares: bool = False


@dataclass(frozen=True)
class Collected:
    """What the store has of a figure, None for nothing, and the commands that would make what it has not."""

    data: Any
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Grid:
    """A table of the report: a heading, the names of the columns, rows of cells as text, a caption."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


@dataclass(frozen=True)
class Section:
    """What the report shows of a figure around its picture.

    `rule` decides its verdicts, `panels` explains the picture, `seeds` says what seeds vary, `runs` are the stage runs
    behind it with the arm of each, `more` holds values that the report's template shows for this kind of figure alone.
    """

    rule: Sequence[str]
    panels: str
    seeds: str
    grids: Sequence[Grid]
    runs: Sequence[tuple[Manifest, str]]
    more: Mapping[str, Any] = field(default_factory=dict)


class Figure(Protocol):
    """The module `subliminal.plots.<kind>`, or the user's; its `collect` returns what its other functions read."""

    def plan(self, request: Request) -> Plan:
        """The arms of the figure and the steps that make them; raises `ConfigError`."""
        ...

    def collect(self, planned: Plan, store: Store) -> Collected:
        """What the store has of the plan."""
        ...

    def table(self, data: Any) -> Table:
        """Every number of the figure; raises `PlotError` where the data do not fit together."""
        ...

    def verdicts(self, data: Any, table: Table) -> list[Verdict]:
        """The rule applied to the table."""
        ...

    def subtitle(self, data: Any, table: Table, scale: str) -> str:
        """What was measured, in one paragraph."""
        ...

    def picture(self, data: Any, table: Table, heading: Heading) -> Canvas:
        """The figure with its heading, which `parts.canvas` writes."""
        ...

    def section(self, data: Any, table: Table, name: str) -> Section:
        """The figure in the report; `name` is that of its files."""
        ...


@dataclass(frozen=True)
class Drawn:
    """A figure whose files are written: what the report needs of it."""

    name: str
    figure: config.Figure
    subtitle: str
    table: Table
    verdicts: Sequence[Verdict]
    section: Section
    missing: Sequence[str]


def figure_of(figure: config.Figure) -> Figure:
    """The module that plans and draws a figure: its kind's, or the user's; raises `ConfigError` or `ModuleError`."""
    if figure.module is not None:
        return cast(Figure, sources.load("experiment", figure.module))
    exists = any(module.name == figure.kind for module in iter_modules(plots.__path__))
    module = import_module(f"{plots.__name__}.{figure.kind}") if exists else None
    if not _is_a_figure(module):
        raise ConfigError(f"experiment.kind={figure.kind}: no such figure.{suggest(figure.kind, known_kinds())}")
    return cast(Figure, module)


def known_kinds() -> list[str]:
    """The kinds of figures: the modules of `plots` that have what a figure needs; loads them all."""
    names = [module.name for module in iter_modules(plots.__path__)]
    return [name for name in names if _is_a_figure(import_module(f"{plots.__name__}.{name}"))]


def _is_a_figure(module: object) -> bool:
    return all(callable(getattr(module, function, None)) for function in sources.NEEDED["experiment"])
