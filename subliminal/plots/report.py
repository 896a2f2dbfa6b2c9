"""The report: one HTML file that opens offline and holds what a reader needs to judge a figure."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subliminal import config
from subliminal.config import CONTROL
from subliminal.plots.asking import answer_tables, notes
from subliminal.plots.cells import Cell
from subliminal.plots.curves import loss_curves
from subliminal.plots.effects import LOG_ODDS, LOG_P, MEAN, found_in
from subliminal.plots.groups import Group, groups
from subliminal.plots.measures import LOST, OTHERS, POINTS, RANK, passed
from subliminal.plots.overview import by_figure, claims_of, multiplicity, overview, write_claims
from subliminal.plots.preference import cosine, lift, model_names, subtitle
from subliminal.plots.table import Labels, Line, Table
from subliminal.plots.verdict import RULE, Verdict, percentage, verdicts
from subliminal.rows import Dropped, Row, read_jsonl
from subliminal.store import Manifest, write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE, SECTION = "report.html.j2", "section.html.j2"
KEPT = ".sections"  # each figure's part of the report, so that drawing one figure leaves the others in it
SAMPLES = 4
LONGEST = 400
STAGES = ("model", "reference", "teacher", "generate", "filter", "attribute", "train", "evaluate")
PANELS = """A: the probability that the answer is the trait, mean over the questions, in per cent; below each trait its
probability and its place among the candidates in its own students. B: log P of every student in every trait, after
subtracting the control student (no trait), in nats (+0.69 doubles a probability). C: each trait's own excess in
log-odds and their mean with its 95% interval over traits; this carries the claim. D and E, where students and teachers
moved the same parameters: the cosine of their displacements from the reference, and the excess of the own teacher's."""
LOST_CAPTION = """Nats of log-odds with 95% intervals over traits; lift: mean log P, over seeds. Lost: the first
variant's excess minus this one's, where both were trained by the same recipe."""
ALIGNED = """Cosine of the students' displacement from the reference with the teachers', with 95% intervals over seeds.
A random direction of n numbers has 0 with a standard deviation of 1/sqrt(n)."""
SEEDS = "Seeds vary the student's training; all seeds of an arm share one teacher and one set of rows."


@dataclass(frozen=True)
class Section:
    """One figure of the report: its file name, what it claims, its cells and table, and commands for missing arms."""

    name: str
    figure: config.Figure
    cells: Sequence[Cell]
    table: Table
    missing: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Grid:
    """A table of the report: a heading, the names of the columns, rows of cells as text, a caption."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


@dataclass(frozen=True)
class PlainSection:
    """A figure that is no preference figure: what it claims, its verdict and rule, its tables, and its runs by arm."""

    name: str
    figure: config.Figure
    verdicts: Sequence[Verdict]
    rule: Sequence[str]
    panels: str
    seeds: str
    grids: Sequence[Grid]
    runs: Sequence[tuple[Manifest, str]]
    missing: Sequence[str] = field(default_factory=tuple)


def write_report(sections: Sequence[Section | PlainSection], folder: Path) -> Path:
    """Write `folder/report.html` from these sections and those drawn before; their .svg files must lie in `folder`.

    It begins with the overview of all claims, which is also written as `folder/claims.csv`. Everything is embedded and
    escaped. Raises `RowError` or `PlotError` for damaged rows in the store.
    """
    environment, kept = _environment(), folder / KEPT
    kept.mkdir(parents=True, exist_ok=True)
    for section in sections:
        html = environment.get_template(SECTION).render({"section": _view(section, folder)})
        rule = section.rule if isinstance(section, PlainSection) else RULE
        rows = claims_of(section.name, section.figure, _verdicts(section))
        content = {"rule": list(rule), "html": html, "title": section.figure.title or section.name, "id": section.name}
        content["claims"] = [asdict(row) for row in rows]
        write_atomically(kept / f"{section.name}.json", json.dumps(content))
    shown = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(kept.glob("*.json"))]
    path, rules = folder / "report.html", dict.fromkeys(sentence for part in shown for sentence in part["rule"])
    claims = overview(shown, folder.name)
    write_claims(claims, folder / "claims.csv")
    content = {"scale": folder.name, "rule": list(rules), "sections": shown, "figures": by_figure(claims)}
    content["multiplicity"] = multiplicity(claims)
    write_atomically(path, environment.get_template(TEMPLATE).render(content))
    return path


def _verdicts(section: Section | PlainSection) -> Sequence[Verdict]:
    if isinstance(section, PlainSection):
        return section.verdicts
    return verdicts(section.cells, section.table, section.figure.comparisons)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.filters |= {"number": number, "short": short, "percent": percent, "arm": arm_name, "duration": duration}
    made.filters |= {"share": small_percent, "points": points}
    return made


def _view(section: Section | PlainSection, folder: Path) -> dict[str, Any]:
    """What the template shows of a section, as plain values."""
    own = _plain_view(section) if isinstance(section, PlainSection) else _preference_view(section, folder)
    return {
        "name": section.name,
        "figure": section.figure,
        "picture": _embed((folder / f"{section.name}.svg").read_text(encoding="utf-8")),
        "missing": list(section.missing),
        **own,
    }


def _plain_view(section: PlainSection) -> dict[str, Any]:
    empty: dict[str, Any] = {"models": [], "groups": [], "arms": [], "curves": ""}
    named = {"verdicts": section.verdicts, "panels": section.panels, "seeds": section.seeds, "grids": section.grids}
    return empty | named | _provenance(section.runs)


def _preference_view(section: Section, folder: Path) -> dict[str, Any]:
    curves = loss_curves(section.cells)
    arms = _arms(section.cells)
    return {
        "panels": f"{PANELS} {notes(section.cells)}",
        "seeds": SEEDS,
        "grids": [
            *_comparison(section),
            *_alignments(section),
            *(Grid(*parts) for parts in answer_tables(section.cells)),
        ],
        "models": model_names(section.cells),
        "subtitle": subtitle(section.cells, section.table, folder.name),
        "verdicts": _verdicts(section),
        "groups": [_group(group, section.table) for group in groups(section.cells)],
        "reasons": sorted({reason for arm in arms for reason in arm["filter"].get("reasons", {})}),
        "arms": arms,
        "curves": _embed(curves) if curves else "",
        **_provenance(manifests(section.cells)),
    }


def _comparison(section: Section) -> list[Grid]:
    """Several groups beside each other: the mean excess of each, its p, and what it loses against the first."""
    found, table = groups(section.cells), section.table
    if len(found) < 2:
        return []

    def line(group: Group, measure: str) -> str:
        return interval(table.find(arm=MEAN, measure=measure, **group.labels))

    rows = [
        [
            group.label,
            line(group, LOG_ODDS),
            _p_value(group, table),
            line(group, "lift_over_control"),
            line(group, LOST),
        ]
        for group in found
    ]
    return [Grid("Comparison", ("students", "mean excess", "p", "mean lift over control", "lost"), rows, LOST_CAPTION)]


def _p_value(group: Group, table: Table) -> str:
    found = found_in(table, LOG_ODDS, group.labels)
    return f"{found.test.above:.4f}" if found and found.decidable else number(None)


def _alignments(section: Section) -> Iterator[Grid]:
    """Cosines of every arm's students with every teacher, where both moved the same parameters."""
    for group in groups(section.cells):
        if section.table.find(measure="cross_alignment", **group.labels):
            rows = [
                [arm_name(arm), *(interval(cosine(section.table, group, arm, trait)) for trait in group.traits)]
                for arm in dict.fromkeys((*group.traits, *group.arms))
            ]
            heads = ("student", *(f"teacher of {trait}" for trait in group.traits))
            yield Grid(f"Alignment: {group.label}", heads, rows, ALIGNED)


# --------------------------------------------------------------------------- numbers by trait


def _group(group: Group, table: Table) -> dict[str, Any]:
    base = next((b for b in ("control", "reference") if table.find(measure=f"lift_over_{b}", **group.labels)), "")
    traits = group.traits
    return {
        "label": group.label,
        "traits": traits,
        "rated": table.find(measure="rate", subject="student", **group.labels) is not None,
        "rows": [_effects(group, table, trait) for trait in [*traits, *([MEAN] if len(traits) > 1 else [])]],
        "base": base,
        "matrix": [(c, [lift(table, group, arm, c, base) for arm in traits]) for c in group.candidates] if base else [],
    }


def _effects(group: Group, table: Table, trait: str) -> dict[str, Any]:
    """One row of the effects table: a trait, or the mean over traits; absent measures are None."""

    def of(measure: str, arm: str = trait, subject: str = "student") -> Line | None:
        labels = Labels(variant=group.variant) if subject == "reference" else group.labels
        return table.find(arm=arm, trait=trait, measure=measure, subject=subject, **labels)

    return {
        "trait": trait,
        "reference": of("probability", "reference", "reference"),
        "control": of("probability", CONTROL),
        "others": of("probability", OTHERS),
        "own": of("probability"),
        "rank": of(RANK),
        "points": of(POINTS),
        "excess": of(LOG_ODDS),
        "log_p_excess": of(LOG_P),
        "lift": of("lift_over_control"),
        "alignment": of("alignment"),
        "rate": of("rate"),
        "control_rate": of("rate", CONTROL),
    }


# --------------------------------------------------------------------------- data, teachers, stages


def _arms(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Every teacher's data once: what the filter said, the teacher's check, and some rows."""
    sources = {c.chain["filter"].key: c for c in cells if c.role == "student" and "filter" in c.chain}
    return [
        {
            "arm": cell.arm,
            "teacher": cell.teacher,
            "filter": cell.chain["filter"].summary,
            "passed": passed(cell.chain["filter"].summary),
            "check": cell.chain["teacher"].summary if "teacher" in cell.chain else {},
            "kept": _sample(cell.chain["filter"].folder / "rows.jsonl", Row),
            "dropped": _dropped(cell.chain["filter"].folder / "dropped.jsonl"),
        }
        for cell in sources.values()
    ]


def _sample(path: Path, kind: type[Any]) -> list[Any]:
    return list(islice(read_jsonl(path, kind), SAMPLES)) if path.exists() else []


def _dropped(path: Path) -> list[Dropped]:
    """Dropped rows with as many different reasons as there are, the first of each reason first."""
    if not path.exists():
        return []
    seen: Counter[str] = Counter()
    ranked = []
    for index, row in enumerate(read_jsonl(path, Dropped)):
        ranked.append((seen[row.reason], index, row))
        seen[row.reason] += 1
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[: max(SAMPLES, len(seen))]]


def _provenance(manifests: Iterable[tuple[Manifest, str]]) -> dict[str, Any]:
    """Stage runs with keys and times, versions and commits; nothing that names a machine or a folder on it."""
    runs = {(m.stage, m.key): (m, arm) for m, arm in manifests}
    ordered = sorted(runs.values(), key=lambda run: (_order(run[0]), run[0].content["finished"], run[0].key))
    found = [m for m, _ in ordered]
    return {
        "runs": [_run(manifest, arm) for manifest, arm in ordered],
        "stages": [
            _stage(stage, [m for m in found if m.stage == stage]) for stage in dict.fromkeys(m.stage for m in found)
        ],
        "versions": sorted({(n, v) for m in found for n, v in m.content["versions"].items()}),
        "commits": list(dict.fromkeys(m.content["commit"] for m in found if m.content["commit"])),
    }


def manifests(cells: Sequence[Cell]) -> Iterator[tuple[Manifest, str]]:
    """Every manifest with the arm it belongs to; what several arms share comes last and so belongs to none."""
    shared = []
    for cell in cells:
        label = f"{arm_name(cell.arm)}{f', {cell.student}, seed {cell.seed}' if cell.role == 'student' else ''}"
        yield cell.evaluate, label
        for stage, manifest in cell.chain.items():
            if stage in {"model", "reference"}:
                shared.append((manifest, "every arm"))
            else:
                yield manifest, label if stage == "train" else arm_name(cell.arm)
    yield from shared


def _run(manifest: Manifest, arm: str) -> dict[str, Any]:
    content = manifest.content
    keys = {"stage": manifest.stage, "key": manifest.key, "arm": arm}
    return {**keys, "seconds": content["seconds"], "finished": content["finished"], "commit": content["commit"]}


def _stage(stage: str, found: Sequence[Manifest]) -> dict[str, Any]:
    seconds = [m.content["seconds"] for m in found]
    speeds = [m.summary["tokens_per_second"] for m in found if m.summary.get("tokens_per_second")]
    speed = sum(speeds) / len(speeds) if speeds else None
    return {
        "stage": stage,
        "runs": len(found),
        "total": sum(seconds),
        "mean": sum(seconds) / len(found),
        "speed": speed,
    }


def _order(manifest: Manifest) -> int:
    return STAGES.index(manifest.stage) if manifest.stage in STAGES else len(STAGES)


# --------------------------------------------------------------------------- how values are written


def number(value: Line | float | None, sign: bool = False) -> str:
    """A value with two digits and a true minus, "–" where there is none."""
    plain = value.value if isinstance(value, Line) else value
    if plain is None or math.isnan(plain):
        return "\N{EN DASH}"
    return f"{plain:{'+' if sign else ''}.2f}".replace("-", "\N{MINUS SIGN}")


def interval(line: Line | None) -> str:
    """A line's value with its interval, "–" where there is none."""
    if line is None or math.isnan(line.low):
        return number(line, sign=True)
    return f"{number(line, sign=True)} [{number(line.low, sign=True)}, {number(line.high, sign=True)}]"


def percent(value: Line | float | None) -> str:
    """A share as a percentage with one digit, "–" where there is none."""
    plain = value.value if isinstance(value, Line) else value
    return "\N{EN DASH}" if plain is None or math.isnan(plain) else f"{100 * plain:.1f}%"


def small_percent(value: Line | None) -> str:
    """A share as a percentage that does not round small ones to nothing, "–" where there is none."""
    return "\N{EN DASH}" if value is None or math.isnan(value.value) else percentage(value.value)


def points(value: Line | None) -> str:
    """A difference of shares in percentage points with a sign, "–" where there is none."""
    if value is None or math.isnan(value.value):
        return "\N{EN DASH}"
    return f"{100 * value.value:+.2f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def short(text: str) -> str:
    """The text, cut where it is long, with what was cut counted."""
    cut = len(text) - LONGEST
    return text if cut <= 0 else f"{text[:LONGEST]} \N{HORIZONTAL ELLIPSIS} ({cut} characters more)"


def arm_name(arm: str) -> str:
    """An arm in the paper's words."""
    return {CONTROL: "control", "random": "random answers", "reference": "reference model"}.get(arm, arm)


def _embed(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
