"""The service under test: started for the run, or one that is already running."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from labelcurve.benchmarks.harness.processes import child, labelcurve, tree
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.store import Bundle

READY_SECONDS = 120.0
PORTS = range(20000, 32000)


@dataclass(frozen=True)
class Server:
    """A service that answers."""

    url: str
    pid: int | None
    """Root of its process tree; None where it cannot be seen."""
    local: bool = True
    """Whether it runs on this machine."""
    ready_s: float = 0.0
    """Seconds from the start of its process until it was ready."""

    @property
    def port(self) -> int:
        """The port of `url`."""
        parts = urlsplit(self.url)
        return parts.port or {"http": 80, "https": 443}[parts.scheme]


@contextmanager
def started(
    models: Path,
    log: Path,
    say: Callable[[str], None] = lambda _: None,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """Run `serve`, with further options, on a free port of 127.0.0.1, and stop it.

    Raises:
        LabelcurveError: the service is not installed, ended, or was not ready in time.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = [*labelcurve("serve"), "--models", str(models), "--host", "127.0.0.1"]
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    arguments += ["--port", str(port), *options]
    with log.open("wb") as output, child(arguments, output) as process:
        _wait(url, process, log)
        server = Server(url, process.pid, ready_s=time.monotonic() - begin)
        say(f"  serve is ready at {url} after {server.ready_s:.1f} s")
        yield server


def running(url: str) -> Server:
    """Find a service that is already running.

    Raises:
        LabelcurveError: nothing answers at `url`.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        valid = False
    if not valid:
        raise LabelcurveError(f"--url {url}: give it as http://HOST:PORT")
    served(url)
    found = Server(url.rstrip("/"), None, parts.hostname in ("127.0.0.1", "localhost", "::1"))
    return replace(found, pid=_listener(found.port)) if found.local else found


def served(url: str) -> dict[str, str]:
    """Read `GET /models`: version by model name.

    Raises:
        LabelcurveError: no such service at `url`.
    """
    try:
        # Proxy settings of the environment are not meant for the service under test.
        answer = httpx.get(f"{url.rstrip('/')}/models", timeout=30, trust_env=False)
        answer.raise_for_status()
        return {model["name"]: model["version"] for model in answer.json()}
    except httpx.HTTPError as error:
        raise LabelcurveError(
            f"no service answers at {url}: {error}. Start one with `labelcurve serve "
            "--models DIR`, or leave --url out and bench starts it"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise LabelcurveError(f"{url}/models is not the list of models of `serve`") from error


def differing(url: str, bundles: Sequence[Bundle]) -> list[str]:
    """List the bundles under test that a service does not serve, each with what it serves."""
    found = served(url)
    return [
        f"{bundle.name}@{bundle.version} (it serves {found.get(bundle.name, 'none of that name')})"
        for bundle in bundles
        if found.get(bundle.name) != bundle.version
    ]


def check(url: str, bundles: Sequence[Bundle]) -> None:
    """Refuse a service that does not serve the bundles under test.

    Raises:
        LabelcurveError: a bundle is missing there, or is another version.
    """
    if wrong := differing(url, bundles):
        raise LabelcurveError(
            f"the service at {url} does not serve {', '.join(wrong)}: start it over the same "
            "--models folder, or leave --url out"
        )


def free_port(n: int = 1) -> int:
    """Find `n` consecutive free ports of 127.0.0.1 and return the first.

    They lie below the ephemeral range: a load test opens many outgoing connections, and one of
    them could take the port before the service does.

    Raises:
        LabelcurveError: no such ports.
    """
    for port in random.sample(PORTS, len(PORTS)):
        try:
            with ExitStack() as stack:
                for number in range(port, port + n):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
    raise LabelcurveError(f"no {n} free ports of 127.0.0.1 from {PORTS.start} to {PORTS.stop - 1}")


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise LabelcurveError(
                f"serve ended with status {process.returncode} before it was ready:\n{_tail(log)}"
            )
        try:
            if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.02)
    raise LabelcurveError(
        f"serve was not ready after {READY_SECONDS:.0f} s; start it yourself and name it by --url, "
        f"or measure fewer models (--only):\n{_tail(log)}"
    )


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _listener(port: int) -> int | None:
    """Find the process that listens on a local port; where several share it, their ancestor."""
    try:
        found = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == port
            and connection.pid
        }
    except psutil.Error:  # macOS shows connections to root only
        return None
    return max(found, key=lambda pid: len(tree(pid)), default=None)
