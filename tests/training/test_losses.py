from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.training.test_finetune import RECIPE, network
from training.backbones import Network
from training.device import FP32_CPU
from training.losses import Batch, accumulate
from training.recipes import Recipe


def batch(others: bool) -> Batch:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 8, 8), generator=random, dtype=torch.uint8)
    return Batch(
        images=pixels[:6].float() / 255,
        targets=torch.arange(6),
        n=6,
        n_others=6,
        others=pixels[6:] if others else None,
        views=pixels[6:].float() / 255 if others else None,
    )


def gradients(
    net: Network, plan: Recipe, given: Batch, parts: int = 1
) -> tuple[float, float, Tensor]:
    net.zero_grad()
    loss, correct = accumulate(net, net, given, parts, plan, FP32_CPU)
    found = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    return float(loss), float(correct), torch.cat(found)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_add_up_to_the_whole(parts: int) -> None:
    net = network().eval()  # whose batch norms look at no batch
    loss, correct, whole = gradients(net, RECIPE, batch(others=False))
    again, told, summed = gradients(net, RECIPE, batch(others=False), parts)
    assert again == pytest.approx(loss, rel=1e-5)
    assert told == correct
    assert torch.allclose(summed, whole, atol=1e-6)


def test_of_other_images_those_count_of_which_the_teacher_is_sure() -> None:
    plan = replace(RECIPE, consistency=1.0)
    net = network()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    losses = []
    for confidence in (0.0, 1.1):
        net.load_state_dict(state)
        losses.append(gradients(net, replace(plan, confidence=confidence), batch(others=True))[0])
    sure, unsure = losses
    assert sure > unsure > 0
