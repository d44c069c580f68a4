"""Uploads whose answer is not accepted, kept in a folder until a person has labelled them.

Each is a file named by the digest of its bytes, so that one image sent twice is kept once, and a
JSON file of the same name with the answer. Both are written by a thread: no answer waits for the
disk, and where it is full or missing, uploads are not kept and the service still answers.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic

from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.preprocess import ending

logger = logging.getLogger("labelcurve")

COLUMNS = ("path", "label", "sample", "reason", "guess", "probability")
"""As in the table of `suggest`, so that both can be joined."""

WAITING_BYTES = 32 * 2**20
"""Limit of the uploads queued for the thread; further ones are not kept."""

PAUSE = 10.0
"""Seconds without another attempt after the folder was full or could not be written."""

CLOSE_SECONDS = 2.0
"""Time for writing the last uploads when the process ends."""


@dataclass(frozen=True)
class Answer:
    """The model's answer to an upload."""

    guess: str
    """The most probable class."""
    probability: float
    model: str
    """NAME@VERSION."""


class Full(Exception):
    """The folder has reached its limit."""


def prepare(folder: Path, models: Path) -> None:
    """Creates the folder, which its owner alone may read, and checks that it can be written.

    Raises:
        LabelcurveError: it cannot, or it lies among the models.
    """
    if models.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise LabelcurveError(
            f"--keep-doubtful {folder} is in the models folder: name one outside {models}"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.replace(folder / ".check", b"")
        (folder / ".check").unlink()
    except OSError as error:
        raise LabelcurveError(
            f"--keep-doubtful {folder} cannot be written ({error.strerror}): name another folder, "
            "or leave the option out"
        ) from error


class Doubtful:
    """The folder, as one worker writes to it; several may do so at the same time."""

    def __init__(
        self, folder: Path, most_images: int, most_bytes: int, pause: float = PAUSE
    ) -> None:
        """Starts the thread.

        Args:
            folder: as `prepare` left it; where it was deleted since, it is created again.
            most_images: that it may hold.
            most_bytes: that its files may have together.
            pause: seconds between attempts while nothing can be kept.
        """
        self.folder = folder
        self._most_images = most_images
        self._most_bytes = most_bytes
        self._pause = pause
        self._queue: SimpleQueue[tuple[bytes, Answer] | None] = SimpleQueue()
        self._taken = self._done = 0
        """Bytes, each counter written by one side only."""
        self._until = 0.0
        """When the pause ends."""
        self._said = ""
        """Why nothing is kept, as it was logged."""
        self._thread = Thread(target=self._work, name="doubtful", daemon=True)
        self._thread.start()

    def offer(self, image: bytes, answer: Answer) -> None:
        """Keeps an upload, if there is room for it; called on the event loop, never blocks."""
        if monotonic() < self._until:
            return
        if self._taken - self._done + len(image) > WAITING_BYTES:
            self._stop("they arrive faster than they can be written")
            return
        self._taken += len(image)
        self._queue.put((image, answer))

    def close(self) -> None:
        """Ends the thread; queued uploads are written within `CLOSE_SECONDS`, or not kept."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _stop(self, why: str) -> None:
        self._until = monotonic() + self._pause
        if why != self._said:
            logger.warning("doubtful uploads are not kept: %s", why)
            self._said = why

    def _work(self) -> None:
        while (upload := self._queue.get()) is not None:
            try:
                self._keep(*upload)
            except Full as error:
                self._stop(str(error))
            except Exception as error:  # the next upload may succeed
                self._stop(f"{self.folder} cannot be written: {error}")
            else:
                if self._said:
                    logger.info("doubtful uploads are kept again")
                    self._said = ""
            self._done += len(upload[0])

    def _keep(self, image: bytes, answer: Answer) -> None:
        digest = hashlib.sha256(image).hexdigest()[:32]
        file = self.folder / f"{digest}.{ending(image)}"
        about = json.dumps({"file": file.name, **asdict(answer)}, ensure_ascii=False).encode()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(self.folder):
            if not file.exists():
                self._check_room(len(image) + len(about))
                files.replace(file, image)
            files.replace(file.with_suffix(".json"), about)

    def _check_room(self, more: int) -> None:
        sizes = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed meanwhile, or a link to nowhere
                    sizes[entry.name] = entry.stat().st_size
        n = sum(not name.startswith(".") and not name.endswith(".json") for name in sizes)
        held = sum(sizes.values())
        if n >= self._most_images or held + more > self._most_bytes:
            raise Full(
                f"{self.folder} holds {n:,} images and {held / 1e6:,.1f} MB, and "
                f"--doubtful-images allows {self._most_images:,}, --doubtful-mb "
                f"{self._most_bytes / 1e6:,.0f}: label and remove some, or allow more"
            )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a lock shared by the workers: each counts before it writes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def table(folder: Path) -> str:
    """A CSV table of what is kept, for `train --data` once `label` is filled in.

    The least probable guesses come first. Paths begin with the name of the folder: the table
    belongs next to it.
    """
    found = []
    for file in folder.glob("*.json"):
        try:
            about = json.loads(file.read_bytes())
            image, answer = folder / about.pop("file"), Answer(**about)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # removed by now, or another program's
        if image.is_file():
            found.append((answer.probability, image.name, answer))
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for probability, name, answer in sorted(found, key=lambda row: row[:2]):
        reason = f"not accepted by {answer.model}"
        path = f"{folder.name}/{name}"
        rows.writerow([path, "", "chosen", reason, answer.guess, f"{probability:.4f}"])
    return text.getvalue()
