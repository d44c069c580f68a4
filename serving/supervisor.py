"""Starts BentoML's workers under circus, as `bentoml serve` does, and ends them.

`bentoml serve` imports all of BentoML in its own process before it starts the first worker: that
is a second and a half later, and 35 MB more.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from circus.arbiter import Arbiter
from circus.sockets import CircusSocket
from circus.watcher import Watcher
from tornado.ioloop import PeriodicCallback

from bundle.errors import LabelcurveError
from serving.rundir import RUN_DIR, RunDir
from serving.settings import VARIABLE, Settings

BACKLOG = 2048

logger = logging.getLogger("labelcurve")


def address(settings: Settings, flag: str = "port") -> tuple[str, int]:
    """The IP address to listen on and its family, proved to be free.

    Args:
        settings: host and port.
        flag: which of the ports is meant, `port` or `metrics-port`.

    Raises:
        LabelcurveError: no such address on this machine, or the port is taken.
    """
    port = settings.port if flag == "port" else settings.metrics_port
    try:
        family, _, _, _, resolved = socket.getaddrinfo(
            settings.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(resolved)
    except (OSError, OverflowError) as error:
        raise LabelcurveError(
            f"cannot listen on {settings.host} port {port}: {error}; "
            f"choose another with --host and --{flag}"
        ) from error
    return str(resolved[0]), family


def supervise(settings: Settings, on_ready: Callable[[], None]) -> None:
    """Serves until SIGTERM, SIGINT or an error.

    Args:
        settings: checked.
        on_ready: called once, when the models of every worker are warm.

    Raises:
        LabelcurveError: a worker could not serve; all of them have ended.
    """
    host, family = address(settings)
    with RunDir.temporary() as run_dir:
        if settings.metrics_port:
            from serving import scrapes  # most have no port for metrics

            scrapes.serve(settings.metrics_port, host, family, str(run_dir.metrics))
        supervised = _Supervised(settings, run_dir, host, family, on_ready)
        supervised.run()
        if supervised.error:
            raise LabelcurveError(supervised.error)


class _Supervised:
    def __init__(
        self,
        settings: Settings,
        run_dir: RunDir,
        host: str,
        family: int,
        on_ready: Callable[[], None],
    ) -> None:
        self.error: str | None = None
        self._run_dir = run_dir
        self._n_workers = settings.workers
        self._lame_duck = settings.lame_duck
        self._on_ready = on_ready
        self._seen: set[int] = set()
        self._died = "died"
        """What became of the last worker that ended before all were ready."""
        self._is_ready = False
        self._watcher = Watcher(
            name="service",
            cmd=sys.executable,
            args=_worker_arguments(settings),
            numprocesses=settings.workers,
            env={
                **os.environ,
                VARIABLE: settings.dumps(),
                RUN_DIR: str(run_dir.path),
                "PROMETHEUS_MULTIPROC_DIR": str(run_dir.metrics),
                "BENTOML_HOME": str(run_dir.path),
            },
            use_sockets=True,
            stop_children=True,
            graceful_timeout=settings.drain + 5,
            hooks={
                "after_spawn": (self._spawned, True),
                "after_reap": (self._reaped, True),
                "before_stop": (self._leave, True),
            },
        )
        self._arbiter = Arbiter(
            [self._watcher],
            endpoint=run_dir.socket("control"),
            pubsub_endpoint=run_dir.socket("events"),
            sockets=[
                CircusSocket(
                    name="http", host=host, port=settings.port, family=family, backlog=BACKLOG
                )
            ],
        )

    def run(self) -> None:
        self._watch = PeriodicCallback(self._look, 50)
        self._watch.start()
        try:
            self._arbiter.start().result()
        except RuntimeError as error:  # no worker is left, and none could be started
            self.error = self.error or f"the supervisor ended: {error} The lines above say why"

    def _look(self) -> None:
        self._seen.update(self._watcher.processes)
        if self._run_dir.n_ready() >= self._n_workers:
            self._watch.stop()
            self._is_ready = True
            self._on_ready()
            return
        self.error = self._run_dir.failure()
        if self.error is None and len(self._seen) > self._n_workers:
            self.error = f"a worker process {self._died} while it started"
        if self.error is not None:
            self._watch.stop()
            self._arbiter.loop.add_callback(self._arbiter.stop)

    def _spawned(self, pid: int, **_: Any) -> bool:
        if self._is_ready:
            logger.warning("worker %d starts in its place", pid)
        return True

    def _reaped(self, process_pid: int, exit_code: int, **_: Any) -> bool:
        # Its requests in progress would be counted for ever.
        for path in self._run_dir.metrics.glob(f"gauge_live*_{process_pid}.db"):
            path.unlink(missing_ok=True)
        ended = f"was ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else "ended"
        if not self._is_ready:
            self._died = f"{ended} with status {exit_code}" if exit_code >= 0 else ended
            if exit_code == -signal.SIGKILL:
                self._died += " (as the kernel does where memory runs out: docker --memory)"
        elif not self._watcher.is_stopping():
            said = self._run_dir.failure(process_pid)
            logger.error("worker %d %s%s", process_pid, ended, f": {said}" if said else "")
        return True

    def _leave(self, **_: Any) -> bool:
        """Not ready first; new connections are refused when load balancers have noticed."""
        if self._is_ready and self._lame_duck > 0:
            for process in self._watcher.get_active_processes():
                process.send_signal(signal.SIGUSR1)
            time.sleep(self._lame_duck)
        self._arbiter.sockets.close_all()
        return True


def _worker_arguments(settings: Settings) -> list[str]:
    return [
        "-m",
        "serving.worker",
        "serving.service:Classifier",
        "--fd",
        "$(circus.sockets.http)",
        "--worker-id",
        "$(CIRCUS.WID)",
        "--backlog",
        str(BACKLOG),
        "--timeout-graceful-shutdown",
        str(settings.drain),
        "--timeout-keep-alive",
        str(settings.keep_alive),
    ]
