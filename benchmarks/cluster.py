"""Do two processes train as well as one, and does a sweep outlive the loss of a machine?

`python -m benchmarks.cluster` trains scikit-learn's digits with several seeds, by one process and
by two (`torchrun`, gloo), and compares the accuracies on test. Then it runs `sweep` undisturbed,
with Ray on this machine alone, starts a Ray cluster of two nodes, both on the loopback interface,
runs the same sweep there, kills one node with SIGKILL (its raylet, and so the job on it) when both
have written a checkpoint, and compares the bundles' versions. The last line on stdout is one JSON
document.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import psutil
import tyro

from benchmarks.processes import command
from benchmarks.provenance import check_out
from bundle.errors import LabelcurveError
from bundle.machine import cores, cpu_name, git_commit, versions

SWEEP = (
    *("--data", "digits", "--fraction", "0.2", "--image-size", "8", "--device", "cpu"),
    *("--extractor", "none", "--no-unlabelled", "--checkpoint-seconds", "0"),
)

TRAIN = (
    *("--data", "digits", "--fraction", "1.0", "--image-size", "8", "--device", "cpu"),
    *("--extractor", "none"),
)

TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
    *("--nproc-per-node", "2", "-m", "training"),
)

# As a machine of its own would: with one node's address, and nothing that listens elsewhere.
NODE = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1",
    "object_store_memory": 128 * 2**20})
other = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1",
    object_store_memory=128 * 2**20)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    other.kill_raylet(check_alive=False)
    print("killed", flush=True)
other.kill_all_processes(check_alive=False, allow_graceful=False)
cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
"""

LONGEST = 1800.0
"""Seconds that one sweep may take."""


@dataclass
class Options:
    """Compares two processes with one, and a sweep that loses a node with one that loses none."""

    seeds: int = 5
    """Of both comparisons; for the second they are the jobs."""
    epochs: int = 12
    """Of each model."""
    out: Path | None = None
    """Also write the JSON document to this file."""


def processes(options: Options) -> dict[str, Any]:
    """Accuracies on test by one process and by two, seed by seed."""
    given = (*TRAIN, "--seeds", f"{options.seeds}", "--epochs", f"{options.epochs}")
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for number, start in (("one", (command("train"),)), ("two", TORCHRUN)):
            document = _finish(_start((*start, *given), Path(name), number))
            found[number] = [bundle["test"]["accuracy"] for bundle in document["bundles"]]
            print(f"{number}: {found[number]}", flush=True)
    differences = [two - one for one, two in zip(found["one"], found["two"], strict=True)]
    return {
        **{
            number: {"accuracy": values, "mean": mean(values), "std": _spread(values)}
            for number, values in found.items()
        },
        "mean_difference": mean(differences),
        "standard_error": _spread(differences) / len(differences) ** 0.5,
        "command": " ".join(("train", *given)),
    }


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def lost_node(options: Options) -> dict[str, Any]:
    """Both sweeps, one after the other."""
    given = (*SWEEP, "--seeds", f"{options.seeds}", "--epochs", f"{options.epochs}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = _versions(_finish(_start((command("sweep"), *given), folder, "undisturbed")))
        print(f"undisturbed: {expected}", flush=True)
        with _cluster(folder) as (address, kill):
            process = _start((command("sweep"), *given, "--address", address), folder, "disturbed")
            try:
                runs = folder / "disturbed" / ".runs"
                while len(list(runs.glob("*/checkpoint.pt"))) < 2:
                    if process.poll() is not None:
                        raise LabelcurveError(f"it ended too soon: {process.communicate()[1]}")
                    time.sleep(0.05)
                listening = _listening(process.pid)
                kill()
                found = _versions(_finish(process))
            finally:
                process.kill()
                process.communicate()
        logs = [path.read_text() for path in sorted((runs / "sweep").glob("*.log"))]
    print(f"one node killed: {found}", flush=True)
    return {
        "jobs": options.seeds,
        "same_versions": sum(expected[name] == found.get(name) for name in expected),
        "run_again": sum(len(re.findall(r"(?m)^data: ", log)) > 1 for log in logs),
        "went_on_from_a_checkpoint": sum("going on at epoch" in log for log in logs),
        "listening": listening,
        "versions": found,
        "command": " ".join(("sweep", *given)),
    }


@contextmanager
def _cluster(folder: Path) -> Iterator[tuple[str, Any]]:
    """Two nodes: the address, and what kills the second."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        process = subprocess.Popen(
            [sys.executable, "-c", NODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment() | {"RAY_TMPDIR": short},
            cwd=folder,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None

        below: list[psutil.Process] = []

        def kill() -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("kill\n")
            process.stdin.flush()
            process.stdout.readline()

        try:
            address = process.stdout.readline().strip()
            if not address:
                raise LabelcurveError("the cluster did not start")
            below += psutil.Process(process.pid).children(recursive=True)
            yield address, kill
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for left in below:  # the agents of the killed node outlive it
                with suppress(psutil.NoSuchProcess):
                    left.kill()


def _listening(driver: int) -> list[str]:
    """Addresses on which Ray's processes listen, and the command."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if process.pid != driver and "/ray/" not in words and not words.startswith("ray::"):
            continue
        try:
            sockets = process.net_connections("inet")
        except psutil.Error:
            continue
        for socket in sockets:
            address = socket.laddr.ip.removeprefix("::ffff:")  # IPv4 by a socket of IPv6
            if socket.status == psutil.CONN_LISTEN:
                found.add(address)
    return sorted(found)


def _start(given: Sequence[str], folder: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *given,
            *("--out", str(folder / name), "--cache", str(folder / "cache")),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    # A commit made meanwhile would be in the manifest.
    return os.environ | {
        "GIT_DIR": os.devnull,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 stays 127.0.0.1
    }


def _versions(document: dict[str, Any]) -> dict[str, str]:
    return {bundle["name"]: bundle["version"] for bundle in document["bundles"]}


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        stdout, stderr = process.communicate(timeout=LONGEST)
    finally:
        process.kill()
    print(stdout, flush=True)
    if process.returncode:
        raise LabelcurveError(f"a command failed: {stderr.strip()}")
    document: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return document


if __name__ == "__main__":
    chosen = tyro.cli(Options, prog="python -m benchmarks.cluster")
    check_out(chosen.out)
    document = {
        "processes": processes(chosen),
        "cluster": lost_node(chosen),
        "cpu": cpu_name(),
        "cores": cores(),
        "date": datetime.now(UTC).date().isoformat(),
        "git_commit": git_commit(Path(__file__)),
        "packages": versions(("torch", "ray", "numpy")),
    }
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
