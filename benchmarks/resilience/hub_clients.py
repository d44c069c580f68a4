"""Released versions of the Hugging Face Hub's clients against the service, and what they send.

`python -m benchmarks.resilience.hub_clients --models DIR` installs each version into a folder of
its own (uv and npm), runs the example of docs/guide.md, and writes each outcome with the requests
as they came over the wire. tests/serving/web/test_huggingface_client.py sends those requests again.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import numpy as np
from PIL import Image

from labelcurve.benchmarks.harness import server
from labelcurve.benchmarks.harness.processes import environment, succeed
from labelcurve.benchmarks.harness.provenance import parsed
from labelcurve.benchmarks.resilience import client as http
from labelcurve.bundle import command
from labelcurve.bundle.errors import LabelcurveError

PYTHON, JAVASCRIPT = "huggingface_hub", "@huggingface/inference"

PYTHON_EXAMPLE = """
import json, sys
from huggingface_hub import InferenceClient

url, path = sys.argv[1:]
client = InferenceClient(model=url)
for name, image, more in (
    ("a path", path, {}),
    ("bytes", open(path, "rb").read(), {}),
    ("top_k", path, {"top_k": 2}),
):
    try:
        answer = client.image_classification(image, **more)
        print(json.dumps([name, f"{len(answer)} classes"]))
    except Exception as error:
        print(json.dumps([name, f"{type(error).__name__}: {error}"[:200]]))
"""

JAVASCRIPT_EXAMPLE = """
import * as hub from "@huggingface/inference";
import { readFileSync } from "node:fs";

const [url, path] = process.argv.slice(2);
const client = new (hub.InferenceClient ?? hub.HfInference)();
const file = readFileSync(path);
for (const [name, data, more] of [
  ["a Blob", new Blob([file]), {}],
  ["a typed Blob", new Blob([file], { type: "image/png" }), {}],
  ["top_k", new Blob([file]), { parameters: { top_k: 2 } }],
]) {
  try {
    const asked = { model: "digits", data, ...more };
    const answer = await client.endpoint(url).imageClassification(asked);
    console.log(JSON.stringify([name, `${answer.length} classes`]));
  } catch (error) {
    console.log(JSON.stringify([name, `${error.name}: ${error.message}`.slice(0, 200)]));
  }
}
process.exit(0);
"""

VOLATILE = re.compile(rb"\r\n(?:host|x-amzn-trace-id|x-request-id|date): [^\r]*", re.IGNORECASE)
"""Header lines that differ from one run to the next."""


@dataclass
class Options:
    """Runs versions of the Hub's clients against the service."""

    models: Path
    """Folder of bundles."""
    python: tuple[str, ...] = (
        *("0.17.3", "0.20.3", "0.25.2", "0.27.1", "0.29.3", "0.31.4", "0.34.6", "0.36.2"),
        *("1.0.1", "1.10.2", "1.33.0", "2.0.0", "2.4.0"),
    )
    """Versions of huggingface_hub; 0.17 is the first with this method."""
    javascript: tuple[str, ...] = (
        *("1.8.0", "2.0.0", "2.6.4", "2.8.1", "3.0.0"),
        *("3.6.2", "3.15.0", "4.0.0", "4.5.3", "4.13.30"),
    )
    """Versions of @huggingface/inference; none without npm."""
    out: Path = Path("benchmarks/results/clients.json")
    """File of the result."""


class Recorder:
    """A proxy on 127.0.0.1 that passes bytes on and keeps what clients sent."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sent: list[bytearray] = []
        Thread(target=self._accept, daemon=True).start()

    def taken(self) -> list[bytes]:
        """Return the requests since the last call, without the headers that always differ."""
        sent, self._sent = self._sent, []
        return [request for each in sent for request in split(bytes(each))]

    def close(self) -> None:
        """Accept no further connections."""
        with suppress(OSError):  # not on macOS, where closing is enough
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept() in progress
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                kept = bytearray()
                self._sent.append(kept)
                Thread(target=self._pass_on, args=(connection, kept), daemon=True).start()

    def _pass_on(self, connection: socket.socket, kept: bytearray) -> None:
        with connection, socket.create_connection(("127.0.0.1", self._target)) as service:
            Thread(target=_copy, args=(service, connection, bytearray()), daemon=True).start()
            _copy(connection, service, kept)


def _copy(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            kept += data
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def split(sent: bytes) -> list[bytes]:
    """Cut what a connection sent into requests, by their `Content-Length` or chunks."""
    found = []
    while sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        if re.search(rb"\r\ntransfer-encoding: chunked", head, re.IGNORECASE):
            n = _chunks_end(rest)
        else:
            n = int(length[1]) if length else 0
        found.append(VOLATILE.sub(b"", head) + b"\r\n\r\n" + rest[:n])
        sent = rest[n:]
    return found


def _chunks_end(body: bytes) -> int:
    """Bytes up to the end of the last chunk, the empty one; the chunks have no trailers."""
    end, size = 0, 1
    while size:
        begin = body.index(b"\r\n", end) + 2
        size = int(body[end:begin].partition(b";")[0], 16)
        end = begin + size + 2
    return end


def python(version: str, folder: Path) -> list[str]:
    """Install a version of the Python client; return the command that runs the example."""
    script = folder / "example.py"
    script.write_text(PYTHON_EXAMPLE)
    interpreter = environment(folder / "env", sys.executable, [f"{PYTHON}=={version}"])
    return [str(interpreter), "-P", str(script)]


def javascript(version: str, folder: Path) -> list[str]:
    """Install a version of the JavaScript client; return the command that runs the example."""
    script = folder / "example.mjs"  # next to node_modules, where imports are resolved
    script.write_text(JAVASCRIPT_EXAMPLE)
    options = ("--silent", "--no-audit", "--no-fund", "--ignore-scripts")
    succeed("npm", "install", *options, "--prefix", str(folder), f"{JAVASCRIPT}@{version}")
    return ["node", str(script)]


def trial(arguments: Sequence[str], recorder: Recorder, image: Path) -> dict[str, Any]:
    """Run an example through the recorder; return the outcome of each call, and what was sent."""
    url = f"http://127.0.0.1:{recorder.port}/classify"
    done = subprocess.run(
        [*arguments, url, str(image)], capture_output=True, text=True, timeout=120
    )
    outcomes = dict(json.loads(line) for line in done.stdout.splitlines() if line[:1] == "[")
    if not outcomes:
        raise LabelcurveError(f"{' '.join(arguments)} printed nothing:\n{done.stderr[-1000:]}")
    sent = [base64.b64encode(request).decode() for request in recorder.taken()]
    return {"outcomes": outcomes, "requests": sent}


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.resilience.hub_clients`."""
    options = parsed(Options, arguments)
    trials = [(PYTHON, version, python) for version in options.python]
    if shutil.which("npm"):
        trials += [(JAVASCRIPT, version, javascript) for version in options.javascript]
    else:
        print("npm is not installed: the JavaScript client is left out")
    found = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "image.png")
        with (
            server.started(options.models, folder / "log") as service,
            closing(Recorder(service.port)) as recorder,
        ):
            for number, (client, version, install) in enumerate(trials):
                place = folder / str(number)
                place.mkdir()
                outcome = trial(install(version, place), recorder, folder / "image.png")
                found.append({"client": client, "version": version, **outcome})
                print(f"{number + 1} of {len(trials)}: {client} {version}: {outcome['outcomes']}")
                shutil.rmtree(place)
    http.write_result(options.out, {"trials": found})


if __name__ == "__main__":
    command.enter(main, extra="bench")
