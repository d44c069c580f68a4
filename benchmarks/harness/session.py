"""ONNX Runtime sessions on the CPU, or on a GPU."""

from __future__ import annotations

from typing import Any, Final, Literal

import onnxruntime
from numpy.typing import NDArray

from labelcurve.bundle.errors import DeviceError
from labelcurve.bundle.store import Bundle

Device = Literal["cpu", "cuda"]

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Session:
    """A bundle's graph on the CPU, with `threads` threads, or on an NVIDIA GPU.

    On the CPU, figures of different machines stay comparable; the load test measures the device
    that the service uses.

    Raises:
        DeviceError: the session would not run on the GPU that was asked for.
    """

    def __init__(self, bundle: Bundle, threads: int, device: Device = "cpu") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # As in the service; and several models are open at once, whose threads would wait spinning.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        # As in the service: by default fp32 is TF32 there.
        own = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"} if device == "cuda" else {}
        if device == "cuda":
            onnxruntime.preload_dlls()
        provider = PROVIDERS[device]
        self._session = onnxruntime.InferenceSession(
            bundle.graph, options, providers=[(provider, own)]
        )
        if self._session.get_providers()[0] != provider:
            raise DeviceError(
                f"--device {device}: the session of {bundle.name} is on "
                f"{self._session.get_providers()[0]}: no NVIDIA GPU is visible, or its libraries "
                "were not found; --device cpu measures on the CPU"
            )

    def probabilities(self, images: NDArray[Any]) -> NDArray[Any]:
        """Compute probabilities float32 [N, K] of images uint8 [N, size, size, 3]."""
        result: NDArray[Any] = self._session.run(["probabilities"], {"images": images})[0]
        return result
