"""Choice of a bundle's graph: fp32, or the one that `quantize` added for the device."""

from __future__ import annotations

from typing import Final, Literal

from labelcurve.bundle.errors import BundleError
from labelcurve.bundle.store import Bundle
from labelcurve.serving.models.device import Device

Precision = Literal["fp32", "int8", "fp16", "auto"]

ADDED: Final = {"cpu": "int8", "cuda": "fp16"}
"""Precision that is faster on a device: fp16 does not help a CPU, nor this INT8 a GPU."""


def choose(bundle: Bundle, device: Device, wanted: Precision) -> tuple[str, bytes]:
    """The precision that `wanted` means for a bundle on a device, and its graph.

    Raises:
        BundleError: the bundle lacks what was asked for, or it is not for this device.
    """
    added = ADDED[device.kind]
    if wanted == "fp32" or (wanted == "auto" and added not in bundle.variants):
        return "fp32", bundle.graph
    if wanted not in ("auto", added):
        raise BundleError(
            f"--precision {wanted} is not for the {device.kind.upper()}: there it is fp32, {added} "
            "or auto"
        )
    if added not in bundle.variants:
        raise BundleError(
            f"{bundle.name} has no {added} graph: `labelcurve quantize --precision {added}` "
            "adds one; "
            "--precision auto serves models without it in fp32"
        )
    return added, bundle.variants[added]
