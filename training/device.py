"""Where and in which precision the work runs, each with the reason that is printed."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from bundle.errors import DeviceError
from bundle.machine import cores, cpu_flags, cpu_name
from bundle.manifest import Choice
from training import distributed
from training.stored import Images

GAIN = 1.2
"""Times as fast as fp32 that bf16 has to be on a CPU."""


@dataclass(frozen=True)
class Device:
    """The device of a run."""

    device: torch.device
    dtype: torch.dtype
    """Of the arithmetic under autocast; float32 means none."""
    choice: Choice
    precision: Choice

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision, or nothing where float32 was chosen."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


FP32_CPU = Device(
    torch.device("cpu"),
    torch.float32,
    Choice(value="cpu", reason="reference arithmetic"),
    Choice(value="fp32", reason="reference arithmetic"),
)


def check(wanted: Literal["auto", "cuda", "cpu"]) -> None:
    """Refuses a device that is not there.

    Raises:
        DeviceError: `cuda` was asked for and torch sees no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: torch sees no NVIDIA GPU (in a container: `--gpus all`). "
            "Allowed here: --device cpu, or auto"
        )


def choose(wanted: Literal["auto", "cuda", "cpu"] = "auto") -> Device:
    """An NVIDIA GPU when torch sees one, else the CPU; bfloat16 where the processor computes it.

    Raises:
        DeviceError: as `check`.
    """
    check(wanted)
    if wanted != "cpu" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        choice = Choice(value="cuda", reason=f"torch sees {name}{_processes()}")
        if torch.cuda.is_bf16_supported(including_emulation=False):
            precision = Choice(value="bf16", reason=f"{name} computes it in hardware")
            return Device(torch.device("cuda"), torch.bfloat16, choice, precision)
        precision = Choice(value="fp32", reason=f"{name} has no bf16 arithmetic")
        return Device(torch.device("cuda"), torch.float32, choice, precision)
    torch.set_num_threads(min(torch.get_num_threads(), cores()))
    reason = "asked for" if wanted == "cpu" else "torch sees no NVIDIA GPU"
    threads = f"{torch.get_num_threads()} threads{_processes()}"
    choice = Choice(value="cpu", reason=f"{reason}; {threads}")
    flags = cpu_flags()
    bf16 = next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)
    if bf16 and bf16_pays():
        precision = Choice(value="bf16", reason=f"the processor has {bf16}")
        return Device(torch.device("cpu"), torch.bfloat16, choice, precision)
    # No figure in it: it is in the manifest, and so in the version of a bundle.
    reason = f"{bf16} is no faster here" if bf16 else "the processor has no bf16 arithmetic"
    precision = Choice(value="fp32", reason=reason)
    return Device(torch.device("cpu"), torch.float32, choice, precision)


@cache
def bf16_pays() -> bool:
    """Whether a convolution, forward and backward, takes less than 1 / `GAIN` of fp32's time.

    A flag of the processor does not tell: Sapphire Rapids without AMX has `avx512_bf16`, and takes
    1.5 times as long with it; Zen 4 takes half (docs/log.md, 2026-11-27).
    """
    # Not random: that would move the generator whose seed a run sets.
    images = torch.full((8, 64, 32, 32), 0.1).to(memory_format=torch.channels_last)
    weight = torch.full((128, 64, 3, 3), 0.1, requires_grad=True)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(4):
        for bf16, taken in times.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = conv2d(images, weight, padding=1).sum()
            torch.autograd.grad(loss, weight)
            taken.append(time.perf_counter() - start)
    slow, fast = (min(taken[1:]) for taken in times.values())  # the first ones compile
    return slow / fast >= GAIN


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
    """What the weights depend on beside the arguments of a run: for people to read.

    Args:
        commit: of the code.
        reading: of the images, by `training.stream.reading`.
    """
    return (
        f"{hardware(device)}, {device.precision.value}, torch {torch.__version__}, "
        f"commit {commit or 'unknown'}, {reading}"
    )


def _processes() -> str:
    n = distributed.size()
    return f", {n} processes" if n > 1 else ""
