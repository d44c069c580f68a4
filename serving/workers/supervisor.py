"""Starts BentoML's workers under circus, as `bentoml serve` does, and ends them.

`bentoml serve` imports all of BentoML in its own process before it starts the first worker, which
costs a second and a half and 35 MB.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Any

from circus.arbiter import Arbiter
from circus.exc import ConflictError
from circus.process import DEAD_OR_ZOMBIE, UNEXISTING
from circus.sockets import CircusSocket
from circus.watcher import Watcher
from tornado import gen
from tornado.ioloop import PeriodicCallback

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.settings import VARIABLE, Settings
from labelcurve.serving.workers.rundir import RUN_DIR, RunDir

if TYPE_CHECKING:
    from labelcurve.serving.workers.stand_in import StandIn

BACKLOG = 2048

WORKER = "labelcurve.serving.workers.worker"

SETTLED_SECONDS = 10.0
"""A worker that dies sooner than this after its start counts as a failed start."""

MAX_PAUSE = 32.0
"""Maximum seconds before the next worker after consecutive failed starts."""

RETRY_SECONDS = 0.05
"""Between two attempts to stop the arbiter."""

logger = logging.getLogger("labelcurve")


def pause(row: int) -> float:
    """Seconds to wait after `row` consecutive failed starts: 0, 1, 2, 4 and so on.

    The first one is replaced at once.
    """
    return 0.0 if row < 2 else min(MAX_PAUSE, 2.0 ** (row - 2))


def address(settings: Settings, flag: str = "port") -> tuple[str, int]:
    """The IP address to listen on and its family, after checking that the port is free.

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
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # by default, they would end it at once
        signal.signal(number, signal.SIG_IGN)
    with RunDir.temporary() as run_dir:
        if settings.metrics_port:
            from labelcurve.serving.workers import metrics_server  # most have no port for metrics

            metrics_server.serve(settings.metrics_port, host, family, str(run_dir.metrics))
        supervised = _Supervised(settings, run_dir, host, family, on_ready)
        supervised.run()
        if supervised.error:
            raise LabelcurveError(supervised.error)


class _Workers(Watcher):  # type: ignore[misc]
    """The worker processes; those that die right after their start are restarted with a delay."""

    not_before = 0.0
    """Earliest start of the next worker, by the monotonic clock."""
    _pausing = False

    @gen.coroutine
    def manage_processes(self) -> Any:
        """Starts a worker for each that has died.

        circus reaps those that it is told of first, and here forgets one that died in between, as
        when all are killed at once: its end would be neither logged nor counted.
        """
        if self.is_stopped():
            return
        for process in list(self.processes.values()):
            if process.status in (DEAD_OR_ZOMBIE, UNEXISTING):
                self.reap_process(process.pid)
        if len(self.processes) < self.numprocesses and not self.is_stopping():
            yield self.spawn_processes()

    @gen.coroutine
    def spawn_processes(self) -> Any:
        """Starts missing workers unless a restart delay is pending."""
        self._pausing = time.monotonic() < self.not_before
        if not self._pausing:
            yield super().spawn_processes()

    def __len__(self) -> int:
        """Their number; never 0 during a pause, since the arbiter would end."""
        return super().__len__() or int(self._pausing)


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
        self._started: dict[int, float] = {}
        """Start time of each worker, by the monotonic clock."""
        self._row = 0
        """Number of consecutive workers that died soon after their start."""
        self._stand_in: StandIn | None = None
        self._died = "died"
        """How the last worker ended that did so before all were ready."""
        self._is_ready = self._ending = False
        self._hangup = signal.getsignal(signal.SIGHUP)
        self._watcher = _Workers(
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
        self._listener = CircusSocket(
            name="http", host=host, port=settings.port, family=family, backlog=BACKLOG
        )
        self._arbiter = Arbiter(
            [self._watcher],
            endpoint=run_dir.socket("control"),
            pubsub_endpoint=run_dir.socket("events"),
            sockets=[self._listener],
        )

    def run(self) -> None:
        self._watch = PeriodicCallback(self._look, 50)
        self._watch.start()
        try:
            self._arbiter.start().result()
        except RuntimeError as error:  # no worker is left, and none could be started
            self.error = self.error or f"the supervisor ended: {error} The lines above say why"

    def _look(self) -> None:
        if self._run_dir.n_ready() >= self._n_workers:
            self._watch.stop()
            self._is_ready = True
            self._on_ready()
            return
        self.error = self._run_dir.failure()
        if self.error is None and len(self._started) > self._n_workers:
            self.error = f"a worker process {self._died} while it started"
        if self.error is not None:
            self._watch.stop()
            self._end()

    def _end(self) -> None:
        """Stops the workers, then this process.

        While the arbiter is busy with its workers, it refuses every command, also that of a signal:
        asked only once, it would keep running.
        """
        if self._ending:
            return
        try:
            self._arbiter.stop()
        except ConflictError:
            self._arbiter.loop.call_later(RETRY_SECONDS, self._end)
        else:
            self._ending = True

    def _take_signals(self) -> None:
        """Handles the signals that end a service, including SIGHUP of a closed terminal.

        Not SIGHUP under `nohup`. circus would restart the workers at SIGHUP.
        """

        def end(*_: Any) -> None:
            self._arbiter.loop.add_callback_from_signal(self._end)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, end)
        ignored = self._hangup == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else end)

    def _spawned(self, pid: int, **_: Any) -> bool:
        if not self._started:  # the first: by now the arbiter has set its signal handlers
            self._take_signals()
        self._started[pid] = time.monotonic()
        if self._stand_in:
            self._stand_in.close()
        if self._is_ready:
            logger.warning("worker %d is started in its place", pid)
        return True

    def _reaped(self, process_pid: int, exit_code: int, **_: Any) -> bool:
        # Its requests in progress would be counted forever.
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
            self._wait_after(time.monotonic() - self._started[process_pid])
        return True

    def _wait_after(self, lived: float) -> None:
        """Sets when the next worker starts, after one that lived for some seconds."""
        self._row = self._row + 1 if lived < SETTLED_SECONDS else 0
        seconds = pause(self._row)
        if seconds == 0:
            return
        self._watcher.not_before = time.monotonic() + seconds
        logger.error(
            "%d workers died soon after their start: restarting in %g s", self._row, seconds
        )
        if not self._watcher.get_active_processes():
            self._arbiter.loop.add_callback(self._answer_meanwhile, ceil(seconds))

    async def _answer_meanwhile(self, retry_after: int) -> None:
        if self._stand_in is None:
            from labelcurve.serving.workers.stand_in import StandIn  # rarely needed

            self._stand_in = StandIn()
        if not self._watcher.get_active_processes() and not self._watcher.is_stopping():
            await self._stand_in.open(self._listener.fileno(), retry_after)

    def _leave(self, **_: Any) -> bool:
        """Becomes unready first, and refuses connections once load balancers have noticed."""
        if self._stand_in:
            self._stand_in.close()
        if self._is_ready and self._lame_duck > 0:
            for process in self._watcher.get_active_processes():
                process.send_signal(signal.SIGUSR1)
            time.sleep(self._lame_duck)
        self._arbiter.sockets.close_all()
        return True


def _worker_arguments(settings: Settings) -> list[str]:
    numbers = ("$(circus.sockets.http)", "$(CIRCUS.WID)", BACKLOG, settings.keep_alive)
    # -P: never imports code from the folder that `serve` was started in.
    return ["-P", "-m", WORKER, *map(str, (*numbers, settings.drain))]
