"""Checkpoints: one file per run, written to a temporary sibling and renamed atomically."""

from __future__ import annotations

import io
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelcurve.bundle import files, store
from labelcurve.bundle.errors import BundleError, LabelcurveError
from labelcurve.training.runtime import interruption

FORMAT = 3

SECONDS = 45.0
"""Between two checkpoints; with a step and the writing, less than a minute of work is lost."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """Whether to resume from a checkpoint, and how often to write one."""

    fresh: bool = False
    """Start over where an interrupted run left one."""
    seconds: float = SECONDS
    """Between two of them; 0 writes one after every step."""


DEFAULT_POLICY = CheckpointPolicy()


class Checkpoint:
    """The checkpoint of one run.

    Args:
        path: of the file; its folder is made.
        key: what the run depends on, by the names that a message may use. A checkpoint that was
            written for another key is refused.
        seconds: between two; 0 writes after every step.
        about: metadata stored with the state of each checkpoint, made when it is written.
        say: receives what went wrong, where the run continues nevertheless.
    """

    def __init__(
        self,
        path: Path,
        key: Mapping[str, object],
        *,
        seconds: float = SECONDS,
        about: Callable[[], dict[str, Any]] = dict,
        say: Callable[[str], None] = print,
    ) -> None:
        self.path = path
        self._key = {name: _plain(value) for name, value in key.items()}
        self._seconds = seconds
        self._about = about
        self.where = ""
        """What the weights depend on besides the key; a run resumed elsewhere says so."""
        self._say = say
        self._last = time.monotonic()
        self._failed = False

    def read(self) -> dict[str, Any] | None:
        """The state that was written last; None where there is none.

        Raises:
            LabelcurveError: written for another key, which the message compares, damaged, or
                unreadable.
        """
        found = self._open()
        if found is None:
            return None
        there = found.get("where", self.where)
        if there != self.where:
            self._say(
                f"{self.path} was written on {there}, and the run continues on {self.where}: its "
                "weights will be bitwise those of neither"
            )
        state: dict[str, Any] = found["state"]
        return state

    def about(self) -> dict[str, Any] | None:
        """Returns the metadata stored with the last state; raises as `read` does."""
        found = self._open()
        return None if found is None else found["about"]

    def save(self, state: Callable[[], dict[str, Any]], *, check: Callable[[], object]) -> None:
        """Called after each step: writes when it is due, or when the run has to end now.

        Args:
            state: makes the state, of what `torch.load` reads with `weights_only`.
            check: raises if the state is not worth resuming from: the loss is NaN or infinite.

        Raises:
            DivergedError: by `check`; nothing is written.
            interruption.Stopped: a signal came; the state is written.
        """
        stopping = interruption.pending()
        if stopping or time.monotonic() - self._last >= self._seconds:
            check()
            self.write(state())
        if stopping:
            interruption.stop()

    def write(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint; where that fails, says so and keeps the previous one."""
        buffer = io.BytesIO()
        content = {
            "format": FORMAT,
            "key": self._key,
            "about": self._about(),
            "where": self.where,
            "state": state,
        }
        torch.save(content, buffer)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(self.path, buffer.getbuffer())
        except OSError as error:
            if not self._failed:
                self._say(
                    f"the checkpoint {self.path} cannot be written ({error.strerror or error}): "
                    "the run continues, and an interruption would lose all since the previous one"
                )
            self._failed = True
        else:
            if self._failed:
                self._say(f"the checkpoint {self.path} is written again")
            self._failed = False
        self._last = time.monotonic()

    def remove(self) -> None:
        """Removes the checkpoint, and what a killed process left of one."""
        for path in (self.path, *files.unfinished(self.path)):
            with suppress(OSError):
                path.unlink()

    def _open(self) -> dict[str, Any] | None:
        for left in files.unfinished(self.path):
            with suppress(OSError):
                left.unlink()
        if not self.path.exists():
            return None
        found: Any
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except OSError as error:  # the run in it may be intact
            raise LabelcurveError(
                f"the checkpoint {self.path} cannot be read: {error.strerror or error}. Make it "
                "readable to resume from it, or start over with --fresh"
            ) from error
        except Exception:  # torch raises almost anything on damaged files
            found = None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise LabelcurveError(
                f"the checkpoint {self.path} is damaged or of another release: start over with "
                "--fresh"
            )
        if found["key"] != self._key:
            raise LabelcurveError(
                f"{self.path} is the checkpoint of an interrupted run with other arguments: "
                f"{'; '.join(differences(found['key'], self._key))}. Give those to resume it, "
                "or start over with --fresh"
            )
        return found


class Finished:
    """Marks a published bundle of an unfinished command, so that it is not trained again.

    Args:
        key: what the bundle depends on.
    """

    def __init__(self, folder: Path, key: Mapping[str, object] | None = None) -> None:
        self._path = folder / "finished.json"
        self._key = json.loads(json.dumps(key))

    def read(self, out: Path) -> dict[str, Any] | None:
        """The bundle's entry in the command's document, where it lies in `out` as it was."""
        try:
            found = json.loads(self._path.read_text())
            entry: dict[str, Any] = found["entry"]
            if found["key"] != self._key:
                return None
            there = store.read(out, entry["name"]).version == entry["version"]
        except (OSError, ValueError, TypeError, KeyError, BundleError):
            return None
        return entry if there else None

    def write(self, entry: Mapping[str, Any]) -> None:
        """Marks it; where that cannot be written, it would be trained again."""
        with suppress(OSError):
            files.replace(self._path, json.dumps({"key": self._key, "entry": entry}).encode())

    def remove(self) -> None:
        """Removes the mark."""
        self._path.unlink(missing_ok=True)


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """The differences between two keys, each by name with both values."""
    lines = []
    for name in sorted(there.keys() | here.keys()):
        before, now = there.get(name), here.get(name)
        if before != now:
            lines.append(f"{name} {_short(before)} there, {_short(now)} here")
    return lines


def mix(seed: int, *numbers: int) -> int:
    """A seed for each seed and step, so that randomness depends on nothing but the step."""
    mixed = np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0]
    return int(mixed >> np.uint64(1))


def _plain(value: object) -> object:
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text[:12] if len(text) >= 40 and text.isalnum() else text


def check_room(folder: Path, network: torch.nn.Module) -> None:
    """Refuses a disk without room for the bundle and two checkpoints before hours of work.

    Raises:
        BundleError: there is less.
    """
    bytes_each = sum(tensor.nbytes for tensor in network.state_dict().values())
    # A bundle, and twice the weights, their average, the best ones and two moments each.
    needed = (1 + 2 * 5) * bytes_each
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BundleError(
            f"{folder} is on a disk with {free / 1e6:,.0f} MB free, and a bundle with its "
            f"checkpoints takes up to {needed / 1e6:,.0f} MB: make room, or name another folder "
            "with --out"
        )
