"""`classify`: classifies files and folders offline with the engine of the service."""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import numpy as np
import tyro
from numpy.typing import NDArray

from labelcurve.bundle import command, files, preprocess
from labelcurve.bundle.acceptance import LEAST_WISHED, MOST_WISHED
from labelcurve.bundle.command import PerCore, Within, check
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import cores
from labelcurve.bundle.preprocess import OTHER_SUFFIXES, SUFFIXES
from labelcurve.bundle.text import shown
from labelcurve.serving import tables
from labelcurve.serving.models.answer import ranked
from labelcurve.serving.models.device import choose_device
from labelcurve.serving.models.engine import Engine
from labelcurve.serving.models.model import open_engine
from labelcurve.serving.models.selection import read
from labelcurve.serving.models.verdict import Rule, Wish, rule
from labelcurve.serving.tables import Answer


@dataclass(frozen=True)
class Options:
    """Classifies image files, and those in folders at any depth."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files and folders."""
    models: Path = Path("models")
    """Folder that `labelcurve train --out` wrote."""
    model: str | None = None
    """NAME or NAME@VERSION; without it, the default of the folder."""
    top_k: Annotated[int, Within(1)] = 5
    """Classes to name for each image."""
    csv: Path | None = None
    """Also write a table, to a new file: path, label and score of each class, and the error if
    there was one."""
    accept: float | None = None
    """Target accuracy of the answers that need no check, such as 0.98: writes accepted.csv,
    and ask.csv with the rest."""
    set: float | None = None
    """Target share of the images whose set of classes contains the true one, such as 0.95: adds the
    set to each line and table."""
    out: Path = Path()
    """Folder of accepted.csv and ask.csv."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As for `serve`."""
    threads: Annotated[int | None, PerCore()] = None
    """ONNX Runtime threads; by default the cores that the process may use."""


def main(arguments: Sequence[str]) -> None:
    """The entry point of `classify`."""
    options = tyro.cli(Options, prog="labelcurve classify", args=arguments)
    failed = run(options)
    if failed:
        sys.exit(f"error: {failed} of the files could not be classified")


def run(options: Options) -> int:
    """Classifies, prints a line for each file, and writes the table.

    Returns:
        How many files could not be used; the others were classified all the same.

    Raises:
        LabelcurveError: nothing to classify, the model cannot be loaded, or its held-out images do
            not show what `--accept` or `--set` asks for.
        UnknownModel: the model does not exist.
    """
    _check(options)
    bundle = read(options.models, options.model)
    # Before the model is loaded, so that an impossible request is refused at no cost.
    found = rule(bundle.manifest, "fp32", Wish(options.accept, options.set))
    files = list(find(options.paths))
    device = choose_device(options.device)
    engine = open_engine(bundle, device, options.threads or cores())
    print(
        f"{bundle.name}@{bundle.version} on {engine.provider} ({device.reason})",
        file=sys.stderr,
    )
    columns = min(options.top_k, len(bundle.manifest.class_names))
    asked = {"accept": options.accept is not None, "sets": options.set is not None}
    folder = None if options.accept is None else options.out
    failed, accepted, n, listening = 0, 0, 0, True
    with (
        tables.everything(options.csv, columns, **asked) as table,
        tables.sorted_out(folder, sets=asked["sets"]) as sort_out,
    ):
        for answer in classify(files, engine, found, options.top_k):
            n += 1
            accepted += bool(answer.accepted)
            if answer.error is None:
                go_on = options.csv is not None or folder is not None
                listening = listening and _print(_line(answer), go_on)
            else:
                failed += 1
                print(f"{answer.name}: {answer.error}", file=sys.stderr)
            table(answer)
            sort_out(answer)
    if found.accept is not None:
        print(
            f"accepted {accepted:,} of {n:,} ({accepted / n:.1%}; {found.accept.coverage:.1%} of "
            f"the {found.accept.n:,} held-out images), of which {options.accept:.4g} are right "
            f"unless these images are of another kind: {options.out / tables.ACCEPTED}; a person "
            f"looks at the rest: {options.out / tables.ASK}",
            file=sys.stderr,
        )
    return failed


def _check(options: Options) -> None:
    """Checks what needs no model.

    Raises:
        LabelcurveError: names the flag, the value and what is allowed.
    """
    check(options)
    if not options.paths:
        raise LabelcurveError("no PATH was given: name image files or folders")
    if options.csv is not None and options.csv.suffix.lower() in SUFFIXES | OTHER_SUFFIXES:
        # As the shell expands `--csv *.png`: the first image would be overwritten.
        raise LabelcurveError(f"--csv {options.csv}: that is the name of an image, not of a table")
    if options.csv is not None:
        tables.check_new(options.csv)
    if options.accept is not None:
        tables.check_not_sorted(options.out)
    for flag, share in (("--accept", options.accept), ("--set", options.set)):
        if share is not None and not LEAST_WISHED <= share <= MOST_WISHED:
            raise LabelcurveError(
                f"{flag} {share:g} is not a share from {LEAST_WISHED} to {MOST_WISHED}, such as "
                "0.95"
            )


def _line(answer: Answer) -> str:
    said = ", ".join(f"{c['label']} {c['score']:.4f}" for c in answer.classes)
    if answer.set is not None:
        said += f" [{', '.join(answer.set)}]"
    if answer.accepted is not None:
        said += " accepted" if answer.accepted else " ask"
    return f"{answer.name}: {said}"


def _print(line: str, go_on: bool) -> bool:
    """Prints a line; returns whether stdout is still being read (`| head` closes it).

    Raises:
        BrokenPipeError: the reader closed the output and nothing else remains to do (not `go_on`).
        LabelcurveError: stdout cannot be written, as a file on a full disk.
    """
    try:
        print(line, flush=True)
    except BrokenPipeError:
        if not go_on:
            raise
        command.discard_output()
        return False
    except OSError as error:
        command.discard_output()
        raise LabelcurveError(f"the answers cannot be printed: {error.strerror}") from error
    return True


def find(paths: Iterable[Path]) -> Iterator[Path]:
    """The files among `paths`, and the images at any depth in the folders, in sorted order.

    One line on stderr counts what is left out of a folder.

    Raises:
        LabelcurveError: a folder holds no image, or cannot be read.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        left_out: Counter[str] = Counter()
        found = sorted(_below(path, left_out))
        if left_out:
            counts = ", ".join(f"{reason} ({n:,})" for reason, n in sorted(left_out.items()))
            print(
                f"{shown(path)}: left out: {counts}; a file named as a PATH is read whatever it "
                "is called",
                file=sys.stderr,
            )
        if not found:
            raise LabelcurveError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
        yield from found


def _below(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    """The files in a folder with an image's ending; links to folders are followed, each once.

    Hidden ones and those of the system are no images to classify, as for `train`.

    Args:
        left_out: receives the number of the others by reason.
    """
    suffixes = SUFFIXES | OTHER_SUFFIXES  # the latter get an error that names the remedy
    seen = set()
    for inner, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        status = Path(inner).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        read = [n for n in folders if not (n.startswith(".") or n.lower() in files.SYSTEM_FOLDERS)]
        if len(read) < len(folders):
            left_out["hidden and system folders"] += len(folders) - len(read)
        folders[:] = read
        for path in (Path(inner, name) for name in names):
            suffix = path.suffix.lower()
            if path.name.startswith("."):
                left_out["hidden files"] += 1
            elif suffix in suffixes:
                yield path
            else:
                left_out[suffix or "files without an ending"] += 1


def _unreadable(error: OSError) -> NoReturn:
    raise LabelcurveError(
        f"cannot read the folder {error.filename}: {error.strerror}, so nothing was classified. "
        "Change its mode, or name the folders to read"
    ) from error


def classify(files: Iterable[Path], engine: Engine, verdict: Rule, top_k: int) -> Iterator[Answer]:
    """The answer for each file, in the order of `files`; decodes ahead in threads."""
    largest = engine.batch_sizes[-1]
    with ThreadPoolExecutor(cores()) as pool:
        ahead: deque[tuple[Path, Future[NDArray[np.uint8] | str]]] = deque()
        for path in files:
            ahead.append((path, pool.submit(_pixels, path, engine.size)))
            if len(ahead) == 4 * largest:
                batch = [ahead.popleft() for _ in range(largest)]
                yield from _batch(batch, engine, verdict, top_k)
        while ahead:
            batch = [ahead.popleft() for _ in range(min(largest, len(ahead)))]
            yield from _batch(batch, engine, verdict, top_k)


def _batch(
    items: list[tuple[Path, Future[NDArray[np.uint8] | str]]],
    engine: Engine,
    verdict: Rule,
    top_k: int,
) -> Iterator[Answer]:
    decoded = [(path, future.result()) for path, future in items]
    images = [pixels for _, pixels in decoded if not isinstance(pixels, str)]
    rows = iter(engine.run(images) if images else ())
    for path, pixels in decoded:
        if isinstance(pixels, str):
            yield Answer(path, (), pixels)
        else:
            row: NDArray[np.float32] = next(rows)
            classes = ranked(row, verdict.class_names, top_k)
            accepted, found = verdict.accepted(row), verdict.set(row)
            yield Answer(path, classes, accepted=accepted, set=found)


def _pixels(path: Path, size: int) -> NDArray[np.uint8] | str:
    try:
        return preprocess.prepare(files.read(path), size)
    except OSError as error:
        return error.strerror or str(error)
    except LabelcurveError as error:
        return str(error)
