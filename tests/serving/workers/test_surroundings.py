"""A service under full disks, closed terminals, stalled readers and limits."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import resource
import signal
import subprocess
import termios
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.workers import limits
from labelcurve.serving.workers.limits import LEAST_CONNECTIONS, SPARE_FILES
from labelcurve.serving.workers.supervisor import pause
from tests.models import digit_png
from tests.serving.conftest import SERVE, Service, alive, children, free_port, wait_for

Start = Callable[..., Service]


def status(service: Service, path: str = "/livez") -> int:
    return httpx.get(service.url + path, timeout=30).status_code


def said(service: Service, text: str, times: int = 1) -> bool:
    return service.output.count(text) >= times


def run_dir(service: Service) -> Path:
    (worker,) = service.workers()
    variables = Path(f"/proc/{worker}/environ").read_bytes().decode().split("\0")
    (found,) = (v.partition("=")[2] for v in variables if v.startswith("LABELCURVE_RUN_DIR="))
    return Path(found)


def value(service: Service, pattern: str) -> float:
    text = httpx.get(f"{service.url}/metrics", timeout=30).text
    return sum(float(found) for found in re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE))


def test_metrics_that_cannot_be_written_stop_no_request(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    (worker,) = service.workers()
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, 0))  # as on a full disk
    for _ in range(20):
        assert httpx.post(f"{service.url}/classify", content=digit_png(0)).status_code == 200
        assert status(service, "/nothing") == 404
    count = r'bentoml_service_request_total\{.*http_response_code="404".*\}'
    assert value(service, count) == 20  # of this worker, which has them in memory
    assert service.workers() == [worker]


def test_damaged_files_of_metrics_are_left_out(start_service: Start, digits_models: Path) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    folder = run_dir(service) / "metrics"
    (folder / "counter_999999.db").touch()
    (folder / "histogram_999998.db").write_bytes(b"\x40\0\0\0" + bytes(28))
    (folder / "gauge_livesum_999997.db").write_bytes(os.urandom(4096))
    (folder / "counter_999996.db").mkdir()
    (folder / "notes.db").write_text("another program's")
    assert status(service, "/nothing") == 404
    assert value(service, r'bentoml_service_request_total\{endpoint="/unknown".*\}') == 1
    assert value(service, r'bentoml_service_request_total\{endpoint="/unknown".*\}') == 1
    for name in ("counter_999999.db", "histogram_999998.db", "counter_999996.db"):
        wait_for(partial(said, service, name))
        assert service.output.count(f"{name} are skipped") == 1
    assert "notes.db" not in service.output


def test_pauses_grow_and_have_an_end() -> None:
    assert [pause(row) for row in range(10)] == [0, 0, 1, 2, 4, 8, 16, 32, 32, 32]


def test_while_workers_die_at_once_clients_get_503_and_the_service_comes_back(
    start_service: Start, digits_models: Path
) -> None:
    port = free_port()
    service = start_service(digits_models, "--metrics-port", str(port))
    service.wait_until_ready()

    def ready() -> float:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
        return float(text.split("\nlabelcurve_workers_ready ")[1].split()[0])

    wait_for(lambda: ready() == 1)
    for row in (1, 2, 3):
        wait_for(lambda: len(service.workers()) == 1)
        for pid in service.workers():
            os.kill(pid, signal.SIGKILL)
        wait_for(partial(said, service, "was ended by SIGKILL", row))
    assert "3 workers died soon after their start: restarting in 2 s" in service.output
    answer = httpx.post(f"{service.url}/classify", content=bytes(3_000_000), timeout=30)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ready() == 0
    problem = answer.json()
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["detail"] == "the service is being started again: try again"
    wait_for(lambda: status(service, "/readyz") == 200)
    wait_for(lambda: ready() == 1)
    assert service.stop() == 0


def test_a_hangup_shuts_it_down_gracefully(start_service: Start, digits_models: Path) -> None:
    # Not ignored, whatever the tests themselves were started under.
    service = start_service(digits_models, before=("env", "--default-signal=HUP"))
    service.wait_until_ready()
    workers = service.workers()
    assert service.stop(signal.SIGHUP) == 0
    assert service.output.endswith("stopped\n")
    assert not any(alive(pid) for pid in workers)


def test_under_nohup_a_hangup_is_ignored(start_service: Start, digits_models: Path) -> None:
    service = start_service(digits_models, before=("nohup",))
    service.wait_until_ready()
    workers = service.workers()
    for pid in (service.process.pid, *workers):
        os.kill(pid, signal.SIGHUP)
    assert status(service) == 200
    assert service.workers() == workers
    assert service.stop() == 0


def test_signals_that_mean_nothing_are_ignored(start_service: Start, digits_models: Path) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    for kind in (signal.SIGUSR1, signal.SIGUSR2):
        service.process.send_signal(kind)
    assert status(service, "/readyz") == 200
    assert service.stop() == 0


def test_a_terminal_that_is_closed_leaves_no_process(digits_models: Path) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    port = free_port()
    command = [*SERVE, "--models", str(digits_models), "--port", str(port), "--lame-duck", "0"]
    process = subprocess.Popen(
        [*command, "--access-log"], stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"ready " not in shown:
        shown += os.read(ours, 4096)
    workers = children(process.pid)
    assert workers
    os.close(ours)
    assert process.wait(30) == 0
    assert not any(alive(pid) for pid in workers)


def test_a_reader_that_stalls_stops_no_request(digits_models: Path) -> None:
    reader, writer = os.pipe()
    port = free_port()
    command = [*SERVE, "--models", str(digits_models), "--port", str(port), "--lame-duck", "0"]
    process = subprocess.Popen([*command, "--access-log"], stdout=writer, stderr=writer)
    os.close(writer)
    url = f"http://127.0.0.1:{port}"
    try:
        shown = b""
        while b"ready " not in shown:
            shown += os.read(reader, 4096)
        with httpx.Client(base_url=url, timeout=30) as client:
            path = "/nothing/" + "x" * 4000
            for _ in range(500):  # two megabytes of lines: a pipe holds 64 KiB
                assert client.get(path).status_code == 404
            counted = r"log_lines_dropped_total (\d\S*)"

            def dropped() -> float:
                return float(re.findall(counted, client.get("/metrics").text)[0])

            wait_for(lambda: dropped() > 0)
            before = dropped()
            while b"log lines were dropped: nothing read them" not in shown:  # it reads again
                shown += os.read(reader, 65536)
            assert b" %d log lines were dropped" % before in shown
            assert client.get("/livez").status_code == 200
    finally:
        process.terminate()
        while os.read(reader, 65536):
            pass
        os.close(reader)
        assert process.wait(30) == 0


@pytest.mark.parametrize("streams", [">/dev/full 2>&1", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_log_that_cannot_be_written_stops_no_request(
    streams: str, start_service: Start, digits_models: Path
) -> None:
    before = ("bash", "-c", f'exec "$@" {streams}', "--")
    service = start_service(digits_models, "--access-log", before=before)
    wait_for(lambda: service.process.poll() is not None or answers(service))
    assert service.process.poll() is None
    assert [status(service, "/nothing") for _ in range(3)] == [404] * 3
    assert service.stop() == 0


def answers(service: Service) -> bool:
    try:
        return status(service, "/readyz") == 200
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize("name", ["queue.py", "bundle.py", "labelcurve/__init__.py", "circus.py"])
def test_code_of_the_current_folder_is_not_run(
    name: str, start_service: Start, digits_models: Path, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('code of the current folder')")
    service = start_service(digits_models, folder=tmp_path)
    service.wait_until_ready()
    assert service.stop() == 0
    assert "code of the current folder" not in service.output


def test_variables_of_bentoml_and_uvicorn_are_ignored(
    start_service: Start, digits_models: Path
) -> None:
    environment = {
        "WEB_CONCURRENCY": "abc",
        "BENTOML_CONFIG": "/nonexistent",
        "BENTOML_CONFIG_OPTIONS": "garbage[",
        "BENTOML_CONFIG_OVERRIDES": "{",
        "BENTOML_VERBOSITY": "abc",
    }
    service = start_service(digits_models, environment=environment)
    service.wait_until_ready()
    assert len(service.workers()) == 1
    assert service.stop() == 0
    assert "Traceback" not in service.output


def test_a_folder_for_temporary_files_with_too_long_a_name_is_an_error(
    start_service: Start, digits_models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    service = start_service(digits_models, environment={"TMPDIR": str(folder)})
    assert service.process.wait(30) == 1
    last = service.output.splitlines()[-1]
    assert last.startswith(f"error: the folder for temporary files {folder} has too long a name")
    assert last.endswith("set TMPDIR to another")
    assert list(folder.iterdir()) == []


def limited(files: int) -> tuple[str, ...]:
    return "bash", "-c", f'ulimit -n {files}; exec "$@"', "--"


def test_the_limit_of_open_files_is_said_and_kept(
    start_service: Start, digits_models: Path
) -> None:
    service = start_service(digits_models, before=limited(SPARE_FILES + 20))
    service.wait_until_ready()
    assert "limit    20 connections for each worker, for --connections 4096" in service.output
    with httpx.Client() as first, httpx.Client() as second:
        held = [first if n else second for n in range(2)]
        assert [client.get(f"{service.url}/livez").status_code for client in held] == [200, 200]


def test_a_worker_raises_its_soft_limit_of_open_files(
    start_service: Start, digits_models: Path
) -> None:
    lower = ("bash", "-c", 'ulimit -Sn 300; exec "$@"', "--")
    service = start_service(digits_models, "--connections", "400", before=lower)
    service.wait_until_ready()
    (worker,) = service.workers()
    assert resource.prlimit(worker, resource.RLIMIT_NOFILE)[0] == SPARE_FILES + 400


def test_too_few_open_files_are_an_error(start_service: Start, digits_models: Path) -> None:
    service = start_service(digits_models, before=limited(SPARE_FILES + LEAST_CONNECTIONS - 1))
    assert service.process.wait(30) == 1
    assert service.output.startswith("error: the limit of open files is 271 (ulimit -Hn): 256")


def test_the_number_of_connections_follows_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = (1024, 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: found)
    assert limits.connections(8) == 8
    assert limits.connections(744) == 744
    assert limits.connections(745) == 744
    found = (1024, SPARE_FILES + 7)
    assert limits.connections(7) == 7  # fewer than usual, and as many as asked for
    with pytest.raises(LabelcurveError, match="the limit of open files is 263"):
        limits.connections(8)
    found = (1024, resource.RLIM_INFINITY)
    assert limits.connections(100_000) == 100_000
