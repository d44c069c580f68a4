"""Load for `POST /classify`, every answer checked.

    locust -f benchmarks/load/locustfile.py --host http://127.0.0.1:3000

Kinds of clients, all of them by their weights unless some are named on the command line:
    Raw         image bytes as the body
    Multipart   the same as a form
    MixedSizes  JPEG and PNG from 32 to 1,920 pixels
    BadInput    other files, truncated images, invalid parameters: must be refused with 4xx

`locust -f benchmarks/load/locustfile.py --help` lists its own options under Labelcurve; all of them
can also be set as environment variables, LABELCURVE_IMAGES and so on.

An answer fails when its status is not 200, when it is not a list of classes of the model with
descending scores, when another model answered, or when the first label is not the expected one.
With --master and --worker, or --processes, the master collects the raw latencies. At the end it
says when the load generator itself was the bottleneck.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from functools import cache
from io import BytesIO
from mimetypes import guess_type
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import gevent
import numpy as np
from gevent.pool import Group
from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner
from PIL import Image

from labelcurve.benchmarks.load.recorder import CLASSIFY, Recorder

IN_FLIGHT = 1000
"""Concurrent requests at a fixed rate; further ones wait, which counts as latency."""
BEHIND = 0.1
"""Delay in seconds of arrivals at a fixed rate above which the load generator is the bottleneck."""
SIDES = (32, 128, 512, 1024, 1920)
"""Image sides that MixedSizes sends, in pixels."""


def _checked(
    parse: Callable[[str], Any], fits: Callable[[Any], object], needed: str
) -> Callable[[str], str]:
    """A type for argparse: text that parses and fits, or no text."""

    def check(text: str) -> str:
        try:
            good = not text or bool(fits(parse(text)))
        except (OSError, ValueError):
            good = False
        if not good:
            raise ArgumentTypeError(f"{text}: {needed} needed")
        return text

    return check


def _number(least: float, needed: str) -> Callable[[str], float]:
    check = _checked(float, lambda number: least <= number < float("inf"), needed)
    return lambda text: float(check(text))


_AT_LEAST_0 = _number(0, "a number of at least 0 is")
_POSITIVE = _number(1e-9, "a number above 0 is")
_FOLDER = _checked(lambda text: images(text), len, "a folder of image files is")
_FILE = _checked(
    lambda text: json.loads(Path(text).read_bytes()),
    lambda found: isinstance(found, dict),
    "a JSON file of names and labels is",
)
_NEW = _checked(
    Path, lambda path: path.absolute().parent.is_dir(), "a file in an existing folder is"
)
_WEIGHTS = _checked(
    lambda text: weights(text)[1],
    lambda found: min(found) >= 0 < sum(found),
    "names, each with a weight, as a=3,b=1, are",
)
_STEPS = _checked(
    lambda text: [int(part) for part in text.split(",")],
    lambda found: min(found) > 0,
    "numbers of users, as 1,2,4,8, are",
)

_OPTIONS: dict[str, tuple[str, Callable[[str], object], object, str]] = {
    "images": ("folder", _FOLDER, "", "Folder of image files to send. Default: a generated image"),
    "model": ("name[=weight],...", _WEIGHTS, "", "Model to ask. Default: the service's own choice"),
    "expected": ("file", _FILE, "", "JSON object of file names and the expected first label"),
    "rate": (
        "per second",
        _AT_LEAST_0,
        0.0,
        "Arrivals per second of all users together. Default: no fixed rate",
    ),
    "steps": ("users,...", _STEPS, "", "Numbers of users, one after the other, to saturation"),
    "step-seconds": ("seconds", _POSITIVE, 6.0, "Length of a step. Default: 6"),
    "measure": ("seconds", _AT_LEAST_0, 0.0, "Run time, counted from the start of the last user"),
    "record": ("file", _NEW, "", "File for the raw latencies, as JSON"),
}


def _add_options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("Labelcurve")
    for name, (metavar, kind, default, text) in _OPTIONS.items():
        group.add_argument(
            f"--{name}",
            metavar=f"<{metavar}>",
            type=kind,
            default=default,
            env_var=f"LABELCURVE_{name.replace('-', '_').upper()}",
            help=text,
        )


def _given(option: str, variable: str) -> bool:
    """Whether an option is set, before locust has parsed the command line."""
    named = any(argument.partition("=")[0] == option for argument in sys.argv)
    return named or bool(os.environ.get(variable))


class Steps(LoadTestShape):
    """Users step by step as --steps says, each for --step-seconds once its users are running."""

    abstract = not _given("--steps", "LABELCURVE_STEPS")
    index = 0
    mark: tuple[float, float] | None = None

    def reset_time(self) -> None:
        """Reset: a run begins, perhaps not the first one on the web page."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self.index, self.mark = 0, None

    def tick(self) -> tuple[int, float] | None:
        """Return the users of the current step; None after the last."""
        assert self.runner is not None
        environment = self.runner.environment
        options, recorder = _options(environment), _recorders[environment]
        steps = [int(part) for part in options.steps.split(",")]
        if self.index == len(steps):
            return None
        users = steps[self.index]
        now = time.time()
        if self.mark is None and self.runner.user_count == users:
            self.mark = (now, recorder.cpu_seconds())
        if self.mark is not None and now - self.mark[0] >= options.step_seconds:
            begin, cpu = self.mark[0], recorder.cpu_seconds() - self.mark[1]
            recorder.steps.append({"users": users, "begin": begin, "end": now, "cpu_seconds": cpu})
            self.index, self.mark = self.index + 1, None
            return self.tick()
        return users, float(max(steps))


_recorders: dict[Environment, Recorder] = {}


def _prepare(environment: Environment, runner: Any, **_: Any) -> None:
    options = _options(environment)
    path = Path(options.record) if options.record else None
    # A worker keeps them for the master, whose options it does not know yet.
    keep = bool(path or options.steps) or isinstance(runner, WorkerRunner)
    _recorders[environment] = Recorder(environment, path, keep)
    if options.rate and options.steps:
        sys.exit(
            "error: --rate and --steps exclude each other: one sets the arrivals, one the users"
        )
    if isinstance(runner, WorkerRunner):
        return

    def begin(**_: Any) -> None:
        # A worker knows only its own users, and gets this with the master's options.
        options.all_users = runner.target_user_count

    def end(**_: Any) -> None:
        gevent.spawn_later(options.measure, runner.quit)

    environment.events.test_start.add_listener(begin)
    if options.measure:
        # --run-time counts from the launch, so that a slow start would shorten what is measured.
        environment.events.spawning_complete.add_listener(end)


def images(folder: str) -> list[tuple[str, bytes]]:
    """Read name and bytes of every file in `folder` that is not hidden, as `.DS_Store` is.

    Without a folder, generate a 32 x 32 image.
    """
    if not folder:
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return [("generated.png", buffer.getvalue())]
    shown = (path for path in Path(folder).iterdir() if not path.name.startswith("."))
    files = sorted(path for path in shown if path.is_file())
    if not files:
        raise FileNotFoundError(f"no file in {folder}: --images needs image files")
    return [(path.name, path.read_bytes()) for path in files]


@cache
def sized(content: bytes) -> list[tuple[str, bytes]]:
    """Encode an image as JPEG and PNG at each of `SIDES`, once for all clients."""
    image = Image.open(BytesIO(content)).convert("RGB")
    found = []
    for side in SIDES:
        for kind in ("jpeg", "png"):
            buffer = BytesIO()
            image.resize((side, side)).save(buffer, kind, compress_level=1)
            found.append((f"{side}.{kind}", buffer.getvalue()))
    return found


def weights(text: str) -> tuple[list[str], list[float]]:
    """Parse `a=3,b=1` into names and weights; a name alone weighs 1."""
    names, found = [], []
    for part in text.split(","):
        name, _, weight = part.partition("=")
        names.append(name.strip())
        found.append(float(weight or 1))
    return names, found


def fault(
    status: int, body: bytes | None, served: str | None, asked: str, classes: dict[str, set[str]]
) -> str | None:
    """Say what is wrong with an answer; None when it is correct.

    `served` is its `X-Model-Name`, `asked` the model that was asked for, empty for the default;
    class names are by model name, as `GET /models` gives them.
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


class Client(FastHttpUser):
    """Sends one request after the other, or at a fixed rate; subclasses define the requests."""

    abstract = True
    wait_time = constant(0)
    concurrency = IN_FLIGHT

    def on_start(self) -> None:
        """Read the images, the expected labels and the service's class names."""
        options = _options(self.environment)
        self.images = images(options.images)
        self.expected = json.loads(Path(options.expected).read_bytes()) if options.expected else {}
        self.asked = weights(options.model)
        self.random = Random(id(self))
        self.rate = options.rate
        self.due = time.time()
        self.under_way = Group()
        with self.client.get("/models", catch_response=True) as response:
            try:
                self.classes = {
                    model["name"]: set(model["class_names"])
                    for model in json.loads(response.content or b"")
                }
                unknown = {name.partition("@")[0] for name in self.asked[0]} - {*self.classes, ""}
                said = f"has no model {', '.join(sorted(unknown))}: {', '.join(self.classes)}"
            except (ValueError, TypeError, KeyError):
                unknown, said = {"any"}, "lists no models"
            if unknown:
                response.failure(f"GET /models of {self.host} {said}")
                self.environment.process_exit_code = 2
                self.environment.runner.quit()

    @task
    def work(self) -> None:
        """Send a request and wait; at a fixed rate, wait for the next arrival and send it."""
        if not self.rate:
            self.send({})
            return
        users = max(1, _options(self.environment).all_users)
        self.due += self.random.expovariate(self.rate / users)
        gevent.sleep(max(0.0, self.due - time.time()))
        self.under_way.spawn(self.send, _recorders[self.environment].begin(self.due))

    def on_stop(self) -> None:
        """Wait for outstanding answers, as long as --stop-timeout allows."""
        now = time.time()
        if self.rate and now - self.due > BEHIND:
            users = max(1, _options(self.environment).all_users)
            while self.due < now:
                _recorders[self.environment].unsent(self.due)
                self.due += self.random.expovariate(self.rate / users)
        self.under_way.join(timeout=max(0.0, (self.environment.stop_timeout or 0) - 0.5))

    def send(self, context: dict[str, float]) -> None:
        """Send a request and check the answer; the context is for locust's request event."""
        raise NotImplementedError

    def classify(
        self, context: dict[str, float], data: Any, kind: str, row: str, file: str
    ) -> None:
        """Post a body and check the answer.

        Args:
            context: passed on to locust's request event.
            data: the body, in bytes, which locust annotates as text.
            kind: its content type.
            row: the name in locust's statistics.
            file: which file of the images it is; empty where no label is expected.
        """
        asked = self.random.choices(*self.asked)[0]
        with self.client.post(
            f"{CLASSIFY}?model={quote(asked)}" if asked else CLASSIFY,
            data=data,
            headers={"Content-Type": kind},
            name=row,
            context=context,
            catch_response=True,
        ) as response:
            headers = response.headers
            served = headers.get("x-model-name") if headers else None
            if not response.status_code:
                return  # no answer at all: locust's exception says why
            found = fault(response.status_code, response.content, served, asked, self.classes)
            if found is None and file in self.expected:
                first = json.loads(response.content)[0]["label"]
                if first != self.expected[file]:
                    found = f"answered {first} where {self.expected[file]} was expected"
            if found:
                response.failure(found)


class Raw(Client):
    """Image bytes as the body."""

    weight = 6

    def send(self, context: dict[str, float]) -> None:
        """Post an image."""
        name, data = self.random.choice(self.images)
        self.classify(context, data, _kind(name), CLASSIFY, name)


class Multipart(Client):
    """An image as the field `image` of a form."""

    weight = 2

    def send(self, context: dict[str, float]) -> None:
        """Post a form."""
        name, data = self.random.choice(self.images)
        boundary = f"labelcurve{self.random.getrandbits(64):016x}"
        head = f'Content-Disposition: form-data; name="image"; filename="{quote(name)}"\r\n'
        head += f"Content-Type: {_kind(name)}\r\n\r\n"
        body = f"--{boundary}\r\n{head}".encode() + data + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        self.classify(context, body, kind, f"{CLASSIFY} multipart", name)


class MixedSizes(Client):
    """The first image as JPEG and PNG from 32 to 1,920 pixels."""

    weight = 1

    def on_start(self) -> None:
        """Encode the sizes."""
        super().on_start()
        self.sized = sized(self.images[0][1])

    def send(self, context: dict[str, float]) -> None:
        """Post one of them."""
        name, data = self.random.choice(self.sized)
        self.classify(context, data, _kind(name), f"{CLASSIFY} mixed sizes", "")


class BadInput(Client):
    """Requests that must be refused with a problem document (RFC 9457)."""

    weight = 1

    def send(self, context: dict[str, float]) -> None:
        """Post one and expect its refusal."""
        name, data = self.random.choice(self.images)
        body: Any
        query, body, allowed = self.random.choice(
            (
                ("", b"", {400, 415}),
                ("", b"not an image", {400, 415}),
                ("", data[: len(data) // 2], {400, 415, 422}),
                ("?top_k=0", data, {400, 422}),
                ("?model=no-such-model", data, {404}),
            )
        )
        with self.client.post(
            CLASSIFY + query,
            data=body,
            headers={"Content-Type": _kind(name)},
            name=f"{CLASSIFY} bad input",
            context=context,
            catch_response=True,
        ) as response:
            if not response.status_code:
                return
            try:
                said = json.loads(response.content or b"")["status"]
            except (ValueError, TypeError, KeyError):
                said = None
            if response.status_code in allowed and said == response.status_code:
                response.success()
            else:
                response.failure(
                    f"status {response.status_code}, problem {said}: {sorted(allowed)} expected"
                )


def _kind(name: str) -> str:
    return guess_type(name)[0] or "application/octet-stream"


def _options(environment: Environment) -> Any:
    return environment.parsed_options


events.init_command_line_parser.add_listener(_add_options)
events.init.add_listener(_prepare)
