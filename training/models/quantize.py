"""INT8 for CPUs and fp16 for GPUs: other number formats of an exported graph, and their gate."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from labelcurve.bundle.errors import ExportError
from labelcurve.bundle.manifest import Gain, Metrics
from labelcurve.training.models import export

Precision = Literal["int8", "fp16"]

LOST_POINTS = 0.3
"""Points of validation accuracy that a variant may lose relative to fp32."""
LEAST_AGREEMENT = 0.95
"""Share of the held-out images that must get the class that fp32 gives them."""
LEAST_GAIN = 1.1
"""Times fp32's images/s that INT8 must reach on the machine that makes it."""
CALIBRATION_IMAGES = 256
BATCH, TURNS = 8, 40
"""Batch size and turns of the speed measurement."""

_QUANTISED = ("Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Pad")
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def int8(graph: bytes, images: NDArray[np.uint8]) -> bytes:
    """The graph with 8-bit arithmetic: static, unsigned activations, signed weights per channel.

    Weights have 7 bits: x86 processors without VNNI add pairs of products in 16 bits, and would
    saturate with 8 (docs/speed.md). The first and the last layer stay in fp32.

    Args:
        graph: fp32, as `export.to_onnx` writes it.
        images: that set the ranges of the activations, uint8 [N, size, size, 3].
    """
    # Imported here: it takes half a second, and `train` does not need it.
    from onnxruntime.quantization import QuantType, quantize_static

    model = onnx.load_from_string(graph)
    weighted = [node.name for node in model.graph.node if node.op_type in _WEIGHTED]
    ends = [*weighted[:1], *weighted[-1:]]
    with tempfile.TemporaryDirectory(prefix="labelcurve-") as folder:
        path = Path(folder) / "int8.onnx"
        with export.quiet():
            quantize_static(
                model,
                path,
                _Batches(images),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_exclude=ends,
            )
        return path.read_bytes()


def fp16(graph: bytes) -> bytes:
    """The graph with half-precision arithmetic; inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with export.quiet():
        model = convert_float_to_float16(onnx.load_from_string(graph), keep_io_types=True)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def check(
    precision: Precision, found: Metrics, fp32: Metrics, error: float, agreement: float
) -> None:
    """The gate, on the labelled validation images of the model's own fraction and on the agreement.

    A few labels cannot tell a loss from noise: one of 80 is more than a point. So a loss of twice
    the standard error is allowed, where that is more than `LOST_POINTS`. How many images get
    another class than from fp32 needs no labels, so that more images tell it.

    Args:
        error: standard error of the difference of the two accuracies.
        agreement: share of the held-out images with the same class.

    Raises:
        ExportError: the variant loses or changes more.
    """
    if not np.isfinite(found.loss):
        raise ExportError(
            f"{precision} gives probabilities that are not numbers on {found.n:,} validation "
            "images: values of this network exceed the range of the format"
        )
    lost = (fp32.accuracy - found.accuracy) * 100
    most = max(LOST_POINTS, 200 * error)
    if lost > most + 1e-9:
        raise ExportError(
            f"{precision} has {found.accuracy:.2%} where fp32 has {fp32.accuracy:.2%} on "
            f"{found.n:,} validation images: at most {most:.2g} points may be lost (the larger of "
            f"{LOST_POINTS} and twice the standard error of the difference)"
        )
    if agreement < LEAST_AGREEMENT:
        raise ExportError(
            f"{precision} gives only {agreement:.2%} of the held-out images the class that fp32 "
            f"gives them: at least {LEAST_AGREEMENT:.0%} are needed"
        )


def gain(graph: bytes, fp32: bytes, images: NDArray[np.uint8], hardware: str) -> Gain:
    """Times a variant and fp32 in turns, on one thread of the CPU.

    Args:
        images: at least `BATCH`, uint8 [N, size, size, 3].
    """
    batch = np.ascontiguousarray(images[:BATCH])
    sessions = [export.session(each, threads=1) for each in (graph, fp32)]
    times: list[list[float]] = [[], []]
    for turn in range(TURNS + 2):
        for session, seconds in zip(sessions, times, strict=True):
            start = perf_counter()
            session.run(["probabilities"], {"images": batch})
            if turn >= 2:
                seconds.append(perf_counter() - start)
    own, other = times
    return Gain(
        images_per_s=len(batch) / median(own),
        images_per_s_fp32=len(batch) / median(other),
        ratio=median(b / a for a, b in zip(own, other, strict=True)),
        batch=len(batch),
        turns=TURNS,
        hardware=hardware,
    )


def check_gain(found: Gain) -> None:
    """Refuses INT8 that is not faster here.

    Raises:
        ExportError: below `LEAST_GAIN`.
    """
    if found.ratio < LEAST_GAIN:
        raise ExportError(
            f"int8 reaches {found.ratio:.2f} times fp32's images/s on {found.hardware}: at least "
            f"{LEAST_GAIN} times are needed"
        )


class _Batches:
    """Calibration images, as ONNX Runtime requests them."""

    def __init__(self, images: NDArray[np.uint8], size: int = 64) -> None:
        self._parts = iter(np.split(images, range(size, len(images), size)))

    def get_next(self) -> dict[str, Any] | None:
        part = next(self._parts, None)
        return None if part is None else {"images": np.ascontiguousarray(part)}
