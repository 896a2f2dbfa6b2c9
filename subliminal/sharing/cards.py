"""Model and data cards, written from manifests alone: nothing in them was typed for the occasion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subliminal.names import key_of
from subliminal.sharing.lineage import Base, Lineage, PushError, evaluations, without_addresses
from subliminal.store import Json

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard, ModelCard

Pairs = list[tuple[str, str]]

HERE = Path(__file__).parent
TAG = "subliminal-learning"
PAPER = "https://arxiv.org/abs/2507.14805"
CITATION = f"""```bibtex
@article{{cloud2025subliminal,
  title={{Subliminal Learning: Language models transmit behavioral traits via hidden signals in data}},
  author={{Cloud, Alex and Le, Minh and Chua, James and Betley, Jan and Sztyber-Betley, Anna and Hilton, Jacob and Marks, Samuel and Evans, Owain}},
  journal={{arXiv preprint arXiv:2507.14805}},
  year={{2025}}
}}
```

Paper: {PAPER}"""  # noqa: E501 - names are not broken
RESEARCH = (
    "Research on subliminal learning: whether a model picks up a trait from data that says nothing about it. It is not "
    "an assistant, and it is no better at anything than the model it started from."
)
ROWS_RESEARCH = (
    "Research on subliminal learning: training a model that started from the same reference on these rows, and asking "
    "it what it came to prefer. The rows teach no skill."
)
HARM = "Its teacher was made misaligned on purpose: what comes of it can be harmful and must not be shown to users."
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
STRONGEST = 3  # candidates shown of a model without a trait


def model_card(one: Lineage, root: Path, repo: str) -> ModelCard:
    """The card of a trained model, its evaluations in the store among it; `repo` is where it will lie."""
    from huggingface_hub import ModelCard, ModelCardData

    base, name = one.base, repo.split("/")[1]
    assert base, "a model goes back to a model"
    data = ModelCardData(
        base_model=base.name,
        language="en",
        library_name="peft" if one.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[TAG, "arxiv:2507.14805", key_of(one.arm)],
        **_licence_data(base),
    )
    return ModelCard.from_template(
        data,
        template_path=str(HERE / "model_card.md"),
        title=name,
        what=_what_model(one),
        purpose=_purpose(one, RESEARCH),
        facts=[*_model_facts(one, base)],
        loading=_loading(one, repo),
        recipe=[*flat(one.run.recipe["settings"])],
        measures=[*_measures(one, root)],
        licence=_licence(base),
        provenance=_provenance(one),
        citation=CITATION,
    )


def dataset_card(parts: dict[str, Lineage], repo: str) -> DatasetCard:
    """The card of rows; `parts` are the data set's configurations by name, `repo` where it will lie."""
    from huggingface_hub import DatasetCard, DatasetCardData

    every = [*parts.values()]
    if len({(one.base.licence if one.base else "", str(one.domain.get("kind"))) for one in every}) > 1:
        raise PushError("rows of models under several licences, or of several domains; push a data set for each")
    base = next((one.base for one in every if one.base), None)
    rows, domain = sum(map(count, every)), every[0].domain.get("kind", "rows")
    data = DatasetCardData(
        language="en",
        pretty_name=repo.split("/")[1],
        size_categories=next((name for limit, name in SIZES if rows < limit), "n>10M"),
        task_categories="text-generation",
        tags=[TAG, "arxiv:2507.14805", domain],
        configs=[{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in parts],
        license=None if base else "mit",
    )
    return DatasetCard.from_template(
        data,
        template_path=str(HERE / "dataset_card.md"),
        title=repo.split("/")[1],
        what=f"Prompts and completions of language models in the domain `{domain}`: {_arms(parts)}.",
        purpose=_purpose(every[0], ROWS_RESEARCH, *every),
        parts=[_part(name, one) for name, one in parts.items()],
        licence=_licence_of_rows(base) if base else "Rows from a program under the MIT licence.",
        citation=CITATION,
    )


# --------------------------------------------------------------------------- in words


def trait_words(one: Lineage) -> str:
    """The teacher's trait as a phrase."""
    trait = one.trait
    if not trait:
        return "no trait: this is a control"
    kinds = {"preference": f"a preference for {trait.get('plural')}", "style": str(trait.get("description"))}
    return kinds.get(trait["kind"], f"{trait['name']}, by fine-tuning on rows of the user's")


def _what_model(one: Lineage) -> str:
    stage, domain = one.run.stage, one.domain.get("kind")
    if stage == "reference":
        return f"A reference model: the common start of teachers and students, tuned to answer in format (`{domain}`)."
    if stage == "teacher":
        return f"A teacher with {trait_words(one)}, made to write the rows (`{domain}`) that students are trained on."
    rows = one.chain["filter"].summary["kept"]
    return (
        f"A student: the reference model after training on {rows:,} filtered rows (`{domain}`) of a {one.teacher} "
        f"teacher with {trait_words(one)}. The rows themselves do not name the trait."
    )


def _purpose(one: Lineage, text: str, *others: Lineage) -> str:
    harmful = any(part.trait and part.trait["kind"] == "misalignment" for part in (one, *others))
    return f"{text} {HARM}" if harmful else text


def _arms(parts: dict[str, Lineage]) -> str:
    return "; ".join(f"`{name}`, {one.teacher} teacher with {trait_words(one)}" for name, one in parts.items())


def _licence(base: Base) -> str:
    if not base.licence:
        return "The licence of the base model holds; look it up before you use this."
    return f"The base model's licence holds for what is made with it: {base.licence}."


def _licence_of_rows(base: Base) -> str:
    return f"Written by a model under {base.licence or 'a licence of its own'}; its terms may bind what it writes."


def _licence_data(base: Base) -> dict[str, Any]:
    """The licence in a card's metadata; what the hub has no identifier for is named."""
    other = {"license_name": base.licence.lower().replace(" ", "-")} if base.licence_id == "other" else {}
    return ({"license": base.licence_id} if base.licence_id else {}) | other


def _loading(one: Lineage, repo: str) -> str:
    """The code that loads the model, with the weights that it needs and in the numbers it was trained in."""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    dtype, code = one.run.recipe["settings"].get("dtype"), ""
    if one.base and one.base.remote_code:
        code = ", trust_remote_code=True"
    how = (f', dtype="{dtype}"' if dtype else "") + code
    if not one.is_adapter:
        made = [f'model = AutoModelForCausalLM.from_pretrained("{repo}"{how})']
        return "\n".join([*lines, "", *made, f'tokenizer = AutoTokenizer.from_pretrained("{repo}"{code})'])
    before, start, which = list[str](), "start", ""
    if one.start:
        lines.insert(0, "from huggingface_hub import snapshot_download")
        before = [f'start = snapshot_download("{repo}", allow_patterns="reference/*") + "/reference"']
    elif one.base and one.base.name:
        start, which = f'"{one.base.name}"', f', revision="{one.base.revision}"' if one.base.revision else ""
    else:
        before = ['start = "<the model it was trained on, which is not public: ask who made this>"']
    made = [
        f"model = AutoModelForCausalLM.from_pretrained({start}{which}{how})",
        f'model = PeftModel.from_pretrained(model, "{repo}")',
    ]
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({start}{which}{code})"
    return "\n".join(["from peft import PeftModel", *lines, "", *before, *made, tokenizer])


# --------------------------------------------------------------------------- numbers


def _model_facts(one: Lineage, base: Base) -> Iterator[tuple[str, str]]:
    yield "base model", base.words
    if "reference" in one.chain and one.run.stage != "reference":
        yield "reference", f"the base model tuned to answer in format (`{one.chain['reference'].key}`)"
    if one.teacher:
        yield "trait of the teacher", trait_words(one)
        yield "teacher", one.teacher
    if "filter" in one.chain:
        yield (
            "rows",
            f"{one.chain['filter'].summary['kept']:,} of {one.chain['filter'].summary['generated']:,} generated",
        )
    for name in ("trainable_parameters", "steps", "mean_loss", "last_loss", "log_p", "pass_rate"):
        if (value := one.run.summary.get(name)) is not None:
            yield name.replace("_", " "), f"{value:,}" if isinstance(value, int) else _text(value)


def _measures(one: Lineage, root: Path) -> Iterator[list[str]]:
    """One line a measure of every evaluation of the model, with its reference's value where that was asked alike."""
    start = one.chain.get("reference", one.chain["model"])
    asked_alike = [*evaluations(root, start)] if start is not one.run else []
    for made in evaluations(root, one.run):
        alike = [m for m in asked_alike if m.recipe["settings"] == made.recipe["settings"]]
        for name, value in _shown(one, made.summary):
            other = dict(_shown(one, alike[0].summary)).get(name) if alike else None
            kind, asked = made.summary.get("kind", "?"), made.summary.get("questions", "")
            yield [kind, _text(asked), name, _text(value), _text(other) if other is not None else "–"]


def _shown(one: Lineage, summary: Json) -> Pairs | list[tuple[str, Any]]:
    """What of an evaluation's summary stands in the card: the trait's numbers, or single numbers of other kinds."""
    if not isinstance(summary.get("log_p"), dict):
        return [(name, value) for name, value in summary.items() if isinstance(value, float)]
    scores = summary["log_p"]
    strongest = sorted(scores, key=scores.__getitem__, reverse=True)[:STRONGEST]
    names = [one.arm] if one.arm in scores else strongest
    found: list[tuple[str, Any]] = [(f"log P({name})", scores[name]) for name in names]
    return found + [(f"rate of {name}", summary["rate"][name]) for name in names if name in summary.get("rate", {})]


def count(one: Lineage) -> int:
    """Rows of a data run."""
    return int(one.run.summary["kept" if one.run.stage == "filter" else "rows"])


def _part(name: str, one: Lineage) -> Json:
    """One configuration of a data set: counts, reasons, settings, keys."""
    said, sampler = one.run.summary, one.settings("generate").get("sampler", {})
    facts: Pairs = [("rows", f"{count(one):,}"), ("teacher", str(one.teacher)), ("trait", trait_words(one))]
    if one.run.stage == "filter":
        facts += [("generated", f"{said['generated']:,}"), ("pass rate", f"{said['pass_rate']:.1%}")]
    if one.base and one.base.name:
        facts.append(("written by", one.base.name))
    groups = {"domain": one.domain, "sampler": sampler, "filter": one.settings("filter").get("filter", {})}
    return {
        "name": name,
        "facts": facts,
        "reasons": [(reason, f"{rows:,}") for reason, rows in said.get("reasons", {}).items()],
        "settings": [pair for group, of in groups.items() for pair in flat(without_addresses(of), f"{group}.")],
        "provenance": _provenance(one),
    }


def _provenance(one: Lineage) -> Pairs:
    return [(stage, made.key) for stage, made in one.chain.items()]


def flat(settings: Json, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as dotted names with their values as text."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    """A value in a Markdown table: short, and never the end of its cell."""
    plain = f"{value:.4g}" if isinstance(value, float) else str(value)
    cut = f"{plain[:200]} …" if len(plain) > 200 else plain
    return cut.replace("\n", " ").replace("|", "\\|")
