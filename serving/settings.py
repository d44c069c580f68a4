"""What `serve` can be told, and how it tells its worker processes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bundle.machine import cores
from serving.precision import Precision

VARIABLE = "LABELCURVE_SERVE"
"""The environment variable in which a worker finds its settings."""


@dataclass(frozen=True)
class Settings:
    """Serves the image classifiers in a folder of bundles."""

    models: Path = Path("models")
    """Folder that `train --out` wrote. The current version of every model in it is served."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every IPv4 address of the machine."""
    port: int = 3000
    """Port to listen on."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto uses a visible NVIDIA GPU, and then refuses to start on anything else."""
    precision: Precision = "fp32"
    """fp32 is what the accuracy of a model was measured on first; int8 (for CPUs) and fp16 (for
    GPUs) answer from the graph that `quantize` added, and refuse a model without it; auto takes it
    where there is one for the device, and says so."""
    threads: int | None = None
    """ONNX Runtime threads of each worker; by default its share of the cores that the process may
    use (affinity and cgroup quota)."""
    workers: int = 1
    """Processes that answer. Each holds every model; more than one helps on CPUs only."""
    queue: int = 1024
    """Images that may wait for a model; beyond it the answer is 503 with Retry-After."""
    max_wait: float = 2.0
    """Seconds that an image may have to wait, as far as the last batches tell; beyond it the answer
    is 503, too."""
    timeout: float = 10.0
    """Seconds from the end of its body until a request that is not answered gets 504."""
    body_timeout: float = 20.0
    """Seconds that the body of a request may take to arrive; beyond it the answer is 408."""
    head_timeout: float = 10.0
    """Seconds that the headers of a request may take to arrive."""
    keep_alive: int = 75
    """Seconds that a connection stays open after an answer: longer than proxies keep theirs, which
    would otherwise send a request just as it is closed."""
    connections: int = 4096
    """Connections that each worker holds; beyond it they are closed with 503."""
    watch: float = 1.0
    """Seconds between looks at the models folder: what `current` points to is loaded beside, then
    takes its place. 0 never looks."""
    keep: int = 2
    """Versions that stay loaded beside the current ones: the last that was replaced, and those that
    requests named as NAME@VERSION. 0 serves the current ones only."""
    lame_duck: float = 1.0
    """Seconds from SIGTERM, when /readyz begins to answer 503, until new connections are refused:
    time for a load balancer to notice."""
    drain: int = 7
    """Seconds that requests in flight have to finish after SIGTERM or Ctrl-C; with what ending
    takes, less than the 10 s that `docker stop` waits."""
    api_keys: Path | None = None
    """File of the API keys that may ask, made with `api-key`; by default anybody may."""
    cors: tuple[str, ...] = ()
    """Origins of other sites whose pages may ask, as https://example.org; * for all."""
    metrics_port: int | None = None
    """Port for /metrics alone, without a key, on the same address; it is closed on the other."""
    access_log: bool = False
    """Log a line for each request, but for probes that answer 200."""
    log_format: Literal["text", "json"] = "text"
    """text for people; json is one object a line, for every event and error."""
    otlp_endpoint: str | None = None
    """Base URL of an OpenTelemetry collector (OTLP over HTTP) that gets a trace of each request; by
    default OTEL_EXPORTER_OTLP_ENDPOINT, and no traces where that is not set."""
    self_test: bool = False
    """Run every model once, print what it really runs on, and stop without listening. The exit
    status is 1 where that is not what `--device` says."""

    def dumps(self) -> str:
        """The settings as `loads` reads them."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def loads(cls, text: str) -> Settings:
        """The settings that `dumps` wrote."""
        values = json.loads(text)
        keys = values.pop("api_keys")
        return cls(
            **values | {"models": Path(values["models"]), "cors": tuple(values["cors"])},
            api_keys=Path(keys) if keys else None,
        )

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings of this worker; the defaults when it was started by hand."""
        text = os.environ.get(VARIABLE)
        return cls.loads(text) if text else cls()

    def threads_of_worker(self) -> int:
        """ONNX Runtime threads of one worker."""
        return self.threads or max(1, cores() // self.workers)
