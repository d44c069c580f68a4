from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from labelcurve.training.learning.losses import Batch, accumulate, supervised
from labelcurve.training.models.backbones import Network
from labelcurve.training.recipes import Recipe
from labelcurve.training.runtime.device import FP32_CPU
from tests.training.learning.test_finetune import RECIPE, network


def batch() -> Batch:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images=images, targets=torch.arange(6), n=6)


def gradients(
    net: Network, plan: Recipe, given: Batch, parts: int = 1
) -> tuple[float, float, Tensor]:
    net.zero_grad()
    loss, correct = accumulate(net, given, parts, plan.label_smoothing, FP32_CPU)
    found = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    return float(loss), float(correct), torch.cat(found)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_add_up_to_the_whole(parts: int) -> None:
    net = network().eval()  # whose batch norms look at no batch
    loss, correct, whole = gradients(net, RECIPE, batch())
    again, told, summed = gradients(net, RECIPE, batch(), parts)
    assert again == pytest.approx(loss, rel=1e-5)
    assert told == correct
    assert torch.allclose(summed, whole, atol=1e-6)


def transparent() -> Network:
    """A network whose logits are the three channels of an image of one pixel."""
    net = Network(nn.Flatten(), 3, 3, torch.zeros(3), torch.ones(3))
    nn.init.eye_(net.classifier.weight)
    nn.init.zeros_(net.classifier.bias)
    return net


def pixel(*channels: float) -> Tensor:
    return torch.tensor(channels, dtype=torch.float32).view(1, 3, 1, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_of_labels_is_smoothed_cross_entropy(smoothing: float) -> None:
    given = Batch(
        images=torch.cat([pixel(2, 1, 0), pixel(0, 0, 0)]), targets=torch.tensor([0, 2]), n=2
    )
    net = transparent()
    loss, correct = accumulate(net, given, 1, smoothing, FP32_CPU)
    surprise = math.log(math.e**2 + math.e + 1) - 2  # of class 0; 1 and 2 more for the others
    first = (1 - smoothing) * surprise + smoothing * (surprise + 1)
    assert float(loss) == pytest.approx((first + math.log(3)) / 2)
    assert float(correct) == 1


def test_a_teacher_that_is_sure_of_the_label_is_the_label() -> None:
    net = network().eval()
    plan = replace(RECIPE, label_smoothing=0.0)
    hard = batch()
    soft = replace(hard, targets=torch.eye(10)[hard.targets])
    loss, correct, found = gradients(net, plan, soft)
    expected, told, plain = gradients(net, plan, hard)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert correct == told
    assert torch.allclose(found, plain, atol=1e-6)


def test_answers_are_learned_as_they_are() -> None:
    # The cross-entropy is lowest where the network answers the same, with no smoothing.
    answers = torch.softmax(torch.randn(4, 10, generator=torch.Generator().manual_seed(0)), 1)
    logits = answers.log().requires_grad_()
    supervised(logits, answers, smoothing=0.1).backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad, torch.zeros(4, 10), atol=1e-7)
