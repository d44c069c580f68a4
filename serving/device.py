"""Where inference runs, and why: the choice between a GPU and the CPU."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, Literal

from bundle.errors import DeviceError

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Device:
    """Where the sessions run, and why."""

    kind: Literal["cpu", "cuda"]
    reason: str


def choose_device(wanted: Literal["auto", "cuda", "cpu"]) -> Device:
    """The device that `wanted` means on this machine.

    Raises:
        DeviceError: a GPU was asked for and none is visible; one is visible, was not declined, and
            this ONNX Runtime cannot use it; or two packages of ONNX Runtime are installed.
    """
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise DeviceError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "uninstall both, then install one of them"
        )
    if wanted == "cpu":
        return Device("cpu", "asked for with --device cpu")
    gpus = visible_gpus()
    if gpus == 0:
        if wanted == "cuda":
            raise DeviceError("--device cuda: no NVIDIA GPU is visible; use --device cpu")
        return Device("cpu", "no NVIDIA GPU is visible")
    import onnxruntime  # a third of a second, of no use before this line

    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"an NVIDIA GPU is visible, but this ONNX Runtime has only "
            f"{', '.join(onnxruntime.get_available_providers())}: install onnxruntime-gpu, "
            "or say --device cpu"
        )
    return Device("cuda", "asked for" if wanted == "cuda" else f"{gpus} NVIDIA GPU visible")


def visible_gpus() -> int:
    """NVIDIA GPUs that this process can see, with a driver that works or without."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return 0
    nodes = len(list(Path("/dev").glob("nvidia[0-9]*")))
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    except OSError:
        pass
    return nodes  # a GPU whose driver fails is one all the same: the CPU must not take its place


def _installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
