"""ONNX Runtime: one session, proved to run on the device that was chosen."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bundle.errors import BundleError, DeviceError
from serving.device import PROVIDERS, Device

BATCH_SIZES = {"cpu": tuple(range(1, 17)), "cuda": (1, 2, 4, 8, 16, 32, 64)}
"""Batch sizes that run; others are padded up to the next. A CPU gains nothing per core from
larger batches and would compute the padding, so there every size up to the largest is allowed."""

CUDA_OPTIONS = {
    # Every size is run before the model is ready, so that the search costs no request.
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    # The default doubles what it holds at each step, which other models of the GPU then lack.
    "arena_extend_strategy": "kSameAsRequested",
    "gpu_mem_limit": str(2 * 2**30),
}
"""Of ONNX Runtime's CUDA provider, for each session. Not measured on a GPU yet."""


class Engine:
    """One graph in one ONNX Runtime session. `run` is for one thread at a time."""

    def __init__(
        self, graph: bytes, device: Device, threads: int, *, size: int, n_classes: int, name: str
    ) -> None:
        """Makes the session and checks what it runs on.

        Args:
            graph: ONNX, `images` uint8 [N, size, size, 3] to `probabilities` float32 [N, K].
            device: from `choose_device`.
            threads: that one inference may use.
            size: of the input, pixels.
            n_classes: K.
            name: of the model, for errors.

        Raises:
            BundleError: the graph cannot be loaded, or does not have that input and output.
            DeviceError: the session would not run on the device.
        """
        provider = PROVIDERS[device.kind]
        if device.kind == "cuda":
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would take the cores on which the service reads and decodes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if device.kind == "cpu":
            _share_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                graph,
                options,
                providers=[(provider, CUDA_OPTIONS if device.kind == "cuda" else {})],
            )
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise BundleError(f"{name}: ONNX Runtime cannot load the graph: {error}") from error
        self.provider: str = self._session.get_providers()[0]
        """The provider that the session really runs on."""
        if self.provider != provider:
            raise DeviceError(
                f"{name}: asked for {provider} and got {self.provider}: CUDA and cuDNN of the "
                "versions that onnxruntime-gpu needs were not found (its extras cuda and cudnn "
                "install them); --device cpu serves without the GPU"
            )
        self.batch_sizes = BATCH_SIZES[device.kind]
        self.size = size
        self._check(name, n_classes)
        self._bound = {
            n: _Bound(self._session, n, size, n_classes, device.kind) for n in self.batch_sizes
        }

    def _check(self, name: str, n_classes: int) -> None:
        inputs = {i.name: (i.type, i.shape[1:]) for i in self._session.get_inputs()}
        if inputs != {"images": ("tensor(uint8)", [self.size, self.size, 3])}:
            raise BundleError(
                f"{name}: the graph takes {inputs}, the manifest says images uint8 "
                f"[N, {self.size}, {self.size}, 3]"
            )
        outputs = {o.name: (o.type, o.shape[1:]) for o in self._session.get_outputs()}
        if outputs.get("probabilities") != ("tensor(float)", [n_classes]):
            raise BundleError(
                f"{name}: the graph gives {outputs}, the manifest says probabilities float32 "
                f"[N, {n_classes}]"
            )

    def run(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Probabilities float32 [N, K] of N images, uint8 [size, size, 3] each.

        N is at most the largest of `batch_sizes`.
        """
        n = len(images)
        bound = self._bound[next(size for size in self.batch_sizes if size >= n)]
        for row, image in zip(bound.images, images, strict=False):
            row[...] = image
        return bound.run()[:n].copy()

    def warm(self) -> None:
        """Runs batches until a first one of any size costs no more than a later one.

        A GPU searches algorithms and plans for each size. A CPU has only its memory to grow, to
        what the largest size needs: the others then cost as much the first time as the fifth
        (docs/speed.md), and eight ninths of the time until ready are saved.
        """
        sizes = self.batch_sizes
        blank = np.zeros((self.size, self.size, 3), np.uint8)
        for n in sizes if self.provider == PROVIDERS["cuda"] else (sizes[-1], sizes[0]):
            self.run([blank] * n)


@cache
def _share_arena() -> None:
    """Lets the sessions of this process have one arena: their batches need it in turns, mostly.

    With 20 models it is 18.5 MB each in place of 26.0 (docs/log.md).
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    onnxruntime.create_and_register_allocator(memory, None)


class _Bound:
    """Input and output of one batch size, bound once: a run allocates and looks up nothing."""

    def __init__(
        self, session: onnxruntime.InferenceSession, n: int, size: int, k: int, device: str
    ) -> None:
        self.images = np.zeros((n, size, size, 3), np.uint8)
        """To be filled before a run."""
        self._session = session
        self._probabilities = np.zeros((n, k), np.float32)
        self._binding = session.io_binding()
        self._on_device: onnxruntime.OrtValue | None = None
        if device == "cuda":
            self._on_device = onnxruntime.OrtValue.ortvalue_from_numpy(self.images, device, 0)
            self._binding.bind_ortvalue_input("images", self._on_device)
        else:
            self._binding.bind_cpu_input("images", self.images)
        # In host memory: ONNX Runtime copies from the GPU at the end of a run.
        self._binding.bind_output(
            "probabilities",
            "cpu",
            0,
            np.float32,
            self._probabilities.shape,
            self._probabilities.ctypes.data,
        )

    def run(self) -> NDArray[np.float32]:
        """Probabilities [n, K], in memory that the next run writes to."""
        if self._on_device is not None:
            self._on_device.update_inplace(self.images)
        self._session.run_with_iobinding(self._binding)
        return self._probabilities
