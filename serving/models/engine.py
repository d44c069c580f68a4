"""ONNX Runtime: one session, verified to run on the chosen device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from labelcurve.bundle import cuda
from labelcurve.bundle.errors import BundleError, DeviceError
from labelcurve.serving.errors import DeviceLost
from labelcurve.serving.models.device import PROVIDERS, Device

BATCH_SIZES = {"cpu": tuple(range(1, 17)), "cuda": (1, 2, 4, 8, 16, 32, 64)}
"""Batch sizes that are run; others are padded to the next one. A CPU gains nothing per core from
larger batches and would compute the padding, so there every size up to the largest is allowed."""

MEMORY = 2 * 2**30
"""Bytes of a GPU that one session may take."""

BYTES_PER_PIXEL = 4 * (64 + 64 + 64)
"""Peak memory of a batch per input pixel: an input, an output and a workspace of 64
fp32 channels each. The networks that are trained here need less (a test measures them)."""

CUDA_OPTIONS = {
    # Every size is run before the model is ready, so that no request pays for the search.
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    # The default doubles its arena at each step, which other models on the GPU then lack.
    "arena_extend_strategy": "kSameAsRequested",
    "gpu_mem_limit": str(MEMORY),
    # By default (TF32) convolutions keep 10 bits of the mantissa; the parity gate's bound is 1e-4.
    "use_tf32": "0",
}
"""Options of ONNX Runtime's CUDA provider for each session. Not measured on a GPU yet."""


def batch_sizes(kind: str, size: int) -> tuple[int, ...]:
    """The batch sizes whose maps fit into the memory of a session; always 1.

    Args:
        kind: of the device.
        size: of the input, pixels.
    """
    sizes = BATCH_SIZES[kind]
    if kind == "cpu":
        return sizes
    return tuple(n for n in sizes if n == 1 or n * size**2 * BYTES_PER_PIXEL <= MEMORY)


def open_session(
    graph: bytes, device: Device, threads: int, profile: str | None = None
) -> onnxruntime.InferenceSession:
    """A session on the device, as the service uses it.

    Args:
        graph: ONNX.
        device: from `choose_device`.
        threads: that one inference may use.
        profile: file name prefix of ONNX Runtime's profile, if one is wanted.
    """
    cuda_device = device.kind == "cuda"
    if cuda_device:
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores on which the service reads and decodes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    elif not cuda_device:
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    provider = (PROVIDERS[device.kind], CUDA_OPTIONS if cuda_device else {})
    return onnxruntime.InferenceSession(graph, options, providers=[provider])


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
        self.batch_sizes = batch_sizes(device.kind, size)
        # cuDNN's plans of a convolution are made for one shape, and ONNX Runtime keeps one set of
        # them (onnxruntime#23006): on a GPU each batch size has its own session and weights.
        n_sessions = len(self.batch_sizes) if device.kind == "cuda" else 1
        try:
            sessions = [open_session(graph, device, threads) for _ in range(n_sessions)]
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise BundleError(f"{name}: ONNX Runtime cannot load the graph: {error}") from error
        self._session = sessions[0]
        self.provider: str = self._session.get_providers()[0]
        """The provider that the session actually uses."""
        if self.provider != provider:
            raise DeviceError(
                f"{name}: {provider} was requested, {self.provider} is used: the versions of CUDA "
                "and cuDNN that onnxruntime-gpu needs were not found (its extras cuda and cudnn "
                "install them); --device cpu serves without the GPU"
            )
        self.size = size
        self.embedding_size = self._check(name, n_classes)
        """Length of the embedding; None if the graph has no such output."""
        self._bound = {
            n: _Bound(sessions[i % n_sessions], n, size, n_classes, device.kind)
            for i, n in enumerate(self.batch_sizes)
        }

    def _check(self, name: str, n_classes: int) -> int | None:
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
        kind, shape = outputs.get("embedding", ("", []))
        embeds = kind == "tensor(float)" and len(shape) == 1 and isinstance(shape[0], int)
        return shape[0] if embeds else None

    def run(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Probabilities float32 [N, K] of N images, uint8 [size, size, 3] each.

        N is at most the largest of `batch_sizes`.

        Raises:
            DeviceLost: the GPU failed; this process cannot use it any more.
        """
        n = len(images)
        bound = self._bound[next(size for size in self.batch_sizes if size >= n)]
        for row, image in zip(bound.images, images, strict=False):
            row[...] = image
        with _told():
            return bound.run()[:n].copy()

    def embed(
        self, images: list[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities float32 [N, K] and embeddings float32 [N, D] of the same graph.

        Only for an engine with an `embedding_size`; N is at most the largest of `batch_sizes`. The
        outputs are not bound: copying embeddings would cost every classification.

        Raises:
            DeviceLost: as `run`.
        """
        n = len(images)
        bound = self._bound[next(size for size in self.batch_sizes if size >= n)]
        padded = np.zeros_like(bound.images)
        padded[:n] = images
        with _told():
            found = bound.session.run(["probabilities", "embedding"], {"images": padded})
        return found[0][:n], found[1][:n]

    def warm(self) -> None:
        """Runs batches until a first one of any size costs no more than a later one.

        A GPU searches algorithms and plans for each size. A CPU has only its memory to grow, to
        what the largest size needs: the others then cost as much the first time as the fifth
        (docs/speed.md), and eight ninths of the time until ready are saved.
        """
        sizes = self.batch_sizes
        blank = np.zeros((self.size, self.size, 3), np.uint8)
        if self.provider != PROVIDERS["cuda"]:
            sizes = (sizes[-1], sizes[0])
        for n in sizes:
            try:
                self.run([blank] * n)
            except Exception as error:
                if n == 1 or not cuda.out_of_memory(error):
                    raise
                # Another process has the memory, or the network needs more than estimated.
                self.batch_sizes = tuple(size for size in self.batch_sizes if size < n)
                self._bound = {size: self._bound[size] for size in self.batch_sizes}
                return


@contextmanager
def _told() -> Iterator[None]:
    """Distinguishes a failed GPU from a failed run."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        if cuda.failed(error):
            raise DeviceLost(f"the GPU failed: {error}") from error
        raise


@cache
def _share_arena() -> None:
    """Lets the sessions of this process share one arena: their batches mostly need it in turns.

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
        self.session = session
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
        self.session.run_with_iobinding(self._binding)
        return self._probabilities
