"""What a sweep will cost before it is submitted: from complete runs like those to come, else from an estimate.

Two runs are alike when they have the same stage, the same settings but for the seed and the trait, and start from the
same weights. Where the store has none, `costs` computes what the chosen hardware would take, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from statistics import median

import yaml

from subliminal import memory, shapes
from subliminal.composition import CONF
from subliminal.config import CONTROL, Experiment, Hardware, PreferenceEvaluation
from subliminal.device import resolve_device
from subliminal.graph import Node
from subliminal.plan import Plan
from subliminal.scheduling import costs
from subliminal.scheduling.jobs import Job, jobs, wants_gpu
from subliminal.scheduling.work import Cost
from subliminal.stages import SINGLE
from subliminal.store import Store
from subliminal.store_index import alike, entries

SHOWN_EFFECT = 0.5  # nats: 1.65 times as likely to name the animal

Family = tuple[str, str, frozenset[str]]
"""Stage, digest of settings, keys of weights: the same for runs that cost about the same."""


@dataclass(frozen=True)
class Line:
    """The runs of one stage: how many are done, to do, and of known cost; their cost each, and together.

    Of the known ones `estimated` are computed, the others are like complete runs.
    """

    stage: str
    done: int
    left: int
    known: int
    on_gpu: bool
    cost: Cost | None
    most_tokens: int | None
    seconds: float = 0.0
    size: float = 0.0
    estimated: int = 0
    usd: float = 0.0


def estimate(planned: Plan, store: Store) -> list[Line]:
    """One line a stage, in the sweep's order."""
    every = jobs(planned)
    left = [job for job in every if not store.find(*job.ident)]
    known = _known(store, left)
    return [_line(stage, [j for j in every if j.node.stage == stage], left, known) for stage in _stages(every)]


def described(lines: list[Line]) -> str:
    """The costs as a table with its totals, for people; `~` marks what is estimated."""
    head = f"{'stage':10} {'done':>6} {'to do':>6}  {'each':>9}  {'tokens each':>14}  {'disk each':>10}"
    return "\n".join([head, *map(_row, lines), _totals(lines)])


def _stages(every: list[Job]) -> list[str]:
    return list(dict.fromkeys(job.node.stage for job in every))


def _line(stage: str, of_stage: list[Job], missing: list[Job], known: dict[Family, Cost]) -> Line:
    left = [job for job in missing if job.node.stage == stage]
    priced = [known[family] for job in left if (family := _family_of(job.node)) in known]
    bounds = [bound for job in left if (bound := _most_tokens(stage, job.experiment)) is not None]
    on_gpu = any(_on_gpu(job) for job in of_stage)
    counts = len(of_stage) - len(left), len(left), len(priced)
    totals = sum(one.seconds for one in priced), sum(one.size for one in priced)
    computed, usd = sum(one.estimated for one in priced), sum(one.usd for one in priced)
    cost = _middle(priced) if priced else None
    return Line(stage, *counts, on_gpu, cost, max(bounds, default=None), *totals, computed, usd)


def _on_gpu(job: Job) -> bool:
    exp = job.experiment
    if job.node.stage == "generate" and exp.sampler.kind == "api":
        return False
    return wants_gpu(job.node) and (exp.hardware.gpu or resolve_device(exp.device) == "cuda")


def _most_tokens(stage: str, exp: Experiment) -> int | None:
    """What the settings allow at most: only sampling has a limit that is known beforehand."""
    return exp.domain.prompts * exp.sampler.decoding.max_tokens if stage == "generate" else None


def _known(store: Store, left: list[Job]) -> dict[Family, Cost]:
    """The cost of each family of runs to come: measured where the store has alike runs, else estimated."""
    found = {family: _middle(alike_ones) for family, alike_ones in _alike(store, left).items()}
    for job in left:
        family = _family_of(job.node)
        if family not in found and (computed := costs.cost(job.node, job.experiment)) is not None:
            found[family] = computed
    return found


# --------------------------------------------------------------------------- what goes with the table


def notes(planned: Plan, lines: list[Line]) -> list[str]:
    """What an estimate goes by, which cards hold the students' training, and what is not known, a line each."""
    base, said = planned.base, list[str]()
    if any(line.estimated for line in lines):
        said.append(
            f"~ estimated for hardware={base.hardware.name} from parameters, tokens and its speed; measured times take "
            "its place once the store has a run like it (docs/cluster.md)"
        )
        if not base.hardware.gpu and resolve_device(base.device) == "cuda":
            said.append("device=cuda computes on a GPU, and the times are those of hardware=cpu: name the card")
    if base.experiment.kind in SINGLE:
        return said
    said += _unknown_models(planned)
    if lines and any(line.stage == "train" and line.left for line in lines):
        said += dict.fromkeys(filter(None, (memory.fits(arm.experiment, cards()) for arm in planned.arms)))
    return said + _unpriced(planned, lines)


def _unknown_models(planned: Plan) -> list[str]:
    given = [model for arm in planned.arms for model in (arm.experiment.model, arm.experiment.student_model) if model]
    read = {model.model_dump_json(): model for model in given}
    shaped = [(model, shapes.shape_of(model)) for model in read.values()]
    return [shapes.unknown(model) for model, shape in shaped if shape is None] + [
        f"the sizes of {model.name} are scaled to the number in its name"
        for model, shape in shaped
        if shape and shape.guessed
    ]


def _unpriced(planned: Plan, lines: list[Line]) -> list[str]:
    """Endpoints that are asked and whose prices are not given."""
    asked = {"generate": ("sampler", planned.base.sampler), "filter": ("judge", planned.base.judge)}
    asked["evaluate"] = ("judge", planned.base.judge)
    groups = {
        group
        for line in lines
        if line.left and line.stage in asked and line.estimated and not line.usd
        for group, endpoint in [asked[line.stage]]
        if endpoint is not None
        and endpoint.kind == "api"
        and not endpoint.usd_per_million_output
        and (group == "sampler" or _judged(planned, line.stage))
    }
    return [
        f"money: {group}=api has no prices; set {group}.usd_per_million_input and {group}.usd_per_million_output"
        for group in sorted(groups)
    ]


def _judged(planned: Plan, stage: str) -> bool:
    if stage == "filter":
        return planned.base.filter.judged is not None
    return planned.base.evaluation.judged


@cache
def cards() -> list[Hardware]:
    """Every hardware of conf/hardware."""
    files = sorted((CONF / "hardware").glob("*.yaml"))
    return [Hardware.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files]


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


def _middle(found: list[Cost]) -> Cost:
    tokens = [cost.tokens for cost in found if cost.tokens is not None]
    return Cost(
        median(cost.seconds for cost in found),
        median(tokens) if tokens else None,
        median(cost.size for cost in found),
        median(cost.usd for cost in found),
        any(cost.estimated for cost in found),
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
        mark = "~" if line.cost.estimated else ""
        tokens = f"{mark}{line.cost.tokens:.0f}" if line.cost.tokens else _bound(line)
        each = f"{mark}{_time(line.cost.seconds)}", tokens, f"{mark}{_bytes(line.cost.size)}"
    return f"{line.stage:10} {line.done:6} {line.left:6}  {each[0]:>9}  {each[1]:>14}  {each[2]:>10}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 36000
        else f"{seconds / 3600:.1f} h"
    )


def _bytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def _bound(line: Line) -> str:
    return "unknown" if line.most_tokens is None else f"at most {line.most_tokens}"


def _totals(lines: list[Line]) -> str:
    """Sums over what is to do, how much of it is estimated, and of how much nothing is known."""
    hours = {gpu: sum(line.seconds for line in lines if line.on_gpu == gpu) / 3600 for gpu in (True, False)}
    left, unknown = sum(line.left for line in lines), sum(line.left - line.known for line in lines)
    done, computed = sum(line.done for line in lines), sum(line.estimated for line in lines)
    size, usd = sum(line.size for line in lines) / 1e9, sum(line.usd for line in lines)
    text = f"{done + left} stage runs, {done} done, {left} to do"
    if left > unknown:
        about = "about " if computed else ""
        text += (
            f": {about}{hours[True]:.3g} GPU-hours (one GPU a job), {hours[False]:.3g} h without, {size:.3g} GB of disk"
        )
        text += f", {usd:.2f} USD" if usd else ""
        known = left - unknown
        text += " (all estimated)" if computed == known else f" ({computed} of {known} estimated)" if computed else ""
    return text + (
        f"; cost unknown for {unknown}: no complete run is like them, and no estimate can be made" if unknown else ""
    )
