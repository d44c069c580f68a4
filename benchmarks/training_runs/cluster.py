"""Do two processes train as well as one, and does a sweep survive the loss of a node?

`python -m benchmarks.training_runs.cluster` trains scikit-learn's digits with several seeds, in one
process and in two (`torchrun`, gloo), and compares test accuracies. Then it runs `sweep`
undisturbed, and again on a Ray cluster of two nodes on the loopback interface, one of which it
kills with SIGKILL once both jobs have written a checkpoint, and compares the bundles' versions. The
last line on stdout is one JSON document.
"""

from __future__ import annotations

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
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import psutil

from labelcurve.benchmarks.harness.processes import document, labelcurve, trained
from labelcurve.benchmarks.harness.provenance import conditions, parsed, write
from labelcurve.bundle import command
from labelcurve.bundle.errors import LabelcurveError

SWEEP = (
    *("--data", "digits", "--fraction", "0.2", "--image-size", "8", "--device", "cpu"),
    *("--extractor", "none", "--no-unlabelled", "--checkpoint-seconds", "0"),
)

TRAIN = (
    *("--data", "digits", "--fraction", "1.0", "--image-size", "8", "--device", "cpu"),
    *("--extractor", "none"),
)

TORCHRUN = (
    *(sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"),
    *("--nproc-per-node", "2", "-m", "labelcurve", "train"),
)

# Two nodes, each listening on its own address only.
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

ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",  # torchrun starts its processes without -P
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 stays 127.0.0.1
}

LONGEST = 1800.0
"""Time limit of a sweep in seconds."""


@dataclass
class Options:
    """Compares two processes with one, and a sweep that loses a node with one that loses none."""

    seeds: int = 5
    """Number of seeds; one job per seed in the sweep."""
    epochs: int = 12
    """Epochs of each model."""
    out: Path | None = None
    """Also write the JSON document to this file."""


def processes(options: Options) -> dict[str, Any]:
    """Compare test accuracies of one process and of two, seed by seed."""
    given = (*TRAIN, "--seeds", f"{options.seeds}", "--epochs", f"{options.epochs}")
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for number, start in (("one", labelcurve("train")), ("two", TORCHRUN)):
            ended = _finish(_start((*start, *given), Path(name), number))
            found[number] = [bundle["test"]["accuracy"] for bundle in ended["bundles"]]
            print(f"{number}: {found[number]}", flush=True)
    differences = [two - one for one, two in zip(found["one"], found["two"], strict=True)]
    return {
        **{
            number: {"accuracy": values, "mean": mean(values), "std": _spread(values)}
            for number, values in found.items()
        },
        "mean_difference": mean(differences),
        "standard_error": _spread(differences) / len(differences) ** 0.5,
        "command": " ".join(("labelcurve", "train", *given)),
    }


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def lost_node(options: Options) -> dict[str, Any]:
    """Run both sweeps and compare their bundles."""
    given = (*SWEEP, "--seeds", f"{options.seeds}", "--epochs", f"{options.epochs}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = _versions(_finish(_start(labelcurve("sweep", *given), folder, "undisturbed")))
        print(f"undisturbed: {expected}", flush=True)
        with _cluster(folder) as (address, kill):
            process = _start(labelcurve("sweep", *given, "--address", address), folder, "disturbed")
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
        "went_on_from_a_checkpoint": sum("resuming at epoch" in log for log in logs),
        "listening": listening,
        "versions": found,
        "command": " ".join(("labelcurve", "sweep", *given)),
    }


@contextmanager
def _cluster(folder: Path) -> Iterator[tuple[str, Any]]:
    """Start two nodes; yield the address and a function that kills the second."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", NODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT | {"RAY_TMPDIR": short},
            cwd=folder,
            start_new_session=True,
        )
        given, said = process.stdin, process.stdout
        assert given is not None
        assert said is not None
        below: list[psutil.Process] = []

        def kill() -> None:
            given.write("kill\n")
            given.flush()
            said.readline()

        try:
            address = said.readline().strip()
            if not address:
                raise LabelcurveError("the cluster did not start")
            below += psutil.Process(process.pid).children(recursive=True)
            yield address, kill
        finally:
            given.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for left in below:  # the agents of the killed node outlive it
                with suppress(psutil.NoSuchProcess):
                    left.kill()


def _listening(driver: int) -> list[str]:
    """List the addresses on which Ray's processes and the command listen."""
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
            address = socket.laddr.ip.removeprefix("::ffff:")  # IPv4 over an IPv6 socket
            if socket.status == psutil.CONN_LISTEN:
                found.add(address)
    return sorted(found)


def _start(given: Sequence[str], folder: Path, name: str) -> subprocess.Popen[str]:
    places = ("--out", str(folder / name), "--cache", str(folder / "cache"))
    return trained((*given, *places), **ENVIRONMENT)


def _versions(document: dict[str, Any]) -> dict[str, str]:
    return {bundle["name"]: bundle["version"] for bundle in document["bundles"]}


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    found, stdout = document(process, LONGEST)
    print(stdout, flush=True)
    return found


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.cluster`."""
    chosen = parsed(Options, arguments)
    found = {"processes": processes(chosen), "cluster": lost_node(chosen)}
    write(chosen.out, {**found, **conditions("torch", "ray", "numpy")})


if __name__ == "__main__":
    command.enter(main, extra="train")
