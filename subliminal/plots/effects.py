"""An effect of teachers on their students as lines of a table: traits' excess, its mean, intervals and tests.

Each effect is read from the scores of every trait's students in every trait, whatever is scored: log-odds, log P,
cosines with every teacher, or what one variant has more of than another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from subliminal import transmission
from subliminal.evaluation.statistics import Interval, diagonal_excess
from subliminal.plots.table import Labels, Line, Table
from subliminal.plots.words import ends, number, p_value
from subliminal.transmission import PermutationTest

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEAN = "mean"
OVER_SEEDS, OVER_TRAITS, OVER_QUESTIONS = "seeds", "traits", "questions"
LOG_ODDS, LOG_P, ALIGNMENT = "log_odds_excess", "diagonal_excess", "alignment_excess"
REPEATS, P_ABOVE, P_BELOW, P_CANDIDATES = "_over_seeds", "_p", "_p_below", "_p_candidates"
RELABELLED, INJECTED = "relabelled teachers", "assigned candidates"


@dataclass(frozen=True)
class Students:
    """The scores of one trait's students, (seeds, candidates): every trait's first, then the other candidates'."""

    seeds: tuple[int, ...]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """The students of every trait, in the order of `traits`; `more` minus `less` where two variants are compared."""

    traits: tuple[str, ...]
    more: tuple[Students, ...]
    less: tuple[Students, ...] = ()
    share: float = 1.0

    @cached_property
    def everywhere(self) -> NDArray[np.float64]:
        """Means over seeds, (traits, candidates)."""
        more, less = (np.array([students.values.mean(axis=0) for students in side]) for side in (self.more, self.less))
        return self.share * more - less if self.less else more

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """Means over seeds of the traits alone, (traits, traits)."""
        return self.everywhere[:, : len(self.traits)]

    @cached_property
    def estimate(self) -> transmission.Estimate:
        """The traits' excess and their mean with its interval over traits."""
        return transmission.two_way(self.matrix)

    @cached_property
    def test(self) -> PermutationTest:
        """The relabelling of whole teachers."""
        return transmission.relabelling(self.matrix)

    @property
    def repeats(self) -> Interval:
        """The mean with its interval over seeds."""
        count = len(self.traits)
        more = transmission.contrasts([self.share * students.values[:, :count] for students in self.more])
        less = transmission.contrasts([-students.values[:, :count] for students in self.less]) if self.less else []
        return transmission.sum_of_means([*more, *less])

    @cached_property
    def by_seed(self) -> dict[int, NDArray[np.float64]]:
        """The traits' excess from the students of each seed that all traits have."""
        sides = (*self.more, *self.less)
        common = sorted(set.intersection(*({*students.seeds} for students in sides)))
        return {seed: _own(self._of(seed)) for seed in common}

    def _of(self, seed: int) -> NDArray[np.float64]:
        more, less = (
            np.array([students.values[students.seeds.index(seed), : len(self.traits)] for students in side])
            for side in (self.more, self.less)
        )
        return self.share * more - less if self.less else more


def _own(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each trait's excess; of two traits own minus other, since what a student does throughout can not be told."""
    return transmission.two_way(matrix).by_trait if len(matrix) > 2 else diagonal_excess(matrix)


def difference(more: Effect | None, less: Effect | None, share: float = 1.0) -> Effect | None:
    """A share of one effect minus another's on the traits that both have; None for fewer than two."""
    if more is None or less is None:
        return None
    common = tuple(trait for trait in more.traits if trait in less.traits)
    if len(common) < 2:
        return None
    sides = []
    for side in (more, less):
        places = [side.traits.index(trait) for trait in common]
        sides.append(tuple(Students(side.more[at].seeds, side.more[at].values[:, places]) for at in places))
    return Effect(common, sides[0], sides[1], share)


# --------------------------------------------------------------------------- as lines, and back


def effect_lines(effect: Effect | None, measure: str, labels: Labels) -> Iterator[Line]:
    """Every trait's excess, their mean over traits and over seeds, and the tests' p; nothing for no effect."""
    if effect is None:
        return
    by_seed = effect.by_seed
    for place, (trait, value) in enumerate(zip(effect.traits, _own(effect.matrix).tolist(), strict=True)):
        mine = tuple((seed, float(values[place])) for seed, values in by_seed.items())
        yield Line(trait, trait, "student", measure, value, by_seed=mine, **labels)
    mean, seeds = effect.estimate.mean, effect.repeats
    together = tuple((seed, float(values.mean())) for seed, values in by_seed.items())
    yield Line.of(MEAN, MEAN, "student", measure, mean, OVER_TRAITS, by_seed=together, **labels)
    if seeds.low == seeds.low:
        yield Line.of(MEAN, MEAN, "student", measure + REPEATS, seeds, OVER_SEEDS, by_seed=together, **labels)
    for name, p in ((P_ABOVE, effect.test.above), (P_BELOW, effect.test.below)):
        yield Line(MEAN, MEAN, "student", measure + name, p, n=effect.test.assignments, interval=RELABELLED, **labels)
    if effect.everywhere.shape[1] > len(effect.traits) < transmission.MINIMUM_TRAITS:
        test = transmission.candidate_test(effect.everywhere, range(len(effect.traits)))
        where = {"n": test.assignments, "interval": INJECTED}
        yield Line(MEAN, MEAN, "student", measure + P_CANDIDATES, test.above, **where, **labels)


@dataclass(frozen=True)
class Excess:
    """What a table says of one effect: its mean, the test, and what it says beside them."""

    line: Line
    test: PermutationTest
    repeats: Line | None
    candidates: float | None

    @property
    def decidable(self) -> bool:
        """Whether there are teachers enough for the rule."""
        return self.line.n >= transmission.MINIMUM_TRAITS

    @property
    def outcome(self) -> transmission.Outcome:
        """The rule."""
        return transmission.judged(self.test, self.decidable)

    @property
    def absent(self) -> bool:
        """Whether the effect is shown to be none."""
        return transmission.absent(Interval(self.line.value, self.line.low, self.line.high, self.line.n))


def excess_in(table: Table, measure: str, labels: Labels) -> Excess | None:
    """The effect that a table holds under these labels, or None."""
    line = table.find(measure=measure, arm=MEAN, **labels)
    above, below = (table.find(measure=measure + name, arm=MEAN, **labels) for name in (P_ABOVE, P_BELOW))
    if line is None or above is None or below is None:
        return None
    candidates = table.find(measure=measure + P_CANDIDATES, arm=MEAN, **labels)
    repeats = table.find(measure=measure + REPEATS, arm=MEAN, **labels)
    test = PermutationTest(above.value, below.value, above.n)
    return Excess(line, test, repeats, candidates.value if candidates else None)


# --------------------------------------------------------------------------- in words


def size_of(effect: Excess, unit: str = "") -> str:
    """The mean with its interval over traits and the test's p."""
    test = f", p {p_value(effect.test.above)} of {effect.test.assignments:,} relabellings"
    return f"{with_interval(effect.line, unit)}{test if effect.decidable else ''}"


def with_interval(line: Line, unit: str = "") -> str:
    """A number with its unit and, in a sentence's words, its interval."""
    over = "" if math.isnan(line.low) else f" (95% interval {ends(line, sign=True)} over {line.n} {line.interval})"
    return f"{number(line, sign=True)}{unit}{over}"
