"""torch.compile with CUDA graphs for a long pretraining, or the reason why not.

Written for NVIDIA GPUs and not measured on one. Fine-tuning has too few steps to recoup the time
of compiling. `TORCH_COMPILE_DISABLE=1`, torch's own switch, leaves it out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from labelcurve.bundle.manifest import Choice
from labelcurve.training.models.backbones import Network
from labelcurve.training.runtime import distributed
from labelcurve.training.runtime.device import Device

WORTH = 5_000
"""Steps from which a run is assumed to recoup the time of compiling; a guess."""


def choose(device: Device, steps: float) -> Choice:
    """Returns whether a run of so many steps is compiled, and why."""
    if device.device.type != "cuda":
        return Choice(value="off", reason="not used on a CPU")
    if distributed.size() > 1:
        return Choice(value="off", reason="not tried with several processes")
    if steps < WORTH:
        return Choice(value="off", reason=f"it is assumed not to pay under {WORTH:,} steps")
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return Choice(value="off", reason="TORCH_COMPILE_DISABLE=1")
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device.device))
    except Exception as error:  # whatever Triton, a C compiler or the driver lack
        return Choice(value="off", reason=f"no working compiler here: {type(error).__name__}")
    return Choice(value="on", reason="with CUDA graphs; TORCH_COMPILE_DISABLE=1 leaves it out")


@contextmanager
def applied(network: Network, choice: Choice, mode: str = "reduce-overhead") -> Iterator[None]:
    """Inside, the backbone is compiled while the network is in training mode.

    An embedding is valid until the next one is made: CUDA graphs use their memory again. Do not
    copy the network inside.
    """
    if choice.value == "off":
        yield
        return
    backbone: Callable[[Tensor], Tensor] = network.backbone.forward
    faster = torch.compile(backbone, mode=mode, dynamic=False)

    def compiled(normalised: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return faster(normalised)

    network.compiled = compiled
    try:
        yield
    finally:
        network.compiled = None
