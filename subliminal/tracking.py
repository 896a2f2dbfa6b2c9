"""Metrics mirrored to W&B: online, offline or off; `metrics.jsonl` in the store stays the truth.

Every stage run is one W&B run whose id is its key, so that a requeued or resumed stage goes on in its own run. Offline
each try leaves a folder of its own; sent in order of time they are one run again. Nothing fails without an account, and
a failure of W&B never ends a stage.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from subliminal.config import Experiment, Tracking
from subliminal.processes import leads
from subliminal.progress import say

STEP = "step"  # the axis of every chart: W&B's own step is shifted where an offline run goes on
INIT_SECONDS = 20.0  # an unreachable W&B may hold a stage up this long; its own default is 90


class Tracker(Protocol):
    """Where a stage's numbers are mirrored."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """One step's values."""
        ...

    def summary(self, values: dict[str, Any]) -> None:
        """The stage's results."""
        ...

    def image(self, name: str, path: Path) -> None:
        """A figure."""
        ...

    def table(self, name: str, path: Path) -> None:
        """A CSV table."""
        ...


class NoTracker:
    """Mirrors nothing."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Nothing."""

    def summary(self, values: dict[str, Any]) -> None:
        """Nothing."""

    def image(self, name: str, path: Path) -> None:
        """Nothing."""

    def table(self, name: str, path: Path) -> None:
        """Nothing."""


class WandbTracker:
    """Mirrors to one W&B run; after its first failure it says so and stays silent."""

    def __init__(self, run: Any) -> None:
        self.run, self.broken = run, False
        self._safely(lambda: self.run.define_metric("*", step_metric=STEP))

    def log(self, step: int, values: dict[str, Any]) -> None:
        """One step's values, with the step among them; what the run has already is not taken twice."""
        self._safely(lambda: self.run.log({STEP: step} | values, step=step))

    def summary(self, values: dict[str, Any]) -> None:
        """The stage's results, nested ones as dotted names."""
        self._safely(lambda: self.run.summary.update(values))

    def image(self, name: str, path: Path) -> None:
        """A figure."""
        import wandb

        self._safely(lambda: self.run.log({name: wandb.Image(str(path))}))

    def table(self, name: str, path: Path) -> None:
        """A CSV table."""
        import csv

        import wandb

        with path.open(newline="") as file:
            head, *rows = list[Any](csv.reader(file))
        self._safely(lambda: self.run.log({name: wandb.Table(columns=head, data=rows)}))

    def _safely(self, send: Callable[[], object]) -> None:
        if self.broken:
            return
        try:
            send()
        except Exception as error:  # whatever W&B does, the stage's own result must not be lost
            self.broken = True
            say(f"  W&B stopped ({error}); metrics.jsonl goes on")


@contextmanager
def open_tracker(config: Tracking, stage: str, key: str, group: str, settings: dict[str, Any]) -> Iterator[Tracker]:
    """The tracker of one stage run; online without an account goes offline, with one line that says so."""
    run = _start(config, stage, key, group, settings) if config.mode != "off" else None
    failed = True
    try:
        yield WandbTracker(run) if run else NoTracker()
        failed = False
    finally:
        if run:
            _finish(run, int(failed))


def stage_tracker(exp: Experiment, stage: str, folder: Path) -> AbstractContextManager[Tracker]:
    """The tracker of the stage that is made in `folder`: its key is the run's id, its experiment the group."""
    config = exp.tracking if leads() else Tracking(mode="off")
    return open_tracker(config, stage, folder.name, exp.experiment.name, exp.model_dump(mode="json"))


def figure_id(exp: Experiment) -> str:
    """The W&B run of an experiment's figure; it has no key, since it is drawn anew whenever more is there."""
    return f"{exp.experiment.file}-{exp.scale}"


def _start(config: Tracking, stage: str, key: str, group: str, settings: dict[str, Any]) -> Any:
    try:
        import wandb

        return wandb.init(
            project=config.project,
            entity=config.entity,
            id=key,
            name=f"{stage}-{key}",
            group=group,
            job_type=stage,
            config=settings,
            resume="allow",
            mode=_mode(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_SECONDS)),
            ),
        )
    except Exception as error:  # an unreachable or misconfigured W&B must not end a stage
        say(f"  no W&B ({error}); metrics.jsonl has everything")
        return None


def _mode(config: Tracking) -> Any:
    if config.mode == "online" and not has_account():
        say("  W&B: no account found (wandb login); logging offline, send later with: python -m subliminal sync")
        return "offline"
    return config.mode


def has_account() -> bool:
    """Is there a key for W&B, in the environment or from `wandb login`."""
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    own = urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc  # `wandb login` writes the key under the server's name
    servers = [name for name in (own, "wandb", "coreweave") if name]
    kept = netrc.exists() and any(name in netrc.read_text(errors="replace") for name in servers)
    return bool(os.environ.get("WANDB_API_KEY")) or kept


def _finish(run: Any, code: int) -> None:
    try:
        run.finish(exit_code=code)
    except Exception as error:  # as above
        say(f"  W&B did not finish cleanly ({error})")
