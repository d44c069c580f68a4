"""The schemas of `peers.json` and `targets.json`."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.record import Provenance

SCHEMA_VERSION: Final = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Turn(_Record):
    """One run of wrk against one server."""

    seconds: float
    n: int
    """Requests that were answered, failed ones included."""
    errors: int
    """Answers above 399, broken connections and timeouts."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    server_cpu_ms: float
    """CPU time of the server's processes per request."""
    client_cpu: float
    """Cores that wrk kept busy."""

    @property
    def requests_per_s(self) -> float:
        """Answered well, by second."""
        return (self.n - self.errors) / self.seconds


class Series(_Record):
    """A server under one load, in all rounds."""

    server: str
    model: str
    clients: int
    turns: tuple[Turn, ...]


class Peer(_Record):
    """A server, or why it is not there."""

    name: str
    label: str
    packages: dict[str, str]
    ready_s: dict[str, float]
    """From the start of its process to the first right answer, by model."""
    memory_mb: dict[str, float]
    """Of its processes after the load (proportional set size), by model."""
    error: str | None = None


class Limit(_Record):
    """Decoding and ONNX Runtime in a loop in one process: CPU milliseconds an image."""

    decode_ms: float
    inference_ms: float
    batch: int
    """The batch size at which an image costs least."""

    @property
    def total_ms(self) -> float:
        """Both."""
        return self.decode_ms + self.inference_ms


class Peers(_Record):
    """`peers.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    bundle: str
    """NAME@VERSION of the real model."""
    parameters: int
    image: str
    """What was sent."""
    threads: int
    rounds: int
    limits: dict[str, Limit]
    peers: tuple[Peer, ...]
    series: tuple[Series, ...]
    provenance: Provenance


class Finding(_Record):
    """A limit that the service is meant to keep, and what was measured."""

    what: str
    target: str
    found: str
    kept: bool


class Targets(_Record):
    """`targets.json`."""

    findings: tuple[Finding, ...]
    provenance: Provenance
