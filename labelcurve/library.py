"""Training, inference and benchmarks from Python: a thin layer over the code of the commands.

Installs no signal handlers, never ends the process, and prints only where `verbose` asks for it.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from labelcurve.bundle import files, preprocess, store
from labelcurve.bundle.errors import (
    LabelcurveError,
    MissingExtra,
    UnreadableImage,
    UnsupportedImage,
    near,
)
from labelcurve.bundle.machine import cores
from labelcurve.bundle.store import Bundle
from labelcurve.bundle.text import shown

if TYPE_CHECKING:
    from labelcurve.benchmarks.record import Report
    from labelcurve.serving.models.engine import Engine

_WORDS = {
    bool: "True and False",
    float: "numbers",
    int: "whole numbers",
    NoneType: "None",
    Path: "paths",
    str: "strings",
}
"""Types of options, as an error names them."""

ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A file, a file's bytes, a Pillow image, or pixels: uint8 [H, W, 3] or grey [H, W]."""

_NO_IMAGES = (Mapping, Set, IOBase, bytearray, memoryview)
"""Types that iterate, and not over images in their order: an open file iterates over its lines."""


@dataclass(frozen=True)
class TrainedModel:
    """A model that `train` published."""

    name: str
    version: str
    path: Path
    """Folder of the bundle, which `load` takes."""
    fraction: float
    seed: int
    n_labels: int
    """Labels used: for training and for validation."""
    validation_accuracy: float
    test_accuracy: float | None
    """None where the test split was left unread."""
    measured: str | None = None
    """Of a final model, which was also trained on the test labels: the model that has these
    accuracies."""


def train(
    data: str | Path = "cifar10",
    *,
    fraction: float | Sequence[float] = (),
    out: str | Path = "models",
    verbose: bool = False,
    **options: Any,
) -> list[TrainedModel]:
    """Fine-tune a classifier on each fraction of the labels and publish it, as `labelcurve train`.

    Args:
        data: `cifar10`, `digits`, or a path as for `train --data`: folders, Parquet files, a table.
        fraction: share of the labels, above 0 and up to 1; several for several models; by default
            0.05, 0.1, 0.2, 0.3, 0.5 and 1.
        out: folder that the bundles are published in.
        verbose: print what the command prints.
        options: further options of the command by name, as epochs=10, device="cpu".

    Returns:
        The models, seed by seed, fewest labels first; final models come last.

    Raises:
        LabelcurveError: an option, the data or the device cannot be used, or training failed.
    """
    with _extra("train"):
        from labelcurve.training.jobs import train as job
        from labelcurve.training.options import Options
    if {"dry_run", "self_test"} & options.keys():
        raise LabelcurveError("dry_run and self_test are options of the command `train` alone")
    kinds: dict[str, Any] = get_type_hints(Options, include_extras=True)
    # Accepts more than the command, which always gets a string and a list.
    kinds |= {"data": str | Path, "fraction": float | tuple[float, ...], "verbose": bool}
    given = {**options, "data": data, "fraction": fraction, "out": out, "verbose": verbose}
    values = _checked(given, kinds)
    values["data"] = str(values["data"])
    if isinstance(values["fraction"], float):
        values["fraction"] = (values["fraction"],)
    with _said(values.pop("verbose")):
        document = job.run(Options(**values))
    return [
        TrainedModel(
            name=entry["name"],
            version=entry["version"],
            path=Path(entry["path"]),
            fraction=entry["fraction"],
            seed=entry["seed"],
            n_labels=entry["n_labels_train"] + entry["n_labels_val"],
            validation_accuracy=entry["val"]["accuracy"],
            test_accuracy=entry["test"]["accuracy"] if entry["test"] else None,
            measured=entry["measured"]["name"] if "measured" in entry else None,
        )
        for entry in (*document["bundles"], *document.get("final", ()))
    ]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of a model for N images."""

    labels: tuple[str, ...]
    """The most probable class of each image."""
    probabilities: NDArray[np.float32]
    """[N, K], calibrated; each row sums to 1."""
    class_names: tuple[str, ...]
    """Names of the K columns."""

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """The k most probable classes of each image with their probabilities, best first.

        Raises:
            ValueError: k is below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}: allowed are 1 and more")
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.class_names[i], float(row[i])) for i in best]
            for row, best in zip(self.probabilities, order, strict=True)
        ]


class Model:
    """A trained model, loaded. `predict` is for one thread at a time."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._engine = engine
        self.name = bundle.name
        self.version = bundle.version
        self.class_names = bundle.manifest.class_names
        self.provider = engine.provider
        """The provider of ONNX Runtime that it runs on."""

    def predict(self, images: ImageLike | Iterable[ImageLike]) -> Predictions:
        """Classify images with the service's own preprocessing and session.

        Args:
            images: one or several: paths, file bytes, Pillow images, uint8 arrays [H, W, 3] or
                [H, W]; or one uint8 array [N, H, W, 3].

        Raises:
            LabelcurveError: an image cannot be used; it is named by its path or place.
            TypeError: it is of another type.
        """
        several: list[ImageLike]
        if isinstance(images, str | Path | bytes | Image.Image):
            several = [images]
        elif isinstance(images, np.ndarray):
            several = list(images) if images.ndim == 4 else [images]
        elif isinstance(images, Iterable) and not isinstance(images, _NO_IMAGES):
            several = list(images)  # a column of a table in its own order, whatever its index says
        else:
            raise TypeError(
                f"images of type {type(images).__name__}: allowed are one or several paths, file "
                "bytes, Pillow images and uint8 arrays"
            )
        for i, image in enumerate(several):
            if not isinstance(image, str | Path | bytes | Image.Image | np.ndarray):
                raise TypeError(
                    f"image {i} is of type {type(image).__name__}: allowed are paths, file bytes, "
                    "Pillow images and uint8 arrays"
                )
        largest, size = self._engine.batch_sizes[-1], self._engine.size
        rows = [np.empty((0, len(self.class_names)), np.float32)]
        with ThreadPoolExecutor(cores()) as pool:
            for begin in range(0, len(several), largest):
                places = range(begin, min(begin + largest, len(several)))
                pixels = list(pool.map(lambda i: _pixels(several[i], i, size), places))
                rows.append(self._engine.run(pixels))
        probabilities = np.concatenate(rows)
        labels = tuple(self.class_names[i] for i in probabilities.argmax(1))
        return Predictions(labels, probabilities, self.class_names)


def load(
    path: str | Path = "models",
    model: str | None = None,
    *,
    device: Literal["auto", "cuda", "cpu"] = "auto",
    threads: int | None = None,
) -> Model:
    """Load a trained model into ONNX Runtime.

    Args:
        path: a folder of models, as `train` wrote it, or one model in it.
        model: NAME or NAME@VERSION; by default the default of the folder.
        device: `auto` uses a visible NVIDIA GPU.
        threads: of ONNX Runtime; by default the cores that the process may use.

    Raises:
        LabelcurveError: an argument cannot be used, or the model does not exist or cannot run on
            the device.
    """
    with _extra("serve"):
        from labelcurve.serving.models.device import choose_device
        from labelcurve.serving.models.model import open_engine
        from labelcurve.serving.models.selection import pick, read
        from labelcurve.serving.settings import Settings
    kinds: dict[str, Any] = get_type_hints(Settings, include_extras=True)
    given = {"path": path, "model": model, "device": device, "threads": threads}
    values = _checked(given, kinds | {"path": Path, "model": str | None})
    folder, threads = values["path"], values["threads"]
    Settings(threads=threads).check()
    if (folder / store.MANIFEST).exists():
        version = folder.resolve()
        bundles = [store.read(version.parent.parent, version.parent.name, version.name)]
    elif (folder / store.CURRENT).exists():
        bundles = [store.read(folder.resolve().parent, folder.resolve().name)]
    else:
        bundles = [read(folder, model)]
    bundle = bundles[0 if model is None else pick(bundles, model)]
    return Model(bundle, open_engine(bundle, choose_device(device), threads or cores()))


def bench(
    models: str | Path = "models",
    data: str | Path = "cifar10",
    *,
    out: str | Path = "runs/bench",
    verbose: bool = False,
    **options: Any,
) -> Report:
    """Measure accuracy, latency and load of every model side by side, as `labelcurve bench`.

    Args:
        models: folder of models, as `train` wrote it.
        data: what they were trained on.
        out: folder for report.html, report.md and report.json.
        verbose: print what the command prints.
        options: further options of the command by name, as load=False, price_per_hour=0.5.

    Raises:
        LabelcurveError: models, data or an option cannot be used.
    """
    with _extra("bench"):
        from labelcurve.benchmarks import job
        from labelcurve.benchmarks.options import Bench
    kinds: dict[str, Any] = get_type_hints(Bench, include_extras=True)
    kinds |= {"data": str | Path, "verbose": bool}
    given = {**options, "models": models, "data": data, "out": out, "verbose": verbose}
    values = _checked(given, kinds)
    values["data"] = str(values["data"])
    with _said(values.pop("verbose")):
        report, _ = job.run(Bench(**values), print)
    return report


def _pixels(image: ImageLike, place: int, size: int) -> NDArray[np.uint8]:
    """uint8 [size, size, 3]."""
    name = f"image {place}"
    try:
        if isinstance(image, str | Path):
            name = shown(Path(image))
            if "\0" in str(image):
                raise UnreadableImage("no file's name holds a null byte")
            return preprocess.prepare(files.read(Path(image)), size)
        if isinstance(image, bytes):
            return preprocess.prepare(image, size)
        if isinstance(image, np.ndarray):
            given = f"{image.dtype} {list(image.shape)}"
            if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim < 2:
                raise UnsupportedImage(
                    f"an array {given}: allowed are uint8 [H, W, 3] (RGB) and [H, W] (grey)"
                )
            image = Image.fromarray(image)
        if 0 in image.size:
            width, height = image.size
            raise UnsupportedImage(f"{width} x {height} pixels: allowed are 1 x 1 and more")
        return preprocess.prepare_image(image, size)
    except OSError as error:
        raise LabelcurveError(f"{name}: {error.strerror or error}") from error
    except LabelcurveError as error:
        raise type(error)(f"{name}: {error}") from error


def _checked(given: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the options hold them, by name; `kinds` are the options' types.

    A string may stand for a path, a whole number for any number, a list or an array for a tuple,
    and a scalar of numpy for Python's.

    Raises:
        LabelcurveError: names the argument, the value and what is allowed.
    """
    values = {}
    for name, value in given.items():
        if name not in kinds:
            raise LabelcurveError(f"no option {name}{near(name, kinds)}")
        kind = kinds[name]
        plain = _plain(value)
        if isinstance(plain, str) and kind in (Path, Path | None):
            if not plain:  # as a path it would mean the current folder
                raise LabelcurveError(f"{name} is empty: allowed are {_allowed(kind)}")
            plain = Path(plain)
        try:
            values[name] = TypeAdapter(kind).validate_python(plain, strict=True)
        except ValidationError:
            raise LabelcurveError(
                f"{name}={reprlib.repr(value)}: allowed are {_allowed(kind)}"
            ) from None
    return values


def _plain(value: Any) -> Any:
    """Scalars of numpy as Python's, lists and arrays as tuples."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(_plain(each) for each in value)
    return value


def _allowed(kind: Any) -> str:
    """What an option of this type takes, in words."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _allowed(inside[0])
    if origin is Literal:
        return ", ".join(map(repr, inside))
    if origin is tuple:
        return f"sequences of {_allowed(inside[0])}"
    return " and ".join(map(_allowed, inside)) if inside else _WORDS[kind]


@contextmanager
def _said(verbose: bool) -> Iterator[None]:
    if verbose:
        yield
        return
    # Whatever is discarded need not be encodable, such as a path that is not UTF-8.
    with (
        Path(os.devnull).open("w", errors="backslashreplace") as nowhere,
        redirect_stdout(nowhere),
    ):
        yield


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "a package", name) from error
