from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from labelcurve.serving.connections.connection import Connection
from labelcurve.serving.connections.shared import SPARE_SECONDS, Connections

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Pipe(asyncio.Transport):
    """A connection to a client that reads everything."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


async def empty_answer(scope: Any, receive: Any, send: Any) -> None:
    head = {"type": "http.response.start", "status": 200}
    await send({**head, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def test_beyond_the_limit_the_connection_that_is_idle_longest_gives_way() -> None:
    async def main() -> None:
        config = uvicorn.Config(empty_answer, lifespan="off", log_config=None)
        shared = Connections(4, head_seconds=1000)

        async def connected(*sent: bytes) -> Pipe:
            connection = Connection(shared, config=config, server_state=ServerState(), app_state={})
            connection.connection_made(pipe := Pipe())
            for part in sent:
                connection.data_received(part)
                await asyncio.gather(*connection.tasks)
            for each in shared.idle:
                shared.idle[each] -= SPARE_SECONDS
            return pipe

        unfinished = [await connected(), await connected(GET, GET[:9])]
        oldest, other = await connected(GET), await connected(GET)
        fresh = [await connected(GET)]
        assert oldest.closed
        assert not other.closed
        fresh.append(await connected(GET[:9]))
        assert other.closed
        assert len(shared.everyone) == 4
        last, refused = await connected(GET[:9]), await connected()
        assert fresh[0].closed
        assert refused.closed
        assert not any(pipe.closed for pipe in (*unfinished, fresh[1], last))

    asyncio.run(main())


def test_silence_after_an_answer_ends_a_connection_and_a_request_does_not() -> None:
    answers: asyncio.Queue[None] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answers.get()
        head = {"type": "http.response.start", "status": 200}
        await send({**head, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def main() -> None:
        config = uvicorn.Config(app, timeout_keep_alive=5, lifespan="off", log_config=None)
        shared = Connections(8, head_seconds=1000)
        connection = Connection(shared, config=config, server_state=ServerState(), app_state={})
        connection.connection_made(pipe := Pipe())
        connection.data_received(GET)
        later = asyncio.get_running_loop().time() + 10

        async def answered() -> None:
            task = next(iter(connection.tasks))
            answers.put_nowait(None)
            await task

        connection.data_received(GET[:9])  # begins before the answer to the first one
        await answered()
        connection.data_received(GET[9:])
        connection.check(later)
        assert not pipe.closed  # however long it takes to answer
        await answered()
        connection.data_received(b"\r\n")
        connection.check(later - 9)
        assert not pipe.closed
        connection.data_received(GET[:9])
        connection.check(later)
        assert not pipe.closed
        connection.data_received(GET[9:])
        await answered()
        connection.check(later)
        assert pipe.closed

    asyncio.run(main())
