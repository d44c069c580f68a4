"""Traced graphs of architectures, kept between processes.

Tracing takes some 8 s of CPU time of each command that exports or embeds, most of them imports; a
kept graph with the weights of another network takes 0.2 s (docs/log.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx

from labelcurve.bundle import files

PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "timm")
"""Those whose version a graph may depend on."""
DIGEST = 32
"""Bytes of the SHA-256 that a file begins with: a damaged one counts as missing."""


def read(folder: Path, architecture: str) -> onnx.ModelProto | None:
    """A graph without its weights, as `keep` wrote it; None where there is none."""
    try:
        content = _path(folder, architecture).read_bytes()
    except OSError:
        return None
    digest, graph = content[:DIGEST], content[DIGEST:]
    return onnx.load_from_string(graph) if hashlib.sha256(graph).digest() == digest else None


def keep(folder: Path, architecture: str, model: onnx.ModelProto, weights: Collection[str]) -> None:
    """Writes a graph without its weights; where it cannot be written, the next process traces
    again.

    Args:
        architecture: what the graph depends on, beside weights, code and packages.
        weights: names of the initializers that are weights.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for found in bare.graph.initializer:
        if found.name in weights:
            found.raw_data = b""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        graph = bare.SerializeToString(deterministic=True)
        files.replace(_path(folder, architecture), hashlib.sha256(graph).digest() + graph)


def _path(folder: Path, architecture: str) -> Path:
    key = hashlib.sha256(f"{_code()} {architecture}".encode()).hexdigest()
    return folder / f"{key[:20]}.onnx"


@cache
def _code() -> str:
    """The hash of this package's code and the versions of the others."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found.update(f"{name} {version(name)}".encode())
    return found.hexdigest()
