"""The servers to compare with: their environments, commands and requests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import PIL

from labelcurve.benchmarks.harness import processes

FOLDER = Path(__file__).with_name("apps")
BOUNDARY = "labelcurve-bench-peers"


@dataclass(frozen=True)
class Request:
    """A request as wrk sends it."""

    path: str
    headers: dict[str, str]
    body: bytes


def raw(data: bytes) -> Request:
    """Send the file as the body."""
    return Request("/classify", {"Content-Type": "image/png"}, data)


def form(data: bytes) -> Request:
    """Send a form with the field `image`."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    body = head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return Request("/classify", kind, body)


def v2_binary(data: bytes) -> Request:
    """Use the Open Inference Protocol with Triton's binary extension, its fastest way over HTTP."""
    tensor = len(data).to_bytes(4, "little") + data
    one = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    asked = {
        "inputs": [{**one, "parameters": {"binary_data_size": len(tensor)}}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": False}}],
    }
    head = json.dumps(asked).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return Request("/v2/models/classify/infer", headers, head + tensor)


@dataclass(frozen=True)
class Server:
    """A peer."""

    name: str
    label: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...]
    """Arguments of the interpreter; PORT stands for the port."""
    request: Callable[[bytes], Request]
    python: str = "3.11"
    """For `uv venv`; pytriton has no newer one."""


# pytriton bundles an early Python 3.11, which fails with the standard library of a later one.
_EARLY = "/usr/bin/python3.11"
_COMMON = (f"pillow=={PIL.__version__}", "numpy", f"onnxruntime=={onnxruntime.__version__}")

PEERS = (
    Server(
        "starlette",
        "bare Starlette, uvloop, own batcher",
        ("starlette==1.10.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
        ("starlette_app.py",),
        raw,
    ),
    Server(
        "triton",
        "Triton (a Python callable behind pytriton)",
        ("nvidia-pytriton==0.7.0",),
        ("triton_app.py",),
        v2_binary,
        python=_EARLY if Path(_EARLY).exists() else "3.11",
    ),
    Server(
        "fastapi",
        "FastAPI as tutorials write it",
        ("fastapi[standard]==0.165.0", "uvicorn==0.54.0"),
        ("fastapi_app.py",),
        form,
    ),
    Server(
        "litserve", "LitServe", ("litserve==0.2.19", "python-multipart"), ("litserve_app.py",), form
    ),
    Server(
        "bentoml",
        "BentoML, typed image API",
        ("bentoml==1.4.40",),
        ("-m", "bentoml", "serve", "bentoml_app:Classifier", "--port", "PORT", "--host=127.0.0.1"),
        form,
    ),
)


def python(server: Server, cache: Path, say: Callable[[str], None]) -> Path:
    """Find the interpreter of the peer's own environment, which is made where it is missing.

    Raises:
        LabelcurveError: uv is not installed, or the packages cannot be installed.
    """
    requirements = (*server.requirements, *_COMMON)
    folder = cache / "peers" / server.name
    made = folder / "requirements.txt"
    if made.exists() and made.read_text().split() == list(requirements):
        return folder / "bin" / "python"
    say(f"  {server.name}: installing {', '.join(server.requirements)} in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    interpreter = processes.environment(folder, server.python, requirements)
    made.write_text("\n".join(requirements))
    return interpreter


def environment(interpreter: Path, graph: Path, port: int, threads: int) -> dict[str, str]:
    """Environment of a peer's process: its own commands first, and none of our variables."""
    ours = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
    return {
        **{name: value for name, value in os.environ.items() if name not in ours},
        "PATH": f"{interpreter.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PEER_MODEL": str(graph.resolve()),
        "PEER_PORT": str(port),
        "PEER_THREADS": str(threads),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(interpreter.parent.parent / "bentoml"),
        "ORT_DISABLE_TELEMETRY": "1",
    }


def packages(server: Server, interpreter: Path) -> dict[str, str]:
    """Read the installed versions of the packages in `requirements`."""
    names = [part.partition("[")[0].partition("==")[0] for part in server.requirements]
    code = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [str(interpreter), "-c", code, *names, "onnxruntime"],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found
