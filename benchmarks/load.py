"""The load test: locust against `POST /classify`, in rounds over the models.

Closed loop: each of `users` clients waits for its answer before it sends again. The models take
turns, so that the machine's drift hits all of them; percentiles come from the raw latencies.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.accuracy import Predictions
from benchmarks.processes import child, cpu_seconds
from benchmarks.record import Load
from benchmarks.server import Server
from bundle.errors import LabelcurveError
from training.data import Data

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
N_IMAGES = 64
START_SECONDS = 60
"""Bound for locust's start; it takes a second or two."""
MARGIN = 0.01
"""Images whose two best classes are closer than this may come out otherwise on other hardware:
their first label is not checked."""


@dataclass(frozen=True)
class Round:
    """What one locust run recorded between the start of its last client and the stop."""

    seconds: float
    latencies: tuple[float, ...]
    """Of the answered requests, in ms."""
    errors: tuple[str, ...]
    client_seconds: float
    """CPU time of the load generator."""
    server_seconds: float | None
    """CPU time of the service over the whole run."""
    n_sent: int
    """Requests over the whole run."""


def measure(
    server: Server,
    data: Data,
    predictions: Mapping[str, Predictions],
    *,
    users: int,
    seconds: int,
    rounds: int,
    say: Callable[[str], None] = print,
) -> dict[str, Load]:
    """Loads the service with each model in turn.

    Args:
        server: serves every model in `predictions`.
        data: test images are sent as their original bytes.
        predictions: offline predictions by model, which the answers must repeat.
        users: clients at a time.
        seconds: load for each model, divided among the rounds.
        rounds: turns of each model.
        say: receives progress.

    Returns:
        Load by model name.

    Raises:
        LabelcurveError: locust measured nothing.
    """
    turn = max(1, round(seconds / rounds))
    results: dict[str, list[Round]] = {name: [] for name in predictions}
    with TemporaryDirectory(prefix="labelcurve-load-") as work:
        folder = Path(work)
        names = write_images(folder / "images", data)
        checked = {
            name: write_expected(
                folder / f"{name}.expected.json", names, predicted, data.class_names
            )
            for name, predicted in predictions.items()
        }
        for number in range(rounds):
            # Forth and back, so that a drift within a round favours nobody.
            for name in list(results)[:: 1 if number % 2 == 0 else -1]:
                done = results[name]
                done.append(_run(server, folder, name, users, turn))
                last = done[-1]
                say(
                    f"  round {number + 1} of {rounds}  {name}: "
                    f"{len(last.latencies) / last.seconds:,.0f} requests/s, "
                    f"{len(last.errors)} errors"
                )
    return {
        name: summarise(done, users, server.local, checked[name]) for name, done in results.items()
    }


def write_images(folder: Path, data: Data, n: int = N_IMAGES) -> dict[int, str]:
    """Writes the original bytes of `n` random test images as files; returns file name by row."""
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).permutation(len(data.test.labels))[:n]
    names = {}
    for row in rows.tolist():
        content = data.test.read(row)
        kind = (Image.open(BytesIO(content)).format or "bin").lower()
        names[row] = f"{row:06d}.{kind}"
        (folder / names[row]).write_bytes(content)
    return names


def write_expected(
    path: Path, names: Mapping[int, str], predicted: Predictions, classes: Sequence[str]
) -> int:
    """Writes label by file name as JSON; returns how many images have a clear one."""
    expected = {
        name: classes[predicted.labels[row]]
        for row, name in names.items()
        if predicted.margin[row] >= MARGIN
    }
    path.write_text(json.dumps(expected))
    return len(expected)


def _run(server: Server, folder: Path, name: str, users: int, seconds: int) -> Round:
    record, log = folder / "record.json", folder / "locust.log"
    record.unlink(missing_ok=True)
    arguments = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", server.url]
    arguments += ["--headless", "--only-summary", "--users", str(users)]
    # All clients within a second, whatever their number; the stop waits for answers under way.
    arguments += ["--spawn-rate", str(users), "--run-time", f"{seconds + START_SECONDS}s"]
    arguments += ["--measure", str(seconds)]
    arguments += ["--stop-timeout", "10", "--images", str(folder / "images"), "--model", name]
    arguments += ["--expected", str(folder / f"{name}.expected.json"), "--record", str(record)]
    before = _cpu(server)
    with log.open("wb") as output, child(arguments, output) as process:
        try:
            status: int | None = process.wait(seconds + 2 * START_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
    after = _cpu(server)
    if not record.exists():
        tail = log.read_text(errors="replace")[-2000:]
        raise LabelcurveError(
            f"the load test of {name} measured nothing: locust "
            f"{'did not end' if status is None else f'ended with status {status}'}\n{tail}"
        )
    return read_record(record, None if before is None or after is None else after - before)


def read_record(path: Path, server_seconds: float | None = None) -> Round:
    """The measured part of what `locustfile.Recorder` wrote."""
    raw = json.loads(path.read_text())
    begin, end = raw["spawned"], raw["stopping"]
    kept = [
        (latency, error)
        for start, latency, error in raw["requests"]
        if begin <= start + latency / 1e3 <= end
    ]
    return Round(
        seconds=end - begin,
        latencies=tuple(latency for latency, error in kept if error is None),
        errors=tuple(error for _, error in kept if error is not None),
        client_seconds=raw["cpu_seconds"],
        server_seconds=server_seconds,
        n_sent=len(raw["requests"]),
    )


def summarise(rounds: Sequence[Round], users: int, local: bool, n_checked: int) -> Load:
    """Figures of all rounds of one model."""
    latencies = np.concatenate([np.asarray(done.latencies, np.float64) for done in rounds])
    errors = [message for done in rounds for message in done.errors]
    rates = [len(done.latencies) / done.seconds for done in rounds]
    seconds = sum(done.seconds for done in rounds)
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99)) if len(latencies) else (None,) * 3
    server = [done.server_seconds for done in rounds if done.server_seconds is not None]
    n_sent = sum(done.n_sent for done in rounds)
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
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        client_cpu=sum(done.client_seconds for done in rounds) / seconds,
        server_cpu_ms=(
            sum(server) / n_sent * 1e3 if len(server) == len(rounds) and n_sent else None
        ),
    )


def doubts(name: str, load: Load) -> list[str]:
    """What the reader must be told about these figures."""
    found = []
    if load.errors:
        reasons = "; ".join(f"{count} x {message}" for message, count in load.messages.items())
        found.append(f"{name}: {load.errors:,} of {load.n:,} requests FAILED ({reasons})")
    if load.client_cpu > 0.9:
        found.append(
            f"{name}: the load generator was busy {load.client_cpu:.0%} of the time: requests/s "
            "and latencies are its limit, not the service's"
        )
    if not load.n:
        found.append(f"{name}: no request ended within the measured time")
    return found


def _cpu(server: Server) -> float | None:
    return None if server.pid is None else cpu_seconds(server.pid)
