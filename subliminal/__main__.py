"""`subliminal`, or `python -m subliminal`: sweeps, figures, and a look into the run store and at the machine."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subliminal import inspect_store
from subliminal.composition import as_yaml, compose, config_folders, with_config_dir
from subliminal.config import ConfigError
from subliminal.errors import clear_errors

WITHOUT_CONFIGURATION = ("status", "show", "verify", "gc", "export", "import", "doctor", "sync", "push")

Command = Callable[[argparse.Namespace], None]

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run one command."""
    options = parser().parse_args(_with_flags(sys.argv[1:] if argv is None else argv))
    try:
        with clear_errors():
            if getattr(options, "config_dir", None) is not None:
                options.overrides = with_config_dir(options.overrides, options.config_dir)
            options.run(options)
            sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough: | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end


def _with_flags(argv: list[str]) -> list[str]:
    """`store=FOLDER`, as the scripts take it, as the flag of the commands that read a store and no configuration."""
    if not argv or argv[0] not in WITHOUT_CONFIGURATION:
        return argv
    return [f"--{part}" if part.startswith("store=") else part for part in argv]


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand a verb."""
    top = argparse.ArgumentParser("subliminal", description=__doc__)
    verbs = top.add_subparsers(required=True, metavar="command")
    for name, run, text in (
        ("sweep", _sweep, "run every stage of a figure as Hydra multiruns, then draw it"),
        ("plot", _plot, "draw a figure, its table and the report from the store alone"),
        ("plan", _plan, "list the commands of a sweep, what each still has to do, and what that will cost"),
        ("predict", _predict, "transmission of every trait from gradients at the reference: no student is trained"),
        ("config", _config, "show the resolved experiment and, with exit code 2, why it can not run"),
        ("dashboard", _dashboard, "save a W&B report of an experiment's runs: losses, data, effects"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument(
            "overrides", nargs="*", help="Hydra overrides: experiment=animals_numbers scale=cpu trait=owl ..."
        )
        verb.set_defaults(run=run)
        _config_dir(verb)
        if name == "dashboard":
            verb.add_argument("--dry-run", action="store_true", help="print W&B's specification, send nothing")
    for name, run, text in (
        ("status", _status, "what is complete, running and failed"),
        ("show", _show, "one run: recipe, summary, files"),
        ("verify", _verify, "check every file against its manifest"),
        ("gc", _gc, "remove unfinished leftovers; shows first, --yes removes"),
        ("export", _export, "write runs, with all they are made from, into one archive"),
        ("import", _import, "check an archive of runs and take it in"),
        ("doctor", _doctor, "what this machine has, and what would not run here and why"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument(
            "--store", type=Path, default=inspect_store.DEFAULT, help="folder of the runs (default: runs)"
        )
        verb.set_defaults(run=run)
        if name == "show":
            verb.add_argument("key", help="a key, or the start of one")
        if name in {"export", "import"}:
            verb.add_argument("archive", type=Path, help="a .tar or .tar.gz file")
        if name == "export":
            verb.add_argument("keys", nargs="*", help="keys, or their starts (default: every complete run)")
        if name == "gc":
            verb.add_argument("--yes", action="store_true", help="really remove")
            verb.add_argument("--unreferenced", action="store_true", help="also complete runs that no evaluation uses")
    _calibrate_parser(verbs)
    _sync_parser(verbs)
    _push_parser(verbs)
    return top


def _calibrate_parser(verbs: Any) -> None:
    text = "score labelled texts with the judge: confusion matrix and false-positive rate of its thresholds"
    verb = verbs.add_parser("calibrate", help=text, description=text)
    verb.add_argument("labelled", help="JSONL of question, prompt, completion, label, about; or: example")
    verb.add_argument("overrides", nargs="*", help="Hydra overrides: judge=api judge.model=...")
    verb.set_defaults(run=_calibrate)
    _config_dir(verb)


def _config_dir(verb: argparse.ArgumentParser) -> None:
    """The scripts' flag, as Hydra has it, for the commands that read a configuration."""
    text = "folder of your own beside conf/: experiment/, domain/, evaluation/, student/ ..."
    verb.add_argument("--config-dir", help=text)


def _sync_parser(verbs: Any) -> None:
    text = "upload every offline W&B run that is not uploaded yet"
    verb = verbs.add_parser("sync", help=text, description=text)
    verb.add_argument("folders", nargs="*", type=Path, help="folders that hold offline-run-* (default: wandb)")
    verb.add_argument("--store", type=Path, default=inspect_store.DEFAULT, help="says which runs are still being made")
    verb.add_argument("--dry-run", action="store_true", help="say what would be sent, send nothing")
    verb.set_defaults(run=_sync)


def _push_parser(verbs: Any) -> None:
    text = "upload a model, or rows, to the Hugging Face hub with a card made from the manifests"
    verb = verbs.add_parser("push", help=text, description=text)
    verb.add_argument("repo", type=_repository, help="owner/name on the hub")
    verb.add_argument("keys", nargs="+", help="keys, or their starts: one model, or one or several sets of rows")
    verb.add_argument("--store", type=Path, default=inspect_store.DEFAULT, help="folder of the runs (default: runs)")
    verb.add_argument("--folder", type=Path, default=Path("outputs/hub"), help="where the repository is made first")
    verb.add_argument("--private", action="store_true", help="a new repository is yours alone")
    verb.add_argument("--dry-run", action="store_true", help="make and list what would be uploaded, send nothing")
    verb.set_defaults(run=_push)


def _repository(text: str) -> str:
    if not REPOSITORY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not owner/name, as in me/owl-student")
    return text


def _sweep(options: argparse.Namespace) -> None:
    from subliminal import sweep
    from subliminal.plan import IncompleteError
    from subliminal.progress import say
    from subliminal.scheduling.estimates import foresight

    planned = sweep.plan(options.overrides)
    if power := foresight(planned):
        say(power)
    try:
        sweep.run(planned)
    except IncompleteError:
        _draw_rest(planned)
        raise
    _draw(planned)


def _draw_rest(planned: object) -> None:
    """Draw a figure some of whose arms failed from those that are there."""
    from subliminal.progress import say
    from subliminal.store import StoreError

    try:
        _draw(planned)
    except StoreError as error:
        say(f"no figure: {error}")


def _plot(options: argparse.Namespace) -> None:
    from subliminal import sweep

    _draw(sweep.plan(_figure_overrides(options.overrides)))


def _figure_overrides(overrides: list[str]) -> list[str]:
    """`plot fig-attribution` is short for `plot experiment=attribution_numbers`, by the figures' names."""
    from subliminal.plots.overview import experiment_of

    return [f"experiment={experiment_of(o)}" if o.startswith(("fig-", "table-")) else o for o in overrides]


def _draw(planned: object) -> None:
    from subliminal.plots.draw import draw

    for path in draw(planned):  # type: ignore[arg-type]
        print(path)


def _plan(options: argparse.Namespace) -> None:
    from subliminal import sweep
    from subliminal.plan import shown
    from subliminal.scheduling.estimates import described, estimate, foresight, notes
    from subliminal.store import Store

    planned = sweep.plan(_figure_overrides(options.overrides))
    store = Store(Path(planned.base.store))
    for step in planned.steps:
        done = sum(bool(store.find(made.stage, made.key)) for made in step.nodes)
        print(f"{done}/{len(step.nodes)} done  {shown(step)}")
    lines = estimate(planned, store)
    print("\n".join([described(lines), *notes(planned, lines)]))
    if power := foresight(planned):
        print(power)


def _predict(options: argparse.Namespace) -> None:
    from subliminal import sweep
    from subliminal.plots.prediction import report_predictions

    planned = sweep.plan(_figure_overrides(options.overrides))
    print(report_predictions(planned, sweep.predict(planned)))


def _calibrate(options: argparse.Namespace) -> None:
    from subliminal.judging.calibrate import calibrate

    print(calibrate(compose(options.overrides), None if options.labelled == "example" else Path(options.labelled)))


def _config(options: argparse.Namespace) -> None:
    from subliminal import checks, stages

    exp = compose(options.overrides)
    print(as_yaml(exp), end="", flush=True)
    problems = [
        *checks.arms_problems(exp, config_folders(options.overrides)),
        *checks.problems(exp, stages.last_script(exp), here=False),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _dashboard(options: argparse.Namespace) -> None:
    import json

    from subliminal import sweep
    from subliminal.sharing import dashboard

    planned = sweep.plan(_figure_overrides(options.overrides))
    if options.dry_run:
        print(json.dumps(dashboard.specification(planned), indent=1, ensure_ascii=False))
    else:
        print(dashboard.publish(planned, Path(planned.base.figures) / planned.base.scale))


def _sync(options: argparse.Namespace) -> None:
    from subliminal.sharing.sync import sync

    if options.store != inspect_store.DEFAULT:
        inspect_store.existing(options.store)
    print(sync(options.folders, options.store, dry=options.dry_run))


def _push(options: argparse.Namespace) -> None:
    from subliminal.sharing.push import prepare, upload

    ready = prepare(inspect_store.existing(options.store), options.repo, options.keys, options.folder)
    print(ready.listed())
    if not options.dry_run:
        print(upload(ready, private=options.private))


def _status(options: argparse.Namespace) -> None:
    print(inspect_store.status(options.store))


def _show(options: argparse.Namespace) -> None:
    print(inspect_store.show(options.store, options.key))


def _verify(options: argparse.Namespace) -> None:
    problems = inspect_store.verify(options.store)
    complete = len(list(options.store.glob("*/*/manifest.json")))
    whole = f"{complete} complete runs: every file matches its manifest"
    print("\n".join(problems) or (whole if complete else f"no complete runs in {options.store}: nothing to verify"))
    sys.exit(1 if problems else 0)


def _gc(options: argparse.Namespace) -> None:
    print(inspect_store.collect(options.store, really=options.yes, unreferenced=options.unreferenced))


def _doctor(options: argparse.Namespace) -> None:
    from subliminal import doctor

    print(doctor.report(options.store))


def _export(options: argparse.Namespace) -> None:
    from subliminal import archive

    runs = archive.export(inspect_store.existing(options.store), options.archive, options.keys)
    print(f"{options.archive}: {len(runs)} runs, {options.archive.stat().st_size / 1e6:.2f} MB")


def _import(options: argparse.Namespace) -> None:
    from subliminal import archive

    new, there = archive.take_in(options.store, options.archive)
    print("\n".join([*(f"{stage}/{key}" for stage, key in new), f"{len(new)} runs taken in, {len(there)} were there"]))


if __name__ == "__main__":
    main()
