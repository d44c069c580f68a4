"""The limit of the machine: decoding and ONNX Runtime in a loop, without a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import onnxruntime

from labelcurve.benchmarks.peers.record import Limit
from labelcurve.bundle.preprocess import prepare

BATCHES = (1, 4, 8, 16)
SECONDS = 1.0
"""Duration of each measurement."""


def measure(graph: bytes, data: bytes) -> Limit:
    """Measure CPU time per image, of one thread.

    The graph is ONNX, uint8 [N, size, size, 3] to probabilities; `data` is the image as a file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[1]
    image = prepare(data, size)
    decode = _cpu_ms(lambda: prepare(data, size))
    costs = {}
    for batch in BATCHES:
        images = np.ascontiguousarray(np.repeat(image[None], batch, 0))
        call = partial(session.run, ["probabilities"], {"images": images})
        costs[batch] = _cpu_ms(call) / batch
    best = min(costs, key=costs.__getitem__)
    return Limit(decode_ms=decode, inference_ms=costs[best], batch=best)


def _cpu_ms(call: Callable[[], object]) -> float:
    for _ in range(3):
        call()
    times, end = [], time.monotonic() + SECONDS
    while time.monotonic() < end:
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return median(times) * 1e3
