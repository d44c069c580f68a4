"""`classify`: the service's answer offline, for files and folders, through the same engine."""

from __future__ import annotations

import csv
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from bundle import preprocess, store
from bundle.errors import LabelcurveError
from bundle.machine import cores, show_version
from bundle.preprocess import SUFFIXES
from serving.answer import Class, ranked
from serving.device import choose_device
from serving.engine import Engine
from serving.errors import UnknownModel
from serving.model import open_engine
from serving.selection import pick


@dataclass(frozen=True)
class Options:
    """Classifies image files, and those in folders at any depth."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files and folders."""
    models: Path = Path("models")
    """Folder that `train --out` wrote."""
    model: str | None = None
    """NAME or NAME@VERSION; by default the model with the most labels."""
    top_k: int = 5
    """Classes to name for each image."""
    csv: Path | None = None
    """Also write a table: path, label and score of each class, and the error if there was one."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As for `serve`."""
    threads: int | None = None
    """ONNX Runtime threads; by default the cores that the process may use."""


@dataclass(frozen=True)
class Answer:
    """What became of one file."""

    path: Path
    classes: Sequence[Class]
    """Best first; empty where there is an error."""
    error: str | None = None


def main() -> None:
    """The entry point of `classify`."""
    show_version()
    options = tyro.cli(Options, prog="classify")
    try:
        failed = run(options)
    except (LabelcurveError, UnknownModel) as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: {failed} of the files could not be classified")


def run(options: Options) -> int:
    """Classifies, prints a line for each file, and writes the table.

    Returns:
        How many files could not be used; the others were classified all the same.

    Raises:
        LabelcurveError: nothing to classify, or the model cannot be loaded.
        UnknownModel: there is no such model.
    """
    if not options.paths:
        raise LabelcurveError("no PATH was given: name image files or folders")
    if options.top_k < 1:
        raise LabelcurveError(f"--top-k {options.top_k}: at least 1")
    if options.threads is not None and options.threads < 1:
        raise LabelcurveError(f"--threads {options.threads}: at least 1")
    bundles = store.read_all(options.models)
    bundle = bundles[pick(bundles, options.model)]
    files = list(find(options.paths))
    device = choose_device(options.device)
    engine = open_engine(bundle, device, options.threads or cores())
    print(
        f"{bundle.name}@{bundle.version} on {engine.provider} ({device.reason})",
        file=sys.stderr,
    )
    class_names = bundle.manifest.class_names
    answers = classify(files, engine, class_names, options.top_k)
    with _table(options.csv, min(options.top_k, len(class_names))) as table:
        failed = 0
        for answer in answers:
            if answer.error is None:
                classes = (f"{c['label']} {c['score']:.4f}" for c in answer.classes)
                print(f"{_name(answer.path)}: {', '.join(classes)}")
            else:
                failed += 1
                print(f"{_name(answer.path)}: {answer.error}", file=sys.stderr)
            table(answer)
    return failed


@contextmanager
def _table(path: Path | None, columns: int) -> Iterator[Callable[[Answer], None]]:
    if path is None:
        yield lambda answer: None
        return
    try:
        file = path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise LabelcurveError(f"cannot write {path}: {error.strerror}") from error
    with file:
        rows = csv.writer(file)
        ranks = ["", *(f"_{i}" for i in range(2, columns + 1))]
        rows.writerow(["path", *(f"{n}{r}" for r in ranks for n in ("label", "score")), "error"])

        def write(answer: Answer) -> None:
            cells = [cell for c in answer.classes for cell in (c["label"], c["score"])]
            cells += [""] * (2 * columns - len(cells))
            rows.writerow([_name(answer.path), *cells, answer.error or ""])

        yield write


def find(paths: Iterable[Path]) -> Iterator[Path]:
    """The files among `paths`, and the images at any depth in the folders, in sorted order.

    Raises:
        LabelcurveError: a folder holds no image.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not found:
            raise LabelcurveError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
        yield from found


def classify(
    files: Iterable[Path], engine: Engine, class_names: tuple[str, ...], top_k: int
) -> Iterator[Answer]:
    """The answer for each file, in the order of `files`; decodes ahead in threads."""
    largest = engine.batch_sizes[-1]
    with ThreadPoolExecutor(cores()) as pool:
        ahead: deque[tuple[Path, Future[NDArray[np.uint8] | str]]] = deque()
        for path in files:
            ahead.append((path, pool.submit(_pixels, path, engine.size)))
            if len(ahead) == 4 * largest:
                batch = [ahead.popleft() for _ in range(largest)]
                yield from _batch(batch, engine, class_names, top_k)
        while ahead:
            batch = [ahead.popleft() for _ in range(min(largest, len(ahead)))]
            yield from _batch(batch, engine, class_names, top_k)


def _batch(
    items: list[tuple[Path, Future[NDArray[np.uint8] | str]]],
    engine: Engine,
    class_names: tuple[str, ...],
    top_k: int,
) -> Iterator[Answer]:
    decoded = [(path, future.result()) for path, future in items]
    images = [pixels for _, pixels in decoded if not isinstance(pixels, str)]
    rows = iter(engine.run(images) if images else ())
    for path, pixels in decoded:
        if isinstance(pixels, str):
            yield Answer(path, (), pixels)
        else:
            yield Answer(path, ranked(next(rows), class_names, top_k))


def _name(path: Path) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")  # names need not be UTF-8


def _pixels(path: Path, size: int) -> NDArray[np.uint8] | str:
    try:
        return preprocess.prepare(path.read_bytes(), size)
    except OSError as error:
        return error.strerror or str(error)
    except LabelcurveError as error:
        return str(error)
