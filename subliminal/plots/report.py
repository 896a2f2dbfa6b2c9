"""The report: one HTML file that opens offline and holds what a reader needs to judge a figure."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subliminal import stages
from subliminal.plots import words
from subliminal.plots.figure import Drawn
from subliminal.plots.overview import NOT_RUN, by_figure, claims_of, multiplicity, overview, write_claims
from subliminal.store import Manifest, write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE, SECTION = "report.html.j2", "section.html.j2"
KEPT = ".sections"  # each figure's part of the report, so that drawing one figure leaves the others in it
# what the template shows where a figure has it
OPTIONAL: dict[str, Any] = {"models": (), "groups": (), "arms": (), "curves": ""}


def write_report(figures: Sequence[Drawn], folder: Path) -> Path:
    """Write `folder/report.html` from these figures and those drawn before; their .svg files must lie in `folder`.

    It begins with what was measured, claim by claim (also `folder/claims.csv`); claims that were not run are folded at
    its end. Everything is embedded and escaped. Raises `RowError` or `PlotError` for damaged rows in the store.
    """
    environment, kept = _environment(), folder / KEPT
    kept.mkdir(parents=True, exist_ok=True)
    for drawn in figures:
        html = environment.get_template(SECTION).render({"section": _view(drawn, folder)})
        rows = claims_of(drawn.name, drawn.figure, drawn.verdicts)
        content = {"rule": list(drawn.section.rule), "html": html, "title": drawn.figure.title or drawn.name}
        content |= {"id": drawn.name, "claims": [asdict(row) for row in rows]}
        write_atomically(kept / f"{drawn.name}.json", json.dumps(content))
    shown = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(kept.glob("*.json"))]
    path, rules = folder / "report.html", dict.fromkeys(sentence for part in shown for sentence in part["rule"])
    claims = overview(shown, folder.name)
    write_claims(claims, folder / "claims.csv")
    figures_of = by_figure(claims)
    content = {"scale": folder.name, "rule": list(rules), "sections": shown, "multiplicity": multiplicity(claims)}
    content["run"] = [(name, rows) for name, rows in figures_of if rows[0].verdict != NOT_RUN]
    content["not_run"] = [(name, rows) for name, rows in figures_of if rows[0].verdict == NOT_RUN]
    write_atomically(path, environment.get_template(TEMPLATE).render(content))
    return path


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": words.number, "short": words.short, "percent": words.percent}
    environment.filters |= {"arm": words.arm_name, "duration": words.duration, "share": words.small_percent}
    environment.filters |= {"points": words.points, "svg": svg_address}
    return environment


def _view(drawn: Drawn, folder: Path) -> dict[str, Any]:
    """What the template shows of a figure, as plain values."""
    section = drawn.section
    return {
        **OPTIONAL,
        "name": drawn.name,
        "figure": drawn.figure,
        "picture": (folder / f"{drawn.name}.svg").read_text(encoding="utf-8"),
        "missing": list(drawn.missing),
        "subtitle": drawn.subtitle,
        "verdicts": drawn.verdicts,
        "panels": section.panels,
        "seeds": section.seeds,
        "grids": section.grids,
        **section.more,
        **_provenance(section.runs),
    }


def _provenance(manifests: Iterable[tuple[Manifest, str]]) -> dict[str, Any]:
    """Stage runs with keys and times, versions and commits; nothing that names a machine or a folder on it."""
    runs = {(m.stage, m.key): (m, arm) for m, arm in manifests}
    order = {stage: place for place, stage in enumerate(stages.STAGES)}
    ordered = sorted(
        runs.values(), key=lambda run: (order.get(run[0].stage, len(order)), run[0].content["finished"], run[0].key)
    )
    unique = [m for m, _ in ordered]
    return {
        "runs": [{"stage": m.stage, "key": m.key, "arm": arm, **m.content} for m, arm in ordered],
        "stages": [
            _stage(stage, [m for m in unique if m.stage == stage]) for stage in dict.fromkeys(m.stage for m in unique)
        ],
        "versions": sorted({(n, v) for m in unique for n, v in m.content["versions"].items()}),
        "commits": list(dict.fromkeys(m.content["commit"] for m in unique if m.content["commit"])),
    }


def _stage(stage: str, manifests: Sequence[Manifest]) -> dict[str, Any]:
    seconds = [m.content["seconds"] for m in manifests]
    speeds = [m.summary["tokens_per_second"] for m in manifests if m.summary.get("tokens_per_second")]
    means = {"mean": sum(seconds) / len(seconds), "speed": sum(speeds) / len(speeds) if speeds else None}
    return {"stage": stage, "runs": len(manifests), "total": sum(seconds), **means}


def svg_address(svg: str) -> str:
    """A picture as an address that a page can hold."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
