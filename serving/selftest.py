"""`serve --self-test`: every model run once, and the proof of where its nodes ran."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime

from bundle.errors import BundleError, DeviceError
from bundle.store import Bundle
from serving.device import PROVIDERS, Device
from serving.model import open_engine

HEAVY = {
    "Conv",
    "Gemm",
    "MatMul",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "NhwcFusedConv",
    "QLinearConv",
}
"""Operators whose place decides: ONNX Runtime itself leaves the arithmetic of shapes on the CPU."""


def run(bundles: list[Bundle], device: Device, threads: int) -> None:
    """Prints a line for each model.

    Raises:
        BundleError: a model cannot be loaded, or answers what is no probabilities.
        DeviceError: a model does not run on the device, whole.
    """
    print(f"self-test: serve runs on {device.kind} ({device.reason})", flush=True)
    for bundle in bundles:
        # As it will be served: the same session, at every batch size.
        engine = open_engine(bundle, device, threads)
        size = engine.size
        images = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        start = time.perf_counter()
        probabilities = engine.run([images])
        milliseconds = (time.perf_counter() - start) * 1000
        if not np.allclose(probabilities.sum(1), 1, atol=1e-3):
            raise BundleError(
                f"{bundle.name}: probabilities add up to {probabilities.sum():.4f}, not to 1"
            )
        where = placement(bundle, device, threads)
        elsewhere = {
            (operator, provider): n
            for (operator, provider), n in where.items()
            if operator in HEAVY and provider != PROVIDERS[device.kind]
        }
        if elsewhere:
            found = ", ".join(f"{n} {op} on {name}" for (op, name), n in elsewhere.items())
            raise DeviceError(f"{bundle.name}: not everything runs on {device.kind}: {found}")
        nodes: Counter[str] = Counter()
        for (_, provider), n in where.items():
            nodes[provider] += n
        placed = ", ".join(f"{n} nodes on {provider}" for provider, n in nodes.most_common())
        print(
            f"self-test: {bundle.name}@{bundle.version}: {placed}, as ONNX Runtime "
            f"{onnxruntime.__version__}'s profiler says; 1 image in {milliseconds:.1f} ms",
            flush=True,
        )


def placement(bundle: Bundle, device: Device, threads: int) -> Counter[tuple[str, str]]:
    """Nodes by operator and provider of one inference, as ONNX Runtime's profiler counts them.

    Raises:
        BundleError: the profile holds no node.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="labelcurve-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            bundle.graph, options, providers=[PROVIDERS[device.kind]]
        )
        size = bundle.manifest.preprocessing.size
        session.run(["probabilities"], {"images": np.zeros((1, size, size, 3), np.uint8)})
        events = json.loads(Path(session.end_profiling()).read_text())
    found = Counter(
        (event["args"]["op_name"], event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and event["args"].get("provider")
    )
    if not found:
        raise BundleError(f"{bundle.name}: ONNX Runtime's profile names no node")
    return found
