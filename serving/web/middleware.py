"""Middleware before the routes: request ids, metrics, headers, access log, authentication.

In one place, because each middleware wraps `send` once more, and `/classify` bypasses Starlette's
router (docs/log.md has what these cost).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelcurve.serving.telemetry.logs import ANSWERED, HEADER, REQUEST_ID, AccessLog, given, new_id
from labelcurve.serving.telemetry.requests import Traffic
from labelcurve.serving.web import problems
from labelcurve.serving.web.access import HEADERS, Access

UNKNOWN = "/unknown"
"""Label under which the metrics count requests for unknown paths: clients could create any number
of labels otherwise."""

logger = logging.getLogger("labelcurve")


class Front:
    """ASGI, outermost.

    A request's id is the client's `X-Request-ID` where it has one of at most 128 letters, digits
    and `._:/+=@-`. It stands in the scope, and in the answer's header.
    """

    def __init__(
        self,
        inner: ASGIApp,
        *,
        paths: frozenset[str],
        traffic: Traffic,
        log: AccessLog | None,
    ) -> None:
        """Wraps `inner`.

        Args:
            inner: the application.
            paths: those that exist.
            traffic: the metrics of requests.
            log: access log, if enabled.
        """
        self._inner = inner
        self._paths = paths
        self._traffic = traffic
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = given(scope) or new_id()
        scope[REQUEST_ID] = request_id.decode()
        answer: Message | None = None

        async def completed(message: Message) -> None:
            nonlocal answer
            if message["type"] == "http.response.start":
                answer = message
                message["headers"] = [*message["headers"], *HEADERS, (HEADER, request_id)]
            await send(message)

        path: str = scope["path"]
        endpoint = path if path in self._paths else _of_model(path)
        self._traffic.begin(endpoint)
        try:
            await self._inner(scope, receive, completed)
        except Exception:
            fields = {"request_id": scope[REQUEST_ID], "path": path}
            logger.exception(
                "request %s: internal error",
                fields["request_id"],
                extra={"fields": fields},
            )
            if answer is None:
                raise
        finally:
            seconds = time.perf_counter() - start
            status = scope.get(ANSWERED) or (answer["status"] if answer else None)
            self._traffic.end(endpoint, status, seconds)
            if self._log and ANSWERED not in scope:
                self._log.add(scope, answer, seconds)


def _of_model(path: str) -> str:
    """The label of a path that is not a fixed one: it may name a model."""
    if path.startswith("/v2/models/"):
        return "/v2/models/infer" if path.endswith("/infer") else "/v2/models"
    return UNKNOWN


class Gate:
    """ASGI middleware: authenticates, handles `/classify`, passes other paths to Starlette."""

    def __init__(
        self,
        access: Access,
        classify: Callable[[Scope, Receive], Awaitable[Response]],
        others: ASGIApp,
    ) -> None:
        """`classify` answers `/classify`, `others` every other path."""
        self._access = access
        self._classify = classify
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        answer = None
        if scope["type"] == "http":
            answer = self._access.refusal(scope)
            if answer is None and scope["path"] == "/classify":
                try:
                    answer = await self._classify(scope, receive)
                except Exception as error:
                    answer = problems.answer(Request(scope), error)
                    if answer.status_code == 500:
                        await answer(scope, receive, send)
                        raise
        await (answer or self._others)(scope, receive, send)
