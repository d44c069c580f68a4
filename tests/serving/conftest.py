from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

LABELCURVE = str(Path(sys.executable).with_name("labelcurve"))
SERVE = (LABELCURVE, "serve")


def children(pid: int) -> list[int]:
    """Its child processes; /proc/PID/task/PID/children may leave out some on a busy machine."""
    return [child.pid for child in psutil.Process(pid).children()]


class Service:
    """A running `serve`, its output in a file."""

    def __init__(
        self,
        models: Path,
        log: Path,
        *options: str,
        before: tuple[str, ...] = (),
        folder: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Starts it.

        Args:
            models: folder of bundles.
            log: file of its output.
            options: of `serve`.
            before: a command that runs the command after it, as `nohup`.
            folder: to start it in.
            environment: variables in addition to those of this process.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [*before, *SERVE, "--models", str(models), "--port", str(self.port)]
        command += ["--lame-duck", "0", *options]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
                env=os.environ | (environment or {}),
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def workers(self) -> list[int]:
        return children(self.process.pid)

    def wait_until_ready(self) -> None:
        wait_for(lambda: "ready " in self.output or self.process.poll() is not None)
        assert self.process.poll() is None, self.output

    def stop(self, kind: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(kind)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def listening(port: int) -> bool:
    """Whether connections to a port of 127.0.0.1 are accepted."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


def was_read(connection: socket.socket) -> bool:
    """Whether a service on this machine has read all that was sent over a connection to it."""
    ports = connection.getpeername()[1], connection.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if (int(local[-4:], 16), int(remote[-4:], 16)) == ports:
            return int(queues.partition(":")[2], 16) == 0
    return False


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@contextlib.contextmanager
def services(folder: Path) -> Iterator[Callable[..., Service]]:
    """Starts a `serve` over a models folder, its log in `folder`; all are stopped at the end."""
    started: list[Service] = []

    def start(models: Path, *options: str, **how: Any) -> Service:
        service = Service(models, folder / f"log-{len(started)}", *options, **how)
        started.append(service)
        return service

    yield start
    running = [service for service in started if service.process.poll() is None]
    workers = [pid for service in running for pid in service.workers()]
    for service in running:
        service.process.send_signal(signal.SIGTERM)
    for service in running:
        service.stop()
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def start_service(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Service]]:
    """As `services`; they end with the module, since an idle one takes 0.5 % of a core."""
    with services(tmp_path_factory.mktemp("serve")) as start:
        yield start


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, digits_models: Path) -> Iterator[Service]:
    """One `serve` over the three digits models; do not stop it."""
    with services(tmp_path_factory.mktemp("serve")) as start:
        service = start(digits_models)
        service.wait_until_ready()
        yield service


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client
