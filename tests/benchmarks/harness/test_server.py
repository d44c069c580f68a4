from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labelcurve.benchmarks.harness import processes, server
from labelcurve.benchmarks.harness.server import Server
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.store import Bundle


@pytest.fixture
def listening() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_free_ports_lie_in_a_row_and_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    first = server.free_port(5)
    monkeypatch.setattr(server, "PORTS", range(first, first + 4))
    with socket.create_server(("127.0.0.1", first + 1)):
        assert {server.free_port(2) for _ in range(20)} <= {first + 2, first + 3}
        monkeypatch.setattr(server, "PORTS", range(first, first + 1))
        with pytest.raises(LabelcurveError, match=f"no 9 free ports of 127.0.0.1 from {first}"):
            server.free_port(9)


def test_lists_what_it_serves(service: Server, bundles: list[Bundle]) -> None:
    assert server.served(service.url) == {bundle.name: bundle.version for bundle in bundles}
    server.check(service.url, bundles)


def test_another_version_or_name_is_refused(service: Server, bundles: list[Bundle]) -> None:
    other = replace(bundles[0], version="0" * 12)
    with pytest.raises(
        LabelcurveError, match=f"{other.name}@{'0' * 12} .it serves {bundles[0].version}"
    ):
        server.check(service.url, [other])
    named = bundles[0].manifest.model_copy(update={"name": "other"})
    with pytest.raises(LabelcurveError, match="none of that name"):
        server.check(service.url, [replace(bundles[0], manifest=named)])


def test_a_running_service_is_found_with_its_processes(service: Server) -> None:
    found = server.running(f"{service.url}/")
    assert found.url == service.url
    assert found.local
    if found.pid is not None:  # macOS does not say who listens
        assert service.pid is not None
        family = {process.pid for process in processes.tree(service.pid)}
        assert found.pid in family


def test_who_listens(listening: int) -> None:
    assert server._listener(listening) in (os.getpid(), None)


OTHER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=True)
print("listening", flush=True)
sys.stdin.read()
"""


def test_of_several_that_listen_at_a_port_it_is_their_ancestor() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-c", OTHER, str(port)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as below:
            assert below.stdout is not None
            assert below.stdout.readline() == b"listening\n"
            assert server._listener(port) in (os.getpid(), None)
            below.communicate()


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:3000", "ftp://127.0.0.1", "ftp://127.0.0.1:21", "http://", "http://[::1"),
        *("http://127.0.0.1:port", "http://127.0.0.1:0"),
    ],
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(LabelcurveError, match="http://HOST:PORT"):
        server.running(url)


def test_no_service_at_the_address() -> None:
    with pytest.raises(
        LabelcurveError, match=r"no service answers at .* `labelcurve serve --models"
    ):
        server.running(f"http://127.0.0.1:{server.free_port()}")


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    start = server.started(tmp_path / "none", tmp_path / "log", say=lambda _: None)
    with pytest.raises(LabelcurveError, match=r"serve ended with status 1[\s\S]*none"), start:
        pass
