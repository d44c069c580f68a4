"""The time that a graph takes for one image, as `--max-latency` limits it."""

from __future__ import annotations

import statistics
import time

import numpy as np

from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.models import export

WARM_UP, TIMED = 5, 50
"""Single images before and while the time is taken."""


def p50_ms(graph: bytes, images: Images, timed: int = TIMED) -> float:
    """The median time of one image in ONNX Runtime on one thread of this CPU, in milliseconds.

    It is the CPU time of the thread: on a machine without other work the wall time, and other work
    hardly changes it.

    Args:
        graph: the ONNX file.
        images: uint8 [N, size, size, 3], taken one by one.
        timed: number of images.
    """
    runtime = export.session(graph, threads=1)
    spent = []
    for i in range(WARM_UP + timed):
        one = np.ascontiguousarray(images[i % len(images)][None])
        since = time.thread_time()
        runtime.run(["probabilities"], {"images": one})
        spent.append(time.thread_time() - since)
    return round(statistics.median(spent[WARM_UP:]) * 1000, 2)
