"""Load for `POST /classify`: raw image bytes, every answer checked.

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:3000

Options of its own, also as environment variables:
    --images DIR      LABELCURVE_IMAGES    image files to send; without it a generated image
    --model NAME      LABELCURVE_MODEL     the model to ask; without it the service's default
    --expected FILE   LABELCURVE_EXPECTED  JSON, file name to label: the first label must be it
    --record FILE     LABELCURVE_RECORD    raw latencies as JSON, see `Recorder`
    --measure N       LABELCURVE_MEASURE   end N seconds after the last user has started

An answer fails when its status is not 200, when it is no list of labels with descending scores,
when a label is not one of the model's classes, when another model answered than was asked, or
when the first label is not the expected one.
"""

from __future__ import annotations

import json
import time
from io import BytesIO
from mimetypes import guess_type
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import gevent
import numpy as np
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from PIL import Image

CLASSIFY = "/classify"


def _add_options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("Labelcurve")
    group.add_argument(
        "--images",
        metavar="<folder>",
        default="",
        env_var="LABELCURVE_IMAGES",
        help="Folder of image files to send. Default: one generated image",
    )
    group.add_argument(
        "--model",
        metavar="<name>",
        default="",
        env_var="LABELCURVE_MODEL",
        help="Model to ask. Default: the service's own choice",
    )
    group.add_argument(
        "--expected",
        metavar="<file>",
        default="",
        env_var="LABELCURVE_EXPECTED",
        help="JSON object of file names and the label that must come first",
    )
    group.add_argument(
        "--record",
        metavar="<file>",
        default="",
        env_var="LABELCURVE_RECORD",
        help="File for the raw latencies, as JSON",
    )
    group.add_argument(
        "--measure",
        metavar="<seconds>",
        type=float,
        default=0.0,
        env_var="LABELCURVE_MEASURE",
        help="End so long after the last user has started. Default: --run-time decides",
    )


class Recorder:
    """Raw latencies, for percentiles that are not rounded.

    Writes `{"spawned", "stopping", "cpu_seconds", "requests"}`: when all users were running, when
    the end began (seconds since the epoch), CPU time of this process between the two, and
    `[start in seconds since the epoch, latency in ms, error or null]` a request.
    """

    def __init__(self, path: Path, environment: Environment) -> None:
        self.path = path
        self.requests: list[tuple[float, float, str | None]] = []
        self.spawned: tuple[float, float] | None = None
        self.stopping: tuple[float, float] | None = None
        environment.events.request.add_listener(self.on_request)
        environment.events.spawning_complete.add_listener(self.on_spawned)
        environment.events.test_stopping.add_listener(self.on_stopping)
        environment.events.quitting.add_listener(self.on_quitting)

    def on_request(
        self,
        name: str,
        start_time: float,
        response_time: float,
        exception: Exception | None,
        **_: Any,
    ) -> None:
        """Keeps one request."""
        if name == CLASSIFY:
            error = None if exception is None else str(exception) or type(exception).__name__
            self.requests.append((start_time, response_time, error))

    def on_spawned(self, **_: Any) -> None:
        """All users are running: the measured time begins."""
        self.spawned = (time.time(), time.process_time())

    def on_stopping(self, **_: Any) -> None:
        """The measured time ends."""
        self.stopping = (time.time(), time.process_time())

    def on_quitting(self, **_: Any) -> None:
        """Writes the file; without both marks nothing was measured and none is written."""
        if self.spawned is None or self.stopping is None:
            return
        record = {
            "spawned": self.spawned[0],
            "stopping": self.stopping[0],
            "cpu_seconds": self.stopping[1] - self.spawned[1],
            "requests": self.requests,
        }
        self.path.write_text(json.dumps(record))


def _prepare(environment: Environment, runner: Any, **_: Any) -> None:
    options = _options(environment)
    if options.record:
        Recorder(Path(options.record), environment)
    if options.measure:
        # --run-time counts from the launch, so that a slow start would shorten what is measured.
        def end(**_: Any) -> None:
            gevent.spawn_later(options.measure, runner.quit)

        environment.events.spawning_complete.add_listener(end)


def images(folder: str) -> list[tuple[str, bytes]]:
    """Name and bytes of every file in `folder`; of one generated 32 x 32 image without it."""
    if not folder:
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return [("generated.png", buffer.getvalue())]
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    if not files:
        raise FileNotFoundError(f"no file in {folder}: --images needs image files")
    return [(path.name, path.read_bytes()) for path in files]


def fault(
    status: int, body: bytes | None, served: str | None, asked: str, classes: dict[str, set[str]]
) -> str | None:
    """What is wrong with an answer; None when nothing is.

    Args:
        status: HTTP status, 0 without an answer.
        body: the answer's body.
        served: the answer's `X-Model-Name`.
        asked: the model that was asked for, empty for the default.
        classes: class names by model name, as `GET /models` gives them.
    """
    if status != 200:
        return f"status {status}"
    try:
        answer = json.loads(body or b"")
        labels = [item["label"] for item in answer]
        scores = [float(item["score"]) for item in answer]
    except (ValueError, TypeError, KeyError):
        return "no JSON list of label and score"
    if served not in classes or (asked and served != asked.partition("@")[0]):
        return f"X-Model-Name {served}, asked for {asked or 'the default'}"
    if not labels or len(set(labels)) != len(labels) or not set(labels) <= classes[served]:
        return f"labels {labels} are not distinct classes of {served}"
    if scores != sorted(scores, reverse=True) or not 0 <= scores[-1] <= scores[0] <= 1:
        return f"scores {scores} do not descend within 0 and 1"
    return None


class Classify(FastHttpUser):
    """A client that posts one image after the other and waits for each answer."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Reads the images, the expected labels and the service's class names."""
        options = _options(self.environment)
        self.images = images(options.images)
        self.expected = json.loads(Path(options.expected).read_text()) if options.expected else {}
        self.asked = options.model
        self.path = f"{CLASSIFY}?model={quote(self.asked)}" if self.asked else CLASSIFY
        self.random = Random(id(self))
        with self.client.get("/models", catch_response=True) as response:
            try:
                self.classes = {
                    model["name"]: set(model["class_names"])
                    for model in json.loads(response.content or b"")
                }
            except (ValueError, TypeError, KeyError):
                response.failure(f"GET /models of {self.host} lists no models")
                self.environment.process_exit_code = 2
                self.environment.runner.quit()

    @task
    def classify(self) -> None:
        """Posts one image and checks the answer."""
        name, data = self.random.choice(self.images)
        kind = guess_type(name)[0] or "application/octet-stream"
        with self.client.post(
            self.path,
            data=data,  # type: ignore[arg-type]  # annotated as text, meant for bytes too
            headers={"Content-Type": kind},
            name=CLASSIFY,
            catch_response=True,
        ) as response:
            headers = response.headers
            served = headers.get("x-model-name") if headers else None
            if not response.status_code:
                return  # no answer at all: locust's own exception says why
            found = fault(response.status_code, response.content, served, self.asked, self.classes)
            if found is None and name in self.expected:
                first = json.loads(response.content)[0]["label"]
                if first != self.expected[name]:
                    found = f"answered {first} where {self.expected[name]} was expected"
            if found:
                response.failure(found)


def _options(environment: Environment) -> Any:
    return environment.parsed_options


events.init_command_line_parser.add_listener(_add_options)
events.init.add_listener(_prepare)
