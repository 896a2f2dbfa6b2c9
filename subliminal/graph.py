"""Stage runs and what they read: a run exists as a `Node` before it is done, and `ensure` does what the store lacks.

Nothing here knows an experiment; `stages/` defines the stages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from subliminal.processes import MULTIRUN, alone, leads
from subliminal.progress import say
from subliminal.store import Json, Manifest, Recipe, Store, StoreError

Inputs = dict[str, Manifest]
"""What a stage's work reads, by the name that the work knows it by."""
Ident = tuple[str, str]
"""Stage and key."""
Shares = Literal["nothing", "shards", "steps"]
"""What further processes do while the leader works: nothing, shards of their own, or the same steps on shares of a
batch."""


@dataclass(frozen=True)
class Stage:
    """What is the same for every run of a stage."""

    name: str
    version: int  # raised with every change of what the stage puts out for the same settings: its keys then move
    place: int  # among the stages, in lists that people read
    script: str | None = None  # the root script that makes it
    role: str | None = None  # the `role` of train.py that makes it, and what an evaluation calls its subject
    single: bool = False  # the only stage of an experiment.kind of the same name, without language models
    gpu: bool = True  # it computes with a model, so it uses a GPU where there is one
    here_first: bool = False  # made where a sweep is started: compute nodes often have no network to fetch weights over
    tracked: bool = False  # it reports to W&B while it runs
    charted: bool = False  # a dashboard at W&B shows its runs
    result: bool = False  # figures and tables read it: kept, with all it is made from, when others are removed
    pushed_as: Literal["model", "dataset"] | None = None  # what it is on the Hugging Face hub

    def node(
        self,
        settings: Json,
        inputs: dict[str, Node],
        work: Callable[[Inputs, Path], Json],
        label: str,
        *,
        in_key: Collection[str] | None = None,
        shares: Shares = "nothing",
    ) -> Node:
        """A run of this stage; `in_key` are the inputs that can change what it puts out, all by default."""
        read = {name: upper.key for name, upper in inputs.items() if in_key is None or name in in_key}
        return Node(self, Recipe(self.name, settings, read, self.version), inputs, work, label, shares)


@dataclass(frozen=True)
class Node:
    """One stage run: its recipe, hence its key, the nodes it reads by the name its work knows them by, and the work."""

    definition: Stage
    recipe: Recipe
    inputs: dict[str, Node]
    work: Callable[[Inputs, Path], Json]
    label: str
    shares: Shares

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.recipe.stage

    @property
    def key(self) -> str:
        """The stage's key in the store."""
        return self.recipe.key

    @property
    def ident(self) -> Ident:
        """Stage and key."""
        return self.recipe.stage, self.recipe.key


class UpstreamFailedError(StoreError):
    """A stage run that this one reads failed a moment ago, and is not tried again for each job that needs it."""


def ensure(
    wanted: Node,
    store: Store,
    *,
    wait: bool = True,
    before_input: Callable[[Node], object] = lambda _: None,
    finished: Callable[[Node, Manifest], object] = lambda *_: None,
) -> Manifest:
    """The complete stage run, done now where the store lacks it, its inputs first; says what is reused and what is run.

    `before_input` is called with each missing input and may raise; `finished` with each run that was done here. Without
    `wait` a run that another process is making is a `ClaimedError`.
    """
    done = store.find(*wanted.ident)
    if done:
        say(f"[{wanted.stage} {wanted.key}] {wanted.label}: reused")
        return done
    inputs: Inputs = {}
    for name, upper in wanted.inputs.items():
        present = store.find(*upper.ident)
        if not present:
            before_input(upper)
            present = ensure(upper, store, wait=wait, before_input=before_input, finished=finished)
        inputs[name] = present
    if not leads():
        return _follow(wanted, inputs, store)

    def work(folder: Path) -> Json:  # where other processes have no share in it, libraries must not wait for them
        with alone() if wanted.shares == "nothing" else nullcontext():
            return wanted.work(inputs, folder)

    say(f"[{wanted.stage} {wanted.key}] {wanted.label}: running")
    manifest, reused = store.run(wanted.recipe, work, wait=wait)
    ended = "reused" if reused else f"done in {manifest.content['seconds']:.0f} s"
    say(f"[{wanted.stage} {wanted.key}] {wanted.label}: {ended}")
    if not reused:
        finished(wanted, manifest)
    return manifest


def _follow(wanted: Node, inputs: Inputs, store: Store) -> Manifest:
    """The run that the leader publishes, after this process has done its share of it."""
    whole = partial(wanted.work, inputs)
    share: Callable[[Path], object] = (lambda _: None) if wanted.shares == "nothing" else whole
    return store.follow(wanted.recipe, share, None if wanted.shares == "steps" else whole)


def missing(wanted: Node, store: Store) -> Iterator[Node]:
    """What the store lacks of a stage run and all it reads, inputs first; nothing below what is there."""
    if not store.find(*wanted.ident):
        for upper in wanted.inputs.values():
            yield from missing(upper, store)
        yield wanted


def require_untried(wanted: Node, store: Store) -> None:
    """Stop where this job needs a stage run that failed in an earlier job of the same multirun.

    Raises `UpstreamFailedError` that says what failed and why.
    """
    for absent in missing(wanted, store):
        failure = store.failure(*absent.ident)
        if failure and failure.get("multirun") and failure["multirun"] == os.environ.get(MULTIRUN):
            raise UpstreamFailedError(
                f"needs {absent.stage} {absent.key} ({absent.label}), which failed: {failure['error']}: "
                f"{failure['message']}"
            )
