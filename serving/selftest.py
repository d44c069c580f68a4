"""`labelcurve serve --self-test`: every model run once, and the proof of where its nodes ran."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime

from labelcurve.bundle.errors import BundleError, DeviceError
from labelcurve.bundle.store import Bundle
from labelcurve.serving.models.device import PROVIDERS, Device
from labelcurve.serving.models.engine import Engine, open_session
from labelcurve.serving.models.model import open_engine
from labelcurve.serving.models.precision import Precision, choose

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
"""Operators whose device counts: ONNX Runtime itself leaves the arithmetic of shapes on the CPU."""


TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 2e-2}
"""Allowed difference of a probability from the same graph's on the CPU. That of fp32 is the parity
gate's; rounding to half precision, or to a neighbouring integer, makes it larger."""


def run(bundles: list[Bundle], device: Device, threads: int, precision: Precision = "fp32") -> None:
    """Prints a line for each model.

    Raises:
        BundleError: a model cannot be loaded, or its output is not probabilities.
        DeviceError: a model does not run entirely on the device, or gives different numbers there.
    """
    print(f"self-test: serve runs on {device.kind} ({device.reason})", flush=True)
    for bundle in bundles:
        chosen, graph = choose(bundle, device, precision)
        bundle = replace(bundle, graph=graph)
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
        difference = compare(engine, bundle, TOLERANCE[chosen])
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
            f"{onnxruntime.__version__}'s profiler says; 1 image in {milliseconds:.1f} ms; "
            f"probabilities within {difference:.0e} of the CPU's at every batch size",
            flush=True,
        )


def compare(engine: Engine, bundle: Bundle, allowed: float) -> float:
    """Largest difference of a probability between the served session and the same graph on the CPU.

    On a CPU fp16 is computed in fp32 and rounded between the nodes.

    Raises:
        DeviceError: it is above `allowed`.
    """
    random = np.random.default_rng(0)
    n, size = engine.batch_sizes[-1], engine.size
    noise = random.integers(0, 256, (n, size, size, 3), np.uint8)
    plain = np.broadcast_to(random.integers(0, 256, (n, 1, 1, 3), np.uint8), noise.shape)
    images = np.where(np.arange(n)[:, None, None, None] % 2, noise, plain)
    runtime = onnxruntime.InferenceSession(bundle.graph, providers=[PROVIDERS["cpu"]])
    expected = np.concatenate(
        [runtime.run(["probabilities"], {"images": images[i : i + 1]})[0] for i in range(n)]
    )
    worst = 0.0
    for batch in engine.batch_sizes:
        found = engine.run(list(images[:batch]))
        worst = float(np.maximum(worst, np.abs(found - expected[:batch]).max()))
    if not worst <= allowed:
        raise DeviceError(
            f"{bundle.name}: probabilities on {engine.provider} are up to {worst:.1e} from those "
            f"of the same graph on the CPU (allowed {allowed:.0e}): answers from there cannot be "
            "trusted; --device cpu serves without it"
        )
    return worst


def placement(bundle: Bundle, device: Device, threads: int) -> Counter[tuple[str, str]]:
    """Nodes by operator and provider of one inference, as ONNX Runtime's profiler counts them.

    Raises:
        BundleError: the profile holds no node.
    """
    with tempfile.TemporaryDirectory(prefix="labelcurve-") as folder:
        session = open_session(bundle.graph, device, threads, str(Path(folder) / "profile"))
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
