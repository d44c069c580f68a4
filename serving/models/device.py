"""Chooses between a GPU and the CPU, and records the reason."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Final, Literal

from labelcurve.bundle import cuda
from labelcurve.bundle.errors import DeviceError

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Device:
    """The device of the sessions, and the reason for it."""

    kind: Literal["cpu", "cuda"]
    reason: str


def choose_device(wanted: Literal["auto", "cuda", "cpu"]) -> Device:
    """The device for `wanted` on this machine.

    Raises:
        DeviceError: a GPU was asked for and none is visible; one is visible, was not declined, and
            this ONNX Runtime or its driver cannot use it; or two packages of ONNX Runtime are
            installed.
    """
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise DeviceError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "uninstall both, then install one of them"
        )
    if wanted == "cpu":
        return Device("cpu", "asked for with --device cpu")
    gpus = cuda.visible_gpus()
    if gpus == 0:
        if wanted == "cuda":
            raise DeviceError("--device cuda: no NVIDIA GPU is visible; use --device cpu")
        return Device("cpu", "no NVIDIA GPU is visible")
    import onnxruntime  # takes a third of a second, and is not needed before

    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"an NVIDIA GPU is visible, but this ONNX Runtime has only "
            f"{', '.join(onnxruntime.get_available_providers())}: install onnxruntime-gpu, "
            "or use --device cpu"
        )
    from onnxruntime.capi import build_and_package_info as build

    package = f"onnxruntime-gpu {onnxruntime.__version__}"
    cuda.check_driver(getattr(build, "cuda_version", None), package)
    return Device("cuda", "asked for" if wanted == "cuda" else f"{gpus} NVIDIA GPU visible")


def _installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
