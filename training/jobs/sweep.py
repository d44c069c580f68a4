"""The grid data x fraction x seed as independent jobs on Ray, on this machine or on a cluster.

Each job is one `train`. A job whose worker or machine dies runs again and resumes from its
checkpoint, where `--out` is a volume that all machines see.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import cores, memory
from labelcurve.bundle.text import duration
from labelcurve.training import options
from labelcurve.training.data import sources
from labelcurve.training.options import RUNS, Options
from labelcurve.training.runs.candidates import TIMES
from labelcurve.training.runtime import interruption
from labelcurve.training.runtime.checkpoint import Finished
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.sweep_options import SweepOptions

HEADER = "done     data            fraction  seed  accuracy  balanced  version       seconds  node"

LOGS = "sweep"
"""Folder of the jobs' output, below `RUNS`."""

ATTEMPTS = 3
"""Attempts to start Ray: on a busy machine its processes may time out waiting for each other."""


@dataclass(frozen=True)
class Job:
    """One `train`."""

    data: str
    fraction: float
    seed: int
    arguments: tuple[str, ...]
    cpus: float
    folder: Path
    """Working folder of the sweep."""
    sweep: str
    """Start time; ISO 8601, UTC."""

    @property
    def log(self) -> str:
        """Name of the file with what the job prints."""
        return f"{Path(self.data).name}-{self.fraction:g}-s{self.seed}.log"


def run(chosen: SweepOptions, others: Sequence[str]) -> dict[str, Any]:
    """Runs all jobs and prints a row for each when it ends.

    Args:
        chosen: options of the sweep.
        others: further options, of each `train`.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: Ray is missing or unreachable, or jobs failed; the others have ended by
            then.
    """
    # Reports invalid options before Ray starts.
    base = options.parse(others)
    if chosen.address in (None, "auto"):  # this machine runs jobs
        for data in chosen.data:
            sources.check_there(data)
    jobs = _jobs(chosen, base, others)
    runs = base.out / RUNS
    bundles: list[dict[str, Any]] = []
    failed: list[str] = []
    began = time.monotonic()
    # A signal must not raise inside Ray, which would wrap it in a different exception.
    with interruption.deferred(), _ray(chosen.address) as ray, Bar("sweep") as bar:
        there = ray.cluster_resources()
        gpus = chosen.gpus
        if gpus is None:
            gpus = 1.0 if there.get("GPU") and base.device != "cpu" else 0.0
        _check_room(chosen.cpus, gpus, ray.nodes(), chosen.address)
        say(
            f"{len(jobs)} jobs of {chosen.cpus:g} CPU(s) and {gpus:g} GPU(s) on "
            f"{len(ray.nodes())} machine(s) with {there.get('CPU', 0):g} CPUs; their output is in "
            f"{runs / LOGS}\n{HEADER}"
        )
        remote = ray.remote(num_cpus=chosen.cpus, num_gpus=gpus, max_retries=chosen.retries)(train)
        waiting = {remote.remote(job): job for job in jobs}
        while waiting:
            ended, _ = ray.wait(list(waiting), timeout=1.0)
            if interruption.pending():
                interruption.stop()
            for reference in ended:
                job = waiting.pop(reference)
                done = f"{len(jobs) - len(waiting):3d}/{len(jobs):<3d}"
                try:
                    entries = ray.get(reference)
                except ray.exceptions.RayError as error:
                    called = f"--data {job.data} --fraction {job.fraction:g} --seed {job.seed}"
                    failed.append(f"{called}: {_reason(error)}")
                    say(f"{done}  {failed[-1]}")
                    continue
                bundles += entries
                for entry in entries:
                    say(f"{done}  {_row(entry)}")
            bar.update(1 - len(waiting) / len(jobs))
    if failed:
        raise LabelcurveError(
            f"{len(failed)} of {len(jobs)} jobs failed; the same command runs them again:\n  "
            + "\n  ".join(failed)
        )
    for entry in bundles:  # all done: the next sweep trains again
        Finished(runs / entry["name"]).remove()
        (runs / entry["name"] / TIMES).unlink(missing_ok=True)
    summary = summarise(bundles)
    say(f"done in {duration(time.monotonic() - began)}")
    Console(markup=False, emoji=False).print(_table(summary))
    order = {(job.data, job.fraction, job.seed): place for place, job in enumerate(jobs)}
    bundles.sort(key=lambda entry: order[entry["data"], entry["fraction"], entry["seed"]])
    return {"bundles": bundles, "summary": summary}


def train(job: Job) -> list[dict[str, Any]]:
    """One job, in a worker: the entries of its bundles, with the data and the node."""
    from labelcurve.training.data import dataset as data
    from labelcurve.training.jobs import train as jobs

    # A cluster's machines may not have the folder; then paths are absolute.
    with suppress(OSError):
        os.chdir(job.folder)
    chosen = options.parse(job.arguments)
    if chosen.memory_gb is None:  # a machine has as many jobs as cores for them
        share = data.MEMORY_SHARE * min(1.0, job.cpus / cores())
        chosen = replace(chosen, memory_gb=share * memory() / 1e9)
    logs = chosen.out / RUNS / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / job.log
    again = log.exists() and log.read_text(errors="replace").startswith(job.sweep)
    sys.argv = ["labelcurve", "train", *job.arguments]  # for run.json
    with log.open("a" if again else "w", buffering=1) as file, redirect_stdout(file):
        say(job.sweep)
        if chosen.clear_cache:  # once: the other jobs of this sweep reuse what one has cached
            data.clear(chosen.cache, say, datetime.fromisoformat(job.sweep).timestamp())
        # A second attempt must not redo what the first did.
        fresh = chosen.fresh and not again
        document = jobs.run(replace(chosen, fresh=fresh, clear_cache=False), part=True)
    about = {"data": job.data, "node": os.uname().nodename}
    return [{**about, **entry} for entry in document["bundles"]]


def summarise(bundles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy over the seeds, of each data set and fraction: on test, else on validation.

    Models distilled from others (`--max-latency`) have rows of their own.
    """
    cells: dict[tuple[str, float, bool], list[float]] = {}
    for entry in bundles:
        cell = entry["data"], entry["fraction"], "teacher" in entry
        cells.setdefault(cell, []).append(_judged(entry)["accuracy"])
    return [
        {
            "data": data,
            "fraction": fraction,
            **({"compact": True} if compact else {}),
            "seeds": len(values),
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
        for (data, fraction, compact), values in sorted(cells.items())
    ]


def _jobs(chosen: SweepOptions, base: Options, others: Sequence[str]) -> list[Job]:
    if len({sources.name(data) for data in chosen.data}) < len(chosen.data):
        raise LabelcurveError(
            f"--data {', '.join(chosen.data)}: two of them would have the same bundles' names; "
            "sweep them one by one, each with a different --name"
        )
    if base.dry_run or base.self_test:
        raise LabelcurveError("--dry-run and --self-test are options of `train` alone")
    if base.name is not None and len(chosen.data) > 1:
        raise LabelcurveError(f"--name {base.name}: allowed with one --data, these are several")
    sweep = datetime.now(UTC).isoformat()
    fractions = Options(fraction=chosen.fraction).fractions
    jobs = []
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        for data in chosen.data:
            for fraction in fractions:
                arguments = ("--data", data, "--fraction", f"{fraction!r}", "--seed", f"{seed}")
                options.parse(arguments)
                given = (*arguments, *others)
                jobs.append(Job(data, fraction, seed, given, chosen.cpus, Path.cwd(), sweep))
    return jobs


def _check_room(
    cpus: float, gpus: float, nodes: Sequence[dict[str, Any]], address: str | None
) -> None:
    """Refuses resources that no machine has, for which Ray would wait silently."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    if any(of.get("CPU", 0) >= cpus and of.get("GPU", 0) >= gpus for of in resources):
        return
    wanted = f"--cpus {cpus:g} and --gpus {gpus:g}"
    have = ", ".join(
        sorted({f"{of.get('CPU', 0):g} CPUs and {of.get('GPU', 0):g} GPUs" for of in resources})
    )
    if address is None:
        raise LabelcurveError(f"{wanted}: this machine has {have}")
    say(f"{wanted}: the machines have {have}; the jobs wait for a larger one")


@contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster, or started on this machine alone and ended."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is None:
        # What macOS has by default: without it, Ray replaces 127.0.0.1 by an address of the network
        # and listens on all of them.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # By default Ray's workers run at niceness 15 and starve with other work.
        os.environ.setdefault("RAY_worker_niceness", "0")
    elif address != "auto":
        with _reaching(address):  # Ray itself would look for more than a minute
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    try:
        import ray
    except ImportError as error:
        raise LabelcurveError(
            "Ray is not installed. It is the extra `scale`: pip install '.[train,scale]' in a "
            "clone of Labelcurve, or train --seeds, which needs none"
        ) from error
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address is None:
            _start(ray)
        else:
            with _reaching(address):
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield ray
    except SystemExit as error:  # Ray's own answer to SIGTERM, while it starts
        raise interruption.Stopped(interruption.CODES[signal.SIGTERM]) from error
    finally:
        ray.shutdown()


def _start(ray: Any) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        own = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short paths
        interruption.remove_at_end(Path(own))  # after Ray, which ends its processes there, too
        try:
            ray.init(
                address="local",
                num_cpus=cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=128 * 2**20,
                _node_ip_address="127.0.0.1",
                _temp_dir=own,
            )
        except Exception as error:  # it raises no narrower class
            if attempt == ATTEMPTS:
                raise LabelcurveError(
                    f"Ray does not start on this machine: {error}. It gives its processes 15 s "
                    "each: try it when less other work runs, or train --seeds, which needs no Ray"
                ) from error
            say("Ray did not start in time: trying once more")
        else:
            return


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise LabelcurveError(
            f"--address {address}: no Ray cluster answers there ({error}). Without --address, Ray "
            "starts on this machine"
        ) from error


def _reason(error: Any) -> str:
    cause = getattr(error, "cause", None)
    if isinstance(cause, LabelcurveError):
        return str(cause)
    return str(error).strip().splitlines()[-1]


def _judged(entry: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = entry["test"] or entry["val"]
    return found


def _row(entry: dict[str, Any]) -> str:
    figures = _judged(entry)
    return (
        f"{Path(entry['data']).name:16}{entry['fraction'] * 100:6.6g} %  {entry['seed']:4d}  "
        f"{figures['accuracy']:8.4f}  {figures['balanced_accuracy']:8.4f}  {entry['version']}  "
        f"{entry['seconds']['total']:7.0f}  {entry['node']}"
    )


def _table(summary: Sequence[dict[str, Any]]) -> Table:
    table = Table("data", "fraction", "seeds", "accuracy", title="mean ± standard deviation")
    for row in summary:
        spread = "" if row["std"] is None else f" ± {row['std']:.4f}"
        table.add_row(
            Path(row["data"]).name,
            f"{row['fraction'] * 100:.6g} %{' compact' if 'compact' in row else ''}",
            str(row["seeds"]),
            f"{row['mean']:.4f}{spread}",
        )
    return table
