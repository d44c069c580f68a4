from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from tests.models import digit_png
from tests.serving.conftest import Service, alive, wait_for

Start = Callable[..., Service]


def classify(service: Service) -> int:
    return httpx.post(f"{service.url}/classify", content=digit_png(0)).status_code


def test_sigterm_lets_a_request_in_flight_finish(start_service: Start, digits_models: Path) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    png = digit_png(0)

    def body() -> Iterator[bytes]:
        yield png[:20]
        time.sleep(0.2)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        yield png[20:]

    response = httpx.post(f"{service.url}/classify", content=body(), timeout=30)
    assert response.status_code == 200
    assert service.stop() == 0


def test_who_had_just_connected_at_sigterm_is_answered(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        httpx.get(f"{service.url}/livez")  # so the other one is accepted, too
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.25)
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert service.stop() == 0


def test_sigterm_ends_every_process(start_service: Start, digits_models: Path) -> None:
    service = start_service(digits_models, "--workers", "2")
    service.wait_until_ready()
    workers = service.workers()
    assert len(workers) == 2
    assert classify(service) == 200
    assert service.stop(signal.SIGTERM) == 0
    assert not any(alive(pid) for pid in workers)
    assert service.output.rstrip().endswith("stopped")


def test_a_killed_worker_comes_back_and_a_killed_supervisor_leaves_none(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    (first,) = service.workers()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: service.workers() not in ([first], []))
    wait_for(lambda: httpx.get(f"{service.url}/readyz", timeout=30).is_success)
    assert classify(service) == 200

    (second,) = service.workers()
    service.stop(signal.SIGKILL)
    wait_for(lambda: not alive(second))


def test_live_before_ready_and_ended_by_ctrl_c(start_service: Start, digits_models: Path) -> None:
    service = start_service(digits_models)
    seen: list[tuple[int, int]] = []

    def ready() -> bool:
        try:
            live = httpx.get(f"{service.url}/livez", timeout=30).status_code
            seen.append((live, httpx.get(f"{service.url}/readyz", timeout=30).status_code))
        except httpx.ConnectError:
            return False
        return seen[-1][1] == 200

    wait_for(ready)
    assert {live for live, _ in seen} == {200}
    assert {status for _, status in seen} <= {200, 503}
    workers = service.workers()
    assert service.stop(signal.SIGINT) == 0
    assert not any(alive(pid) for pid in workers)


def test_a_model_that_breaks_after_the_check_ends_it_with_an_error(
    start_service: Start, digits_models: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    service = start_service(models)
    wait_for(lambda: "listen " in service.output)
    with (models / "digits-50/current/model.onnx").open("ab") as graph:
        graph.write(b"\0")
    assert service.process.wait(30) == 1
    assert "error: the bundle" in service.output
    assert "damaged" in service.output
