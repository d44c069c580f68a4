"""Settings of `serve`, and how they are passed to the workers."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from labelcurve.bundle.command import PerCore, Within, check
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import cores
from labelcurve.serving.models.precision import Precision

VARIABLE = "LABELCURVE_SERVE"
"""The environment variable in which a worker finds its settings."""


@dataclass(frozen=True)
class Settings:
    """Serves the image classifiers in a folder of bundles."""

    models: Path = Path("models")
    """Folder that `labelcurve train --out` wrote. The current version of every model in it is
    served."""
    model: tuple[str, ...] = ()
    """Serve only this model; repeatable. Without it, all are served. `labelcurve
    models promote` names the default, which answers requests that name no model."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every IPv4 address of the machine."""
    port: Annotated[int, Within(1, 65535)] = 3000
    """Port to listen on."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto uses a visible NVIDIA GPU, and then refuses to start without it."""
    precision: Precision = "fp32"
    """fp32 is what the accuracy of a model was measured on first; int8 (for CPUs) and fp16 (for
    GPUs) answer from the graph that `quantize` added, and refuse a model without it; auto takes it
    where there is one for the device, and says so."""
    threads: Annotated[int | None, PerCore()] = None
    """ONNX Runtime threads of each worker; by default its share of the cores that the process may
    use (affinity and cgroup quota)."""
    workers: Annotated[int, PerCore()] = 1
    """Processes that answer. Each holds every model. One decodes on one core: a GPU that could do
    more is shared by several."""
    queue: Annotated[int, Within(1)] = 1024
    """Images that may be queued for a model; beyond it the answer is 503 with Retry-After."""
    max_wait: Annotated[float, Within(0.01)] = 2.0
    """Seconds that an image may have to wait, estimated from the last batches; beyond it the answer
    is also 503."""
    timeout: Annotated[float, Within(0.1)] = 10.0
    """Seconds from the end of its body until a request that is not answered gets 504."""
    body_timeout: Annotated[float, Within(0.1)] = 20.0
    """Seconds that the body of a request may take to arrive; beyond it the answer is 408."""
    head_timeout: Annotated[float, Within(0.1)] = 10.0
    """Seconds that the headers of a request may take to arrive."""
    keep_alive: Annotated[int, Within(1)] = 75
    """Seconds that a connection stays open after an answer: longer than proxies keep theirs, which
    would otherwise send a request just as it is closed."""
    connections: Annotated[int, Within(1)] = 4096
    """Connections that each worker holds; beyond it a new one takes the place of the one that has
    been idle longest, or is closed with 503 where none is idle."""
    watch: Annotated[float, Within(0)] = 1.0
    """Seconds between checks of the models folder: a new `current` version is loaded in the
    background, then replaces the old one. 0 disables the checks."""
    keep: Annotated[int, Within(0)] = 2
    """Versions kept loaded in addition to the current ones: the last one replaced, and those that
    requests named as NAME@VERSION. 0 serves only the current ones."""
    lame_duck: Annotated[float, Within(0, 600)] = 1.0
    """Seconds from SIGTERM, when /readyz begins to answer 503, until new connections are refused:
    time for a load balancer to notice."""
    drain: Annotated[int, Within(0, 600)] = 7
    """Seconds that requests in flight have to finish after SIGTERM or Ctrl-C; together with the
    shutdown itself, less than the 10 s that `docker stop` waits."""
    accept: Annotated[float | None, Within(0.5, 0.9999)] = None
    """Target accuracy of the answers that are accepted without review, such as 0.98: each answer of
    /classify says in the header X-Accepted whether it is one of them. By default none does."""
    keep_doubtful: Path | None = None
    """Folder that keeps the uploads to /classify whose answer is not accepted (--accept), for a
    person to label; the page offers them as a table. By default no upload is kept. PRIVACY: these
    are the files as they were sent, metadata such as the place of a photo included, until you
    delete them."""
    doubtful_images: Annotated[int, Within(1)] = 1000
    """Images that --keep-doubtful may hold; beyond it no more are kept."""
    doubtful_mb: Annotated[int, Within(1)] = 500
    """Megabytes that --keep-doubtful may hold; beyond it no more are kept."""
    api_keys: Path | None = None
    """File of API keys, made with `labelcurve api-key`; by default authentication is disabled."""
    cors: tuple[str, ...] = ()
    """CORS origin of another site whose pages may send requests, such as https://example.org; * for
    all; repeatable."""
    metrics_port: Annotated[int | None, Within(1, 65535)] = None
    """Separate port for /metrics, without a key, on the same address; --port then lacks it."""
    access_log: bool = False
    """Log a line for each request, except probes that answer 200."""
    log_format: Literal["text", "json"] = "text"
    """text is for people; json is one object per line, for every event and error."""
    otlp_endpoint: str | None = None
    """Base URL of an OpenTelemetry collector (OTLP over HTTP) that gets a trace of each request; by
    default OTEL_EXPORTER_OTLP_ENDPOINT, and no traces where that is not set."""
    self_test: bool = False
    """Run every model once, print what it actually runs on, and stop without listening. The exit
    status is 1 where that is not what `--device` says."""

    def check(self) -> None:
        """Validates the values.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        check(self)
        for origin in self.cors:
            if origin != "*" and not re.fullmatch(r"https?://[^/?#\s]+", origin):
                raise LabelcurveError(
                    f"--cors {origin}: allowed are https://HOST and https://HOST:PORT without a "
                    "path, and * for all"
                )
        if self.otlp_endpoint and not re.match(r"https?://[^/?#\s]+", self.otlp_endpoint):
            raise LabelcurveError(
                f"--otlp-endpoint {self.otlp_endpoint}: allowed is a URL, as http://localhost:4318"
            )
        if self.keep_doubtful and self.accept is None:
            raise LabelcurveError(
                f"--keep-doubtful {self.keep_doubtful} needs --accept, which says what is "
                "doubtful: add the accuracy wished among the other answers, as --accept 0.98"
            )
        if self.metrics_port == self.port:
            raise LabelcurveError(f"--metrics-port {self.metrics_port}: allowed is any but --port")

    def dumps(self) -> str:
        """The settings as `loads` reads them."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def loads(cls, text: str) -> Settings:
        """The settings that `dumps` wrote."""
        values = json.loads(text)
        keys, doubtful = values.pop("api_keys"), values.pop("keep_doubtful")
        return cls(
            **values
            | {
                "models": Path(values["models"]),
                "model": tuple(values["model"]),
                "cors": tuple(values["cors"]),
                "api_keys": Path(keys) if keys else None,
                "keep_doubtful": Path(doubtful) if doubtful else None,
            }
        )

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings of this worker; the defaults when it was started manually."""
        text = os.environ.get(VARIABLE)
        return cls.loads(text) if text else cls()

    def threads_of_worker(self) -> int:
        """ONNX Runtime threads of one worker."""
        return self.threads or max(1, cores() // self.workers)
