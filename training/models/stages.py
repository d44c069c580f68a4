"""Parts of a network that fine-tuning keeps fixed: batch statistics and the first stages."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SAME = 1e-3
"""Largest relative difference that rounding explains between a network and its folded copy."""


@torch.no_grad()
def folded(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy in evaluation mode whose batch norms are part of the convolutions before them.

    The same function in two thirds of the time, and its statistics are those of the photos that
    the weights were trained on: batches of few photos give worse ones. Where a batch norm does
    not follow a convolution, the copy would be another function: the network itself comes back.

    Args:
        network: with batch norm, such as a backbone of timm or torchvision.
        images: normalised, float [N, 3, H, W]; both are compared on them.
    """
    network.eval()
    found = copy.deepcopy(network)
    conv: tuple[str, nn.Conv2d] | None = None
    for name, part in list(found.named_modules()):
        if isinstance(part, nn.Conv2d):
            conv = name, part
        elif isinstance(part, nn.BatchNorm2d) and conv is not None:
            if part.num_features != conv[1].out_channels:
                return network
            _put(found, conv[0], fuse_conv_bn_eval(conv[1], part))
            # timm's batch norm holds the activation that follows it.
            _put(found, name, getattr(part, "act", nn.Identity()))
            conv = None
    before, after = network(images), found(images)
    same = (before - after).abs().max() <= SAME * before.abs().max()
    return found if bool(same) else network


def fix(model: Any, share: float) -> None:
    """Excludes a share of the stages of timm's `model`, the first ones, from learning."""
    from timm.models import group_parameters

    stages = list(group_parameters(model, model.group_matcher(coarse=True)).values())
    for names in stages[: round(share * len(stages))]:
        for name in names:
            model.get_parameter(name).requires_grad_(False)


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, part)
