"""The connections of a process: how many there are, and which one gives way to a new one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from labelcurve.serving.telemetry.logs import AccessLog

if TYPE_CHECKING:
    from labelcurve.serving.connections.connection import Connection

SPARE_SECONDS = 1.0
"""Silence after which a connection gives way to a new one: a busy client sends again before that,
and what it sends to a connection that is being closed is lost."""


class Connections:
    """The connections of this process, and their limits."""

    def __init__(self, limit: int, head_seconds: float, log: AccessLog | None = None) -> None:
        """None yet.

        Args:
            limit: how many may be open.
            head_seconds: that a request's line and headers may take to arrive, and the rest of a
                body that was answered before its end.
            log: access log for the responses that are sent here, if enabled.
        """
        self.limit = limit
        self.head_seconds = head_seconds
        self.log = log
        self.leaving = False
        """Whether responses close their connections, because this process is about to stop."""
        self.everyone: set[Connection] = set()
        self.idle: dict[Connection, float] = {}
        """Start of the silence of those that had a response, the longest first."""
        self.lingering: set[Connection] = set()
        """Connections after their last response, which no longer count towards the limit."""

    def make_room(self) -> bool:
        """Closes the connection that has been idle longest; returns whether there is one."""
        before = asyncio.get_running_loop().time() - SPARE_SECONDS
        for connection, since in self.idle.items():
            if since > before:
                break
            if connection.is_idle():
                connection.transport.close()
                self.forget(connection)
                return True
        return False

    def forget(self, connection: Connection) -> None:
        """Stops counting a connection."""
        self.everyone.discard(connection)
        self.idle.pop(connection, None)

    async def sweep(self) -> None:
        """Closes connections that exceed their time limits, about once a second."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            now = loop.time()
            for connection in [*self.everyone, *self.lingering]:
                connection.check(now)
