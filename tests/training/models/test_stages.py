"""Parts of a network that fine-tuning keeps fixed."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from labelcurve.training.models import stages


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv4_conv_small", "resnet18"])
def test_folding_removes_every_batch_norm_and_changes_no_answer(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0)
    images = torch.randn(4, 3, 64, 64)
    network(images)  # statistics that are not those of a new batch norm
    found = stages.folded(network, images)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in found.modules())
    with torch.inference_mode():
        expected = network.eval()(images)
        assert torch.allclose(found.train()(images), expected, atol=1e-3 * expected.abs().max())


def test_a_batch_norm_behind_something_else_than_a_convolution_stays() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    network(torch.randn(8, 3, 8, 8))
    assert stages.folded(network, torch.randn(2, 3, 8, 8)) is network


def test_the_first_stages_do_not_learn() -> None:
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    stages.fix(model, 0.75)
    fixed = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert fixed == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("conv_stem", "bn1", *(f"blocks.{i}." for i in range(5))))
    }


def test_a_share_between_two_stages_is_the_nearer_one() -> None:
    for share, first in ((0.75, 4), (0.65, 3), (0.55, 3), (0.25, 1), (0.0, 0), (1.0, 5)):
        model = timm.create_model("resnet18", num_classes=0)
        stages.fix(model, share)
        learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        later = ["conv1", "layer1", "layer2", "layer3", "layer4"][first:]
        assert learning == {*later, *(["bn1"] if first == 0 else [])}, share
