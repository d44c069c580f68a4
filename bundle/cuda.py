"""Queries NVIDIA's driver through libcuda, before a framework hides its errors."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from pathlib import Path

from labelcurve.bundle.errors import DeviceError

DRIVERS = {11: "450.80", 12: "525.60", 13: "580.65"}
"""Oldest Linux driver for each major version of CUDA (NVIDIA, CUDA Compatibility)."""

_MEMORY = re.compile(
    r"out of memory|failed to allocate memory|available memory of \d+ is smaller"
    r"|(CUBLAS|CUDNN)_STATUS_\w*ALLOC\w*FAILED",
    re.IGNORECASE,
)
_FAILED = re.compile(
    r"\b(CUDA|CUDNN|CUBLAS|CUFFT|CURAND)( driver)? (error|failure)\b", re.IGNORECASE
)


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of torch or ONNX Runtime says that the GPU's memory is too small.

    cuDNN and cuBLAS allocate memory themselves and report it under other names.
    """
    return _MEMORY.search(str(error)) is not None


def failed(error: BaseException) -> bool:
    """Returns whether ONNX Runtime's error means that the GPU failed other than for lack of memory.

    CUDA keeps such an error: every later call of the process fails, too.
    """
    return _FAILED.search(str(error)) is not None and not out_of_memory(error)


def names() -> list[str]:
    """Names of the GPUs visible to this process, such as NVIDIA H200; empty without a driver."""
    driver, found = _library(), []
    if driver is None or _hidden() or driver.cuInit(0) != 0:
        return []
    for i in range(visible_gpus()):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        if driver.cuDeviceGet(ctypes.byref(device), i) == 0:
            driver.cuDeviceGetName(name, len(name), device)
            found.append(name.value.decode(errors="replace"))
    return found


def visible_gpus() -> int:
    """Number of NVIDIA GPUs that this process can see, whether or not the driver works."""
    if _hidden():
        return 0
    nodes = len(list(Path("/dev").glob("nvidia[0-9]*")))
    count = ctypes.c_int()
    driver = _library()
    if driver and driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
        return count.value
    return nodes  # a GPU whose driver fails still counts: the CPU must not silently replace it


def driver_version() -> tuple[int, int] | None:
    """Newest CUDA version that the driver supports, such as (12, 4); None without a driver."""
    driver, version = _library(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def check_driver(needed: str | None, package: str) -> None:
    """Refuses a driver that is too old for a package built with CUDA.

    A newer minor version of the same major one runs on an older driver, so majors are compared.

    Args:
        needed: CUDA version that the package was built with, such as "13.0"; None: without CUDA.
        package: its name and version, for the message.

    Raises:
        DeviceError: a GPU is visible, and its driver supports an older major version of CUDA.
    """
    if needed is None or _hidden():
        return
    found, major = driver_version(), int(needed.split(".")[0])
    if found is not None and found[0] < major:
        oldest = DRIVERS.get(major, "a newer one")
        older = ", install the packages for CUDA 12 (docs/deploying.md)" if found[0] == 12 else ""
        raise DeviceError(
            f"the NVIDIA driver supports CUDA {found[0]}.{found[1]}, and {package} needs CUDA "
            f"{needed}: update the driver to {oldest} or newer{older}, or use --device cpu"
        )


def has_kernels(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Returns whether a card of that compute capability runs code compiled for these architectures.

    Machine code for sm_80 runs on 8.0 to 8.9; with a letter (sm_90a) on exactly that capability;
    PTX (compute_80) is compiled for every later card.

    Args:
        capability: such as (9, 0).
        architectures: such as "sm_80", "sm_90a" and "compute_120".
    """
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
        built = int(digits[:-1]), int(digits[-1])
        if kind == "compute":
            if capability >= built:
                return True
        elif number != digits:
            if capability == built:
                return True
        elif capability[0] == built[0] and capability[1] >= built[1]:
            return True
    return False


def _hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
