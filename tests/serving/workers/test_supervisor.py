from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from circus.process import DEAD_OR_ZOMBIE
from tornado.ioloop import IOLoop

from labelcurve.serving.settings import Settings
from labelcurve.serving.workers.metrics_server import CONNECTIONS
from labelcurve.serving.workers.supervisor import _worker_arguments, _Workers, address
from tests.models import digit_png
from tests.serving.conftest import Service, alive, free_port, listening, wait_for

Start = Callable[..., Service]


def classify(service: Service) -> int:
    return httpx.post(f"{service.url}/classify", content=digit_png(0)).status_code


def in_progress(service: Service) -> float:
    """Requests to `/classify` that are being answered."""
    text = httpx.get(f"{service.url}/metrics", timeout=30).text
    found = re.findall(r'request_in_progress\{endpoint="/classify".*\} (\S+)', text)
    return sum(map(float, found))


def test_sigterm_lets_a_request_in_flight_finish(start_service: Start, digits_models: Path) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    png = digit_png(0)

    def body() -> Iterator[bytes]:
        yield png[:20]
        wait_for(lambda: in_progress(service) == 1)
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not listening(service.port))
        yield png[20:]

    response = httpx.post(f"{service.url}/classify", content=body(), timeout=30)
    assert response.status_code == 200
    assert service.stop() == 0


def test_a_request_that_takes_longer_than_the_drain_is_503(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models, "--drain", "0", "--access-log")
    service.wait_until_ready()
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        head = b"POST /classify HTTP/1.1\r\nHost: x\r\nX-Request-ID: slow\r\n"
        client.sendall(head + b"Content-Length: 99\r\n\r\npart")
        wait_for(lambda: in_progress(service) == 1)
        service.process.send_signal(signal.SIGTERM)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    for part in (b"retry-after: 1\r\n", b"x-request-id: slow\r\n", b"this process ends"):
        assert part in answer
    assert service.stop() == 0
    assert " 503 " in next(line for line in service.output.splitlines() if line.endswith(" slow"))
    assert "Traceback" not in service.output


def test_who_had_just_connected_at_sigterm_is_answered(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        httpx.get(f"{service.url}/livez")  # so the other one is accepted, too
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not listening(service.port))
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


def test_a_worker_that_is_killed_before_it_began_ends_it_with_an_error(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models)
    while not (workers := service.workers()):
        assert service.process.poll() is None
    os.kill(workers[0], signal.SIGKILL)  # within milliseconds, while the supervisor is busy
    assert service.process.wait(60) == 1
    assert "was ended by SIGKILL" in service.output
    assert "Traceback" not in service.output


def test_sigterm_is_heard_while_a_worker_is_replaced(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    (worker,) = service.workers()
    os.kill(worker, signal.SIGKILL)
    while service.workers() in ([worker], []):
        assert service.process.poll() is None
    assert service.stop() == 0
    assert service.output.endswith("stopped\n")


def test_a_worker_that_is_killed_as_it_starts_is_said_to_be(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models)

    def starting() -> bool:
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in service.workers()]
        return any("onnxruntime" in each for each in maps)

    wait_for(starting)
    for pid in service.workers():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: service.process.poll() is not None)
    assert service.process.returncode == 1
    assert "was ended by SIGKILL (as the kernel does where memory runs out" in service.output
    assert "while it started" in service.output


def test_a_worker_is_told_its_socket_its_number_and_its_times() -> None:
    assert _worker_arguments(Settings(keep_alive=33, drain=44)) == [
        "-P", "-m", "labelcurve.serving.workers.worker",
        "$(circus.sockets.http)", "$(CIRCUS.WID)", "2048", "33", "44",
    ]  # fmt: skip
    port = free_port()
    assert address(Settings(port=port)) == ("127.0.0.1", socket.AF_INET)
    assert address(Settings(host="localhost", port=1, metrics_port=port), "metrics-port")[0] in (
        "127.0.0.1", "::1",
    )  # fmt: skip


def test_a_worker_that_dies_while_another_is_reaped_is_reaped_as_well() -> None:
    reaped = []

    def after_reap(process_pid: int, exit_code: int, **_: object) -> None:
        reaped.append((process_pid, exit_code))

    workers = _Workers("service", sys.executable, hooks={"after_reap": (after_reap, True)})
    workers.initialize(None, {}, None)
    workers._status = "active"
    workers.spawn_process()
    (worker,) = workers.processes.values()
    worker.send_signal(signal.SIGKILL)
    wait_for(lambda: worker.status == DEAD_OR_ZOMBIE)
    workers.numprocesses = 0
    IOLoop().run_sync(workers.manage_processes)
    assert reaped == [(worker.pid, -signal.SIGKILL)]


def test_what_a_killed_worker_had_in_progress_is_counted_no_more(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models, "--workers", "2")
    service.wait_until_ready()

    waiting = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(8)]
    for client in waiting:
        client.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    wait_for(lambda: in_progress(service) == 8)
    for pid in service.workers():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: service.output.count("is started in its place") == 2)
    wait_for(lambda: httpx.get(f"{service.url}/readyz", timeout=30).is_success)
    assert in_progress(service) == 0
    for client in waiting:
        client.close()


def test_a_worker_that_cannot_read_the_keys_says_so_in_a_line_until_it_can(
    start_service: Start, digits_models: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"a {'0' * 64} 0\n")
    service = start_service(digits_models, "--api-keys", str(keys))
    service.wait_until_ready()
    keys.write_text("garbage\n")
    (worker,) = service.workers()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: f"ended: {keys}, line 1: expected NAME SHA256" in service.output, 60)
    keys.write_text(f"a {'0' * 64} 0\n")
    wait_for(lambda: httpx.get(f"{service.url}/readyz", timeout=60).is_success, 60)
    assert "Traceback" not in service.output


def test_idle_connections_to_the_metrics_take_few_descriptors(
    start_service: Start, digits_models: Path
) -> None:
    port = free_port()
    service = start_service(digits_models, "--metrics-port", str(port))
    service.wait_until_ready()
    descriptors = Path(f"/proc/{service.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    idle = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(20)]
    # Those that are answered, and one that waits for a place.
    wait_for(lambda: len(list(descriptors.iterdir())) >= before + CONNECTIONS + 1)
    # They are closed when their time is over, whatever they send.
    idle[0].sendall(b"GET /metrics HTTP/1.1\r\n")
    assert idle[0].recv(1) == b""
    assert len(list(descriptors.iterdir())) <= before + CONNECTIONS + 1
    for client in idle:
        client.close()
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
    assert "labelcurve_batch_size" in text


def test_no_worker_and_no_way_to_start_one_is_an_error(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    (worker,) = service.workers()
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (3, 3))
    os.kill(worker, signal.SIGKILL)
    assert service.process.wait(60) == 1
    assert "error: " in service.output.splitlines()[-1]


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
