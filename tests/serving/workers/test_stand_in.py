"""The answers while no worker runs, on a socket of this test."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from labelcurve.serving.workers import stand_in
from labelcurve.serving.workers.stand_in import StandIn

REQUEST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\npart"
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def opened(stand: StandIn, retry_after: int = 1) -> AsyncIterator[int]:
    """Answers at the port, on a copy of a socket that listens, as those of the workers do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await stand.open(listener.fileno(), retry_after)
        yield listener.getsockname()[1]
        stand.close()


async def asked(client: Client) -> bytes:
    """The answer to a request whose body does not come to an end."""
    reader, writer = client
    writer.write(REQUEST)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


def test_each_request_is_503_and_says_when_to_try_again() -> None:
    async def run() -> list[bytes]:
        stand = StandIn()
        async with opened(stand, 4) as port:
            first = await asked(await asyncio.open_connection("127.0.0.1", port))
            await stand.open(-1, 8)  # open already: only the time is another
            second = await asked(await asyncio.open_connection("127.0.0.1", port))
        return [first, second]

    answers = asyncio.run(run())
    for answer, seconds in zip(answers, (4, 8), strict=True):
        head, body = answer.split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: %d\r\n" % seconds in head + b"\r\n"
        problem = json.loads(body)
        assert problem["detail"] == "the service is being started again: try again"
        assert b"x-request-id: %s\r\n" % problem["request_id"].encode() in head + b"\r\n"


def test_as_many_clients_as_allowed_are_answered_and_one_more_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stand_in, "CLIENTS", 3)
    monkeypatch.setattr(stand_in, "SECONDS", 30.0)

    async def run() -> None:
        async with opened(StandIn()) as port:
            clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            reader, writer = clients.pop()
            assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()
            for client in clients:
                assert (await asked(client)).startswith(b"HTTP/1.1 503 ")
            # Those that have left count no more.
            for _ in range(4):
                client = await asyncio.open_connection("127.0.0.1", port)
                assert (await asked(client)).startswith(b"HTTP/1.1 503 ")

    asyncio.run(run())


def test_who_sends_nothing_is_answered_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "SECONDS", 0.05)

    async def run() -> bytes:
        async with opened(StandIn()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            return answer

    assert asyncio.run(run()).startswith(b"HTTP/1.1 503 ")


def test_after_close_an_open_client_is_answered_and_the_workers_accept_again() -> None:
    async def run() -> bytes:
        stand = StandIn()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            await stand.open(listener.fileno(), 1)
            before = await asyncio.open_connection("127.0.0.1", port)
            await asked(await asyncio.open_connection("127.0.0.1", port))  # so `before` is in
            stand.close()
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            listener.settimeout(30)
            with listener.accept()[0] as accepted:
                assert accepted.getpeername() == writer.get_extra_info("sockname")
            writer.close()
            return await asked(before)

    assert asyncio.run(run()).startswith(b"HTTP/1.1 503 ")
