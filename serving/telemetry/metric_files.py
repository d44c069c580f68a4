"""Files that share metrics between workers; they are written, never memory-mapped.

prometheus_client maps its files into memory. On a full disk the first write to a new page then ends
the process with SIGBUS, which cannot be handled. Here the values stay in memory in its format, and
are written with calls that fail with an error.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import prometheus_client.multiprocess
import prometheus_client.values
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

logger = logging.getLogger("labelcurve")

CAPACITY = 2**16

READY = "labelcurve_workers_ready", "Workers whose models are loaded"
"""Name and description of a gauge of the workers, which has a value even if there are none."""

_NAME = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_\d+\.db")


class Values(MmapedDict):
    """The values of one kind of metric of this process; `flush` writes its file."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        """Empty; the file is made by the first `flush`."""
        self._path = Path(filename)
        self._m: Any = bytearray(CAPACITY)
        self._capacity = CAPACITY
        self._positions: dict[str, int] = {}
        self._used = 8
        self._written = b""
        _own[self._path.name] = self

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + 32 > self._capacity:
            self._m.extend(bytes(self._capacity))
            self._capacity *= 2
        super()._init_value(key)

    def read_all(self) -> list[tuple[str, float, float, int]]:
        """Key, value, timestamp and position of each."""
        return list(self._read_all_values())

    def flush(self) -> None:
        """Writes the file, where a value has changed or a cleaner of /tmp has removed it.

        Raises:
            OSError: it cannot be written; readers see the previous values, or a part of the new
                ones.
        """
        content = b"".join((struct.pack("i", self._used), bytes(4), self._m[8 : self._used]))
        if content == self._written and self._path.exists():
            return
        for folder in (self._path.parent.parent, self._path.parent):  # both for this user alone
            folder.mkdir(0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            # The first four bytes hold the length: readers must not see them before the rest.
            if os.pwrite(descriptor, content[8:], 8) < len(content) - 8:
                raise OSError(f"{self._path}: no room for {len(content)} bytes")
            os.pwrite(descriptor, content[:8], 0)
        finally:
            os.close(descriptor)
        self._written = content

    def close(self) -> None:
        """Does nothing, since no file is kept open."""

    @staticmethod
    def read_all_values_from_file(filename: str) -> Iterable[tuple[str, float, float, int]]:
        """The values in a file; none where it is damaged, which is logged once.

        Raises:
            FileNotFoundError: it was removed.
        """
        name = Path(filename).name
        if own := _own.get(name):
            return own.read_all()
        try:
            values = list(MmapedDict.read_all_values_from_file(filename))
            for key, *_ in values:
                json.loads(key)
        except FileNotFoundError:
            raise
        except (OSError, struct.error, RuntimeError, ValueError) as error:
            if name not in _damaged:
                _damaged.add(name)
                logger.warning("metrics in %s are skipped: %s", filename, error)
            return []
        _damaged.discard(name)
        return values


_own: dict[str, Values] = {}
_damaged: set[str] = set()


class Collector(MultiProcessCollector):
    """The metrics of all workers, summed; those of this process are current."""

    def __init__(self, registry: CollectorRegistry, path: str) -> None:
        """Registers itself; the folder may be missing until a worker writes to it."""
        self._path = path
        registry.register(self)

    def collect(self) -> Any:
        """The metrics, for a registry."""
        there = {p.name for p in Path(self._path).glob("*.db") if _NAME.fullmatch(p.name)}
        return self.merge([f"{self._path}/{name}" for name in sorted(there | _own.keys())])


def registry(folder: str) -> CollectorRegistry:
    """A registry of the metrics of all workers that write to `folder`."""
    made = CollectorRegistry()
    Collector(made, folder)
    return made


def install() -> None:
    """Makes prometheus_client store its values here; to be called before a metric is defined."""
    modules: tuple[Any, ...] = (prometheus_client.values, prometheus_client.multiprocess)
    for module in modules:
        module.MmapedDict = Values


def export_no_worker(folder: str) -> None:
    """Makes this process, which is no worker, export `READY` where no worker does."""
    name, description = READY
    values = Values(f"{folder}/gauge_livesum_0.db")
    values.write_value(mmap_key(name, name, [], [], description), 0.0, 0.0)


def flush() -> None:
    """Writes changed values.

    Raises:
        OSError: a file cannot be written.
    """
    for values in list(_own.values()):
        values.flush()
