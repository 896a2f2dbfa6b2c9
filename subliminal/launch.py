"""From a command line to a stage: arguments checked at once, errors without tracebacks, exit codes that mean something.

Exit 2: the configuration can not run. Exit 1: a stage failed; `failure.json` in its folder has the trace.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from subliminal.config import ConfigError, Experiment, Settings, fields_at, parse, suggest
from subliminal.progress import say
from subliminal.rows import RowError
from subliminal.store import Store, StoreError

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BAD_CONFIG, FAILED, INTERRUPTED = 2, 1, 130

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}  # what libraries read when they are imported; what the user has set stays

OVERRIDE = re.compile(r"^(?P<sign>\+\+|\+|~)?(?P<key>[\w@./-]+)(=(?P<value>.*))?$", re.DOTALL)


def run_stage(stage: str, composed: Any) -> None:
    """Run one script's stage from a composed, resolved configuration."""
    from subliminal import stages

    os.environ.update(QUIET | os.environ)
    with clear_errors():
        exp = parse(composed)
        stages.require_category(exp)
        started = time.monotonic()
        made = stages.ensure(stages.node(stage, exp), Store(Path(exp.store)), exp, " ".join(arguments()))
        say(f"{made.folder} ({time.monotonic() - started:.1f} s)")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn expected failures into one clear message and an exit code; unexpected ones keep their traceback."""
    try:
        yield
    except ConfigError as error:
        _quit(f"This experiment can not run:\n{_indent(str(error))}", BAD_CONFIG)
    except (StoreError, RowError) as error:
        _quit(str(error), FAILED)
    except Exception as error:
        if not disk_is_full(error):
            raise
        _quit("the disk is full: free some space (python -m subliminal gc) and run the same command again", FAILED)
    except KeyboardInterrupt:
        _quit("interrupted; the same command goes on where this one stopped", INTERRUPTED)


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
    """The overrides this process was started with, without Hydra's own flags."""
    return [part for part in sys.argv[1:] if not part.startswith("-")]


def check_arguments(argv: list[str] | None = None) -> None:
    """Refuse unknown settings and options before Hydra composes anything: every problem at once, exit 2."""
    given = sys.argv[1:] if argv is None else argv
    if any(part in {"--config-dir", "-cd", "--config-path", "-cp", "-sc", "--shell-completion"} for part in given):
        return  # another tree is on the search path: Hydra knows it, we do not
    problems = [problem for part in given if not part.startswith("-") for problem in argument_problems(part)]
    if problems:
        _quit(f"This experiment can not run:\n{_indent(chr(10).join(problems))}", BAD_CONFIG)


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
        raise ConfigError(str(error).split("\n")[0]) from None
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def as_yaml(settings: Settings) -> str:
    """A settings group as YAML, for people."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def script_environment() -> dict[str, str]:
    """The environment of a script started by us: the package importable from the clone, quiet libraries."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return QUIET | os.environ | {"PYTHONPATH": path}
