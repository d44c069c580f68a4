from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import cast

from labelcurve.benchmarks.resilience import client
from labelcurve.benchmarks.resilience.client import Answer

PATHS = ("/a", "/b", "/broken")


def test_clients_ask_in_turn_connect_again_and_leave_no_connection() -> None:
    asked: list[list[str]] = []
    """Paths by connection."""
    heard: list[tuple[int, Answer | ConnectionError]] = []
    pauses: list[int] = []
    connections: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paths: list[str] = []
        asked.append(paths)
        connections.append(cast("asyncio.Task[None]", asyncio.current_task()))
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                paths.append(head.split()[1].decode())
                if paths[-1] == "/broken":
                    break
                body = paths[-1].encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed it
        finally:
            writer.close()

    async def pause(number: int) -> None:
        pauses.append(number)

    def hear(number: int, answer: Answer | ConnectionError) -> Awaitable[None] | None:
        heard.append((number, answer))
        return pause(number) if isinstance(answer, ConnectionError) else None

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        requests = [client.get(path) for path in PATHS]
        await client.closed_loop(port, 2, lambda: len(heard) >= 12, requests, hear)
        server.close()
        _, waiting = await asyncio.wait(connections, timeout=10)
        assert not waiting, "a connection is still open"

    asyncio.run(run())
    later = [paths for paths in asked if paths not in (["/b", "/broken"], ["/broken"])]
    assert len(asked) == len(later) + 2, "each of the two begins at its own request"
    assert all(paths == ["/a", "/b", "/broken"][: len(paths)] for paths in later)
    assert len(heard) in (12, 13), "the other client is told of its last request, too"
    assert pauses == [number for number, _ in heard if PATHS[number] == "/broken"]
    for number, answer in heard:
        if PATHS[number] == "/broken":
            assert isinstance(answer, ConnectionError)
        else:
            assert isinstance(answer, Answer)
            assert (answer.status, answer.body) == (200, PATHS[number].encode())
