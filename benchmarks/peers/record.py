"""The schemas of `peers.json` and `targets.json`."""

from __future__ import annotations

from typing import Literal

from labelcurve.benchmarks.record import Provenance, Record


class Turn(Record):
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
        """Successful requests per second."""
        return (self.n - self.errors) / self.seconds


class Series(Record):
    """A server under one load, in all rounds."""

    server: str
    model: str
    clients: int
    turns: tuple[Turn, ...]


class Peer(Record):
    """A server, or the reason why it was left out."""

    name: str
    label: str
    packages: dict[str, str]
    ready_s: dict[str, float]
    """Seconds from process start to the first correct response, by model."""
    memory_mb: dict[str, float]
    """Proportional set size of its processes after the load, by model."""
    error: str | None = None


class Limit(Record):
    """Decoding and ONNX Runtime in a loop in one process: CPU milliseconds an image."""

    decode_ms: float
    inference_ms: float
    batch: int
    """The batch size at which an image costs least."""

    @property
    def total_ms(self) -> float:
        """Sum of both."""
        return self.decode_ms + self.inference_ms


class Peers(Record):
    """`peers.json`."""

    schema_version: Literal[1] = 1
    bundle: str
    """NAME@VERSION of the real model."""
    parameters: int
    image: str
    """Description of the image that was sent."""
    threads: int
    rounds: int
    limits: dict[str, Limit]
    peers: tuple[Peer, ...]
    series: tuple[Series, ...]
    provenance: Provenance


class Finding(Record):
    """A performance target of the service, and what was measured."""

    what: str
    target: str
    found: str
    kept: bool


class Targets(Record):
    """`targets.json`."""

    findings: tuple[Finding, ...]
    provenance: Provenance
