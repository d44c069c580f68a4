"""Uses of private parts of BentoML and uvicorn, with the reason for each.

`bentoml` itself is used in service.py, by its public names alone. tests/test_walls.py checks that
no other module uses private ones.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Any, NamedTuple

from labelcurve.serving.workers import deferred

UNUSED: dict[str, tuple[str, ...]] = {
    "bentoml._internal.cloud": (),
    "bentoml._internal.cloud.client": ("RestApiClient",),
    "bentoml._internal.utils.circus": ("Server",),
    "_bentoml_impl.server.proxy": ("create_proxy_app",),
}
"""Its cloud client, its proxy for other programs and its supervisor, with the names that other
modules import from them. No worker uses them; with two HTTP clients, they are a third of what a
worker would import."""


class Worker(NamedTuple):
    """Command-line arguments of a worker."""

    descriptor: int
    """The socket that it listens on."""
    number: int
    backlog: int
    keep_alive: int
    drain: int


def defer_unused() -> None:
    """Imports `UNUSED` when they are used; to be called before anything of BentoML is imported."""
    deferred.defer(UNUSED)


def ignore_its_environment() -> None:
    """Removes BentoML's own variables; to be called before anything of BentoML is imported.

    `serve` has its own options, and a worker needs nothing that those variables set. An invalid
    one, such as `BENTOML_CONFIG` with a missing file, would end it with a traceback.
    """
    for name in list(os.environ):
        if name.startswith("BENTOML_") and name not in ("BENTOML_HOME", "BENTOML_DO_NOT_TRACK"):
            del os.environ[name]


def enable_loggers(*names: str) -> None:
    """Enables loggers that BentoML's logging configuration disabled.

    It disables every existing logger, including that of the service, whose models load while
    BentoML is imported.
    """
    for name in names:
        logging.getLogger(name).disabled = False
    logging.getLogger("bentoml.serve").setLevel(logging.WARNING)


def use_connections(path: str) -> None:
    """Makes uvicorn call the function at `path` (MODULE:NAME) for each new connection.

    BentoML makes uvicorn's configuration itself when it serves a bento, and has no setting for it.
    """
    import uvicorn.config

    uvicorn.config.HTTP_PROTOCOLS["auto"] = path


def service_labels() -> dict[str, str]:
    """The labels of its metrics that name the service, as BentoML's own middleware sets them."""
    from bentoml._internal.context import server_context

    return {
        "service_name": server_context.bento_name,
        "service_version": server_context.bento_version,
        "runner_name": server_context.service_name or "labelcurve",
    }


def run(service: Any, worker: Worker, proxy_headers: bool = True) -> None:
    """Serves until SIGTERM, as BentoML's own worker does with an imported service.

    BentoML's worker finds the service by name, and so puts the current folder first on `sys.path`:
    a `queue.py` there would be imported in place of Python's.

    Args:
        service: of BentoML.
        worker: its command-line arguments.
        proxy_headers: whether the client address that a proxy reports is needed.
    """
    import uvicorn
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.context import server_context
    from bentoml._internal.log import configure_server_logging

    configure_server_logging()  # type: ignore[no-untyped-call]
    BentoMLContainer.development_mode.set(False)
    server_context.worker_index = worker.number
    server_context.service_type = "entry_service"
    server_context.service_name = server_context.bento_name = service.name
    server_context.bento_version = "not available"
    config = uvicorn.Config(
        service.to_asgi(),
        backlog=worker.backlog,
        log_config=None,
        server_header=False,
        proxy_headers=proxy_headers,
        workers=1,  # where it is not given, uvicorn reads WEB_CONCURRENCY
        timeout_keep_alive=worker.keep_alive,
        timeout_graceful_shutdown=worker.drain,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=worker.descriptor)])
