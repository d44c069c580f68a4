"""Recorder of the locustfile: raw latencies, CPU time, steps.

Only locust processes import this.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from labelcurve.benchmarks.harness.windows import BUSY, Request, knee, step

CLASSIFY = "/classify"


def _note(text: str) -> None:
    print(f"NOTE: {text}", file=sys.stderr)


class Recorder:
    """Records raw latencies, since locust rounds its percentiles.

    Writes `{"spawned", "stopping", "cpu_seconds", "processes", "requests", "steps"}`: when all
    users were running, when the end began (seconds since the epoch), CPU time of the clients
    between the two, in how many processes, a `windows.Request` a request, and of each step its
    users, begin, end and CPU time.
    """

    def __init__(self, environment: Environment, path: Path | None, keep: bool) -> None:
        self.environment = environment
        self.path = path
        self.keep = keep
        self.requests: list[Request] = []
        self.steps: list[dict[str, float]] = []
        self.spawned: tuple[float, float] | None = None
        self.stopping: tuple[float, float] | None = None
        self.workers: dict[str, float] = {}
        self.numbers = count(1)
        self.n_unsent = 0
        self.under_way: dict[float, float] = {}
        """Due times of unanswered requests of a fixed rate, by number."""
        environment.events.test_start.add_listener(self.on_start)
        environment.events.request.add_listener(self.on_request)
        environment.events.spawning_complete.add_listener(self.on_spawned)
        environment.events.test_stopping.add_listener(self.on_stopping)
        environment.events.quitting.add_listener(self.on_quitting)
        environment.events.report_to_master.add_listener(self.on_report)
        environment.events.worker_report.add_listener(self.on_worker)

    def cpu_seconds(self) -> float:
        """CPU time of the clients so far: of this process, or of the workers as last reported."""
        if isinstance(self.environment.runner, MasterRunner):
            return sum(self.workers.values())
        return time.process_time()

    def on_start(self, **_: Any) -> None:
        """Reset: a run begins, perhaps not the first one on the web page."""
        self.requests, self.steps, self.n_unsent = [], [], 0
        self.spawned = self.stopping = None

    def begin(self, due: float) -> dict[str, float]:
        """Note that a request of a fixed rate is due; return its context."""
        number = float(next(self.numbers))
        self.under_way[number] = due
        return {"due": due, "number": number}

    def unsent(self, due: float) -> None:
        """Note that a request was due and the load generator could not send it."""
        self.n_unsent += 1
        if self.keep:
            late = (time.time() - due) * 1e3
            self.requests.append(Request(due, late, "not sent before the end", None))

    def on_request(
        self,
        name: str,
        start_time: float,
        response_time: float,
        response: Any,
        exception: Exception | None,
        context: dict[str, Any],
        **_: Any,
    ) -> None:
        """Record a request."""
        self.under_way.pop(context.get("number", 0.0), None)
        if self.keep and name.startswith(CLASSIFY):
            error = None if exception is None else str(exception) or type(exception).__name__
            headers = getattr(response, "headers", None)
            timing = headers.get("server-timing") if headers else None
            due = context.get("due", start_time)
            latency = response_time + (start_time - due) * 1e3
            self.requests.append(Request(due, latency, error, timing))

    def on_spawned(self, **_: Any) -> None:
        """Begin the measured time: all users are running."""
        if self.spawned is None:
            self.spawned = (time.time(), self.cpu_seconds())

    def on_stopping(self, **_: Any) -> None:
        """End the measured time."""
        self.stopping = (time.time(), self.cpu_seconds())

    def on_report(self, data: dict[str, Any], **_: Any) -> None:
        """Send new records to the master; runs on a worker."""
        data["labelcurve"] = {
            "cpu_seconds": time.process_time(),
            "requests": self.requests,
            "unsent": self.n_unsent,
        }
        self.requests, self.n_unsent = [], 0

    def on_worker(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        """Add the records of a worker; runs on the master."""
        part = data.get("labelcurve")
        if part:
            self.workers[client_id] = part["cpu_seconds"]
            self.n_unsent += part["unsent"]
            if self.keep:
                self.requests += [Request(*request) for request in part["requests"]]

    def on_quitting(self, **_: Any) -> None:
        """Write the file, if there was a measured time."""
        if isinstance(self.environment.runner, WorkerRunner):
            return
        if self.spawned is None or self.stopping is None:
            if self.path:
                _note(f"{self.path} is not written: the run ended before all users had started")
            return
        # The slowest of all: without them a growing queue would look short.
        now = time.time()
        self.requests += [
            Request(due, (now - due) * 1e3, "not answered before the end", None)
            for due in self.under_way.values()
        ]
        seconds = self.stopping[0] - self.spawned[0]
        cpu = self.stopping[1] - self.spawned[1]
        processes = max(1, len(self.workers))
        if self.n_unsent:
            _note(
                f"the load generator could not send {self.n_unsent:,} requests that were due at "
                "this rate: its own limit, not the service's. Use --processes, or a lower --rate."
            )
        answered = self.environment.stats.total
        nothing = answered.num_requests == answered.num_failures
        if seconds > 0 and cpu / seconds / processes > BUSY and not nothing:
            _note(
                f"the load generator kept {cpu / seconds:.2f} cores busy in {processes} "
                "process(es): these figures are its own limit, not the service's. Use --processes, "
                "several machines, or wrk."
            )
        if self.steps:
            self.show_steps()
        if self.path:
            record = {
                "spawned": self.spawned[0],
                "stopping": self.stopping[0],
                "cpu_seconds": cpu,
                "processes": processes,
                "requests": self.requests,
                "steps": self.steps,
            }
            self.path.write_text(json.dumps(record))

    def show_steps(self) -> None:
        """Print each step and the knee."""
        steps = [
            step(
                self.requests, mark["begin"], mark["end"], users=int(mark["users"]),
                client_cpu=mark["cpu_seconds"] / (mark["end"] - mark["begin"]),
            )
            for mark in self.steps
        ]  # fmt: skip
        print(f"{'users':>6} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'client CPU':>11}")
        for found in steps:
            print(
                f"{found.users:6} {found.requests_per_s:11,.0f} {found.p50_ms or 0:8.1f} "
                f"{found.p99_ms or 0:8.1f} {found.client_cpu:11.2f}"
                f"{'' if found.stable else '  unstable'}"
            )
        if (at := knee(steps)) is not None:
            own = at.client_cpu > BUSY * max(1, len(self.workers))
            last = at.users == max(found.users or 0 for found in steps)
            print(
                f"knee: {at.users} users, {at.requests_per_s:,.0f} requests/s"
                + (" (the load generator's own limit)" if own else "")
                + (", the most that were tried: it may lie beyond" if last else "")
            )
