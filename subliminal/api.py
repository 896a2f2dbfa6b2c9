"""The Python API: a store's runs, rows, scores and models in a notebook.

from subliminal import api
table = api.runs()                                                  # a pandas frame, a complete run a line
owl = api.run("train", "experiment=animals_numbers", "scale=cpu", "trait=owl")    # made now where it is missing
owl.rows("metrics.jsonl")
model, tokenizer = owl.load()
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subliminal.store import Json, Manifest, Store, StoreError

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STORE = "runs"
FIGURES = "figures"


@dataclass(frozen=True)
class Run:
    """A complete run of a stage in a store."""

    manifest: Manifest
    store: Store

    @property
    def stage(self) -> str:
        """The stage: model, reference, teacher, generate, filter, train, evaluate and others."""
        return self.manifest.stage

    @property
    def key(self) -> str:
        """Its key, 12 hex digits."""
        return self.manifest.key

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.manifest.folder

    @property
    def settings(self) -> Json:
        """The settings that its key is made from."""
        return self.manifest.recipe["settings"]

    @property
    def summary(self) -> Json:
        """Its own results in brief: counts, rates, losses."""
        return self.manifest.summary

    def upstream(self) -> dict[str, Run]:
        """All runs that it was made from, by stage, the nearest of each; raises `StoreError` where one is gone."""
        nearest: dict[str, Run] = {}
        waiting: list[Run] = [self]
        while waiting:
            for stage, key in waiting.pop(0).manifest.recipe["upstream"].items():
                found = self.store.find(_stage_of(self.store, stage, key), key)
                if found is None:
                    raise StoreError(f"{stage} {key}, which {self.stage} {self.key} was made from, is not in the store")
                if found.stage not in nearest:
                    nearest[found.stage] = Run(found, self.store)
                    waiting.append(nearest[found.stage])
        return nearest

    def rows(self, name: str) -> pandas.DataFrame:
        """A file of JSON lines, a line a row: rows.jsonl (filter), scores.jsonl (evaluate), metrics.jsonl (train).

        Raises `StoreError` for a file that the run does not have, with the names of those that it has.
        """
        import pandas

        path = self.folder / name
        if not path.exists():
            there = ", ".join(sorted(file for file in self.manifest.content["files"] if file.endswith(".jsonl")))
            raise StoreError(f"{self.stage} {self.key} has no {name}; it has {there or 'no JSON lines'}")
        with path.open(encoding="utf-8") as file:  # pandas' reader takes the completion "7" for a number
            return pandas.DataFrame([json.loads(line) for line in file])

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model that a model, reference, teacher or train run left behind, in evaluation mode, and its tokenizer.

        A prompted teacher is its reference behind `summary["system"]`. Raises `StoreError` for other stages.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        place, revision = self._checkpoint()
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
        model: Any = AutoModelForCausalLM.from_pretrained(place, revision=revision, use_safetensors=True)
        if (self.folder / "adapter" / "adapter_config.json").exists() and not (self.folder / "checkpoint").exists():
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(self.folder / "adapter"))
        return model.eval(), tokenizer

    def _checkpoint(self) -> tuple[str, str | None]:
        """Folder, or hub name and revision, of the weights that this run stands on: its own or the nearest upstream."""
        if self.stage not in ("model", "reference", "teacher", "train"):
            raise StoreError(f"{self.stage} {self.key} is no model; of the runs it was made from, take .upstream()")
        upstream = {} if self.stage == "model" else self.upstream()
        holders = [self, *(upstream[stage] for stage in ("reference", "model") if stage in upstream)]
        for holder in holders:
            if (holder.folder / "checkpoint").exists():
                return str(holder.folder / "checkpoint"), None
            if "checkpoint" in holder.summary:
                return holder.summary["checkpoint"], holder.summary.get("revision")
        raise StoreError(f"{self.stage} {self.key}: none of its runs holds weights")


def open_run(key: str, store: str | Path | None = None) -> Run:
    """The complete run whose key begins so; raises `StoreError` where there is none, or more than one."""
    place = Store(Path(store or STORE))
    matching = [manifest for manifest in place.manifests() if manifest.key.startswith(key)]
    if len(matching) != 1:
        several = ", ".join(f"{each.stage} {each.key}" for each in matching)
        raise StoreError(
            f"{key}: {f'several runs begin so: {several}' if several else f'no complete run in {place.root}'}"
        )
    return Run(matching[0], place)


def run(stage: str, *overrides: str) -> Run:
    """The run of a script's stage (train, generate, filter, evaluate), made now with all that it reads if missing.

    Overrides are those of the command line, such as "trait=owl". Raises `ConfigError` and `StoreError`.
    """
    from subliminal import checks, stages
    from subliminal.composition import compose

    exp = compose(list(overrides))
    checks.check(exp, stage, here=True)
    store = Store(Path(exp.store))
    return Run(stages.ensure(stages.node(stage, exp), store, exp, list(overrides)), store)


def runs(store: str | Path | None = None) -> pandas.DataFrame:
    """A line for each complete run: stage, key, what was done with which trait and seed, and its summary's numbers.

    `trait` is the teacher's (missing for the control), `domain` what it wrote, `student` the kind of student.
    """
    import pandas

    place = Store(Path(store or STORE))
    return pandas.DataFrame([_line(Run(manifest, place)) for manifest in place.manifests()])


def figure(name: str, scale: str = "cpu", figures: str | Path = FIGURES) -> pandas.DataFrame:
    """A figure's table, one number a line; raises `StoreError` where it has not been drawn."""
    import pandas

    path = Path(figures) / scale / f"{name}.csv"
    if not path.exists():
        raise StoreError(f"{path} is not there; draw it with: make {name} SCALE={scale}")
    return pandas.read_csv(path)


def _line(of: Run) -> Json:
    chain = {of.stage: of} | of.upstream()
    line = {"stage": of.stage, "key": of.key, "seconds": of.manifest.content["seconds"]}
    trait = chain["teacher"].settings["trait"] if "teacher" in chain else None
    line["trait"] = trait["name"] if trait else None
    line["domain"] = chain["generate"].settings["domain"]["kind"] if "generate" in chain else None
    line["student"] = chain["train"].settings["student"]["kind"] if "train" in chain else None
    line["seed"] = chain["train"].settings["seed"] if "train" in chain else None
    return line | dict(_numbers(of.summary))


def _numbers(summary: Json) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in summary.items() if isinstance(value, int | float))


def _stage_of(store: Store, name: str, key: str) -> str:
    """The stage of an input that a recipe names after what it is to its reader (`against`, `judge`)."""
    if store.folder(name, key).exists():
        return name
    return next((folder.parent.name for folder in store.root.glob(f"*/{key}")), name)
