from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from bundle.preprocess import MAX_BYTES
from serving.access import HEADERS
from serving.connection import HEAD_BYTES
from tests.models import digit_png
from tests.serving.conftest import Service, wait_for

PNG = digit_png(3)
REQUEST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(PNG), PNG)


@pytest.fixture(scope="module")
def impatient(start_service: Callable[..., Service], digits_models: Path) -> Service:
    service = start_service(
        digits_models, "--head-timeout", "0.5", "--connections", "8", "--access-log"
    )
    service.wait_until_ready()
    return service


@pytest.fixture
def connect(impatient: Service) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", impatient.port), timeout=20))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()
    # The service has seen that they are gone when it takes another.
    wait_for(lambda: httpx.get(f"{impatient.url}/livez", timeout=30).status_code == 200)


def line_of(service: Service, answer: bytes) -> str:
    """The line in the access log of an answer, which has what every answer has."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert {b"%s: %s" % (name, value.lower()) for name, value in HEADERS} <= set(lines)
    (request_id,) = (line[14:].decode() for line in lines if line.startswith(b"x-request-id: "))
    assert json.loads(body)["request_id"] == request_id
    found: list[str] = []

    def logged() -> bool:
        found[:] = [line for line in service.output.splitlines() if line.endswith(f" {request_id}")]
        return bool(found)

    wait_for(logged)
    (line,) = found
    return line


def counts(service: Service) -> tuple[dict[str, float], dict[str, float]]:
    """By status: requests for `/classify`, and connections that were refused before one."""
    text = httpx.get(f"{service.url}/metrics").text
    patterns = (
        r'service_request_total\{endpoint="/classify",http_response_code="(\d+)".* (\S+)',
        r'connections_refused_total\{http_response_code="(\d+)"\} (\S+)',
    )
    requests, refused = (
        {status: float(count) for status, count in re.findall(pattern, text)}
        for pattern in patterns
    )
    return requests, refused


def received(connection: socket.socket) -> bytes:
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


def classified(connection: socket.socket, request: bytes = REQUEST) -> bool:
    """Whether a request gets its answer; the connection stays open."""
    connection.sendall(request)
    data = b""
    while not data.endswith(b"}]"):
        chunk = connection.recv(65536)
        assert chunk, data
        data += chunk
    return data.startswith(b"HTTP/1.1 200 ")


Connect = Callable[[], socket.socket]


def test_slow_headers_are_408_and_silence_ends_without_a_word(connect: Connect) -> None:
    silent, slow = connect(), connect()
    slow.sendall(REQUEST[:20])
    assert received(slow).startswith(b"HTTP/1.1 408 ")
    assert received(silent) == b""


def test_empty_lines_do_not_keep_a_connection(connect: Connect) -> None:
    connection = connect()
    connection.sendall(REQUEST)
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    connection.sendall(b"\r\n")
    assert received(connection).startswith((b"", b"HTTP/1.1 408 "))


def test_headers_without_an_end_are_431(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"GET /livez HTTP/1.1\r\nA: " + b"a" * 2 * HEAD_BYTES)
    assert received(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("junk", [b"\x00\xff\n\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_what_is_no_http_is_400(connect: Connect, junk: bytes) -> None:
    connection = connect()
    connection.sendall(junk)
    assert received(connection).startswith(b"HTTP/1.1 400 ")


def test_what_has_no_request_yet_has_an_id_headers_and_a_line(
    connect: Connect, impatient: Service
) -> None:
    def line(sent: bytes) -> str:
        connection = connect()
        connection.sendall(sent)
        return line_of(impatient, received(connection))

    assert re.search(r"Z 400 - - \d+\.\d\d ms 127\.0\.0\.1 [0-9a-f]{12}-", line(b"\x00\xff\n\n"))
    head = b"POST /classify?top_k=2 HTTP/1.1\r\nHost: x\r\nX-Request-ID: of-mine\r\n"
    large = head.replace(b"mine", b"large-head") + b"A: " + b"a" * 2 * HEAD_BYTES
    assert " 431 - /classify " in (said := line(large))
    assert said.endswith(" of-large-head")
    assert " 431 - /classify " in line(large[: HEAD_BYTES + 500] + b"\r\n\r\n")  # in one piece
    assert " 408 - /classify " in line(head.replace(b"mine", b"slow-head"))
    # The application has this one already, and is told that its client is gone.
    broken = (
        head.replace(b"mine", b"broken-body") + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n"
    )
    before = counts(impatient)
    assert " 400 POST /classify " in (said := line(broken))
    assert said.endswith(" of-broken-body")
    wait_for(lambda: counts(impatient) != before)
    requests, refused = counts(impatient)
    assert requests.pop("400") == before[0].pop("400", 0) + 1
    assert (requests, refused) == before
    counted = httpx.get(f"{impatient.url}/metrics").text
    for status in (400, 408, 431):
        name = f'labelcurve_connections_refused_total{{http_response_code="{status}"}}'
        assert f"{name} 0" not in counted
        assert name in counted
    assert "Invalid HTTP" not in impatient.output


@pytest.mark.parametrize("offered", [b"h2c", b"websocket"])
def test_an_upgrade_is_left_unheeded(connect: Connect, offered: bytes) -> None:
    connection = connect()
    upgrade = b"\r\nConnection: Upgrade\r\nUpgrade: %s\r\n" % offered
    request = REQUEST.replace(b"\r\n", upgrade, 1)
    for read_apart in (0, 10, len(PNG), len(request) - 30):
        connection.sendall(request[: len(request) - read_apart])
        time.sleep(0.05 if read_apart else 0)
        assert classified(connection, request[len(request) - read_apart :])
        connection.sendall(b"GET /livez HTTP/1.1" + upgrade + b"Host: x\r\n\r\n")
        data = b""
        while not data.endswith(b"live\n"):
            data += connection.recv(65536)
        assert data.startswith(b"HTTP/1.1 200 ")


def test_beyond_the_limit_of_connections_is_503(connect: Connect, impatient: Service) -> None:
    held = [connect() for _ in range(8)]
    for connection in held:  # those that have sent nothing yet have little time
        assert classified(connection)
    answers = []
    for _ in range(20):
        surplus = connect()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            surplus.sendall(REQUEST)  # as clients do: the answer comes all the same
        answers.append(received(surplus))
    assert classified(held[0])
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
    assert " 503 - - " in line_of(impatient, answers[0])


def test_a_refused_body_is_read_so_that_its_sender_sees_why(connect: Connect) -> None:
    connection = connect()
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX_BYTES + 1)
    connection.sendall(head)
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    connection.sendall(bytes(MAX_BYTES + 1) + REQUEST)
    answers = b""
    while b"HTTP/1.1 200 " not in answers:  # the rest of the first may come before it
        part = connection.recv(65536)
        assert part, answers
        answers += part


def test_the_rest_of_a_refused_body_has_its_time_too(connect: Connect) -> None:
    connection = connect()
    connection.sendall(
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX_BYTES + 1)
    )
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    connection.sendall(b"x")
    begin = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        received(connection)
    assert time.monotonic() - begin < 15


def test_a_client_that_hangs_up_is_not_waited_for(
    start_service: Callable[..., Service], digits_models: Path
) -> None:
    service = start_service(digits_models)
    service.wait_until_ready()
    # Behind a body of more than 64 KiB uvicorn would not notice it; this one takes 0.1 s to decode.
    image = io.BytesIO()
    Image.new("L", (4000, 4000)).save(image, "PNG")
    large = image.getvalue() + bytes(500_000)
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(large)
    sent = [REQUEST[:-1], *[head + large] * 3]
    for request in sent:
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(request)

    wait_for(lambda: sum(counts(service)[0].values()) == len(sent))
    assert counts(service)[0] == {"499": len(sent)}
    assert "Traceback" not in service.output
