"""Runs the images as users do."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import re
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from container.engine import Engine, Failed, tail
from container.report import Report

STRANGER = 12345, 23456
"""A user and a group that no image knows."""
LOCKED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges", "--network", "none"),
)

UNREADY = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if self.path == "/readyz" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
HTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
"""
"""A service whose models are not warm yet: it is alive, and answers everything else."""


def literal(engine: Engine, report: Report) -> None:
    """The command of the README verbatim, with neither a volume nor a network."""
    command = "docker run train --fraction 0.1"
    with report.attempt(command):
        done = engine.execute(["sh", "-c", command], timeout=300, offline=True)
        report.check(f"`{command}`, offline: exit status 1", done.returncode == 1, done.returncode)
        said = "CIFAR-10 is not in the cache and could not be downloaded" in done.stderr
        report.check(f"`{command}`, offline: says what is missing", said, tail(done.stderr))
        report.check(f"`{command}`, offline: no traceback", "Traceback" not in done.stderr)


def train(engine: Engine, report: Report, work: Path) -> None:
    """Trains as a user unknown to the image, on a read-only file system."""
    folders = {name: work / name for name in ("data", "models", "samples")}
    for path in folders.values():
        path.mkdir()
        os.chown(path, *STRANGER)
    common = ["run", "--rm", *LOCKED, "--user", "{}:{}".format(*STRANGER)]
    common += [f"--volume={path}:/{name}" for name, path in folders.items()]
    what = "train --data digits, locked down, as a stranger"
    with report.attempt(what):
        arguments = shlex.split("--data digits --fraction 0.1 --epochs 2")
        start = time.monotonic()
        done = engine.run(*common, "train", *arguments, timeout=900)
        log = done.stdout + done.stderr
        if report.ran(f"{what} ({time.monotonic() - start:.0f} s)", done):
            said = json.loads(done.stdout.strip().splitlines()[-1])
            report.check(
                "train: its last line is JSON and names the bundle", said["bundles"][0]["name"]
            )
            (manifest,) = folders["models"].glob("digits-10/current/manifest.json")
            report.check("train: the bundle is in /models", json.loads(manifest.read_text()))
            report.check(
                "train: no warning of a cache or a home", "cannot be written" not in log, tail(log)
            )
        pixels = list(folders["data"].rglob("*.npy"))
        report.check("train: decoded pixels are in /data", pixels)
        left = {path.name for name in ("data", "models") for path in folders[name].iterdir()}
        left -= {"labelcurve", "digits-10", ".runs"}
        report.check("train: nothing else is left there", not left, left)
        strangers = {
            (path.lstat().st_uid, path.lstat().st_gid)
            for name in ("data", "models")
            for path in folders[name].rglob("*")
        }
        report.check("train: the caller owns every output", strangers == {STRANGER}, strangers)
    with report.attempt("bench in the image of train"):
        bench = "bench --data digits --no-load --latency-seconds 2 --out /samples/bench"
        arguments = shlex.split(bench)
        done = engine.run(*common, "--entrypoint", "labelcurve", "train", *arguments, timeout=300)
        report.ran("bench in the image of train", done)
        written = (folders["samples"] / "bench/report.html").exists()
        report.check("bench in the image of train: writes its report", written)
    with report.attempt("a digit to classify"):
        code = (
            "from pathlib import Path; from labelcurve.training.data import dataset as data; "
            "Path('/samples/digit.png').write_bytes(data.load('digits').test.read(0))"
        )
        engine.output(*common, "--entrypoint", "python", "train", "-c", code, timeout=300)


def named_volumes(engine: Engine, report: Report) -> None:
    """New named volumes inherit the modes of the image's folders."""
    volumes = ["--volume", "data:/data", "--volume", "models:/models"]
    for user in ([], ["--user", "54321:54321"]):
        who = "another user" if user else "the default user"
        with report.attempt(f"named volumes for {who}"):
            command = ["run", "--rm", *LOCKED, *volumes, *user, "--entrypoint", "touch", "train"]
            name = user[-1] if user else "default"
            done = engine.run(*command, f"/data/{name}", f"/models/{name}")
            report.ran(f"named volumes for {who}", done)


def stopping(engine: Engine, report: Report, work: Path) -> None:
    """`docker stop` ends a training at once, with its own status, and it resumes from there."""
    models = work / "stopped"
    models.mkdir()
    os.chown(models, *STRANGER)
    command = ["run", *LOCKED, "--user", "{}:{}".format(*STRANGER), "--volume", f"{models}:/models"]
    arguments = shlex.split("train --data digits --fraction 1 --epochs 4 --cache /tmp/data")
    arguments += ["--extractor", "none", "--no-unlabelled"]
    with report.attempt("train stops on SIGTERM"):
        container = engine.output(*command, "--detach", *arguments).splitlines()[-1]
        epoch = re.compile(r"^ *1/4 ", re.MULTILINE)
        wait(lambda: epoch.search(logs(engine, container)) is not None, 200, "an epoch")
        start = time.monotonic()
        engine.output("stop", "--time", "30", container)
        seconds, status = time.monotonic() - start, int(state(engine, container, "ExitCode"))
        report.check(
            f"train stops on SIGTERM ({seconds:.1f} s, status {status})",
            seconds < 20 and status == 143,
            tail(logs(engine, container)),
        )
        engine.run("rm", "--force", container)
    with report.attempt("the same command goes on"):
        done = engine.run(*command, "--rm", *arguments, timeout=900)
        published = list(models.glob("digits-scratch-100/current/manifest.json"))
        report.check(
            "the same command resumes where it was stopped, and publishes",
            done.returncode == 0 and "resuming at epoch" in done.stdout and published,
            tail(done.stdout + done.stderr),
        )


def serve(engine: Engine, report: Report, tag: str, work: Path) -> None:
    """Serves what was trained, as yet another user, and sends requests over HTTP."""
    user = ["--user", "54321:54321"]
    with report.attempt(f"{tag} without models"):
        done = engine.run("run", "--rm", *LOCKED, *user, tag)
        explained = "error:" in done.stderr and "Traceback" not in done.stderr
        report.check(f"{tag} without models: exit status 1", done.returncode == 1, done.returncode)
        report.check(f"{tag} without models: says so", explained, tail(done.stdout + done.stderr))
    if not (work / "samples/digit.png").exists():
        report.check(f"{tag} serves", False, "there is nothing to serve")
        return
    # On the CPU: `serve` by option, `serve-cpu` because it has no CUDA.
    device = ["--device", "cpu"] if tag == "serve" else []
    with report.attempt(f"{tag} serves"):
        command = ["run", *LOCKED, *user, "--volume", f"{work / 'models'}:/models:ro"]
        samples = ["--rm", "--volume", f"{work / 'samples'}:/samples:ro"]
        samples += ["--entrypoint", "labelcurve", tag, "classify", "--device", "cpu"]
        container = engine.output(*command, "--detach", tag, *device).splitlines()[-1]
        try:
            first = until_ready(engine, report, tag, container)
            status, body = ask(first, "GET", "/readyz")
            provider = json.loads(body)["models"][0]["provider"]
            report.check(f"{tag}: on the {provider}", provider == "CPUExecutionProvider")
            report.ran(f"{tag}: healthy", engine.run("healthcheck", "run", container))
            answer = classified(report, tag, first, (work / "samples/digit.png").read_bytes())
            offline = engine.output(*command, *samples, "/samples/digit.png", timeout=200)
            agrees = answer[0]["label"] in offline
            report.check(f"{tag}: classify agrees", agrees, (answer, offline))
            status, body = ask(first, "POST", "/classify", b"no image")
            report.check(
                f"{tag}: rejects bytes that are not an image", 400 <= status < 500, (status, body)
            )
            # 127.0.0.2 answers only where every address is listened on.
            status, _ = ask(first, "GET", "/livez", host="127.0.0.2")
            report.check(f"{tag}: listens on every address", status == 200, status)
            words = engine.output("exec", container, "cat", "/proc/1/cmdline").split("\0")
            itself = "/python" in words[0] and words[1].endswith("/labelcurve")
            report.check(f"{tag}: serve itself is the first process", itself, words)
        finally:
            start = time.monotonic()
            engine.run("stop", "--time", "30", container)
            seconds, status = time.monotonic() - start, int(state(engine, container, "ExitCode"))
            report.check(
                f"{tag}: SIGTERM ends it with status {status} ({seconds:.1f} s)",
                status == 0 and seconds < 25,
                tail(logs(engine, container)),
            )
            engine.run("rm", "--force", container)
    with report.attempt(f"{tag}: not healthy before it is ready"):
        command = ["run", *LOCKED, *user, "--detach", "--entrypoint", "python"]
        unready = engine.output(*command, tag, "-c", UNREADY).splitlines()[-1]
        first = pid(engine, unready)
        wait(lambda: answers(first), 60, "a service that is not ready")
        done = engine.run("healthcheck", "run", unready)
        engine.run("rm", "--force", "--time", "0", unready)
        report.check(
            f"{tag}: not healthy before it is ready", done.returncode == 1, done.returncode
        )


def until_ready(engine: Engine, report: Report, tag: str, container: str) -> int:
    """Waits for the service in a container; returns its first process.

    Raises:
        Failed: the container ended, or the service was not ready in time.
    """
    start, first = time.monotonic(), pid(engine, container)

    def ready() -> bool:
        if state(engine, container, "Running") != "true":
            raise Failed(f"the container ended:\n{tail(logs(engine, container))}")
        return answers(first, 200)

    wait(ready, 120, f"/readyz of {tag}")
    report.check(f"{tag}: ready after {time.monotonic() - start:.1f} s", True)
    return first


def classified(report: Report, tag: str, first: int, image: bytes) -> list[dict[str, Any]]:
    """The answer to a digit of the service whose first process is `first`."""
    status, body = ask(first, "POST", "/classify?top_k=10", image)
    answer: list[dict[str, Any]] = json.loads(body)
    fine = status == 200 and abs(sum(row["score"] for row in answer) - 1) < 0.01
    report.check(f"{tag}: classifies over HTTP", fine and len(answer) == 10, (status, body))
    return answer


def answers(pid: int, status: int = 503) -> bool:
    """Returns whether /readyz responds with this status."""
    try:
        return ask(pid, "GET", "/readyz")[0] == status
    except OSError:
        return False


def ask(
    pid: int, method: str, path: str, body: bytes | None = None, host: str = "127.0.0.1"
) -> tuple[int, bytes]:
    """An HTTP request on the loopback of the container whose first process is `pid`.

    The container has no other network, so no port of the host is taken.
    """
    found: list[Any] = []

    def inside() -> None:
        try:
            # Only this thread enters the namespace.
            with Path(f"/proc/{pid}/ns/net").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            connection = http.client.HTTPConnection(host, 3000, timeout=20)
            connection.request(method, path, body)
            response = connection.getresponse()
            found.append((response.status, response.read()))
        except Exception as error:  # it belongs to the caller's thread
            found.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    status, answer = found[0]
    return int(status), bytes(answer)


def wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"waited {seconds:g} s for {what}")
        time.sleep(0.2)


def logs(engine: Engine, container: str) -> str:
    """Returns a container's output."""
    done = engine.run("logs", container)
    return done.stdout + done.stderr


def state(engine: Engine, container: str, field: str) -> str:
    """Returns a field of a container's state, such as `ExitCode`."""
    return engine.output("inspect", "--format", f"{{{{.State.{field}}}}}", container)


def pid(engine: Engine, container: str) -> int:
    """Returns the first process of a container, as this machine sees it."""
    return int(state(engine, container, "Pid"))
