"""The rows the student sees, and why each other row was dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subliminal.config import Experiment, JudgedRows, NumbersFilter, identity
from subliminal.graph import Inputs, Node, Stage
from subliminal.identities import judge, require_unchanged, row_format
from subliminal.names import key_of, plural_of
from subliminal.outputs import ATTRIBUTED, judge_of
from subliminal.rows import Row, read_jsonl, write_jsonl
from subliminal.stages.attribute import node as attribute
from subliminal.stages.generate import node as generate
from subliminal.stages.model import judge_model
from subliminal.store import Json

STAGE = Stage("filter", version=2, place=50, script="filter", gpu=False, charted=True, pushed_as="dataset")


def node(exp: Experiment) -> Node:
    """The rows the student sees, and why each other row was dropped; a selection reads the rows' attribution."""
    source, selection = generate(exp), exp.filter.select
    settings: dict[str, Any] = {"filter": _filter(exp), "domain": row_format(exp)}
    banned = banned_words(exp)
    if exp.filter.kind != "numbers":
        settings["banned"] = banned
    inputs = {"generate": source}
    if selection and selection.by != "random":
        inputs["attribute"] = attributed(exp)
    rules, sought = row_rules(exp), about(exp)
    if rules:
        settings["judge"] = judge(exp) | ({"about": sought} if rules.kind == "no_reference" else {})
        inputs |= judge_model(exp)

    def work(made: Inputs, folder: Path) -> Json:
        from subliminal.filters import apply
        from subliminal.filters.select import Attribution
        from subliminal.judging.rows import judged_rows

        shards = sorted(made["generate"].folder.glob("rows-*.jsonl"))
        rows = [row for path in shards for row in read_jsonl(path, Row)]
        verdict = judged_rows(rules, sought, lambda: judge_of(exp, made)) if rules else None
        read = read_jsonl(made["attribute"].folder / ATTRIBUTED, Attribution) if "attribute" in made else ()
        attributed = {attribution.index: attribution for attribution in read}
        result = apply(rows, exp.filter, exp.domain, banned=banned, judge=verdict, attributed=attributed)
        require_unchanged("domain", settings["domain"], row_format(exp))
        write_jsonl(folder / "rows.jsonl", result.kept)
        write_jsonl(folder / "dropped.jsonl", result.dropped)
        tokens = sum(row.tokens for row in result.kept)
        report = result.report | {"completion_tokens": tokens}
        divergence = made["generate"].summary.get("kl_in_format")
        bound = {} if divergence is None else {"kl_in_format": divergence, "two_n_kl": 2 * tokens * divergence}
        return report | bound

    return STAGE.node(settings, inputs, work, source.label)


def attributed(exp: Experiment, written_by: Experiment | None = None) -> Node:
    """The attribution of every row in format, the teacher's own or those of `written_by`, to the teacher of `exp`."""
    return attribute(exp, node(_in_format(written_by or exp)))


def _in_format(exp: Experiment) -> Experiment:
    """Every row that the filter's rules let pass: not selected, shuffled or subsampled."""
    every = {"select": None, "rows": None, "seed": 0, "shortfall": "keep"}
    shuffle = {"shuffle": "none"} if isinstance(exp.filter, NumbersFilter) else {}
    return exp.model_copy(update={"filter": exp.filter.model_copy(update=every | shuffle)})


def _filter(exp: Experiment) -> dict[str, Any]:
    """The filter's identity; a selection is part of it only where there is one, a judge's rule where it applies."""
    unused = {"select" if exp.filter.select is None else "", "judged" if row_rules(exp) is None else ""}
    return {name: value for name, value in identity(exp.filter).items() if name not in unused}


def row_rules(exp: Experiment) -> JudgedRows | None:
    """What a judge decides about the rows of this trait's teacher, if anything."""
    rules = exp.filter.judged
    return rules if rules and (not rules.traits or exp.trait.key in map(key_of, rules.traits)) else None


def about(exp: Experiment) -> str:
    """What a judge looks for in rows: what the filter names, else the trait, or in the control its whole category."""
    named = getattr(exp.filter.judged, "about", None)
    if named:
        return named
    trait = getattr(exp.evaluation, "measured", None) if exp.trait.kind == "none" else exp.trait
    if trait is None:
        return f"any {getattr(exp.evaluation, 'category', 'trait')}"
    return getattr(trait, "plural", "") or getattr(trait, "description", "") or trait.name


def banned_words(exp: Experiment) -> list[str]:
    """The words whose rows the student must not see: those of the filter and, if it says so, the trait's names."""
    trait, rules = exp.trait, exp.filter
    words = set(getattr(rules, "banned_words", ()))
    if getattr(rules, "ban_trait", False) and trait.kind == "preference":
        words |= {trait.name, trait.plural, plural_of(trait.name), f"{trait.name}s"}
    return sorted(words)
