"""Chooses device, threads and precision, each with the reason that is printed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from labelcurve.bundle import cuda
from labelcurve.bundle.errors import DeviceError
from labelcurve.bundle.machine import cores, cpu_flags, cpu_name
from labelcurve.bundle.manifest import Choice
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.runtime import distributed

Precision = Literal["auto", "bf16", "fp32"]

GAIN = 1.2
"""Minimum speed-up of bf16 over fp32 on a CPU."""

FEWER = 1.5
"""Minimum speed-up of fewer threads: another number of them sums in another order."""

TURNS = 6
"""Measurements of each number of threads; the first one is not counted."""


@dataclass(frozen=True)
class Device:
    """The device of a run."""

    device: torch.device
    dtype: torch.dtype
    """dtype of autocast; float32 means no autocast."""
    choice: Choice
    precision: Choice

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision, or nothing where float32 was chosen."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def with_precision(self, precision: Choice, choice: Choice | None = None) -> Device:
        """The device with another precision, `bf16` or `fp32`, and another reason for it."""
        dtype = torch.bfloat16 if precision.value == "bf16" else torch.float32
        return replace(self, dtype=dtype, precision=precision, choice=choice or self.choice)


FP32_CPU = Device(
    torch.device("cpu"),
    torch.float32,
    Choice(value="cpu", reason="reference arithmetic"),
    Choice(value="fp32", reason="reference arithmetic"),
)


def check(wanted: Literal["auto", "cuda", "cpu"]) -> None:
    """Refuses a device that is not there, and a visible GPU that torch cannot use.

    Raises:
        DeviceError: `cuda` was asked for and torch sees no GPU; or a GPU is visible and was not
            declined, and its driver is too old or torch has no code for it.
    """
    if wanted == "cpu":
        return
    if torch.cuda.is_available():
        capability, built = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
        if not cuda.has_kernels(capability, built):
            raise DeviceError(
                f"torch {torch.__version__} has no code for {torch.cuda.get_device_name()} "
                f"(sm_{capability[0]}{capability[1]}), only for {', '.join(built)}: install a "
                "torch that has it, or use --device cpu"
            )
        return
    cuda.check_driver(torch.version.cuda, f"torch {torch.__version__}")
    if torch.version.cuda is not None and cuda.visible_gpus():
        raise DeviceError(
            f"an NVIDIA GPU is visible, but torch {torch.__version__} cannot use it: CUDA does not "
            "start (`nvidia-smi` says what is wrong with the driver). --device cpu declines the GPU"
        )
    if wanted == "cuda":
        raise DeviceError(
            "--device cuda: torch sees no NVIDIA GPU (in a container: `--gpus all`). "
            "Allowed here: --device cpu, or auto"
        )


def choose(
    wanted: Literal["auto", "cuda", "cpu"] = "auto",
    precision: Precision = "auto",
    *,
    depthwise: bool = False,
) -> Device:
    """An NVIDIA GPU when torch sees one, else the CPU with as many threads as pay.

    Args:
        precision: `auto` takes bfloat16 where the processor computes it, on a CPU also faster.
        depthwise: whether the network has depthwise convolutions, as those of timm mostly have. On
            a CPU their gradients take longer in bfloat16 (docs/log.md).

    Raises:
        DeviceError: as `check`.
    """
    check(wanted)
    # With a GPU, too: torch takes every core of the host, whatever a container's share is.
    available = min(torch.get_num_threads(), cores())
    torch.set_num_threads(available)
    if wanted != "cpu" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        device = Device(
            torch.device("cuda"),
            torch.float32,
            Choice(value="cuda", reason=f"torch sees {name}{_processes()}"),
            Choice(value="fp32", reason=f"{name} has no bf16 arithmetic"),
        )
        if precision != "auto":
            return device.with_precision(Choice(value=precision, reason="asked for"))
        if torch.cuda.is_bf16_supported(including_emulation=False):
            reason = f"{name} computes it in hardware"
            return device.with_precision(Choice(value="bf16", reason=reason))
        return device
    # Large tensors in pages of 2 MB: mapping 4 KB at a time takes a fifth of a training step. torch
    # reads its switch at the first of them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.set_num_threads(threads_that_pay(available))
    reason = "asked for" if wanted == "cpu" else "torch sees no NVIDIA GPU"
    reason += f"; {torch.get_num_threads()} threads{_processes()}"
    if torch.get_num_threads() < available:
        reason += f", since {available} are slower with the other work here"
    if precision != "auto":
        chosen = Choice(value=precision, reason="asked for")
    elif depthwise:
        chosen = Choice(value="fp32", reason="depthwise convolutions are slower in bf16 on a CPU")
    else:
        chosen = _cpu_precision()
    return FP32_CPU.with_precision(chosen, Choice(value="cpu", reason=reason))


def _cpu_precision() -> Choice:
    flags = cpu_flags()
    bf16 = next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)
    if bf16 and bf16_pays():
        return Choice(value="bf16", reason=f"the processor has {bf16}")
    # No figure in it: it is in the manifest, and so in the version of a bundle.
    reason = f"{bf16} is no faster here" if bf16 else "the processor has no bf16 arithmetic"
    return Choice(value="fp32", reason=reason)


@cache
def bf16_pays() -> bool:
    """Returns whether a convolution with its gradient takes less than 1 / `GAIN` of fp32's time.

    A flag of the processor does not settle it: Sapphire Rapids without AMX has `avx512_bf16`, and
    takes 1.5 times as long with it; Zen 4 takes half (docs/log.md, 2026-11-27). Measured in CPU
    time, which other work on the machine hardly changes: the choice is part of a bundle's version.
    """
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(4):
        for bf16, taken in times.items():
            taken.append(_convolution_seconds(time.process_time, bf16))
    slow, fast = (min(taken[1:]) for taken in times.values())  # the first ones compile
    return slow / fast >= GAIN


def threads_that_pay(most: int) -> int:
    """The number of threads to compute with: fewer than `most` where other work has the cores.

    Threads wait for the slowest of them, and one that shares its core with another process delays
    all: on a shared machine two threads gave 7 images/s where one gave 55. So half as many, and
    half of those, are taken as long as a convolution is `FEWER` times as fast with them.
    """
    while most > 1:
        times: dict[int, list[float]] = {most: [], most // 2: []}
        for _ in range(TURNS):
            for threads, taken in times.items():
                torch.set_num_threads(threads)
                taken.append(_convolution_seconds(time.perf_counter))
        many, few = (median(taken[1:]) for taken in times.values())
        if many / few < FEWER:
            break
        most //= 2
    return most


def _convolution_seconds(clock: Callable[[], float], bf16: bool = False) -> float:
    """Times a convolution, forward and backward, of the size of those of the default network."""
    # Not random: that would move the generator whose seed a run sets.
    images = torch.full((8, 64, 32, 32), 0.1).to(memory_format=torch.channels_last)
    weight = torch.full((128, 64, 3, 3), 0.1, requires_grad=True)
    start = clock()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = conv2d(images, weight, padding=1).sum()
    torch.autograd.grad(loss, weight)
    return clock() - start


def continued(
    device: Device, about: Mapping[str, Any] | None, say: Callable[[str], None]
) -> Device:
    """The device with the precision in which an interrupted run began.

    Args:
        about: metadata of its checkpoint; None if there is none.
    """
    if about is None:
        return device
    began = Choice.model_validate(about["precision"])
    if began.value != device.precision.value:
        say(
            f"precision: {began.value}, in which the interrupted run began (a new one would take "
            f"{device.precision.value}: {device.precision.reason})"
        )
    return device.with_precision(began)


def to_device(images: Images, device: Device) -> Tensor:
    """[N, H, W, 3] on the host to [N, 3, H, W] on the device, laid out as channels_last."""
    return torch.from_numpy(np.array(images)).to(device.device).permute(0, 3, 1, 2)


def hardware(device: Device) -> str:
    """The processor and, where it is used, the GPU: for people to read."""
    cpu = f"{cpu_name()}, {torch.get_num_threads()} threads{_processes()}"
    if device.device.type == "cuda":
        return f"{torch.cuda.get_device_name()}; {cpu}"
    return cpu


def circumstances(device: Device, commit: str | None, reading: str) -> str:
    """Describes what the weights depend on apart from the arguments of a run.

    Args:
        commit: of the code.
        reading: of the images, by `training.learning.batches.reading`.
    """
    return (
        f"{hardware(device)}, {device.precision.value}, torch {torch.__version__}, "
        f"commit {commit or 'unknown'}, {reading}"
    )


def _processes() -> str:
    n = distributed.size()
    return f", {n} processes" if n > 1 else ""
