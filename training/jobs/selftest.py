"""`labelcurve train --self-test`: one real training step, and the proof of where it ran."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labelcurve.bundle.errors import DeviceError
from labelcurve.training.models.backbones import Network, build
from labelcurve.training.runtime.device import FP32_CPU, Device, choose, hardware, to_device

BATCH, SIZE, N_CLASSES = 16, 32, 10

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Relative difference of the loss from float32 on the CPU: rounding of the arithmetic, no more."""


def run(wanted: Literal["auto", "cuda", "cpu"]) -> dict[str, Any]:
    """Forward and backward through the default network, where `train` would run it.

    Args:
        wanted: as `--device`.

    Returns:
        What was found, for the last line on stdout.

    Raises:
        DeviceError: it would not run there, gives other results than the CPU, or an NVIDIA GPU is
            visible that torch cannot use, without `--device cpu`.
    """
    device = choose(wanted)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    torch.manual_seed(0)
    network = build("convnet", images, N_CLASSES)
    first, _, _ = _step(network, images, device)  # it also chooses the kernels
    loss, milliseconds, places = _step(network, images, device)
    fp32_cpu = (device.device.type, device.dtype) == ("cpu", torch.float32)
    reference = first if fp32_cpu else _step(network, images, FP32_CPU)[0]
    if places != {device.device.type}:
        raise DeviceError(f"gradients on {places}, expected on {device.device.type}")
    difference = abs(loss - reference) / abs(reference)
    if not difference <= TOLERANCE[device.dtype]:
        raise DeviceError(
            f"the loss on {device.choice.value} in {device.precision.value} is {loss:.5f}, in fp32 "
            f"on the CPU {reference:.5f}: results from there cannot be trusted"
        )
    print(
        f"self-test: train runs on {device.choice.value} ({device.choice.reason}) in "
        f"{device.precision.value} ({device.precision.reason}), torch {torch.__version__}; a step "
        f"on {BATCH} images took {milliseconds:.0f} ms there"
        + ("" if fp32_cpu else f", its loss within {difference:.0e} of fp32 on the CPU"),
        flush=True,
    )
    return {
        "self_test": {
            "device": device.choice.value,
            "precision": device.precision.value,
            "hardware": hardware(device),
            "torch": torch.__version__,
            "step_milliseconds": round(milliseconds, 2),
            "relative_difference": difference,
        }
    }


def _step(
    network: Network, images: NDArray[np.uint8], device: Device
) -> tuple[float, float, set[str]]:
    """Loss, milliseconds, and the kinds of device that the gradients lie on."""
    network.to(device.device).to(memory_format=torch.channels_last).zero_grad()
    labels = torch.arange(BATCH, device=device.device) % N_CLASSES
    start = time.perf_counter()
    pixels = to_device(images, device)
    with device.autocast():
        loss = F.cross_entropy(network(network.normalise(pixels)), labels)
    loss.backward()
    value = loss.item()  # waits for the GPU
    if device.device.type == "cuda":
        torch.cuda.synchronize()
    milliseconds = (time.perf_counter() - start) * 1000
    places = {p.grad.device.type for p in network.parameters() if p.grad is not None}
    return value, milliseconds, places
