"""Output of `suggest`: a table to fill in, links to the images, and a gallery of them."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labelcurve.bundle.errors import DataError, ImageError, LabelcurveError
from labelcurve.bundle.preprocess import ending
from labelcurve.bundle.text import percent
from labelcurve.training.data.split import Split
from labelcurve.training.forecast.page import html

TABLE, PAGE, IMAGES = "suggest.csv", "index.html", "images"
LONGEST = 240
"""Bytes of an image's name that its link has, too: a file system takes 255."""
SIDE = 128
"""Largest side of a picture in the gallery."""
STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; font: 15px/1.5 system-ui, sans-serif; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem;
  padding: 0; list-style: none; }
img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882; }
small { display: block; overflow-wrap: anywhere; opacity: .75; }
"""


@dataclass(frozen=True)
class Suggestion:
    """An image to label."""

    row: int
    random: bool
    """Whether it belongs to the share that was drawn at random."""
    reason: str
    probabilities: NDArray[np.float32] | None
    """[K] of the classes, where there are labels."""

    def guess(self, class_names: Sequence[str]) -> tuple[str, float] | None:
        """The most probable class and its probability."""
        if self.probabilities is None:
            return None
        best = int(self.probabilities.argmax())
        return class_names[best], float(self.probabilities[best])


def write(
    out: Path, found: Sequence[Suggestion], split: Split, class_names: tuple[str, ...]
) -> None:
    """Writes the folder, complete or not at all.

    Args:
        out: does not exist.
        found: in the order of the table.

    Raises:
        LabelcurveError: it cannot be written, or an image can no longer be read.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            temporary.chmod(0o755)
            (temporary / IMAGES).mkdir()
            paths = [_link(temporary, out, i, split, one.row) for i, one in enumerate(found)]
            table = _table(found, paths, class_names)
            (temporary / TABLE).write_text(table, encoding="utf-8", newline="")
            page = _page(found, paths, split, class_names)
            (temporary / PAGE).write_text(page, encoding="utf-8")
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise LabelcurveError(f"--out {out} cannot be written: {error.strerror}") from error


def _link(temporary: Path, out: Path, i: int, split: Split, row: int) -> str:
    """Links the file of a row, or writes its bytes; returns the absolute path for the table.

    Rows of Parquet are no files, and a name that is not UTF-8 cannot be written into the table.
    """
    where = Path(split.where(row))
    if where.is_file():
        target = where.resolve()
        name = where.name if len(os.fsencode(where.name)) <= LONGEST else f"image{where.suffix}"
        (temporary / IMAGES / f"{i + 1:04}-{name}").symlink_to(target)
        return str(target)
    try:
        data = split.read(row)
    except (OSError, ImageError) as error:
        raise DataError(f"{where}: it was there before, and now {error}") from error
    name = f"{i + 1:04}-image.{ending(data)}"
    (temporary / IMAGES / name).write_bytes(data)
    return str(out.resolve() / IMAGES / name)


def _table(found: Sequence[Suggestion], paths: Sequence[str], class_names: tuple[str, ...]) -> str:
    """`label` is to be filled in; `sample` says which rows are a random sample of the pool."""
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "label", "sample", "reason", "guess", "probability"])
    for one, path in zip(found, paths, strict=True):
        guess = one.guess(class_names)
        said = ("", "") if guess is None else (guess[0], f"{guess[1]:.4f}")
        rows.writerow([path, "", "random" if one.random else "chosen", one.reason, *said])
    return text.getvalue()


def _page(
    found: Sequence[Suggestion], paths: Sequence[str], split: Split, class_names: tuple[str, ...]
) -> str:
    figures = []
    for one, path in zip(found, paths, strict=True):
        guess = one.guess(class_names)
        said = "" if guess is None else f"{escape(guess[0])}? {percent(guess[1], 0)}"
        figures.append(
            f'<li><img src="{_picture(np.asarray(split.images[one.row]))}" alt="">{said}'
            f"<small>{escape(one.reason)}, {escape(Path(path).name)}</small></li>"
        )
    body = f"""<p>In the order of <code>{TABLE}</code>. Random ones are a sample of the pool: keep
them for a test.</p>
<ol>{"".join(figures)}</ol>
"""
    return html(f"{len(found):,} images to label", STYLE, body)


def _picture(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"
