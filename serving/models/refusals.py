"""Versions that cannot be served, and why."""

from __future__ import annotations

import logging
import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.telemetry import metrics

RETRY_SECONDS = 60.0
"""After which a version is tried again although its files are the same."""

Stamp = tuple[int, ...] | None

logger = logging.getLogger("labelcurve")


@dataclass(frozen=True)
class _Refusal:
    error: str
    stamp: Stamp
    since: float


class Refusals:
    """Refused bundles by NAME@VERSION."""

    def __init__(self, root: Path) -> None:
        roots = (re.escape(f"{each}/") for each in (root.resolve(), root) if str(each) != ".")
        self._root = re.compile(rf"(?<![\w./-])({'|'.join(roots)})")
        self._refused: dict[str, _Refusal] = {}

    def note(self, name: str, version: str, stamp: Stamp, error: Exception) -> None:
        """Remembers and logs why a version cannot be served.

        Args:
            name: of the model.
            version: of its bundle.
            stamp: as `bundle.store.Found` has it.
            error: anything that loading raised.
        """
        key = f"{name}@{version}"
        before = self._refused.get(key)
        # Clients must not learn where the models lie on this machine.
        text = self._root.sub("", str(error))
        if before is None or before.error != text:
            unexpected = None if isinstance(error, LabelcurveError) else error
            logger.error("%s is refused: %s", key, error, exc_info=unexpected)
            metrics.REFUSED.labels(name).inc()
        self._refused[key] = _Refusal(text, stamp, monotonic())

    def get(self, key: str) -> str | None:
        """Why NAME@VERSION is refused; None where it is not."""
        refused = self._refused.get(key)
        return refused.error if refused else None

    def worth_trying(self, key: str, stamp: Stamp) -> bool:
        """Returns whether it was never refused, or long ago, or its files have changed since."""
        refused = self._refused.get(key)
        return (
            refused is None or refused.stamp != stamp or monotonic() - refused.since > RETRY_SECONDS
        )

    def drop(self, key: str) -> None:
        """Forgets that it was refused: it can be served after all."""
        self._refused.pop(key, None)

    def keep(self, keys: Set[str]) -> None:
        """Forgets all others."""
        for key in set(self._refused) - keys:
            del self._refused[key]
