"""From a command line to a stage: arguments checked at once, errors without tracebacks, exit codes that mean something.

Exit 2: the configuration can not run. Exit 1: a stage failed; `failure.json` in its folder has the trace.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

from subliminal.config import ConfigError, Experiment, Settings, fields_at, parse, suggest
from subliminal.device import hold_gpus, resolve_device, visible_gpus
from subliminal.processes import EXECUTOR, MULTIRUN, join, world_size
from subliminal.progress import say
from subliminal.rows import RowError
from subliminal.store import Store, StoreError

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
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
    from subliminal import multirun

    os.environ.update(QUIET | os.environ)
    expect_own_launchers()
    with clear_errors():
        join()
    check_arguments()
    with clear_errors(), multirun.listed(Path(sys.argv[0])):
        main()


def run_stage(stage: str, composed: Any) -> None:
    """Run one script's stage from a composed, resolved configuration."""
    from subliminal import checks, stages

    with errors_of_a_job():
        _go_where_it_started()
        join()  # a job's task begins here
        exp = parse(composed)
        _hold_own_gpus(exp)
        checks.check(exp, stage, here=True)
        started = time.monotonic()
        wanted, store = stages.node(stage, exp), Store(Path(exp.store))
        if EXECUTOR not in os.environ:  # SLURM's jobs are requeued, and know by their dependencies what failed
            stages.require_untried(wanted, store)
        made = stages.ensure(wanted, store, exp, arguments())
        say(f"{made.folder} ({time.monotonic() - started:.1f} s)")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn expected failures into one clear message and an exit code; unexpected ones keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _quit("interrupted; the same command goes on where this one stopped", INTERRUPTED)
    except Exception as error:
        explained = explanation(error)
        if explained is None:
            raise
        _quit(*explained)


def explanation(error: Exception) -> tuple[str, int] | None:
    """What is said of an expected failure and the exit code for it; None for an unexpected one."""
    if isinstance(error, ConfigError):
        return _refusal(str(error)), BAD_CONFIG
    if isinstance(error, (StoreError, RowError)):
        return str(error), FAILED
    if type(error).__module__.startswith(("hydra.", "omegaconf.")) or str(error).startswith(NO_PLUGIN):
        return _refusal(hydra_message(error)), BAD_CONFIG
    if type(error).__module__.startswith("yaml."):
        return _refusal(yaml_message(error)), BAD_CONFIG
    if type(error).__module__.startswith("submitit."):
        return f"a job failed; what is done is kept\n{_indent(str(error))}", FAILED
    if disk_is_full(error):
        said = "the disk is full: free some space and run the same command again; it goes on from what is done"
        return said, FAILED
    if isinstance(error, OSError) and _of_hydras_folder(error):
        return _refusal(
            f"{error.filename}: Hydra's folder for logs can not be made ({error.strerror}); set hydra.run.dir=, or for "
            "several jobs hydra.sweep.dir=, to a folder you can write to, or start in one"
        ), BAD_CONFIG
    if isinstance(error, OSError) and error.errno in FORBIDDEN and error.filename:
        return f"{error.filename}: {error.strerror}; give a place where you may read and write", FAILED
    return None


def _of_hydras_folder(error: OSError) -> bool:
    """Was it Hydra that could not make a folder or a file, and not the stage that it runs?"""
    frames = traceback.extract_tb(error.__traceback__)
    stage = any(frame.name == run_stage.__name__ for frame in frames)
    return not stage and any(f"{os.sep}hydra{os.sep}" in frame.filename for frame in frames)


def require_writable(folder: Path, setting: str) -> None:
    """Stop before any work where results could not be written; raises `ConfigError` that names the setting."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=there):
            return
    except OSError as error:
        if disk_is_full(error):
            raise
        raise ConfigError(
            f"{setting}={folder}: nothing can be written in {there} ({error.strerror}); set {setting}= to a folder you "
            "can write to"
        ) from None


@contextmanager
def errors_of_a_job() -> Iterator[None]:
    """`clear_errors` for a script's only job; one of a multirun is noted instead, and the others are run."""
    from subliminal import multirun

    if EXECUTOR in os.environ:
        with _failing_job() if _launched() else clear_errors():
            yield
    elif multirun.is_a_job() and MULTIRUN in os.environ and world_size() == 1:
        with multirun.noted(launched=_launched()):
            yield
    else:
        with clear_errors():
            yield


def _launched() -> bool:
    """Is this one job of a multirun whose launcher has processes of its own."""
    from hydra.core.hydra_config import HydraConfig

    from subliminal.multirun import is_a_job

    return is_a_job() and "core_plugins" not in HydraConfig.get().launcher._target_


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


def _hold_own_gpus(exp: Experiment) -> None:
    """Give each process of a pool on this machine GPUs of its own: to all of them "cuda" is the first one they see.

    Where too few are free jobs share them, but for vLLM, whose engine takes nearly all of a GPU's memory. Raises
    `ConfigError` then.
    """
    if not _in_a_pool() or resolve_device(exp.device) != "cuda" or len(gpus := visible_gpus()) == 0:
        return
    each = getattr(exp.sampler, "tensor_parallel", 1)
    locks = Path(gettempdir()) / f"subliminal-gpus-{os.getuid()}"
    if not hold_gpus(each, gpus, locks) and exp.sampler.kind == "vllm":
        raise ConfigError(
            f"hydra/launcher=local_pool: each job needs {each} GPU{'s' * (each > 1)} for sampler=vllm, and other jobs "
            f"have the {len(gpus)} of this machine; set hydra.launcher.n_jobs={max(1, len(gpus) // each)}, or "
            "sampler=transformers, which shares a GPU"
        )


def _in_a_pool() -> bool:
    """Is this a job of hydra/launcher=local_pool, in a process of its own."""
    from hydra.core.hydra_config import HydraConfig

    return _launched() and "joblib" in HydraConfig.get().launcher._target_


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
        key, _, value = said[0].partition("'")[2].removesuffix("'").partition("=")
        texts = _as_text(key, value) if ", " in value else []
        text = "".join(f", or as text {shlex.quote(typed)}" for typed in texts[:1])
        return f"{said[0]}: several values need -m (--multirun), or write key=[a,b] for a list{text}"
    if said[0].startswith("Interpolation key"):
        key = next((line.partition(":")[2].strip() for line in said if line.strip().startswith("full_key:")), "")
        return f"{key}: {said[0]}: ${{...}} is the value of another setting; for the signs themselves write \\${{...}}"
    if said[0].startswith("Could not override"):
        return f"{said[0].rstrip('.')}: the chosen option has no such setting (see --cfg job)"
    return said[0]


def yaml_message(error: Exception) -> str:
    """Where a file is no YAML, and the remedy for what is met most often."""
    mark, why = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    place = f"{mark.name}:{mark.line + 1}: " if mark else ""
    return f"{place}{why}; put a text with characters of YAML's own (: # @ * ! & % {{ [ |) in quotes"


def _refuse(problems: str) -> None:
    _quit(_refusal(problems), BAD_CONFIG)


def _refusal(problems: str) -> str:
    return f"This experiment can not run:\n{_indent(problems)}"


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
    """Refuse unknown settings and options before Hydra composes anything: every problem at once, exit 2.

    Of a multirun by hand every job is looked at, so that none begins where one can not run.
    """
    from subliminal import multirun

    given = _command_line(sys.argv[1:] if argv is None else argv)
    if given.config_dir or given.config_path or given.config_name or given.shell_completion:
        return  # another tree is on the search path: Hydra knows it, we do not
    judged = {part: argument_problems(part) for part in given.overrides}
    problems = [problem for found in judged.values() for problem in found]
    if problems or (given.multirun and multirun.REPORT not in os.environ):  # a sweep has looked at all its jobs
        right = [part for part, found in judged.items() if not found]
        problems += _job_problems(right) if given.multirun else _further_problems(right)
    if problems:
        _refuse("\n".join(problems))


def _job_problems(overrides: list[str]) -> list[str]:
    """What is wrong with each job of a multirun: all that is known without work."""
    from subliminal import checks, stages

    stage, problems = Path(sys.argv[0]).stem, dict[str, None]()
    here = not any(part.startswith("hydra/launcher=") for part in overrides)
    for job in jobs_of(overrides):
        try:
            exp = compose([part for part in job if not is_hydras(part)])
            if stage in {known.script for known in stages.STAGES.values()}:
                checks.check(exp, stage, here=here)
        except ConfigError as error:
            own = " ".join(part for part in job if part not in overrides)
            problems |= dict.fromkeys(f"{own}: {line}" if own else line for line in str(error).splitlines())
    return list(problems)


def jobs_of(overrides: list[str]) -> list[list[str]]:
    """The overrides of every job of a multirun, as Hydra's own sweeper expands them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with clear_errors():
        return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)[0]


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
        return _value_problems(override)
    if (CONF / key).is_dir():
        problems = [] if "." in key else _option_problems(key, value)
    else:
        problems = _key_problems(tuple(key.split(".")))
    return problems or _value_problems(override)


def _value_problems(override: str) -> list[str]:
    """What Hydra's grammar can not read, and how it is typed: text with other signs than letters is quoted."""
    if _read(override) is not None:
        return []
    key, _, value = override.partition("=")
    said = f"{override}: Hydra can not read this value"
    if value.startswith(("[", "{")):
        said += " (a list is [a,b], a table {a: 1})"
    typed = [f"{key}={Path(value).expanduser()}"] if value.startswith("~/") else _as_text(key, value)
    readable = next((candidate for candidate in typed if _read(candidate) is not None), None)
    return [f"{said}; as text it is typed {shlex.quote(readable)}" if readable else said]


def _as_text(key: str, value: str) -> list[str]:
    """An override whose value is this text to the letter, in double or in single quotes."""
    typed = []
    for quote in ('"', "'"):  # a backslash is one unless it stands before a quote
        escaped = re.sub(
            rf"(\\*)({quote}|$)", lambda found, q=quote: 2 * found[1] + (f"\\{q}" if found[2] else ""), value
        )
        candidate = f"{key}={quote}{escaped}{quote}"
        if _read(candidate) == value:
            typed.append(candidate)
    return typed


@cache
def _read(override: str) -> Any:
    """The value that Hydra reads in an override, a sweep's too; None where it can not read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return None
    return "" if parsed.value() is None else parsed.value()


def _option_problems(group: str, value: str) -> list[str]:
    options = [path.stem for path in (CONF / group).glob("*.yaml")]
    chosen = [part.strip(" '\"[]") for part in value.split(",") if part.strip()]
    if any(mark in value for mark in "${}()*"):
        return []  # Hydra's own sweep functions
    return [f"{group}={one}: no such option.{suggest(one, options)}" for one in chosen if one not in options]


def _key_problems(path: tuple[str, ...]) -> list[str]:
    for depth, part in enumerate(path):
        try:
            known = fields_at(path[:depth], Experiment)
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
    from yaml import YAMLError

    problems = [problem for part in overrides for problem in argument_problems(part)]
    if problems:
        raise ConfigError("\n".join(problems))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = OmegaConf.to_container(hydra_compose("config", overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_message(error)) from None
    except YAMLError as error:
        raise ConfigError(yaml_message(error)) from None
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
