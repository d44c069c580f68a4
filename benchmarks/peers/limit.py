"""What the machine allows: decoding and ONNX Runtime in a loop, without any server."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import onnxruntime

from benchmarks.peers.record import Limit
from bundle.preprocess import prepare

BATCHES = (1, 4, 8, 16)
SECONDS = 1.0
"""Of each measurement."""


def measure(graph: bytes, data: bytes) -> Limit:
    """CPU time of one thread, by image.

    Args:
        graph: ONNX, uint8 [N, size, size, 3] to probabilities.
        data: the image that the servers get.
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
        costs[batch] = _cpu_ms(
            lambda images=images: session.run(["probabilities"], {"images": images})
        )
        costs[batch] /= batch
    best = min(costs, key=costs.__getitem__)
    return Limit(decode_ms=decode, inference_ms=costs[best], batch=best)


def _cpu_ms(call: object) -> float:
    assert callable(call)
    for _ in range(3):
        call()
    times, end = [], time.monotonic() + SECONDS
    while time.monotonic() < end:
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return median(times) * 1e3
