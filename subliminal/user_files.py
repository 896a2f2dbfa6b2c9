"""Files that a user brings: one reader for all of them, and one error that names file, line and what is wrong there.

A file is JSON Lines, or one JSON array over the whole file, as it is or gzipped. Its text is UTF-8, UTF-16 or UTF-32.
Bytes of another encoding are refused and never guessed at: what is read is what the file says.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from subliminal.config import ConfigError
from subliminal.provenance import sha256
from subliminal.store import Json

GZIP = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
NOT_TEXT = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ\x00": "an xz archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it",
    b"PAR1": "a Parquet table; save it as JSON Lines",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; run git lfs pull",
    b"<": "a web page or XML; download the raw file",
}  # how a file begins that is no JSON, and what to do with it
NO_FILE = {
    "missing": "no such file",
    "folder": "a folder, not a file",
    "other": "no ordinary file (what can be read only once, such as a pipe, must be saved first)",
}  # by what a path leads to
KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}

SURROGATE = re.compile("[\ud800-\udfff]")
BYTES_LEFT = re.compile("[\udc80-\udcff]+")  # what Python's surrogateescape makes of bytes that are not UTF-8
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
SURROGATE_BYTES = re.compile(rb"\xed[\xa0-\xbf]")
LINE_END = re.compile("\r\n?")
SPACE = re.compile(r"[ \t\n\r\ufeff]*")


class UserFileError(ConfigError):
    """A file of the user's that can not be used; the text names file, line, what is wrong there and what to do."""


class _RepeatedKeyError(ValueError):
    """An object with one key twice: which value is meant can not be known."""


# --------------------------------------------------------------------------- paths


def user_path(name: str) -> Path:
    """The path that a user typed, with `~` resolved where there is such a home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no home of that name
        return Path(name)


def kind_of_path(path: Path) -> Literal["file", "folder", "other", "missing"]:
    """What a path leads to; raises `UserFileError` where the system does not let us look."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return "missing"
    except OSError as error:
        raise UserFileError(f"{path} can not be read: {error.strerror}") from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def existing(name: str, setting: str, remedy: str = "give a JSONL file") -> Path:
    """The path of the file that a setting names; raises `UserFileError` with the remedy where it is no file."""
    path = user_path(name)
    if problem := NO_FILE.get(kind_of_path(path)):
        raise UserFileError(f"{setting}={name}: {problem}; {remedy}")
    return path


def content(path: Path) -> str:
    """The hex sha256 of the file's bytes; raises `UserFileError` for one that can not be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from None


# --------------------------------------------------------------------------- records


def records(path: Path, expected: str) -> Iterator[tuple[str, Json]]:
    """Place (`path:line`) and value of every object in a JSONL file or JSON array; empty lines are passed over.

    Raises `UserFileError` naming the place, what is wrong there and what is `expected`.
    """
    text = text_of(path)
    start = _after_space(text, 0)
    if text.startswith("[", start):
        yield from _elements(text, start + 1, path, expected)
        return
    for number, line, at in _lines(text):
        place = f"{path}:{number}"
        if last := _spread_over_lines(text, line, at, number):
            raise UserFileError(
                f"{place}: one object over several lines, up to line {last}; write each object on one line "
                f"(jq -c . does it), or put all of them between [ and ]; expected {expected}"
            )
        yield place, record(line, place, expected)


def undamaged_records(path: Path) -> Iterator[Json]:
    """The objects of a file; where some line can not be read, as one that a crash cut short, those of the others."""
    try:
        yield from [value for _, value in records(path, "an object")]
        return
    except UserFileError:
        pass
    for _, line, _ in _lines(_decoded(_data(path), path)):
        try:
            yield record(line, str(path), "an object")
        except UserFileError:
            continue


def record(line: str, place: str, expected: str) -> Json:
    """The object of one line; raises `UserFileError`.

    The line is decoded with `surrogateescape` where its bytes are not known to be UTF-8.
    """
    if "\0" in line or BYTES_LEFT.search(line):
        raise UserFileError(f"{place}: {_damage(line)}; the line is damaged")
    value, end = _value(line, _after_space(line, 0), place, expected)
    if rest := line[end:].strip():
        if rest == ",":
            problem = "a comma behind the object; remove it, or put the whole file between [ and ]"
        else:
            problem = f"more text behind the object at column {end + 1} ({rest[:20]!r}); write one object a line"
        raise UserFileError(f"{place}: {problem}; expected {expected}")
    return _object(value, place, expected)


def _elements(text: str, at: int, path: Path, expected: str) -> Iterator[tuple[str, Json]]:
    """The objects of a JSON array from behind its bracket on, each with the line it begins in."""
    number, line, counted = 0, 1, 0
    at = _after_space(text, at)
    while not text.startswith("]", at) or number:
        number, line, counted = number + 1, line + text.count("\n", counted, at), at
        place = f"{path}:{line} (element {number})"
        value, at = _value(text, at, place, expected)
        yield place, _object(value, place, expected)
        at = _after_space(text, at)
        if text.startswith("]", at):
            break
        if not text.startswith(",", at):
            problem = "a comma or the end of the array ] is missing" if text[at:] else "the array is cut short: no ]"
            raise UserFileError(f"{place}: {problem} behind this element; expected {expected}")
        at = _after_space(text, at + 1)
    at = _after_space(text, at + 1)
    if rest := text[at : at + 20]:
        raise UserFileError(
            f"{path}:{_line_at(text, at)}: more text behind the end of the array ({rest!r}); a file is one array, or "
            f"one object a line; expected {expected}"
        )


def _value(text: str, at: int, place: str, expected: str) -> tuple[Any, int]:
    """The JSON value that begins at a position, and where it ends."""
    try:
        value, end = DECODER.raw_decode(text, at)
        return (well_formed(value) if SURROGATE_ESCAPE.search(text, at, end) else value), end
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}" if "\n" in text else f"column {error.colno}"
        problem = f"not a JSON object ({error.msg} at {where})"
    except _RepeatedKeyError as error:
        problem = str(error)
    except RecursionError:
        problem = "nested too deeply"
    except ValueError:  # Python's limit
        problem = "a number of more than 4300 digits"
    raise UserFileError(f"{place}: {problem}; expected {expected}")


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"the key {twice!r} stands twice in one object; remove one")
    return value


# Control characters in a text, such as a tab, are taken as they are: their meaning is plain.
DECODER = json.JSONDecoder(object_pairs_hook=_unique, strict=False)


def _object(value: Any, place: str, expected: str) -> Json:
    if not isinstance(value, dict):
        raise UserFileError(f"{place}: {kind_of(value)}, not a JSON object; expected {expected}")
    return value


def _spread_over_lines(text: str, line: str, at: int, number: int) -> int | None:
    """The last line of an object that does not end in the line it begins in; None for every other line."""
    if not line.rstrip().endswith(("{", "[", ",", ":")):
        return None
    try:
        DECODER.raw_decode(line, _after_space(line, 0))
    except (ValueError, RecursionError):
        pass
    else:
        return None
    try:
        _, end = DECODER.raw_decode(text, _after_space(text, at))
    except (ValueError, RecursionError):
        return None
    return number + text.count("\n", at, end)


def _lines(text: str) -> Iterator[tuple[int, str, int]]:
    """Number, text and position of every line that is not empty."""
    at = 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip("\ufeff \t\r"):
            yield number, line, at
        at += len(line) + 1


def _line_at(text: str, at: int) -> int:
    """The number of the line that a position is in."""
    return 1 + text.count("\n", 0, at)


def _after_space(text: str, at: int) -> int:
    """The position of what follows white space, and byte order marks where files were put together."""
    found = SPACE.match(text, at)
    assert found is not None
    return found.end()


# --------------------------------------------------------------------------- fields of a record


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    return KINDS.get(type(value), "null")


def keys_of(value: Json) -> str:
    """The keys of an object, in words."""
    return f"the keys there are: {', '.join(value)}" if value else "it has no keys"


def text_at(value: Json, key: str, place: str, expected: str, *, empty: bool = False) -> str:
    """The text behind a key; raises `UserFileError` where there is none, or it is `empty` and may not be."""
    found = value.get(key)
    if isinstance(found, str) and (empty or found.strip()):
        return found
    if key not in value:
        problem = f"no {key}; {keys_of(value)}"
    else:
        problem = f"{key} is empty" if isinstance(found, str) else f"{key} is {kind_of(found)}, not a text"
    raise UserFileError(f"{place}: {problem}; expected {expected}")


def well_formed(value: Any) -> Any:
    """The value as it can be written: halves of a surrogate pair are joined, one without the other becomes U+FFFD."""
    if isinstance(value, str):
        paired = SURROGATE.search(value) is not None
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if paired else value
    if isinstance(value, dict):
        return {well_formed(name): well_formed(inner) for name, inner in value.items()}
    return [well_formed(inner) for inner in value] if isinstance(value, list) else value


# --------------------------------------------------------------------------- text


def text_of(path: Path) -> str:
    """A file's whole text, its line ends made newlines; raises `UserFileError` for bytes that are no text."""
    text = _decoded(_data(path), path)
    damaged = min((at for at in (text.find("\0"), _first_byte_left(text)) if at >= 0), default=None)
    if damaged is not None:
        number = _line_at(text, damaged)
        line = text.split("\n", number)[number - 1]
        raise UserFileError(f"{path}:{number}: {_damage(line)}; {_repair(text, line, path)}")
    return text


def is_plain(path: Path) -> bool:
    """Is the file UTF-8 with a line for each object, so that a line can be added at its end?"""
    data = path.read_bytes()
    return not data.startswith((GZIP, b"\xff\xfe", b"\xfe\xff")) and b"\0" not in data and data.lstrip()[:1] != b"["


def _data(path: Path) -> bytes:
    """The file's bytes, unpacked where their beginning says gzip, whatever the name says."""
    if problem := NO_FILE.get(kind_of_path(path)):
        raise UserFileError(f"{path}: {problem}; give a file")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(GZIP) else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserFileError(
            f"{path}: a gzip archive that is cut short or damaged ({error}); copy or make it once more"
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    beginning = data[:200].removeprefix(UTF8_MARK).lstrip()
    for start, what in NOT_TEXT.items():
        if beginning.startswith(start):
            raise UserFileError(f"{path}: {what}")
    return data


def _unreadable(path: Path, error: OSError | ValueError) -> UserFileError:
    said = error.strerror if isinstance(error, OSError) else str(error)
    return UserFileError(f"{path} can not be read: {said}")


def _decoded(data: bytes, path: Path) -> str:
    """The bytes as text; of UTF-8, bytes that are none stay visible as surrogates (Python's surrogateescape)."""
    encoding = json.detect_encoding(data)  # by a byte order mark, else by where the first bytes are 0
    if encoding.startswith("utf-8"):
        return LINE_END.sub("\n", data.decode(encoding, "surrogateescape"))
    try:
        text = data.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        if encoding not in {"utf-16", "utf-32"}:  # a guess, without a byte order mark
            return LINE_END.sub("\n", data.decode("utf-8", "surrogateescape"))
        whole = LINE_END.sub("\n", data[: error.start].decode(encoding, "replace"))
        line = 1 + whole.count("\n")
        raise UserFileError(
            f"{path}:{line}: {encoding.upper()} text that is cut short or damaged here ({error.reason}); "
            "save the file as UTF-8"
        ) from None
    if "\0" in text and encoding not in {"utf-16", "utf-32"}:
        return LINE_END.sub("\n", data.decode("utf-8", "surrogateescape"))
    return LINE_END.sub("\n", SURROGATE.sub("\ufffd", text))


def _first_byte_left(text: str) -> int:
    found = BYTES_LEFT.search(text)
    return found.start() if found else -1


def _damage(line: str) -> str:
    """What is wrong with a line that holds a NUL or bytes that are not UTF-8."""
    found = BYTES_LEFT.search(line)
    if found is None:
        return f"a NUL byte at character {line.index(chr(0)) + 1}"
    shown = " ".join(f"0x{byte:02x}" for byte in _bytes_left(found[0][:4]))
    return f"{'byte' if len(found[0]) == 1 else 'bytes'} {shown} at character {found.start() + 1}, which is not UTF-8"


def _repair(text: str, line: str, path: Path) -> str:
    """What to do about a line with such bytes; a file in Windows-1252 is told by how the line reads in it."""
    found = BYTES_LEFT.search(line)
    if found is None:
        return "the file is damaged, as by a crash or a full disk; write or copy it once more"
    if text.endswith(found[0]):
        return "the file ends within a character: it is cut short; copy it once more"
    if not BYTES_LEFT.sub("", text).isascii():
        return "the rest of the file is UTF-8: mend this line"
    around = line[max(found.start() - 20, 0) : found.end() + 20]
    try:
        legible = _bytes_left(around).decode("cp1252")
    except UnicodeDecodeError:
        legible = None
    if legible is None or SURROGATE_BYTES.search(_bytes_left(around)):
        return "save the file as UTF-8"
    quoted, target = shlex.quote(str(path)), shlex.quote(str(path.with_name(f"utf8-{path.name.removesuffix('.gz')}")))
    convert = "iconv -f WINDOWS-1252 -t UTF-8"
    command = f"gzip -dc {quoted} | {convert}" if _is_gzip(path) else f"{convert} {quoted}"
    return (
        f"read as Windows-1252 (Latin-1) it would be {legible!r}. If that is right, convert the file: "
        f"{command} > {target}"
    )


def _bytes_left(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(GZIP)) == GZIP
