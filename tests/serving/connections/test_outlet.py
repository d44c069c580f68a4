from __future__ import annotations

import asyncio
import contextlib
import socket

from labelcurve.serving.connections.outlet import Outlet
from tests.serving.conftest import Service


class Written(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        return False


def written(*pieces: bytes, has_body: bool = True, close: bool = False) -> list[bytes]:
    transport = Written()
    outlet = Outlet(transport, lambda: transport.write(b"END"), has_body=has_body)
    outlet.release()
    for piece in pieces:
        outlet.write(piece)
    if close:
        outlet.close()
    return transport.pieces


def test_head_and_body_are_one_piece() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    assert written(head, b"body") == [head + b"body"]
    assert written(head, b"") == [head]
    assert written(head, b"one", b"two") == [head + b"one", b"two"]


def test_what_nothing_follows_is_written_all_the_same() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    assert written(head, has_body=False) == [head]
    assert written(head, close=True) == [head, b"END"]
    assert written(close=True) == [b"END"]


def test_leave_to_send_a_body_does_not_wait() -> None:
    leave, head = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"
    assert written(leave) == [leave]
    assert written(leave, head, b"body") == [leave, head + b"body"]


def test_a_response_waits_for_the_end_of_the_request() -> None:
    transport = Written()
    outlet = Outlet(transport, lambda: transport.write(b"END"), has_body=True)
    for piece in (b"HTTP/1.1 100 Continue\r\n\r\n", b"head", b"one", b"two"):
        outlet.write(piece)
    assert transport.pieces == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    outlet.release()
    assert transport.pieces[1:] == [b"headonetwo"]
    outlet.write(b"three")
    assert transport.pieces[2:] == [b"three"]

    ended = Outlet(transport, lambda: transport.write(b"END"), has_body=True)
    ended.write(b"head")
    ended.close()
    assert transport.pieces[3:] == [b"head", b"END"]


def test_who_reads_once_has_the_whole_answer(service: Service) -> None:
    asked = {
        b"POST /classify?model=nope HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}": b"}",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n": b"live\n",
        b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n": b"}",
        b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n": b"\r\n\r\n",
    }
    for request, end in asked.items():
        for _ in range(30):
            address = ("127.0.0.1", service.port)
            with contextlib.closing(socket.create_connection(address, timeout=30)) as client:
                client.sendall(request)
                assert client.recv(2**16).endswith(end)
