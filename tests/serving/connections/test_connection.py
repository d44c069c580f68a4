from __future__ import annotations

import contextlib
import io
import json
import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from PIL import Image

from labelcurve.bundle.preprocess import MAX_BYTES
from labelcurve.serving.connections.connection import (
    HEAD_BYTES,
)
from labelcurve.serving.web.access import HEADERS
from tests.models import digit_png
from tests.serving.conftest import Service, wait_for, was_read

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PNG = digit_png(3)
REQUEST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(PNG), PNG)


@pytest.fixture(scope="module")
def impatient(start_service: Callable[..., Service], digits_models: Path) -> Service:
    service = start_service(
        digits_models,
        *("--head-timeout", "0.5", "--connections", "8", "--access-log", "--keep-alive", "3"),
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
    # The service has noticed that they disconnected when it accepts another.
    wait_for(lambda: httpx.get(f"{impatient.url}/livez", timeout=30).status_code == 200)


def line_of(service: Service, answer: bytes) -> str:
    """The line in the access log of a response with the usual headers."""
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


def test_slow_headers_are_408_and_silence_is_closed_silently(connect: Connect) -> None:
    silent, slow = connect(), connect()
    slow.sendall(REQUEST[:20])
    assert received(slow).startswith(b"HTTP/1.1 408 ")
    assert received(silent) == b""


def test_empty_lines_are_no_request_and_do_not_keep_a_connection(connect: Connect) -> None:
    connection = connect()
    assert classified(connection)
    connection.sendall(b"\r\n")  # as old clients do after a body
    assert classified(connection)
    connection.sendall(b"\r\n\r\n")
    assert received(connection) == b""  # closed silently when its time is over


def test_headers_without_an_end_are_431(connect: Connect) -> None:
    connection = connect()
    connection.sendall(b"GET /livez HTTP/1.1\r\nA: " + b"a" * 2 * HEAD_BYTES)
    assert received(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("junk", [b"\x00\xff\n\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_what_is_no_http_is_400(connect: Connect, junk: bytes) -> None:
    connection = connect()
    connection.sendall(junk)
    assert received(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nConnection: close\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: a\r\nConnection: close\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost:\r\nConnection: close\r\n", 200),
        (b"GET /livez HTTP/1.0\r\n", 200),
    ],
)
def test_http_1_1_asks_for_exactly_one_host(connect: Connect, head: bytes, status: int) -> None:
    connection = connect()
    connection.sendall(head + b"\r\n")
    assert received(connection).startswith(b"HTTP/1.1 %d " % status)


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
    late = re.search(r" 408 - /classify (\d+\.\d\d) ms ", line(head.replace(b"mine", b"slow-head")))
    assert late
    assert 500 <= float(late[1]) < 60_000  # --head-timeout 0.5
    # The application has this one already and learns that its client has disconnected.
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


@pytest.mark.parametrize(
    "lengths",
    [
        *(b"-5", b"+5", b"0x5", b"1e3", b"", b"5, 5", b"18446744073709551616"),
        b"5\r\nContent-Length: 5",
        b"5\r\nContent-Length: 6",
        b"5\r\nTransfer-Encoding: chunked",
    ],
)
def test_a_length_that_is_wrong_is_refused_and_ends_the_connection(
    connect: Connect, lengths: bytes
) -> None:
    connection = connect()
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\nhello"
    connection.sendall(head % lengths)
    answer = b""
    while received := connection.recv(2**16):
        answer += received
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("offered", [b"h2c", b"websocket"])
def test_an_upgrade_is_left_unheeded(connect: Connect, offered: bytes) -> None:
    connection = connect()
    upgrade = b"\r\nConnection: Upgrade\r\nUpgrade: %s\r\n" % offered
    request = REQUEST.replace(b"\r\n", upgrade, 1)
    for read_apart in (0, 10, len(PNG), len(request) - 30):
        connection.sendall(request[: len(request) - read_apart])
        if read_apart:
            wait_for(partial(was_read, connection))
        assert classified(connection, request[len(request) - read_apart :])
        connection.sendall(b"GET /livez HTTP/1.1" + upgrade + b"Host: x\r\n\r\n")
        data = b""
        while not data.endswith(b"live\n"):
            data += connection.recv(65536)
        assert data.startswith(b"HTTP/1.1 200 ")


def test_any_number_of_pipelined_upgrades_are_left_unheeded(connect: Connect) -> None:
    connection = connect()
    offer = b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    one = b"GET /livez HTTP/1.1" + offer + b"Host: x\r\n\r\n"
    connection.sendall(one * 1_500)
    data = b""
    while data.count(b"live\n") < 1_500:
        chunk = connection.recv(65536)
        assert chunk, data[-200:]
        data += chunk
    assert data.count(b"HTTP/1.1 200 ") == 1_500


CHUNKED = b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: %s\r\n\r\n%x\r\n%s\r\n0\r\n"


def test_trailers_are_no_headers(connect: Connect) -> None:
    body = CHUNKED % (b"chunked", len(PNG), PNG)
    assert classified(connect(), body + b"Content-Encoding: gzip\r\nExpect: 100-continue\r\n\r\n")


@pytest.mark.parametrize("trailer", [b"a: b\r\n", b"a" * 100])
def test_trailers_without_an_end_are_431(connect: Connect, trailer: bytes) -> None:
    connection = connect()
    connection.sendall(CHUNKED % (b"chunked", len(PNG), PNG))
    wait_for(partial(was_read, connection))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(trailer * (4 * HEAD_BYTES // len(trailer)))
    assert received(connection).startswith(b"HTTP/1.1 431 ")


def test_small_chunks_are_no_header(connect: Connect) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in PNG * (3 * HEAD_BYTES // len(PNG)))
    connection = connect()
    connection.sendall((CHUNKED % (b"chunked", len(PNG), PNG))[:-3] + chunks + b"0\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")  # what follows an image is not read


def test_a_body_in_another_coding_is_refused(connect: Connect) -> None:
    connection = connect()
    connection.sendall(CHUNKED % (b"gzip, chunked", len(PNG), PNG) + b"\r\n")
    answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert b"allowed is chunked" in answer


def test_beyond_the_limit_of_connections_is_503(connect: Connect, impatient: Service) -> None:
    held = [connect() for _ in range(8)]
    for connection in held:  # an idle one would give way
        connection.sendall(REQUEST[:-1])
        wait_for(partial(was_read, connection))
    refusals = []
    for _ in range(20):
        surplus = connect()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            surplus.sendall(REQUEST)  # as clients do: the response still arrives
        refusals.append(received(surplus))
    assert all(classified(connection, REQUEST[-1:]) for connection in held)
    for answer in refusals:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
    assert " 503 - - " in line_of(impatient, refusals[0])


def test_a_refused_body_is_read_so_that_its_sender_sees_why(connect: Connect) -> None:
    connection = connect()
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX_BYTES + 1)
    connection.sendall(head)
    assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    connection.sendall(bytes(MAX_BYTES + 1) + REQUEST)
    data = b""
    while b"HTTP/1.1 200 " not in data:  # the rest of the first may come before it
        part = connection.recv(65536)
        assert part, data
        data += part


def unknown_model(length: int) -> bytes:
    """The head of a request that is refused before its body is read."""
    return b"POST /classify?model=none HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length


def answers(connection: socket.socket, count: int) -> list[int]:
    """The statuses of the next answers, each of which has a Content-Length."""
    file = connection.makefile("rb")
    statuses = []
    for _ in range(count):
        statuses.append(int(file.readline().split()[1]))
        length = 0
        while (line := file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert len(file.read(length)) == length
    return statuses


@pytest.mark.parametrize("first", [0, 1000])
@pytest.mark.parametrize("rest", [20_000, 40_000, 1_000_000])
def test_the_rest_of_a_refused_body_is_no_request(connect: Connect, first: int, rest: int) -> None:
    connection = connect()
    connection.sendall(unknown_model(first + rest) + bytes(first))
    assert answers(connection, 1) == [404]
    # In pieces that end within the body, with it, and within the head of the next request.
    for begin in range(0, rest, 9000):
        connection.sendall(bytes(min(9000, rest - begin)))
    connection.sendall(b"GET /livez HTT")
    connection.sendall(b"P/1.1\r\nHost: x\r\n\r\n" + REQUEST)
    assert answers(connection, 2) == [200, 200]


def test_a_refused_body_that_has_ended_is_followed_by_no_408(
    connect: Connect, impatient: Service
) -> None:
    connection = connect()
    connection.sendall(unknown_model(100) + bytes(50))
    assert answers(connection, 1) == [404]
    connection.sendall(bytes(50))
    # Another connection's time for its headers runs out, and this one's would have before.
    other = connect()
    other.sendall(b"GET")
    assert received(other).startswith(b"HTTP/1.1 408 ")
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answers(connection, 1) == [200]


def test_the_rest_of_a_refused_body_that_never_comes_is_not_waited_for(connect: Connect) -> None:
    connection = connect()
    connection.sendall(unknown_model(100) + b"x")
    assert answers(connection, 1) == [404]
    with contextlib.suppress(ConnectionResetError):
        assert received(connection) == b""  # within the socket's 20 s


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_that_ends_its_connection_is_read_whole_by_who_still_sends(
    connect: Connect, version: bytes
) -> None:
    for _ in range(10):
        connection = connect()
        head = unknown_model(12_000_000).replace(b"HTTP/1.1", b"HTTP/" + version)
        connection.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        for _ in range(12):
            connection.sendall(bytes(1_000_000))  # never reset
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert answer.endswith(b"}")


def test_who_waits_for_leave_to_send_a_body_is_told_that_the_connection_ends(
    connect: Connect,
) -> None:
    connection = connect()
    expect = b"\r\nExpect: 100-continue\r\n\r\n"
    connection.sendall(unknown_model(2_000_000).replace(b"\r\n\r\n", expect))
    answer = received(connection)  # the connection ends: it may not send the body now
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"\r\nconnection: close\r\n" in answer
    connection = connect()
    connection.sendall(REQUEST.replace(b"\r\n\r\n", expect, 1)[: -len(PNG)])
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(PNG)
    assert answers(connection, 1) == [200]


def test_requests_on_the_heels_of_others_are_answered_in_order_before_an_error(
    connect: Connect,
) -> None:
    connection = connect()
    connection.sendall(REQUEST + unknown_model(3) + b"abc" + REQUEST + b"no request\r\n\r\n")
    assert answers(connection, 4) == [200, 404, 200, 400]
    assert connection.recv(1) == b""
    connection = connect()
    broken = b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n"
    connection.sendall(REQUEST + broken)
    assert answers(connection, 2) == [200, 400]
    assert connection.recv(1) == b""


def test_a_content_length_that_is_too_small_is_answered_and_ends_the_connection(
    connect: Connect,
) -> None:
    connection = connect()
    connection.sendall(REQUEST.replace(b"%d" % len(PNG), b"%d" % (len(PNG) - 60), 1))
    # What is cut off is an image that broke off; what is left is no request.
    assert answers(connection, 2) == [422, 400]
    assert connection.recv(1) == b""


def test_a_content_length_that_is_too_large_is_waited_for(
    start_service: Callable[..., Service], digits_models: Path
) -> None:
    service = start_service(digits_models, "--body-timeout", "0.5")
    service.wait_until_ready()
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(REQUEST.replace(b"%d" % len(PNG), b"%d" % (len(PNG) + 20), 1))
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not arrive within 0.5 s" in answer


@pytest.mark.parametrize("length", [b"-1", b"1x", b"1, 2", b"1e3"])
def test_a_content_length_that_is_no_number_is_400(connect: Connect, length: bytes) -> None:
    connection = connect()
    connection.sendall(REQUEST.replace(b"Length: %d" % len(PNG), b"Length: " + length, 1))
    assert received(connection).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_disconnects_is_not_waited_for(
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
