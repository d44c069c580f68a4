"""The load test: locust against `POST /classify`, in rounds over the models.

Closed loop: each of `users` clients waits for its answer before it sends again. The models take
turns, so that drift of the machine affects all of them. Percentiles come from raw latencies, stages
from the answers' `Server-Timing`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from labelcurve.benchmarks.harness import windows
from labelcurve.benchmarks.harness.processes import child, cpu_seconds, memory_mb
from labelcurve.benchmarks.harness.server import Server
from labelcurve.benchmarks.harness.windows import BUSY, N_WINDOWS, Request
from labelcurve.benchmarks.quality.accuracy import Predictions
from labelcurve.benchmarks.record import Load, Stage
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.preprocess import ending
from labelcurve.training.data.dataset import Data

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
N_IMAGES = 64
START_SECONDS = 60
"""Time limit of locust's start, which takes a second or two."""
MARGIN = 0.01
"""Images whose two best classes are closer than this are not checked: other hardware may classify
them differently."""
STAGES = ("decode", "queue", "inference", "encode")
_STAGE = re.compile(r"(\w+);dur=([\d.]+)")


@dataclass(frozen=True)
class Round:
    """A locust run between the start of its last client and the stop."""

    begin: float
    end: float
    """Seconds since the epoch."""
    requests: tuple[Request, ...]
    """Requests that ended between `begin` and `end`."""
    client_seconds: float
    """CPU time of the load generator."""
    server_seconds: float | None
    """CPU time of the service over the whole run."""
    n_sent: int
    """Requests over the whole run."""

    @property
    def latencies(self) -> list[float]:
        """Latencies of the answered requests in ms."""
        return [request.latency_ms for request in self.requests if request.error is None]

    @property
    def errors(self) -> list[str]:
        """Errors of the other requests."""
        return [request.error for request in self.requests if request.error is not None]


@contextmanager
def images_for(
    data: Data, predictions: Mapping[str, Predictions]
) -> Iterator[tuple[Path, dict[str, int]]]:
    """Make a folder of locust's input; yield it and the number of checked images by model."""
    with TemporaryDirectory(prefix="labelcurve-load-") as work:
        folder = Path(work)
        names = write_images(folder / "images", data)
        checked = {
            name: write_expected(folder / f"{name}.expected.json", names, said, data.class_names)
            for name, said in predictions.items()
        }
        yield folder, checked


def measure(
    servers: Mapping[str, Server],
    folder: Path,
    checked: Mapping[str, int],
    *,
    users: int,
    seconds: int,
    rounds: int,
    say: Callable[[str], None] = print,
) -> dict[str, Load]:
    """Load each model in turn; return load by model name.

    Folder and numbers of checked images are those of `images_for`; the seconds of each model are
    divided among the rounds.

    Raises:
        LabelcurveError: locust measured nothing.
    """
    turn = max(1, round(seconds / rounds))
    results: dict[str, list[Round]] = {name: [] for name in servers}
    for number in range(rounds):
        # Back and forth, so that drift within a round favours none.
        for name in list(results)[:: 1 if number % 2 == 0 else -1]:
            options = ["--users", str(users), "--spawn-rate", str(users), "--measure", str(turn)]
            last = read_round(*run(servers[name], folder, name, options, turn))
            results[name].append(last)
            say(
                f"  round {number + 1} of {rounds}  {name}: "
                f"{len(last.latencies) / (last.end - last.begin):,.0f} requests/s, "
                f"{len(last.errors)} errors"
            )
    return {
        name: summarise(
            results[name], users, server.local, checked.get(name, 0), memory_mb(server.pid)
        )
        for name, server in servers.items()
    }


def write_images(folder: Path, data: Data) -> dict[int, str]:
    """Write the original bytes of some random test images; return file name by row."""
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).permutation(len(data.test.labels))[:N_IMAGES]
    names = {}
    for row in rows.tolist():
        content = data.test.read(row)
        names[row] = f"{row:06d}.{ending(content)}"
        (folder / names[row]).write_bytes(content)
    return names


def write_expected(
    path: Path, names: Mapping[int, str], predicted: Predictions, classes: Sequence[str]
) -> int:
    """Write label by file name as JSON; return the number of images with a clear label."""
    expected = {
        name: classes[predicted.labels[row]]
        for row, name in names.items()
        if predicted.margin[row] >= MARGIN
    }
    path.write_text(json.dumps(expected))
    return len(expected)


def run(
    server: Server, folder: Path, name: str, options: Sequence[str], seconds: float
) -> tuple[dict[str, Any], float | None]:
    """Run the locustfile once, with options that take about so many seconds.

    Returns:
        What `recorder.Recorder` wrote, and the CPU seconds of the service, if they can be seen.

    Raises:
        LabelcurveError: locust measured nothing.
    """
    record, log = folder / "record.json", folder / "locust.log"
    record.unlink(missing_ok=True)
    arguments = [sys.executable, "-P", "-m", "locust", "-f", str(LOCUSTFILE), "Raw"]
    arguments += ["--host", server.url, "--headless", "--only-summary", *options]
    # The stop waits for outstanding answers.
    arguments += ["--run-time", f"{seconds + START_SECONDS:.0f}s", "--stop-timeout", "10"]
    arguments += ["--images", str(folder / "images"), "--model", name, "--record", str(record)]
    if (expected := folder / f"{name}.expected.json").exists():
        arguments += ["--expected", str(expected)]
    # What is set for locust by hand, in variables or in files of the working folder, is not meant
    # for this load.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("LOCUST_", "LABELCURVE_"))}
    before = cpu_seconds(server.pid)
    with (
        log.open("wb") as output,
        child(arguments, output, environment=own, folder=folder) as process,
    ):
        try:
            status: int | None = process.wait(seconds + 2 * START_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
    after = cpu_seconds(server.pid)
    tail = log.read_text(errors="replace")[-2000:]
    if not record.exists():
        raise LabelcurveError(
            f"the load test of {name} measured nothing: locust "
            f"{'did not end' if status is None else f'ended with status {status}'}\n{tail}"
        )
    recorded: dict[str, Any] = json.loads(record.read_text())
    if not recorded["requests"]:
        raise LabelcurveError(
            f"no request to {server.url} for {name} was answered: the service may have ended. "
            f"What locust said:\n{tail}"
        )
    found = None if before is None or after is None else after - before
    return recorded, found


def requests(record: Mapping[str, Any]) -> list[Request]:
    """Read the requests of a record."""
    return [Request(*request) for request in record["requests"]]


def read_round(record: Mapping[str, Any], server_seconds: float | None = None) -> Round:
    """Select the measured part of a record of `recorder.Recorder`."""
    begin, end = record["spawned"], record["stopping"]
    return Round(
        begin=begin,
        end=end,
        requests=tuple(r for r in requests(record) if begin <= r.end <= end),
        client_seconds=record["cpu_seconds"],
        server_seconds=server_seconds,
        n_sent=len(record["requests"]),
    )


def summarise(
    rounds: Sequence[Round],
    users: int,
    local: bool,
    n_checked: int,
    server_memory_mb: float | None = None,
) -> Load:
    """Summarise all rounds of one model."""
    latencies = np.concatenate([np.asarray(done.latencies, np.float64) for done in rounds])
    errors = [message for done in rounds for message in done.errors]
    rates = [len(done.latencies) / (done.end - done.begin) for done in rounds]
    seconds = sum(done.end - done.begin for done in rounds)
    server = [done.server_seconds for done in rounds if done.server_seconds is not None]
    n_sent = sum(done.n_sent for done in rounds)
    # A round is a window; of fewer rounds than the rule needs, each is cut.
    parts = 1 if len(rounds) >= N_WINDOWS else N_WINDOWS
    parted = [w for done in rounds for w in windows.cut(done.requests, done.begin, done.end, parts)]
    return Load(
        users=users,
        same_machine=local,
        rounds=len(rounds),
        seconds=seconds,
        n=len(latencies) + len(errors),
        errors=len(errors),
        messages=dict(Counter(errors).most_common(5)),
        n_checked=n_checked,
        requests_per_s=len(latencies) / seconds,
        requests_per_s_low=min(rates),
        requests_per_s_high=max(rates),
        **windows.percentiles(latencies),
        client_cpu=sum(done.client_seconds for done in rounds) / seconds,
        server_cpu_ms=(
            sum(server) / n_sent * 1e3 if len(server) == len(rounds) and n_sent else None
        ),
        stages=stages([request for done in rounds for request in done.requests]),
        windows=tuple(parted),
        # Of two rounds the last three windows are one: the other must be like it.
        stable=windows.stable(parted) and (len(rates) >= N_WINDOWS or windows.alike(rates)),
        server_memory_mb=server_memory_mb,
    )


def stages(answered: Sequence[Request]) -> dict[str, Stage]:
    """Summarise the time of answered requests by stage; empty without `Server-Timing`."""
    rows = []
    for request in answered:
        if request.error is None and request.timing:
            found = {name: float(value) for name, value in _STAGE.findall(request.timing)}
            rows.append([*(found.get(name, 0.0) for name in STAGES), request.latency_ms])
    if not rows:
        return {}
    times = np.asarray(rows)
    # Network, HTTP on both sides, and waiting for a core: everything not accounted for elsewhere.
    other = np.maximum(0.0, times[:, -1] - times[:, :-1].sum(axis=1))
    columns = [*times[:, :-1].T, other]
    return {
        name: Stage(
            mean_ms=float(column.mean()),
            p50_ms=float(np.percentile(column, 50)),
            p99_ms=float(np.percentile(column, 99)),
        )
        for name, column in zip((*STAGES, "other"), columns, strict=True)
    }


def doubts(name: str, load: Load) -> list[str]:
    """List warnings about these figures."""
    found = []
    if load.errors:
        reasons = "; ".join(f"{count} x {message}" for message, count in load.messages.items())
        found.append(f"{name}: {load.errors:,} of {load.n:,} requests FAILED ({reasons})")
    if load.client_cpu > BUSY:
        found.append(
            f"{name}: the load generator was busy {load.client_cpu:.0%} of the time: requests/s "
            "and latencies are limited by it, not by the service"
        )
    if not load.n:
        found.append(f"{name}: no request ended within the measured time")
    return found


def unstable(loads: Mapping[str, Load]) -> list[str]:
    """Warn of models whose windows disagree, in one line."""
    names = [name for name, found in loads.items() if found.stable is False and found.n]
    if not names:
        return []
    return [
        f"UNSTABLE under load: {', '.join(names)}: requests/s or p50 of the last three windows are "
        "more than 10 % apart: measure again on a quieter machine, or longer"
    ]
