"""The locustfile in a real locust process, against a server that gives right and wrong answers.

It is never imported here: locust replaces the standard library's sockets when it is.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest

from labelcurve.benchmarks.harness.server import Server
from labelcurve.benchmarks.load.load import LOCUSTFILE
from tests.models import digit_png
from tests.serving.conftest import free_port

GOOD = [{"label": "1", "score": 0.75}, {"label": "2", "score": 0.25}]
ANSWERS: tuple[tuple[str, int, bytes, str], ...] = (
    ("good", 200, json.dumps(GOOD).encode(), "digits-10"),
    ("status 500", 500, json.dumps(GOOD).encode(), "digits-10"),
    ("no JSON list", 200, b"<html>", "digits-10"),
    ("no JSON list", 200, b'{"label": "1"}', "digits-10"),
    ("X-Model-Name digits-100", 200, json.dumps(GOOD).encode(), "digits-100"),
    ("not distinct classes", 200, b"[]", "digits-10"),
    ("not distinct classes", 200, b'[{"label": "cat", "score": 1}]', "digits-10"),
    ("do not descend", 200, json.dumps(GOOD[::-1]).encode(), "digits-10"),
    ("answered 1 where 2 was expected", 200, json.dumps(GOOD).encode(), "digits-10"),
)
"""The fault of the answer to digit number i, and the answer."""


class Service(ThreadingHTTPServer):
    """Answers by the posted image; remembers the bodies."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seconds = 0.0
        """Duration of each answer, one after the other."""
        self.busy = Lock()
        self.bodies: Counter[bytes] = Counter()
        self.targets: set[str] = set()
        self.types: set[str | None] = set()
        self.answers = {digit_png(index): answer for index, answer in enumerate(ANSWERS)}
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Service

    def do_GET(self) -> None:
        names = ["1", "2"]
        models = [{"name": name, "class_names": names} for name in ("digits-10", "digits-100")]
        self._answer(200, json.dumps(models).encode(), "")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.seconds:
            with self.server.busy:
                time.sleep(self.server.seconds)
        self.server.bodies[body] += 1
        self.server.targets.add(self.path)
        self.server.types.add(self.headers["Content-Type"])
        _, status, answer, name = self.server.answers.get(body, ANSWERS[0])
        self._answer(status, answer, name)

    def _answer(self, status: int, body: bytes, name: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Model-Name", name)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serving() -> Iterator[Service]:
    with Service() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def locust(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    common = ["-f", str(LOCUSTFILE), "--host", url, "--headless", "--only-summary"]
    # Not by --run-time, which counts from the launch: on busy cores that takes seconds.
    common += ["--users", "2", "--spawn-rate", "2", "--measure", "3", "--run-time", "40s"]
    return subprocess.run(
        [sys.executable, "-m", "locust", *common, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_body_is_a_whole_image_and_plain_locust_works(serving: Service) -> None:
    """locust#1903: a body given as an open file is empty from the second request on."""
    done = locust(serving.url, "Raw")
    assert done.returncode == 0, done.stderr
    ((body, n),) = serving.bodies.items()
    assert n > 1
    assert body.startswith(b"\x89PNG")
    assert serving.targets == {"/classify"}
    assert serving.types == {"image/png"}


def test_a_form_is_whole_whatever_the_file_is_called(serving: Service, tmp_path: Path) -> None:
    (tmp_path / 'a"b\r\nc.png').write_bytes(digit_png(0))
    done = locust(serving.url, "Multipart", "--images", str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert serving.bodies
    for body in serving.bodies:
        head, _, rest = body.partition(b"\r\n\r\n")
        assert head.endswith(b'filename="a%22b%0D%0Ac.png"\r\nContent-Type: image/png')
        assert rest.startswith(digit_png(0))


def test_every_answer_is_checked(serving: Service, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(len(ANSWERS)):
        (images / f"{index}.png").write_bytes(digit_png(index))
    (images / ".DS_Store").write_bytes(b"no image")
    expected = tmp_path / "expected.json"
    text = json.dumps({"0.png": "1", "8.png": "2"})
    expected.write_text(text, encoding="utf-8-sig")  # as Windows' editors do
    record = tmp_path / "record.json"
    options = ["Raw", "--images", str(images), "--model", "digits-10"]
    done = locust(serving.url, *options, "--expected", str(expected), "--record", str(record))
    assert done.returncode == 1
    assert set(serving.bodies) == set(serving.answers)
    assert serving.targets == {"/classify?model=digits-10"}

    recorded = json.loads(record.read_text())
    assert recorded["spawned"] < recorded["stopping"]
    assert recorded["cpu_seconds"] > 0
    errors = Counter(error for _, _, error, _ in recorded["requests"])
    for index, (fault, *_) in enumerate(ANSWERS):
        sent = serving.bodies[digit_png(index)]
        if fault == "good":
            assert abs(errors[None] - sent) <= 2  # one request of each user is aborted at the end
        else:
            assert any(fault in error for error in errors if error), fault
    assert all(latency > 0 for _, latency, _, _ in recorded["requests"])
    # Raw, not rounded to the two digits of locust's own statistics.
    assert len({latency for _, latency, _, _ in recorded["requests"]}) > 10


def test_no_service(tmp_path: Path) -> None:
    done = locust("http://127.0.0.1:9", "--run-time", "20s")
    assert done.returncode == 2
    assert "lists no models" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "-5"], "--rate: -5: a number of at least 0"),
        (["--steps", "1,x"], "--steps: 1,x: numbers of users, as 1,2,4,8, are needed"),
        (["--steps", "1,0"], "--steps: 1,0: numbers of users, as 1,2,4,8, are needed"),
        (["--step-seconds", "0"], "--step-seconds: 0: a number above 0"),
        (
            ["--record", "/nowhere/r.json"],
            "--record: /nowhere/r.json: a file in an existing folder is needed",
        ),
        (["--model", "a=x"], "--model: a=x: names, each with a weight, as a=3,b=1, are needed"),
        (["--model", "a=0"], "--model: a=0: names, each with a weight, as a=3,b=1, are needed"),
        (["--images", "nowhere"], "--images: nowhere: a folder of image files"),
        (["--expected", "nowhere"], "--expected: nowhere: a JSON file"),
    ],
)
def test_a_bad_option_is_named(options: list[str], message: str) -> None:
    done = locust("http://127.0.0.1:9", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_every_kind_of_client_and_two_models(service: Server, tmp_path: Path) -> None:
    """Against the real service: what is bad is refused as it should be, the rest is answered."""
    record = tmp_path / "record.json"
    options = ["--model", "digits-10=3,digits-50=1", "--record", str(record)]
    done = locust(service.url, *options, "--users", "10", "--spawn-rate", "10", "--measure", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("multipart", "mixed sizes", "bad input"):
        assert f"/classify {name}" in done.stdout + done.stderr
    recorded = json.loads(record.read_text())
    assert len(recorded["requests"]) >= 3
    assert all(error is None for _, _, error, _ in recorded["requests"])


def test_the_master_has_the_latencies_of_its_workers(serving: Service, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    done = locust(serving.url, "Raw", "--processes", "2", "--record", str(record))
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = json.loads(record.read_text())
    assert recorded["processes"] == 2
    assert recorded["cpu_seconds"] > 0
    sent = sum(serving.bodies.values())
    assert 10 < len(recorded["requests"]) <= sent
    assert len(recorded["requests"]) > 0.5 * sent


def test_a_worker_that_knows_no_options_serves_a_master(serving: Service, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    port = str(free_port())
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker"]
    command += ["--master-host", "127.0.0.1", "--master-port", port]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        try:
            options = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
            options += ["--expect-workers", "1", "--steps", "1,2", "--step-seconds", "2"]
            done = locust(serving.url, *options, "Raw", "--measure", "0", "--record", str(record))
        finally:
            worker.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "knee: " in done.stdout
    assert len(json.loads(record.read_text())["requests"]) > 0.5 * sum(serving.bodies.values()) > 5


def test_steps_end_by_themselves_and_show_the_knee(serving: Service, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    options = ["Raw", "--steps", "1,2", "--step-seconds", "1", "--record", str(record)]
    done = locust(serving.url, *options, "--measure", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"knee: [12] users, [\d,]+ requests/s", done.stdout + done.stderr)
    steps = json.loads(record.read_text())["steps"]
    assert [step["users"] for step in steps] == [1, 2]
    assert all(step["end"] - step["begin"] >= 1 for step in steps)


def test_a_fixed_rate_is_kept(serving: Service, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    options = ["Raw", "--rate", "40", "--measure", "3", "--record", str(record)]
    done = locust(serving.url, *options, "--users", "1", "--run-time", "30s")
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = json.loads(record.read_text())
    n = len(recorded["requests"])
    seconds = recorded["stopping"] - recorded["spawned"]
    # Poisson: three standard deviations and the outstanding requests.
    assert abs(n - 40 * seconds) < 3 * (40 * seconds) ** 0.5 + 5


def test_a_fixed_rate_is_that_of_all_processes_together(serving: Service, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    options = ["Raw", "--rate", "40", "--measure", "4", "--processes", "2"]
    done = locust(serving.url, *options, "--record", str(record), "--run-time", "30s")
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = json.loads(record.read_text())
    begin, end = recorded["spawned"], recorded["stopping"]
    n = sum(begin <= due <= end for due, _, _, _ in recorded["requests"])
    assert abs(n - 40 * (end - begin)) < 3 * (40 * (end - begin)) ** 0.5 + 5


@pytest.mark.parametrize("patience", ["1", "30"])
def test_a_queue_at_a_fixed_rate_cannot_hide(
    serving: Service, tmp_path: Path, patience: str
) -> None:
    serving.seconds = 0.05
    record = tmp_path / "record.json"
    options = ["Raw", "--rate", "40", "--measure", "3", "--record", str(record)]
    options += ["--users", "1", "--run-time", "30s", "--stop-timeout", patience]
    locust(serving.url, *options)
    recorded = json.loads(record.read_text())
    begin, end = recorded["spawned"], recorded["stopping"]
    due = [error for due, _, error, _ in recorded["requests"] if begin <= due <= end]
    assert len(due) > 40 * (end - begin) - 3 * (40 * (end - begin)) ** 0.5 - 5
    missing = due.count("not answered before the end")
    assert missing > 10 if patience == "1" else missing == 0


def test_arrivals_that_the_client_cannot_send_are_counted_and_said(
    serving: Service, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    options = ["Raw", "--rate", "20000", "--measure", "2", "--record", str(record)]
    done = locust(serving.url, *options, "--stop-timeout", "10")  # for each user to count
    found = json.loads(record.read_text())
    errors = Counter(request[2] for request in found["requests"])
    assert errors["not sent before the end"] > 1000
    assert "NOTE: the load generator could not send " in done.stderr
    assert "requests that were due at this rate: its own limit" in done.stderr
    # What was due during the measurement, give or take random variation.
    due = 20_000 * (found["stopping"] - found["spawned"])
    assert len(found["requests"]) > 0.9 * due


def test_a_model_that_is_not_served_ends_it_at_once(serving: Service) -> None:
    done = locust(serving.url, "Raw", "--model", "digits-10,nosuch=3")
    assert done.returncode == 2
    assert f"GET /models of {serving.url} has no model nosuch: digits-10, digits-100" in (
        done.stdout + done.stderr
    )
    assert sum(serving.bodies.values()) < 10


def test_a_record_that_is_not_written_is_said(serving: Service, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    options = ["Raw", "--users", "2", "--spawn-rate", "0.2", "--run-time", "2s"]
    done = locust(serving.url, *options, "--record", str(record))
    assert not record.exists()
    assert "record.json is not written: the run ended before all users" in done.stderr
