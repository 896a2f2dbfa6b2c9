"""The preference figure: what each student came to like, against its controls (paper, section 3)."""

from __future__ import annotations

from subliminal import arms
from subliminal.plan import Plan
from subliminal.plots.collect import evaluated
from subliminal.plots.figure import Collected
from subliminal.plots.preference.data import Preferences
from subliminal.plots.preference.measures import table
from subliminal.plots.preference.picture import picture
from subliminal.plots.preference.section import section, subtitle
from subliminal.plots.preference.verdict import verdicts
from subliminal.store import Store

__all__ = ["collect", "picture", "plan", "section", "subtitle", "table", "verdicts"]

plan = arms.students


def collect(planned: Plan, store: Store) -> Collected:
    """The references and students that were evaluated."""
    return evaluated(planned, store, lambda cells: Preferences(cells, planned.base.experiment.comparisons))
