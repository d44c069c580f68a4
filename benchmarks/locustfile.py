"""Load for `POST /classify`, every answer checked.

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:3000

Kinds of clients, all of them by their weights unless some are named on the command line:
    Raw         image bytes as the body
    Multipart   the same as a form
    MixedSizes  JPEG and PNG from 32 to 1,920 pixels
    BadInput    what is no image, is cut off, or asks for nonsense: must be refused politely

Options of its own, also as environment variables:
    --images DIR      LABELCURVE_IMAGES    image files to send; without it a generated image
    --model NAMES     LABELCURVE_MODEL     the model to ask, or several by weight: a=3,b=1;
                                           without it the service's default
    --expected FILE   LABELCURVE_EXPECTED  JSON, file name to label: the first label must be it
    --rate N          LABELCURVE_RATE      N arrivals a second (Poisson), whether or not answers
                                           come back; without it each client waits for its answer
    --steps LIST      LABELCURVE_STEPS     clients step by step, as 1,2,4,8: to saturation
    --step-seconds N  LABELCURVE_STEP_SECONDS
    --measure N       LABELCURVE_MEASURE   end N seconds after the last user has started
    --record FILE     LABELCURVE_RECORD    raw latencies as JSON, see recorder.py

An answer fails when its status is not 200, when it is no list of labels with descending scores,
when a label is not one of the model's classes, when another model answered than was asked, or
when the first label is not the expected one. With --master and --worker, or --processes, the
workers' raw latencies are put together by the master. At the end it says when the load generator
itself was the limit.
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

from benchmarks.recorder import CLASSIFY, Recorder

IN_FLIGHT = 1000
"""Requests under way at a fixed rate before further ones wait; their wait counts as latency."""
BEHIND = 0.1
"""Seconds that arrivals of a fixed rate may be late before the load generator is the limit."""
SIDES = (32, 128, 512, 1024, 1920)
"""Of the images that MixedSizes sends, in pixels."""


def _number(text: str) -> float:
    """A number of at least 0."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ArgumentTypeError(f"{text}: a number of at least 0 is needed")
    return number


def _positive(text: str) -> float:
    """A number above 0."""
    if not _number(text):
        raise ArgumentTypeError(f"{text}: a number above 0 is needed")
    return float(text)


def _new(text: str) -> str:
    """A file in a folder that is there, or nothing."""
    if text and not Path(text).absolute().parent.is_dir():
        raise ArgumentTypeError(f"{text}: there is no folder {Path(text).parent}")
    return text


def _folder(text: str) -> str:
    """A folder with files in it, or nothing."""
    if text and not (Path(text).is_dir() and images(text)):
        raise ArgumentTypeError(f"{text}: a folder of image files is needed")
    return text


def _file(text: str) -> str:
    """A JSON object, or nothing."""
    try:
        if text and not isinstance(json.loads(Path(text).read_text()), dict):
            raise ValueError
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(f"{text}: a JSON file of names and labels is needed") from error
    return text


def _weights(text: str) -> str:
    """Names, each with a weight or without."""
    try:
        fits = min(weights(text)[1]) >= 0 and sum(weights(text)[1]) > 0
    except ValueError:
        fits = False
    if not fits:
        raise ArgumentTypeError(f"{text}: names are needed, each with a weight, as a=3,b=1")
    return text


def _steps(text: str) -> str:
    """Numbers of users, or nothing."""
    if text and not all(part.strip().isdecimal() and int(part) for part in text.split(",")):
        raise ArgumentTypeError(f"{text}: numbers of users are needed, as 1,2,4,8")
    return text


_OPTIONS: dict[str, tuple[str, Callable[[str], object], object, str]] = {
    "images": ("folder", _folder, "", "Folder of image files to send. Default: a generated image"),
    "model": ("name[=weight],...", _weights, "", "Model to ask. Default: the service's own choice"),
    "expected": ("file", _file, "", "JSON object of file names and the label that must come first"),
    "rate": ("per second", _number, 0.0, "Arrivals a second of all users. Default: no rate"),
    "steps": ("users,...", _steps, "", "Numbers of users, one after the other, to saturation"),
    "step-seconds": ("seconds", _positive, 6.0, "Length of a step. Default: 6"),
    "measure": ("seconds", _number, 0.0, "End so long after the last user has started"),
    "record": ("file", _new, "", "File for the raw latencies, as JSON"),
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

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index = 0
        self.mark: tuple[float, float] | None = None

    def reset_time(self) -> None:
        """A run begins, on the web page perhaps not the first one."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self.index, self.mark = 0, None

    def tick(self) -> tuple[int, float] | None:
        """The users of the current step; None after the last."""
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
            cpu = recorder.cpu_seconds() - self.mark[1]
            recorder.steps.append(
                {"users": users, "begin": self.mark[0], "end": now, "cpu_seconds": cpu}
            )
            self.mark = None
            self.index += 1
            if self.index == len(steps):
                return None
        return steps[self.index], float(max(steps))


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

    def begin(**_: Any) -> None:
        # A worker knows its own users only, and gets this with the master's options.
        options.all_users = runner.target_user_count

    if not isinstance(runner, WorkerRunner):
        environment.events.test_start.add_listener(begin)
    if options.measure and not isinstance(runner, WorkerRunner):
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


@cache
def sized(content: bytes) -> list[tuple[str, bytes]]:
    """An image as JPEG and as PNG at each of `SIDES`; made once, since the others wait for it."""
    image = Image.open(BytesIO(content)).convert("RGB")
    found = []
    for side in SIDES:
        for kind in ("jpeg", "png"):
            buffer = BytesIO()
            image.resize((side, side)).save(buffer, kind, compress_level=1)
            found.append((f"{side}.{kind}", buffer.getvalue()))
    return found


def weights(text: str) -> tuple[list[str], list[float]]:
    """`a=3,b=1` as names and weights; a name alone weighs 1."""
    names, found = [], []
    for part in text.split(","):
        name, _, weight = part.partition("=")
        names.append(name.strip())
        found.append(float(weight or 1))
    return names, found


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


class Client(FastHttpUser):
    """Sends one request after the other, or at a fixed rate; the kinds say what."""

    abstract = True
    wait_time = constant(0)
    concurrency = IN_FLIGHT

    def on_start(self) -> None:
        """Reads the images, the expected labels and the service's class names."""
        options = _options(self.environment)
        self.images = images(options.images)
        self.expected = json.loads(Path(options.expected).read_text()) if options.expected else {}
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
        """One request and its answer; at a fixed rate the next arrival, answered later."""
        if not self.rate:
            self.send({})
            return
        users = max(1, _options(self.environment).all_users)
        self.due += self.random.expovariate(self.rate / users)
        gevent.sleep(max(0.0, self.due - time.time()))
        self.under_way.spawn(self.send, _recorders[self.environment].begin(self.due))

    def on_stop(self) -> None:
        """Waits for what is not answered yet, as long as --stop-timeout allows."""
        now = time.time()
        if self.rate and now - self.due > BEHIND:
            users = max(1, _options(self.environment).all_users)
            while self.due < now:
                _recorders[self.environment].unsent(self.due)
                self.due += self.random.expovariate(self.rate / users)
        self.under_way.join(timeout=max(0.0, (self.environment.stop_timeout or 0) - 0.5))

    def send(self, context: dict[str, float]) -> None:
        """One request and its answer.

        Args:
            context: passed on to locust's request event.
        """
        raise NotImplementedError

    def classify(
        self, context: dict[str, float], data: bytes, kind: str, row: str, file: str
    ) -> None:
        """Posts a body and checks the answer.

        Args:
            context: passed on to locust's request event.
            data: the body.
            kind: its content type.
            row: the name in locust's statistics.
            file: which file of the images it is; empty where no label is expected.
        """
        asked = self.random.choices(*self.asked)[0]
        with self.client.post(
            f"{CLASSIFY}?model={quote(asked)}" if asked else CLASSIFY,
            data=data,  # type: ignore[arg-type]  # annotated as text, meant for bytes too
            headers={"Content-Type": kind},
            name=row,
            context=context,
            catch_response=True,
        ) as response:
            headers = response.headers
            served = headers.get("x-model-name") if headers else None
            if not response.status_code:
                return  # no answer at all: locust's own exception says why
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
        """Posts one image."""
        name, data = self.random.choice(self.images)
        self.classify(context, data, _kind(name), CLASSIFY, name)


class Multipart(Client):
    """An image as the field `image` of a form."""

    weight = 2

    def send(self, context: dict[str, float]) -> None:
        """Posts one form."""
        name, data = self.random.choice(self.images)
        boundary = f"labelcurve{self.random.getrandbits(64):016x}"
        head = f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
        head += f"Content-Type: {_kind(name)}\r\n\r\n"
        body = f"--{boundary}\r\n{head}".encode() + data + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        self.classify(context, body, kind, f"{CLASSIFY} multipart", name)


class MixedSizes(Client):
    """The first image as JPEG and PNG from 32 to 1,920 pixels."""

    weight = 1

    def on_start(self) -> None:
        """Makes the sizes."""
        super().on_start()
        self.sized = sized(self.images[0][1])

    def send(self, context: dict[str, float]) -> None:
        """Posts one of them."""
        name, data = self.random.choice(self.sized)
        self.classify(context, data, _kind(name), f"{CLASSIFY} mixed sizes", "")


class BadInput(Client):
    """Bodies and questions that must be refused with a problem that names them (RFC 9457)."""

    weight = 1

    def send(self, context: dict[str, float]) -> None:
        """Posts one and expects its refusal."""
        name, data = self.random.choice(self.images)
        query, body, allowed = self.random.choice(
            (
                ("", b"", {400, 415}),
                ("", b"this is no image", {400, 415}),
                ("", data[: len(data) // 2], {400, 415, 422}),
                ("?top_k=0", data, {400, 422}),
                ("?model=no-such-model", data, {404}),
            )
        )
        with self.client.post(
            CLASSIFY + query,
            data=body,  # type: ignore[arg-type]
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
