"""ONNX Runtime on the CPU, as the benchmarks use it."""

from __future__ import annotations

from typing import Any, Final

import onnxruntime
from numpy.typing import NDArray

from bundle.store import Bundle

PROVIDER: Final = "CPUExecutionProvider"


class Session:
    """A bundle's graph on the CPU with `threads` threads.

    The CPU is what every machine has, so figures of different machines stay comparable; what the
    service runs on is measured by the load test.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(bundle.graph, options, providers=[PROVIDER])

    def probabilities(self, images: NDArray[Any]) -> NDArray[Any]:
        """The graph's first output.

        Args:
            images: uint8 [N, size, size, 3].

        Returns:
            float32 [N, K].
        """
        result: NDArray[Any] = self._session.run(["probabilities"], {"images": images})[0]
        return result
