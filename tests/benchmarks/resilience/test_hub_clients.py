"""What clients of the Hub send, as the recorder keeps it; no client is installed."""

from __future__ import annotations

import base64
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from labelcurve.benchmarks.resilience import hub_clients
from labelcurve.bundle.errors import LabelcurveError

POST = b"POST /classify HTTP/1.1\r\nContent-Type: image/png"
LONG = POST + b"\r\nContent-Length: 4\r\n\r\na\r\n\r"
CHUNKED = POST + b"\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n"


@pytest.mark.parametrize(
    "requests", [[LONG], [CHUNKED], [GET], [LONG, LONG], [CHUNKED, GET, LONG, CHUNKED], []]
)
def test_a_connection_is_cut_into_its_requests(requests: list[bytes]) -> None:
    assert hub_clients.split(b"".join(requests)) == requests


@pytest.mark.parametrize(
    "chunks",
    [
        b"10\r\n\r\n0123456789ab\r\n\r\n0\r\n\r\n",  # its size ends in 0, its bytes begin a line
        b"7\r\n0\r\n\r\nab\r\n0\r\n\r\n",  # it holds what the last chunk looks like
        b"3;name=value\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
    ],
)
def test_a_chunk_ends_where_its_size_says(chunks: bytes) -> None:
    request = POST + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    assert hub_clients.split(request + GET) == [request, GET]


def test_headers_that_differ_each_time_are_left_out() -> None:
    volatile = (
        b"\r\nHost: 127.0.0.1:80\r\nX-Amzn-Trace-Id: 7\r\nx-request-id: 8\r\nDate: Tue"
        b"\r\nUser-Agent: hub/1\r\nX-Host: kept"
    )
    (found,) = hub_clients.split(LONG.replace(b"\r\n\r\na", volatile + b"\r\n\r\na"))
    assert found == LONG.replace(b"\r\n\r\na", b"\r\nUser-Agent: hub/1\r\nX-Host: kept\r\n\r\na")
    # A body may look like one.
    body = b"\r\nhost: a\r\n"
    request = POST + b"\r\nContent-Length: 11\r\n\r\n" + body
    assert hub_clients.split(request) == [request]


@pytest.fixture
def port() -> Iterator[int]:
    """That of a server which answers with the length of the body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            n = len(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", str(len(str(n))))
            self.end_headers()
            self.wfile.write(str(n).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_request_is_taken_once(port: int) -> None:
    with closing(hub_clients.Recorder(port)) as recorder:
        assert recorder.taken() == []
        for body in (b"abc", b"\r\n" * 40_000):
            url = f"http://127.0.0.1:{recorder.port}/classify"
            assert httpx.post(url, content=body).text == str(len(body))
            (request,) = recorder.taken()
            head, _, sent = request.partition(b"\r\n\r\n")
            assert head.startswith(b"POST /classify HTTP/1.1\r\n")
            assert b"host:" not in head.lower()
            assert sent == body
            assert recorder.taken() == []


EXAMPLE = """
import json, sys, urllib.request
url, path = sys.argv[1:]
body = open(path, "rb").read()
answer = urllib.request.urlopen(urllib.request.Request(url, body, {"X-Of": "me"})).read()
print("a warning")
print(json.dumps(["bytes", answer.decode()]))
print(json.dumps(["top_k", "no"]))
"""


def test_a_trial_is_the_outcomes_and_what_was_sent(port: int, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(EXAMPLE)
    (tmp_path / "image.png").write_bytes(b"12345")
    command = [sys.executable, str(tmp_path / "example.py")]
    with closing(hub_clients.Recorder(port)) as recorder:
        found = hub_clients.trial(command, recorder, tmp_path / "image.png")
    assert found["outcomes"] == {"bytes": "5", "top_k": "no"}
    (sent,) = map(base64.b64decode, found["requests"])
    assert sent.startswith(b"POST /classify HTTP/1.1\r\n")
    assert sent.endswith(b"\r\n\r\n12345")


def test_an_example_that_says_nothing_is_an_error_with_its_last_words(
    port: int, tmp_path: Path
) -> None:
    said = "import sys; sys.exit('first' + 'x' * 2000 + 'last')"
    with (
        closing(hub_clients.Recorder(port)) as recorder,
        pytest.raises(LabelcurveError, match=r"printed nothing:\n[^f]*last$"),
    ):
        hub_clients.trial([sys.executable, "-c", said], recorder, tmp_path)


def test_a_recorder_that_is_closed_takes_no_connection(port: int) -> None:
    with closing(hub_clients.Recorder(port)) as recorder:
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", recorder.port), timeout=5)
