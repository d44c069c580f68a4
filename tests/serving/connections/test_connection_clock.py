"""Connections without a service: their seconds, their ends, and their own answers."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from labelcurve.serving.connections.connection import (
    REST_BYTES,
    TASK,
    Connection,
    hide_invalid_requests,
    problem,
)
from labelcurve.serving.connections.shared import Connections
from labelcurve.serving.web.access import HEADERS
from tests.serving.connections.test_shared import Pipe, empty_answer

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_problem_that_ends_a_connection_is_a_whole_answer() -> None:
    answer, headers = problem(503, "full", "mine", [(b"date", b"now")], retry_after=7)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 503 Service Unavailable",
        b"date: now",
        b"content-type: application/problem+json",
        b"content-length: %d" % len(body),
        b"connection: close",
        *(b"%s: %s" % header for header in HEADERS),
        b"x-request-id: mine",
        b"retry-after: 7",
    ]
    assert json.loads(body) == {
        "type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "full",
        "request_id": "mine",
    }  # fmt: skip
    assert len(headers) == len(head.split(b"\r\n")) - 1
    assert b"retry-after" not in problem(408, "slow", "mine")[0]


class Watched(Pipe):
    """A pipe that keeps what is written, of which a client may leave some unread."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unread = 0
        self.aborted = self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unread

    def resume_reading(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass


def watched(app: Any = empty_answer, head_seconds: float = 10.0) -> tuple[Connection, Watched]:
    """A new connection on the running event loop."""
    config = uvicorn.Config(app, timeout_keep_alive=5, lifespan="off", log_config=None)
    shared = Connections(8, head_seconds)
    connection = Connection(shared, config=config, server_state=ServerState(), app_state={})
    connection.connection_made(pipe := Watched())
    return connection, pipe


def test_headers_have_their_seconds_and_silence_is_not_answered() -> None:
    async def main() -> None:
        for sent, answer in ((b"", b""), (GET[:9], b"HTTP/1.1 408 ")):
            connection, pipe = watched()
            if sent:
                connection.data_received(sent)
            assert connection._since is not None
            connection.check(connection._since + 9.9)
            assert (pipe.written, pipe.closed, pipe.ended) == (b"", False, False)
            connection.check(connection._since + 10.1)
            assert pipe.written.startswith(answer)
            assert bool(pipe.written) == bool(sent)
            assert pipe.closed or pipe.ended
            if sent:
                assert b"the headers did not arrive within 10 s" in pipe.written
                assert connection not in connection._shared.everyone

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sends", "after"),
    [(False, [(1.9, False), (2.1, True)]), (True, [(19.9, False), (20.1, True)])],
)
def test_after_its_last_answer_a_connection_is_read_for_a_while(
    sends: bool, after: list[tuple[float, bool]]
) -> None:
    async def main() -> None:
        connection, pipe = watched()
        connection.data_received(b"no http\r\n\r\n")
        assert pipe.written.startswith(b"HTTP/1.1 400 ")
        assert pipe.ended
        assert connection in connection._shared.lingering
        assert connection._ended_at is not None
        for seconds, aborted in after:
            now = connection._ended_at + seconds
            if sends:
                connection.data_received(b"more")
                connection._heard_at = now
            connection.check(now)
            assert pipe.aborted == aborted

    asyncio.run(main())


def test_what_is_sent_after_the_last_answer_is_read_up_to_a_limit() -> None:
    async def main() -> None:
        connection, pipe = watched()
        connection.data_received(b"no http\r\n\r\n")
        written, piece = pipe.written, bytes(2**20)
        for _ in range(REST_BYTES // len(piece)):
            connection.data_received(piece)
        assert not pipe.aborted
        connection.data_received(b"x")
        assert pipe.aborted
        assert pipe.written == written

    asyncio.run(main())


def test_who_does_not_read_an_answer_loses_the_connection_and_who_reads_slowly_does_not() -> None:
    async def main() -> None:
        connection, pipe = watched()
        connection.data_received(GET)
        await asyncio.gather(*connection.tasks)
        assert connection.is_idle()
        now = asyncio.get_running_loop().time()
        connection.timeout_keep_alive = 1000
        for seconds, unread, aborted in (
            (0, 9, False), (29.9, 9, False), (29.9, 8, False), (59.7, 8, False), (60, 8, True),
        ):  # fmt: skip
            pipe.unread = unread
            assert not connection.is_idle()
            connection.check(now + seconds)
            assert pipe.aborted == aborted, seconds

    asyncio.run(main())


def test_a_client_that_disconnects_ends_the_work_for_it_and_one_that_has_its_answer_none() -> None:
    async def main() -> None:
        tasks: list[asyncio.Task[None]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope[TASK] = tasks[-1]
            if scope["path"] == "/answered":
                await empty_answer(scope, receive, send)

        for path, cancelled in ((b"/waiting", 1), (b"/answered", 0)):
            tasks.append(asyncio.create_task(asyncio.sleep(1000)))
            connection, _ = watched(app)
            connection.data_received(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            while TASK not in connection.scope:
                await asyncio.sleep(0)
            if not cancelled:
                await asyncio.gather(*connection.tasks)
            connection.cycle.response_complete = not cancelled
            connection.connection_lost(None)
            assert tasks[-1].cancelling() == cancelled
            assert connection not in connection._shared.everyone
            tasks[-1].cancel()

    asyncio.run(main())


@pytest.mark.parametrize("leaving", [False, True])
def test_while_it_leaves_each_answer_ends_its_connection(leaving: bool) -> None:
    async def main() -> None:
        connection, pipe = watched()
        connection._shared.leaving = leaving
        connection.data_received(GET)
        await asyncio.gather(*connection.tasks)
        assert (b"connection: close" in pipe.written.lower()) == leaving
        assert (pipe.ended or pipe.closed) == leaving

    asyncio.run(main())


def test_invalid_requests_of_clients_alone_are_kept_out_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("uvicorn.error")
    before = [*logger.filters]
    try:
        hide_invalid_requests()
        logger.warning("Invalid HTTP request received.")
        logger.warning("another")
    finally:
        logger.filters[:] = before
    assert [record.message for record in caplog.records] == ["another"]
