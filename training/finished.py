"""What an interrupted command has published already, so that it is not trained again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundle import files, store
from bundle.errors import BundleError


class Finished:
    """The mark of one bundle, beside its checkpoint; it goes when the whole command is done.

    Args:
        folder: of the run.
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
        """Forgets it."""
        self._path.unlink(missing_ok=True)
