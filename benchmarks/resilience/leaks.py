"""Memory that each kind of request leaves behind in the service."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from labelcurve.benchmarks.harness import processes
from labelcurve.benchmarks.resilience import client as http
from labelcurve.benchmarks.resilience.client import Client
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.preprocess import MAX_BYTES

SECONDS = 60.0
"""Time limit of an answer."""

FIRST = 20
"""Requests of a kind before the memory is measured, unless it has more: later requests reuse the
memory of these."""


async def by_kind(
    port: int, pid: int, kinds: Mapping[str, Sequence[bytes]], posts: int = 200
) -> dict[str, Any]:
    """Send `posts` requests of each kind, one kind after the other, and measure the memory.

    Args:
        port: of the service, on 127.0.0.1.
        pid: root of its process tree.
        kinds: the requests of each kind; each is sent at least once.
        posts: requests of each kind, unless it has more.

    Returns:
        `kinds`: for each, its requests, statuses and MB (1e6 bytes) left behind; `unexpected`:
        answers of 500 and above, and broken connections, with how often each was seen.
    """
    found: dict[str, Any] = {}
    unexpected: Counter[str] = Counter()
    client: Client | None = None
    for kind, requests in sorted(kinds.items()):
        statuses: Counter[str] = Counter()
        first, n = max(FIRST, len(requests)), max(posts, len(requests))
        before = 0.0
        for number, request in enumerate(islice(cycle(requests), first + n)):
            if number == first:
                before = processes.memory_mb(pid) or 0.0
            try:
                client = await Client.connect(port, client)
                answer = await asyncio.wait_for(client.ask(request), SECONDS)
            except (ConnectionError, TimeoutError) as error:
                unexpected[f"{kind}, {len(request)} bytes: {error or 'no answer'}"] += 1
                if client:
                    client.close()
                client = None
                continue
            statuses[str(answer.status)] += 1
            if answer.status >= 500:
                unexpected[f"{kind}: {answer.status} {answer.body[:100]!r}"] += 1
        after = processes.memory_mb(pid) or 0.0
        found[kind] = {
            "requests": first + n,
            "statuses": dict(statuses),
            "megabytes_sent": round(sum(map(len, islice(cycle(requests), n))) / 1e6, 1),
            "memory_left_mb": round(after - before, 1),
        }
    if client:
        client.close()
    return {"kinds": found, "unexpected": dict(unexpected.most_common(20))}


def files(folder: Path) -> dict[str, list[bytes]]:
    """Read the files below a folder as requests, by the ending of their names.

    Raises:
        LabelcurveError: there are none.
    """
    found: dict[str, list[bytes]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and 0 < path.stat().st_size <= MAX_BYTES:
            request = http.post(path.read_bytes())
            found.setdefault(path.suffix.lower() or "no ending", []).append(request)
    if not found:
        raise LabelcurveError(f"--files {folder}: no file there")
    return found
