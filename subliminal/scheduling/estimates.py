"""What a sweep will cost before it is submitted: from complete runs like those to come, or plainly unknown.

Two runs are alike when they have the same stage, the same settings but for the seed and the trait, and start from the
same weights. Nothing is extrapolated from other sizes or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from subliminal.config import CONTROL, Experiment, PreferenceEvaluation
from subliminal.device import resolve_device
from subliminal.scheduling.jobs import Job, jobs, wants_gpu
from subliminal.stages import Node
from subliminal.store import Store
from subliminal.store_index import alike, entries
from subliminal.sweep import Plan

SHOWN_EFFECT = 0.5  # nats: 1.65 times as likely to name the animal

Family = tuple[str, str, frozenset[str]]
"""Stage, digest of settings, keys of weights: the same for runs that cost about the same."""


@dataclass(frozen=True)
class Cost:
    """A complete run's seconds, tokens (None: it has no tokens) and bytes."""

    seconds: float
    tokens: float | None
    size: float


@dataclass(frozen=True)
class Line:
    """The runs of one stage: how many are done, to do, and alike to complete ones; their cost each, and together."""

    stage: str
    done: int
    left: int
    known: int
    on_gpu: bool
    cost: Cost | None
    most_tokens: int | None
    seconds: float = 0.0
    size: float = 0.0


def estimate(planned: Plan, store: Store) -> list[Line]:
    """One line a stage, in the sweep's order."""
    every = jobs(planned)
    left = [job for job in every if not store.find(*job.ident)]
    known = _alike(store, left)
    return [_line(stage, [j for j in every if j.node.stage == stage], left, known) for stage in _stages(every)]


def described(lines: list[Line]) -> str:
    """The estimate as a table with its totals, for people."""
    head = f"{'stage':10} {'done':>6} {'to do':>6}  {'each':>9}  {'tokens each':>14}  {'disk each':>10}"
    return "\n".join([head, *map(_row, lines), _totals(lines)])


def _stages(every: list[Job]) -> list[str]:
    return list(dict.fromkeys(job.node.stage for job in every))


def _line(stage: str, of_stage: list[Job], missing: list[Job], known: dict[Family, list[Cost]]) -> Line:
    left = [job for job in missing if job.node.stage == stage]
    costs = [_middle(known[family]) for job in left if (family := _family_of(job.node)) in known]
    bounds = [bound for job in left if (bound := _most_tokens(stage, job.experiment)) is not None]
    on_gpu = any(resolve_device(job.experiment.device) == "cuda" and wants_gpu(job.node) for job in of_stage)
    cost = _middle(costs) if costs else None
    counts = len(of_stage) - len(left), len(left), len(costs)
    totals = sum(one.seconds for one in costs), sum(one.size for one in costs)
    return Line(stage, *counts, on_gpu, cost, max(bounds, default=None), *totals)


def _most_tokens(stage: str, exp: Experiment) -> int | None:
    """What the settings allow at most: only sampling has a limit that is known beforehand."""
    return exp.domain.prompts * exp.sampler.decoding.max_tokens if stage == "generate" else None


# --------------------------------------------------------------------------- alike runs


def _alike(store: Store, left: Iterable[Job]) -> dict[Family, list[Cost]]:
    """The costs of complete runs like those to come, by family; the store is looked through only if any is."""
    wanted = {(job.node.stage, alike(job.node.recipe.settings)) for job in left}
    everything = entries(store.root) if wanted else {}
    models = {key for stage, key in everything if stage == "model"}
    uppers = {key: entry.upstream for (_, key), entry in everything.items()}
    found: dict[Family, list[Cost]] = {}
    for (stage, key), entry in everything.items():
        if (stage, entry.alike) in wanted:
            family = stage, entry.alike, frozenset(_weights(key, uppers, models))
            found.setdefault(family, []).append(Cost(entry.seconds, entry.tokens, entry.size))
    return found


def _weights(key: str, uppers: dict[str, tuple[str, ...]], models: set[str]) -> Iterator[str]:
    """The keys of the weights a run goes back to."""
    if key in models:
        yield key
    for upper in uppers.get(key, ()):
        yield from _weights(upper, uppers, models)


def _family_of(node: Node) -> Family:
    return node.stage, alike(node.recipe.settings), frozenset(_models(node))


def _models(node: Node) -> Iterator[str]:
    """As `_weights`, for a run that is still to come: what its recipe names, not all it reads."""
    if node.stage == "model":
        yield node.key
    named = set(node.recipe.upstream.values())
    for upper in node.inputs.values():
        if upper.key in named:
            yield from _models(upper)


def _middle(costs: list[Cost]) -> Cost:
    tokens = [cost.tokens for cost in costs if cost.tokens is not None]
    return Cost(
        median(cost.seconds for cost in costs),
        median(tokens) if tokens else None,
        median(cost.size for cost in costs),
    )


# --------------------------------------------------------------------------- power


def foresight(planned: Plan) -> str | None:
    """What excess the rule finds in the figure's traits and seeds; None where its measure has no known spread."""
    from subliminal import transmission

    known = [arm.experiment.experiment.spread for arm in planned.arms]  # a variant may have a domain of its own
    spread = max((one for one in known if one), key=lambda one: one.cell, default=None)
    asked = planned.base.evaluation
    if spread is None or planned.base.experiment.kind != "preference" or not isinstance(asked, PreferenceEvaluation):
        return None
    seeds, traits = len({arm.seed for arm in planned.arms}), len({arm.trait for arm in planned.arms} - {CONTROL})
    head = f"power: {_counted(traits, 'trait')}, {_counted(seeds, 'seed')} each"
    if traits < transmission.MINIMUM_TRAITS:
        return f"{head}: undecided whatever is seen, the rule needs {transmission.MINIMUM_TRAITS} traits"
    units = (traits, seeds, spread.cell, spread.seed)
    return (
        f"{head}: the rule finds a mean excess of {SHOWN_EFFECT:g} nats with probability "
        f"{transmission.power(SHOWN_EFFECT, *units):.2f}, one of {transmission.visible(*units):.2f} nats with "
        f"probability 0.80 (simulated, spreads of experiment.spread)"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --------------------------------------------------------------------------- as text


def _row(line: Line) -> str:
    each = ("-", "-", "-") if not line.left else ("unknown", _bound(line), "unknown")
    if line.left and line.cost:
        tokens = f"{line.cost.tokens:.0f}" if line.cost.tokens else _bound(line)
        each = f"{line.cost.seconds:.1f} s", tokens, f"{line.cost.size / 1e6:.2f} MB"
    return f"{line.stage:10} {line.done:6} {line.left:6}  {each[0]:>9}  {each[1]:>14}  {each[2]:>10}"


def _bound(line: Line) -> str:
    return "unknown" if line.most_tokens is None else f"at most {line.most_tokens}"


def _totals(lines: list[Line]) -> str:
    """Sums over what is to do, and how much of it nothing is known about."""
    hours = {gpu: sum(line.seconds for line in lines if line.on_gpu == gpu) / 3600 for gpu in (True, False)}
    left, unknown = sum(line.left for line in lines), sum(line.left - line.known for line in lines)
    done = sum(line.done for line in lines)
    size = sum(line.size for line in lines) / 1e9
    text = f"{done + left} stage runs, {done} done, {left} to do"
    if left > unknown:
        text += f": {hours[True]:.3g} GPU-hours (one GPU a job), {hours[False]:.3g} h without, {size:.3g} GB of disk"
    return text + (f"; cost unknown for {unknown}: no complete run is like them" if unknown else "")
