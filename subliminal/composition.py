"""A command line as an experiment: which settings and options there are, what Hydra composes, and what it refuses."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from subliminal.config import ConfigError, Experiment, Settings, fields_at, parse, suggest

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
NO_PLUGIN = "Unknown plugin class"  # what Hydra says of a launcher that is not installed
SEARCH_PATH = "hydra.searchpath="  # where options are looked for beside conf/, a list
OVERRIDE = re.compile(r"^(?P<sign>\+\+|\+|~)?(?P<key>[\w@./-]+)(=(?P<value>.*))?$", re.DOTALL)


def argument_problems(override: str, folders: Sequence[Path] | None = None) -> list[str]:
    """What is wrong with one `key=value` of the command line: nothing, an unknown key, an unknown option.

    `folders` are where options are looked for, `conf/` alone by default.
    """
    groups = [folder for folder in (folders or [CONF]) if folder.is_dir()]
    match = OVERRIDE.match(override)
    if not match or (match["value"] is None and match["sign"] != "~"):
        return [f"{override!r} is not an override; write key=value"]
    key, value = match["key"].split("@")[0], match["value"] or ""
    if key.split(".")[0].split("/")[0] == "hydra":
        return _value_problems(override)
    if any((folder / key).is_dir() for folder in groups):
        problems = [] if "." in key else _option_problems(key, value, groups)
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


def _option_problems(group: str, value: str, folders: Sequence[Path]) -> list[str]:
    options = [path.stem for folder in folders for path in (folder / group).glob("*.yaml")]
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


def expect_own_launchers() -> None:
    """Quiet Hydra about launchers whose plugins know their names too: ours are meant to be read in their place."""
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema", UserWarning)


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

    folders = config_folders(overrides)
    problems = [problem for part in overrides for problem in argument_problems(part, folders)]
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
    """Is an override one of Hydra's own settings, added (`+`, `++`) and deleted (`~`) ones too?

    Not the search path: which options there are is part of every composition.
    """
    return override.lstrip("+~").startswith("hydra") and not override.startswith(SEARCH_PATH)


def config_folders(overrides: Sequence[str]) -> list[Path]:
    """Where options are looked for: `conf/`, and the folders that overrides put on Hydra's search path."""
    return [CONF, *map(Path, _searched(overrides))]


def with_config_dir(overrides: Sequence[str], folder: str | None) -> list[str]:
    """The overrides with a folder of the user's on Hydra's search path, as a script's `--config-dir` puts it there.

    Raises `ConfigError` where there is no such folder.
    """
    if folder is None:
        return list(overrides)
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(
            f"--config-dir={folder}: no such folder; give one that has groups as conf/ has (domain/, ...)"
        )
    others = [part for part in overrides if not part.startswith(SEARCH_PATH)]
    listed = ",".join(shlex.quote(each) for each in [*_searched(overrides), str(path)])
    return [f"{SEARCH_PATH}[{listed}]", *others]


def _searched(overrides: Sequence[str]) -> list[str]:
    """The folders that overrides put on Hydra's search path; packages (pkg://) are none."""
    listed = [_read(part) for part in overrides if part.startswith(SEARCH_PATH)]
    texts = [str(getattr(entry, "text", entry)) for entries in listed for entry in entries or []]
    return [text.removeprefix("file://") for text in texts if not text.startswith("pkg://")]


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
    chosen = [part for part in overrides if is_hydras(part) or part.startswith(SEARCH_PATH)]
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
