"""From a command line to a stage: arguments are checked at once, then a job's stage is made."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from subliminal.composition import (
    ROOT,
    argument_problems,
    compose,
    config_folders,
    expect_own_launchers,
    is_hydras,
    with_config_dir,
)
from subliminal.config import ConfigError, Experiment, VllmSampler, parse
from subliminal.device import hold_gpus, resolve_device, visible_gpus
from subliminal.errors import BAD_CONFIG, FAILED, clear_errors, leave, refusal
from subliminal.processes import EXECUTOR, MULTIRUN, join, world_size
from subliminal.progress import say
from subliminal.store import Store, StoreError

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads make training ten times slower beside any other busy process
    "HYDRA_FULL_ERROR": "1",  # Hydra's errors reach `clear_errors`, which says them plainly
}  # what libraries read when they are imported; what the user has set stays


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
    each = exp.sampler.tensor_parallel if isinstance(exp.sampler, VllmSampler) else 1
    locks = Path(gettempdir()) / f"subliminal-gpus-{os.getuid()}"
    if not hold_gpus(each, gpus, locks) and isinstance(exp.sampler, VllmSampler):
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


def arguments() -> list[str]:
    """The overrides this process was started with, or its job of a multirun, without Hydra's own flags."""
    if _launched():
        from hydra.core.hydra_config import HydraConfig

        return list(HydraConfig.get().overrides.task)  # its command line is the launcher's
    given = _command_line(sys.argv[1:])
    return with_config_dir(given.overrides, given.config_dir)


def _command_line(argv: list[str]) -> Any:
    from hydra._internal.utils import get_args_parser  # the one parser that knows which flags take a value

    return get_args_parser().parse_args(argv)


def check_arguments(argv: list[str] | None = None) -> None:
    """Refuse unknown settings and options before Hydra composes anything: every problem at once, exit 2.

    Of a multirun by hand every job is looked at, so that none begins where one can not run.
    """
    from subliminal import multirun

    given = _command_line(sys.argv[1:] if argv is None else argv)
    if given.config_path or given.config_name or given.shell_completion:
        return  # another tree is composed: Hydra knows it, we do not
    with clear_errors():
        overrides = with_config_dir(given.overrides, given.config_dir)
    folders = config_folders(overrides)
    judged = {part: argument_problems(part, folders) for part in overrides}
    problems = [problem for found in judged.values() for problem in found]
    if problems or (given.multirun and multirun.REPORT not in os.environ):  # a sweep has looked at all its jobs
        right = [part for part, found in judged.items() if not found]
        problems += _job_problems(right) if given.multirun else _further_problems(right)
    if problems:
        leave(refusal("\n".join(problems)), BAD_CONFIG)


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


def script_environment() -> dict[str, str]:
    """The environment of a script started by us: the package importable from the clone, quiet libraries."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return QUIET | os.environ | {"PYTHONPATH": path}
