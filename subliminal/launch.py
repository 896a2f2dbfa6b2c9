"""From a command line to a stage: arguments checked at once, errors without tracebacks, exit codes that mean something.

Exit 2: the configuration can not run. Exit 1: a stage failed; `failure.json` in its folder has the trace.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from subliminal.config import ConfigError, Experiment, Settings, fields_at, parse, suggest
from subliminal.processes import join
from subliminal.progress import say
from subliminal.rows import RowError
from subliminal.store import Store, StoreError

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_PLUGIN = "Unknown plugin class"  # what Hydra says of a launcher that is not installed
BAD_CONFIG, FAILED, INTERRUPTED = 2, 1, 130

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads make training ten times slower beside any other busy process
    "HYDRA_FULL_ERROR": "1",  # Hydra's errors reach `clear_errors`, which says them plainly
}  # what libraries read when they are imported; what the user has set stays

OVERRIDE = re.compile(r"^(?P<sign>\+\+|\+|~)?(?P<key>[\w@./-]+)(=(?P<value>.*))?$", re.DOTALL)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's Hydra entry point: arguments are checked first, what Hydra refuses is one clear message."""
    os.environ.update(QUIET | os.environ)
    expect_own_launchers()
    with clear_errors():
        join()
    check_arguments()
    with clear_errors():
        main()


def run_stage(stage: str, composed: Any) -> None:
    """Run one script's stage from a composed, resolved configuration."""
    from subliminal import stages

    with errors_of_a_job():
        _go_where_it_started()
        join()  # a job's task begins here
        exp = parse(composed)
        stages.require_category(exp)
        stages.require_rows(exp)
        stages.require_prompts(exp)
        stages.require_templates(exp, rows=stage != "evaluate" or exp.subject != "reference")
        started = time.monotonic()
        made = stages.ensure(stages.node(stage, exp), Store(Path(exp.store)), exp, arguments())
        say(f"{made.folder} ({time.monotonic() - started:.1f} s)")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn expected failures into one clear message and an exit code; unexpected ones keep their traceback."""
    try:
        yield
    except ConfigError as error:
        _refuse(str(error))
    except (StoreError, RowError) as error:
        _quit(str(error), FAILED)
    except KeyboardInterrupt:
        _quit("interrupted; the same command goes on where this one stopped", INTERRUPTED)
    except Exception as error:
        if type(error).__module__.startswith(("hydra.", "omegaconf.")) or str(error).startswith(NO_PLUGIN):
            _refuse(hydra_message(error))
        if type(error).__module__.startswith("submitit."):
            _quit(f"a job failed; what is done is kept\n{_indent(str(error))}", FAILED)
        if not disk_is_full(error):
            raise
        _quit("the disk is full: free some space and run the same command again; it goes on from what is done", FAILED)


@contextmanager
def errors_of_a_job() -> Iterator[None]:
    """`clear_errors` here; a launcher's process passes errors on, to be told once where the sweep was started."""
    if not _launched():
        with clear_errors():
            yield
    elif "SUBMITIT_EXECUTOR" in os.environ:
        with _failing_job():
            yield
    else:
        yield


def _launched() -> bool:
    """Is this one job of a multirun whose launcher has processes of its own."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return False
    settings = HydraConfig.get()
    return (
        settings.mode is not None
        and settings.mode.name == "MULTIRUN"
        and "core_plugins" not in settings.launcher._target_
    )


def _go_where_it_started() -> None:
    """Relative paths mean the folder that the sweep was started in, on whichever machine a job runs."""
    if not _launched():
        return
    from hydra.core.hydra_config import HydraConfig

    start = HydraConfig.get().runtime.cwd
    try:
        os.chdir(start)
    except OSError as error:
        raise StoreError(
            f"{start} is where the sweep was started and can not be entered on {socket.gethostname()} "
            f"({error.strerror}); start sweeps in a folder that all machines see"
        ) from None


@contextmanager
def _failing_job() -> Iterator[None]:
    """End a submitit job that raises as failed: Hydra keeps the error as a result, and SLURM would see a success."""
    try:
        yield
    except Exception as error:
        from submitit.core.job_environment import JobEnvironment  # what the one who waits for the result finds there
        from submitit.core.utils import cloudpickle_dump, temporary_save_path

        with temporary_save_path(JobEnvironment().paths.result_pickle) as path:
            cloudpickle_dump(("error", f"{type(error).__name__}: {error}"), path)
        traceback.print_exc()
        sys.exit(FAILED)


def expect_own_launchers() -> None:
    """Quiet Hydra about launchers whose plugins know their names too: ours are meant to be read in their place."""
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema", UserWarning)


def hydra_message(error: Exception) -> str:
    """What Hydra or OmegaConf says about a command line, in one line and with the remedy for what is met most often."""
    said = str(error).split("\n")
    if "hydra/launcher/" in said[0] or said[0].startswith(NO_PLUGIN):
        extra = "ray" if "ray" in said[0] else "cluster"
        return f"{said[0].rstrip('.')}: the launcher is in an extra of its own (make install EXTRAS=cpu,dev,{extra})"
    if said[0].startswith("Ambiguous value"):
        return f"{said[0]}: several values need -m (--multirun), or write key=[a,b] for a list"
    if said[0].startswith("Could not override"):
        return f"{said[0].rstrip('.')}: the chosen option has no such setting (see --cfg job)"
    return said[0]


def _refuse(problems: str) -> None:
    _quit(f"This experiment can not run:\n{_indent(problems)}", BAD_CONFIG)


def disk_is_full(error: BaseException) -> bool:
    """Was it a full disk, a quota or a file-size limit: rows, weights and resume points each tell it their way."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if any(f"(os error {number})" in str(error) for number in FULL) or "file write failed" in str(error):
        return True  # safetensors' and torch's own words
    before = error.__cause__ or error.__context__
    return before is not None and disk_is_full(before)


def _quit(message: str, code: int) -> None:
    say(message)
    sys.exit(code)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def arguments() -> list[str]:
    """The overrides this process was started with, or its job of a multirun, without Hydra's own flags."""
    if _launched():
        from hydra.core.hydra_config import HydraConfig

        return list(HydraConfig.get().overrides.task)  # its command line is the launcher's
    return list(_command_line(sys.argv[1:]).overrides)


def _command_line(argv: list[str]) -> Any:
    from hydra._internal.utils import get_args_parser  # the one parser that knows which flags take a value

    return get_args_parser().parse_args(argv)


def check_arguments(argv: list[str] | None = None) -> None:
    """Refuse unknown settings and options before Hydra composes anything: every problem at once, exit 2."""
    given = _command_line(sys.argv[1:] if argv is None else argv)
    if given.config_dir or given.config_path or given.config_name or given.shell_completion:
        return  # another tree is on the search path: Hydra knows it, we do not
    judged = {part: argument_problems(part) for part in given.overrides}
    problems = [problem for found in judged.values() for problem in found]
    if problems:
        _refuse("\n".join([*problems, *_further_problems([part for part, found in judged.items() if not found])]))


def _further_problems(overrides: list[str]) -> list[str]:
    """What is wrong with the arguments whose names are right, so that one run tells every mistake."""
    try:
        compose(overrides)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def argument_problems(override: str) -> list[str]:
    """What is wrong with one `key=value` of the command line: nothing, an unknown key, an unknown option."""
    match = OVERRIDE.match(override)
    if not match or (match["value"] is None and match["sign"] != "~"):
        return [f"{override!r} is not an override; write key=value"]
    key, value = match["key"].split("@")[0], match["value"] or ""
    if key.split(".")[0].split("/")[0] == "hydra":
        return []
    if (CONF / key).is_dir():
        return [] if "." in key else _option_problems(key, value)
    return _key_problems(tuple(key.split(".")))


def _option_problems(group: str, value: str) -> list[str]:
    options = [path.stem for path in (CONF / group).glob("*.yaml")]
    chosen = [part.strip(" '\"[]") for part in value.split(",") if part.strip()]
    if any(mark in value for mark in "${}()*"):
        return []  # Hydra's own sweep functions
    return [f"{group}={one}: no such option.{suggest(one, options)}" for one in chosen if one not in options]


def _key_problems(path: tuple[str, ...]) -> list[str]:
    for depth, part in enumerate(path):
        try:
            known = fields_at(path[:depth])
        except KeyError:
            return []  # below a plain value: the parser says what it thinks
        if part not in known:
            return [f"{'.'.join(path)}: no such setting.{suggest(part, list(known))}"]
    return []


def compose(overrides: list[str]) -> Experiment:
    """Compose and parse an experiment in this process, as the scripts would from these overrides."""
    return parse(compose_plain(overrides))


def compose_plain(overrides: list[str]) -> dict[str, Any]:
    """The composed, resolved configuration as plain data; raises `ConfigError` for what Hydra refuses."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    problems = [problem for part in overrides for problem in argument_problems(part)]
    if problems:
        raise ConfigError("\n".join(problems))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = OmegaConf.to_container(hydra_compose("config", overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_message(error)) from None
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def is_hydras(override: str) -> bool:
    """Is an override one of Hydra's own settings, added (`+`, `++`) and deleted (`~`) ones too?"""
    return override.lstrip("+~").startswith("hydra")


def launcher_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """The chosen launcher's settings as plain data: `hydra/launcher=` and `hydra.launcher.*` among the overrides."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    expect_own_launchers()
    GlobalHydra.instance().clear()
    chosen = [part for part in overrides if is_hydras(part)]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose("config", chosen, return_hydra_config=True)
            found = OmegaConf.to_container(composed.hydra.launcher, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_message(error)) from None
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


def as_yaml(settings: Settings) -> str:
    """A settings group as YAML, for people."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def script_environment() -> dict[str, str]:
    """The environment of a script started by us: the package importable from the clone, quiet libraries."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return QUIET | os.environ | {"PYTHONPATH": path}
