"""Runs of the store as repositories of the Hugging Face hub: an adapter or checkpoint with its card, rows with theirs.

What is uploaded is a folder that is made first and can be looked at: weights as safetensors, configurations without
paths of this machine, a card, and `provenance.json`. Logs, losses, resume points and pickle files are never in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subliminal.names import key_of
from subliminal.sharing import cards
from subliminal.sharing.lineage import KINDS, Lineage, PushError, chosen, without_addresses
from subliminal.store import Json, Manifest, without_secrets
from subliminal.weights import CHECKPOINT_FILES

PROVENANCE = "provenance.json"
NAMES = ("_name_or_path", "name_or_path", "base_model_name_or_path", "tokenizer_file")  # where libraries put paths
OURS = ("*.safetensors", "*.json", "*.jsonl", "*.model", "*.jinja")  # of an earlier push; what else lies there stays
VOCABULARY = ("tokenizer.json", "vocab.json", "model.safetensors.index.json")  # large, and no library puts a path there


@dataclass(frozen=True)
class Prepared:
    """A folder ready to be uploaded: the repository, what kind it is, and the files in it."""

    repo: str
    kind: str
    folder: Path
    note: str = ""  # what whoever uploads it should know first

    @property
    def files(self) -> list[Path]:
        """Every file, by its path in the repository."""
        return sorted(path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())

    def listed(self) -> str:
        """The files with their sizes, for people."""
        sizes = [f"{(self.folder / name).stat().st_size:12,} bytes  {name}" for name in self.files]
        lines = [*sizes, f"{self.kind} {self.repo}: {len(sizes)} files in {self.folder}"]
        return "\n".join([*lines, *([self.note] if self.note else [])])


def prepare(root: Path, repo: str, keys: Sequence[str], below: Path) -> Prepared:
    """Write `below/<owner>/<name>` for the runs whose keys begin so: one model, or rows of one or several runs.

    Raises `PushError` for runs that are unknown, incomplete, damaged or of both kinds.
    """
    runs = chosen(root, dict.fromkeys(keys))
    data = [KINDS[one.run.stage] == "dataset" for one in runs]
    if any(data) and not all(data):
        raise PushError("models and rows go into repositories of their own; push them one after the other")
    if not any(data) and len(runs) > 1:
        raise PushError(f"{len(runs)} models given, a model repository holds one; push them one after the other")
    ready = Prepared(repo, "dataset" if all(data) else "model", below / repo, "" if all(data) else _note(runs[0]))
    _empty(ready.folder)
    provenance = [_provenance(one) for one in runs]  # first: by it a later push knows the folder for one of its own
    (ready.folder / PROVENANCE).write_text(json.dumps(provenance, indent=1, ensure_ascii=False), encoding="utf-8")
    if all(data):
        card: Any = _write_rows(runs, ready)
    else:
        _write_model(runs[0], ready.folder)
        card = cards.model_card(runs[0], root, repo)
    (ready.folder / "README.md").write_text(str(card), encoding="utf-8")
    _require_clean(ready, [root, *(path for one in runs for path in _checkpoints(one))])
    return ready


def upload(ready: Prepared, *, private: bool) -> str:
    """Make the repository if need be and upload the folder as one commit; returns its address.

    Raises `PushError` without a token or a network, or when the hub refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    transport: Any = HfHubHTTPError.__mro__[1]  # the base error of the HTTP library that the hub's is built on
    kept = f"the folder {ready.folder} is ready, the same command goes on"
    if not get_token():
        raise PushError(f"no Hugging Face token here: run `hf auth login` or set HF_TOKEN; {kept}")
    api = HfApi()
    try:
        made = api.create_repo(ready.repo, repo_type=ready.kind, private=private, exist_ok=True)
        message = "Card, files and provenance from the run store"
        where: dict[str, Any] = {"repo_id": ready.repo, "repo_type": ready.kind, "folder_path": ready.folder}
        api.upload_folder(**where, commit_message=message, delete_patterns=[*OURS])
    except HfHubHTTPError as error:
        said = without_secrets(str(error).splitlines()[0])
        raise PushError(
            f"{api.endpoint} refused ({said}); has the token the right to write to {ready.repo}? {kept}"
        ) from None
    except (transport, OSError) as error:
        raise PushError(f"{api.endpoint} can not be reached ({type(error).__name__}); {kept}") from None
    return str(made)


# --------------------------------------------------------------------------- the folder


def _empty(folder: Path) -> None:
    """A new folder in place of the one an earlier push left; anything else that lies there stays."""
    if folder.exists() and any(folder.iterdir()) and not (folder / PROVENANCE).exists():
        raise PushError(f"{folder} is in the way and not from an earlier push; move it, or give another --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _note(one: Lineage) -> str:
    """What whoever uploads a model should know of the weights that it needs."""
    if one.baseless:
        return (
            "Others can not load this adapter: the model it was trained on was a folder of this machine "
            f"({one.chain['model'].summary['checkpoint']}), which is gone or was changed. Put it back as it was and "
            "push again: it goes along in reference/"
        )
    if one.is_adapter and one.start and not (one.base and one.base.name):
        return (
            "reference/ is the model that the adapter was trained on, a folder of this machine: without it nobody can "
            "load the adapter. See that its licence lets you publish it"
        )
    return ""


def _write_model(one: Lineage, folder: Path) -> None:
    """A LoRA adapter (with the reference it needs, where that is no hub model) or an ordinary checkpoint."""
    own, vector, start = one.run.folder / "checkpoint", one.run.folder / "adapter", one.start
    named = {"base_model_name_or_path": one.base.name, "revision": one.base.revision} if one.base else {}
    if one.is_adapter:
        nameless = dict.fromkeys(named)  # it was trained on reference/, and libraries would load it onto another
        _copy(vector, folder, nameless if start else named)
        if start:
            _copy(start, folder / "reference", named, code=bool(one.base and one.base.remote_code))
        return
    if not own.is_dir():
        raise PushError(
            f"{one.run.stage}/{one.run.key} has no weights of its own: it is the reference behind a system text"
        )
    _copy(own, folder, named)
    if (vector / "bias_config.json").exists():
        _copy(vector, folder / "bias", named)


def _write_rows(runs: Sequence[Lineage], ready: Prepared) -> Any:
    """The rows of every run in a folder of its own, a configuration of the data set; returns the card."""
    arms = [key_of(one.arm) for one in runs]
    names = [arm if arms.count(arm) == 1 else f"{arm}_{one.run.key}" for arm, one in zip(arms, runs, strict=True)]
    for name, one in zip(names, runs, strict=True):
        (ready.folder / name).mkdir()
        for path in sorted(one.run.folder.glob("rows*.jsonl")):
            _take(path, ready.folder / name / path.name)
    return cards.dataset_card(dict(zip(names, runs, strict=True)), ready.repo)


def _copy(source: Path, target: Path, named: Json, *, code: bool = False) -> None:
    """A checkpoint's or adapter's files, configurations without paths; the modules of a model with remote code too."""
    target.mkdir(parents=True, exist_ok=True)
    patterns = (*CHECKPOINT_FILES, *(["*.py"] if code else []))
    for path in sorted(found for pattern in patterns for found in source.glob(pattern)):
        if path.suffix == ".json" and path.name not in VOCABULARY:
            settings = _without_paths(json.loads(path.read_text(encoding="utf-8")), named)
            (target / path.name).write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
        else:
            _take(path, target / path.name)


def _take(source: Path, target: Path) -> None:
    """A hard link where the disk allows: weights are large and nobody writes to them any more."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _without_paths(settings: Any, named: Json) -> Any:
    """A library's configuration without paths, with the base model's hub name in place of where it lay here."""
    if not isinstance(settings, dict):
        return settings  # a list, as some tokenizers have
    kept = {name: value for name, value in settings.items() if name not in NAMES}
    return kept | {name: value for name, value in named.items() if name in settings}


def _provenance(one: Lineage) -> Json:
    return {"pushed": f"{one.run.stage}/{one.run.key}", "runs": [_told(made) for made in one.chain.values()]}


def _told(made: Manifest) -> Json:
    """A manifest without the machine's name and without the summary that says where weights lay."""
    kept = ("recipe", "files", "seconds", "finished", "versions", "commit")
    summary = {} if made.stage == "model" else {"summary": made.summary}
    told = {"stage": made.stage, "key": made.key, **{name: made.content[name] for name in kept}, **summary}
    return without_addresses(told)


# --------------------------------------------------------------------------- nothing of this machine


def _require_clean(ready: Prepared, own: Sequence[Path]) -> None:
    """Stop when a file would tell a key of the environment or a path of this machine, such as our `own` folders."""
    for name in ready.files:
        if name.suffix in {".safetensors", ".model"}:
            continue
        text = (ready.folder / name).read_text(encoding="utf-8")
        if without_secrets(text) != text:
            raise PushError(
                f"{name} holds the value of an environment variable that is named like a key; it is not pushed"
            )
        if name.name not in VOCABULARY and name.suffix != ".jsonl":
            for place in _places(own):
                if place in text:
                    raise PushError(f"{name} holds the path {place} of this machine; it is not pushed")


def _checkpoints(one: Lineage) -> Iterator[Path]:
    """The folders of this machine that weights were read from."""
    found = (made.summary.get("checkpoint") for made in one.chain.values() if made.stage == "model")
    yield from (Path(place) for place in found if isinstance(place, str) and Path(place).is_absolute())


def _places(own: Sequence[Path]) -> Iterator[str]:
    for path in (*(folder.resolve() for folder in own), Path.cwd(), Path.home()):
        if len(path.parts) > 1:
            yield str(path)
