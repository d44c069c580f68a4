from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from labelcurve.serving.telemetry.logs import (
    REQUEST_ID,
    AccessLog,
    Format,
    _line,
    rfc3339,
    timings,
)
from labelcurve.serving.telemetry.requests import Traffic
from labelcurve.serving.web.middleware import Front
from tests.models import digit_png
from tests.serving.conftest import SERVE, Service, wait_for
from tests.serving.web.test_request import problem


@pytest.fixture(scope="module")
def logging_service(start_service: Callable[..., Service], digits_models: Path) -> Service:
    service = start_service(digits_models, "--log-format", "json", "--access-log", "--workers", "2")
    wait_for(lambda: '"ready"' in service.output or service.process.poll() is not None, 90)
    return service


def lines(service: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.output.splitlines()]  # each line is JSON


def line_of(service: Service, request_id: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [line for line in lines(service) if line.get("request_id") == request_id]

    wait_for(lambda: bool(found()))
    (line,) = found()
    return line


def test_the_events_of_its_life_are_lines_of_json(
    logging_service: Service, digits_models: Path
) -> None:
    found = lines(logging_service)
    events = [line["event"] for line in found]
    assert events[:7] == ["device", "workers", "model", "model", "model", "default", "listen"]
    assert "ready" in events
    for line in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["level"] == "info"


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_becomes_of_models_is_logged(
    form: str, start_service: Callable[..., Service], digits_models: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    service = start_service(models, "--watch", "0.1", "--log-format", form)
    wait_for(lambda: f"{service.url}/classify" in service.output or '"ready"' in service.output)
    link = models / "digits-10" / "current"
    link.unlink()
    link.symlink_to("0123456789ab")
    shutil.rmtree(models / "digits-50")
    wait_for(lambda: "digits-50 was removed from the folder" in service.output)
    wait_for(lambda: "digits-10@0123456789ab is refused" in service.output)
    if form == "json":
        found = [line for line in lines(service) if line["event"] == "log"]
        assert {line["level"] for line in found} == {"warning", "error"}


def test_what_a_worker_refuses_as_it_starts_again_is_json_too(
    start_service: Callable[..., Service], digits_models: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    service = start_service(models, "--watch", "0", "--log-format", "json")
    wait_for(lambda: '"ready"' in service.output)
    (worker,) = service.workers()
    with (models / "digits-50/current/model.onnx").open("ab") as graph:
        graph.write(b"\0")
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: "is refused" in service.output)
    (line,) = [line for line in lines(service) if "is refused" in line.get("message", "")]
    assert (line["event"], line["level"], line["logger"]) == ("log", "error", "labelcurve")
    assert "is damaged" in line["message"]
    wait_for(lambda: httpx.get(f"{service.url}/readyz", timeout=30).is_success)
    # There is no older version: what answers is in /models, what does not in /readyz.
    (refused,) = httpx.get(f"{service.url}/readyz").json()["refused"]
    assert refused["name"] == "digits-50"
    assert "is damaged" in refused["error"]
    served = [model["name"] for model in httpx.get(f"{service.url}/models").json()]
    assert served == ["digits-10", "digits-100"]


def test_a_request_is_a_line_that_says_who_answered_and_where_the_time_went(
    logging_service: Service,
) -> None:
    url = f"{logging_service.url}/classify"
    sent = {"x-request-id": "from-the-client:1"}
    response = httpx.post(url, content=digit_png(0), params={"model": "digits-10"}, headers=sent)
    assert response.headers["x-request-id"] == "from-the-client:1"
    line = line_of(logging_service, "from-the-client:1")
    assert line["event"] == "request"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/classify", 200)
    assert (line["model"], line["version"]) == ("digits-10", response.headers["x-model-version"])
    parts = [line[f"{part}_ms"] for part in ("decode", "queue", "inference")]
    assert 0 < sum(parts) < line["ms"]
    assert line["client"] == "127.0.0.1"


def test_the_client_is_the_one_that_a_proxy_on_this_machine_names(logging_service: Service) -> None:
    headers = {"x-request-id": "proxied", "x-forwarded-for": "203.0.113.7"}
    httpx.get(f"{logging_service.url}/models", headers=headers)
    assert line_of(logging_service, "proxied")["client"] == "203.0.113.7"
    for number, name in enumerate(("2.0.0.1 m@1 id", "unknown", "fe80::1%a b", "1" * 500)):
        headers = {"x-request-id": f"false-{number}", "x-forwarded-for": f"203.0.113.7, {name}"}
        httpx.get(f"{logging_service.url}/models", headers=headers)
        assert line_of(logging_service, f"false-{number}")["client"] == "127.0.0.1"


def test_a_problem_has_the_id_of_its_line(logging_service: Service) -> None:
    response = httpx.post(f"{logging_service.url}/classify", content=b"no image")
    request_id = problem(response, 415)["request_id"]
    assert response.headers["x-request-id"] == request_id
    assert line_of(logging_service, request_id)["status"] == 415


def test_probes_are_logged_only_when_they_fail(logging_service: Service) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/nothing"):
        httpx.get(logging_service.url + path, headers={"x-request-id": f"probe{path}"})
    assert line_of(logging_service, "probe/nothing")["status"] == 404
    assert not [line for line in lines(logging_service) if line.get("path") == "/livez"]


@pytest.mark.parametrize("given", ["", "two words", "a" * 129, 'a"b', "ä", "<script>"])
def test_an_invalid_id_is_replaced(client: httpx.Client, given: str) -> None:
    headers = [(b"x-request-id", given.encode())]
    first = client.get("/models", headers=headers).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", first)
    assert client.get("/models", headers=headers).headers["x-request-id"] != first


def test_an_id_is_given_back_by_every_kind_of_answer(client: httpx.Client) -> None:
    headers = {"x-request-id": "A1._:/+=@-"}
    for path in ("/", "/models", "/metrics", "/nothing", "/classify", "/page/page.js"):
        assert client.get(path, headers=headers).headers["x-request-id"] == "A1._:/+=@-"


def test_the_text_format_is_a_line_for_people(
    start_service: Callable[..., Service], digits_models: Path
) -> None:
    # This machine is not among the proxies that may say who the client is.
    proxies = {"FORWARDED_ALLOW_IPS": "203.0.113.0/24"}
    service = start_service(digits_models, "--access-log", environment=proxies)
    service.wait_until_ready()
    headers = {"x-request-id": "mine", "x-forwarded-for": "198.51.100.7"}
    httpx.get(f"{service.url}/models?x=1", headers=headers)
    wait_for(lambda: "mine" in service.output)
    assert re.search(
        r"^\d{4}-\S+Z 200 GET /models \d+\.\d\d ms 127\.0\.0\.1 mine$", service.output, re.MULTILINE
    )


def test_what_stops_it_is_a_line_too(tmp_path: Path) -> None:
    command = [*SERVE, "--models", str(tmp_path / "none"), "--log-format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["event"], line["level"]) == ("error", "error")
    assert str(tmp_path / "none") in line["message"]


def front(inner: Any, log: AccessLog | None = None) -> Front:
    return Front(inner, paths=frozenset(), traffic=Traffic(), log=log)


async def ask(app: Front, path: str = "/x", headers: Any = (), client: str = "::1") -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": headers,
        "client": (client, 1),
    }
    await app({**scope, "raw_path": path.encode()}, receive, send)
    await asyncio.sleep(0.1)
    return sent


async def answer(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_lines_are_written_in_pieces_that_a_pipe_takes_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []

    class Output:
        write = staticmethod(written.append)
        flush = staticmethod(lambda: None)

    async def many() -> None:
        app = front(answer, AccessLog("json"))
        await asyncio.gather(*(ask(app, "/" + "x" * 400) for _ in range(40)))

    monkeypatch.setattr("sys.stdout", Output)
    asyncio.run(many())
    assert len("".join(written).splitlines()) == 40
    assert 2 < len(written) < 20  # together, but
    assert all(len(text) <= 4096 and text.endswith("}\n") for text in written)  # PIPE_BUF


def test_an_error_of_the_service_is_logged_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await answer(scope, receive, send)
        raise RuntimeError("unforeseen")

    asyncio.run(ask(front(broken), headers=[(b"x-request-id", b"mine")]))
    (record,) = caplog.records
    assert vars(record)["fields"]["request_id"] == "mine"
    assert record.exc_info


@pytest.mark.parametrize("form", ["text", "json"])
def test_neither_path_nor_client_can_forge_a_line(
    form: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    client = "\x85\x9b31m" + 20_000 * "x"  # as a proxy may report it
    asyncio.run(ask(front(answer, AccessLog(form)), "/a\n\x1b[31m\u00e4", client=client))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out[:-1].isascii()
    assert out[:-1].isprintable()
    assert "9b31m" not in out
    assert len(out) < 500


def test_timings_are_read_from_the_header() -> None:
    header = b"decode;dur=1.500, queue;dur=0.001, inference;dur=20.000"
    assert timings(header) == {"decode_ms": 1.5, "queue_ms": 0.001, "inference_ms": 20.0}


def test_times_are_utc_with_milliseconds() -> None:
    assert rfc3339(1_700_000_000.25) == "2023-11-14T22:13:20.250Z"


@pytest.mark.parametrize(
    ("status", "level"),
    [(200, "info"), (415, "info"), (503, "info"), (500, "error"), (504, "error")],
)
def test_a_line_has_all_that_is_known_of_a_request(
    status: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0625)
    scope = {
        "method": "POST", "path": "/classify", "client": ("::1", 9), REQUEST_ID: "mine",
        "trace_id": "0af7",
    }  # fmt: skip
    headers = [
        (b"x-model-name", b"digits"),
        (b"x-model-version", b"0123"),
        (b"server-timing", b"decode;dur=1.500, queue;dur=0.250"),
    ]
    at = "2023-11-14T22:13:20.062Z"
    assert _line("text", scope, status, headers, 0.0125) == (
        f"{at} {status} POST /classify 12.50 ms ::1 digits@0123 mine\n"
    )
    assert json.loads(_line("json", scope, status, headers, 0.0125)) == {
        "time": at, "level": level, "event": "request", "request_id": "mine", "method": "POST",
        "path": "/classify", "status": status, "ms": 12.5, "client": "::1", "model": "digits",
        "version": "0123", "decode_ms": 1.5, "queue_ms": 0.25, "trace_id": "0af7",
    }  # fmt: skip
    del scope["trace_id"]
    plain = json.loads(_line("json", scope, status, [], 0.0125))
    assert plain.keys().isdisjoint({"model", "version", "decode_ms", "trace_id"})


def test_a_request_without_an_answer_is_a_line_with_499_and_a_probe_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def add() -> None:
        log = AccessLog("text")
        scope = {"method": "GET", "client": ("::1", 9), REQUEST_ID: "mine"}
        for path in ("/livez", "/readyz", "/metrics", "/models"):
            answer = {"status": 200, "headers": []}
            log.add({**scope, "path": path}, answer, 0.0)
        log.add({**scope, "path": "/livez"}, None, 0.0)
        log.add({**scope, "path": "/readyz"}, {"status": 503, "headers": []}, 0.0)
        assert not capsys.readouterr().out
        log.close()
        found = [line.split()[1:4] for line in capsys.readouterr().out.splitlines()]
        assert found == [
            ["200", "GET", "/models"],
            ["499", "GET", "/livez"],
            ["503", "GET", "/readyz"],
        ]
        log.add({**scope, "path": "/x"}, None, 0.0)  # at once from now on
        assert capsys.readouterr().out.count("\n") == 1

    asyncio.run(add())
