from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from torch import Tensor, nn

from labelcurve.training.data.dataset import Data
from labelcurve.training.learning.augment import Views
from labelcurve.training.learning.objectives import Contrastive, RelativePosition
from labelcurve.training.learning.optimizers import Optimizers
from labelcurve.training.models.backbones import ConvNet, Network, ReferenceNet
from labelcurve.training.recipes import Optimisation
from labelcurve.training.runtime.device import FP32_CPU, choose

PLAN = Optimisation(optimizer="adam", lr=2e-3)


def network(backbone: str = "convnet") -> Network:
    torch.manual_seed(0)
    net = ConvNet((16, 32, 64)) if backbone == "convnet" else ReferenceNet(8)
    return Network(net, net.dim, 10, torch.full((3,), 0.3), torch.full((3,), 0.35))


def contrastive(n_views: int = 2, temperature: float = 0.2) -> Contrastive:
    torch.manual_seed(0)
    return Contrastive(64, Views(8, flip=False), n_views, temperature, FP32_CPU)


def pixels(digits: Data, n: int = 64) -> Tensor:
    return torch.from_numpy(np.array(digits.train.images[:n])).permute(0, 3, 1, 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learned(
    net: Network, objective: Contrastive | RelativePosition, images: Tensor, steps: int
) -> list[float]:
    optimizers = Optimizers([(net, 1.0), (objective, 1.0)], PLAN)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        optimizers.begin(step / steps)
        loss = objective(net, images, seeded(step))
        loss.backward()
        optimizers.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("n_views", [2, 3])
def test_the_loss_is_nt_xent_of_the_projections_of_all_pairs_of_views(
    digits: Data, n_views: int
) -> None:
    net, objective, images = network(), contrastive(n_views), pixels(digits)
    found = objective(net, images, seeded(3))

    generator = seeded(3)
    views = [objective.views(images, generator) for _ in range(n_views)]
    embedding = net.embed(net.standardise(torch.cat(views)))
    projections = objective.projector(embedding).unflatten(0, (n_views, len(images)))
    losses = [NTXentLoss(0.2)(a, b) for a, b in combinations(projections, 2)]
    assert len(losses) == n_views * (n_views - 1) // 2
    expected = torch.stack(losses).mean()
    assert found.shape == ()
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_loss_is_the_cross_entropy_of_finding_the_other_view(digits: Data) -> None:
    net, objective, images = network(), contrastive(temperature=0.5), pixels(digits, 16)
    found = objective(net, images, seeded(3))
    # The same by hand, from the definition.
    generator = seeded(3)
    views = torch.cat([objective.views(images, generator) for _ in range(2)])
    directions = F.normalize(objective.projector(net.embed(net.standardise(views))), dim=1)
    alike = directions @ directions.T / 0.5
    alike.fill_diagonal_(-torch.inf)
    partners = torch.arange(32).roll(16)
    assert torch.allclose(found, F.cross_entropy(alike, partners), atol=1e-4)


def test_the_contrastive_loss_falls_with_training(digits: Data) -> None:
    losses = learned(network(), contrastive(), pixels(digits, 128), 40)
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.3


@pytest.mark.parametrize("name", ["contrastive", "relative-position"])
def test_the_gradient_reaches_the_backbone_and_the_objective_but_not_the_classifier(
    digits: Data, name: str
) -> None:
    objective: Contrastive | RelativePosition
    if name == "contrastive":
        net, objective = network(), contrastive()
        reached: nn.Module = net.backbone
    else:
        net, objective = network("reference"), RelativePosition(8, FP32_CPU)
        assert isinstance(net.backbone, ReferenceNet)
        reached = net.backbone.backbone
    objective(net, pixels(digits), seeded()).backward()
    for module in (reached, objective):
        learned = [p for p in module.parameters() if p.requires_grad]
        assert learned
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)
    assert all(p.grad is None for p in net.classifier.parameters())


@pytest.mark.parametrize("name", ["contrastive", "relative-position"])
def test_the_same_generator_gives_the_same_loss_and_another_one_another(
    digits: Data, name: str
) -> None:
    objective: Contrastive | RelativePosition = contrastive()
    net, images = network(), pixels(digits)
    if name == "relative-position":
        net, objective = network("reference").eval(), RelativePosition(8, FP32_CPU).eval()
    with torch.no_grad():
        losses = [objective(net, images, seeded(seed)).item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", ["contrastive", "relative-position"])
def test_the_precision_of_this_machine_gives_a_loss_near_that_of_fp32(
    digits: Data, name: str
) -> None:
    device, losses = choose("cpu"), []
    for own in (FP32_CPU, device):
        torch.manual_seed(0)
        objective: Contrastive | RelativePosition
        if name == "contrastive":
            net, objective = network(), Contrastive(64, Views(8), 2, 0.2, own)
        else:
            net, objective = network("reference").eval(), RelativePosition(8, own).eval()
        losses.append(objective(net, pixels(digits), seeded()))
    assert losses[1].dtype == torch.float32
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=0.1)


def quartered(n: int) -> Tensor:
    """Images whose quarters are of the constant values 0, 60, 120 and 180, row by row."""
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for quarter in range(4):
        down, across = divmod(quarter, 2)
        image[:, down * 4 : down * 4 + 4, across * 4 : across * 4 + 4] = 60 * quarter
    return image.expand(n, 3, 8, 8)


class Telling(nn.Module):
    """Knows the position of one of the two quarters, from its pixels."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which
        self.told: list[Tensor] = []

    def forward(self, pair: Tensor) -> Tensor:
        """[N, 6, 8, 8], pixels of both quarters, to the logits of four positions."""
        assert pair.shape[1:] == (6, 8, 8)
        both = pair.unflatten(1, (2, 3)).flatten(2).median(2).values
        positions = (both * 255 / 60).round().long()
        self.told.append(positions)
        return F.one_hot(positions[:, self.which], 4).float() * 50


@pytest.mark.parametrize(("which", "right"), [(0, False), (1, True)])
def test_the_position_asked_for_is_that_of_the_second_quarter(which: int, right: bool) -> None:
    net, objective = network("reference"), RelativePosition(8, FP32_CPU)
    net.mean.zero_()
    net.std.fill_(1)
    assert isinstance(net.backbone, ReferenceNet)
    telling = Telling(which)
    net.backbone.backbone = nn.Sequential(nn.Identity())
    objective.head = nn.Sequential(telling)
    loss = objective(net, quartered(600), seeded())
    first, second = telling.told[0].T
    assert (first != second).all(), "two different quarters"
    pairs = torch.bincount(first * 4 + second, minlength=16)
    assert (pairs > 0).sum() == 12, "all of them occur"
    assert pairs.max() < 90
    if right:
        assert loss < 1e-6
    else:
        assert loss > 10


def test_positions_are_learned_from_images_that_show_them() -> None:
    torch.manual_seed(0)
    net, objective = network("reference"), RelativePosition(8, FP32_CPU)
    losses = learned(net, objective, quartered(64), 60)
    assert losses[0] == pytest.approx(np.log(4), abs=0.3)
    assert losses[-1] < 0.2


@pytest.mark.parametrize("size", [8, 11, 32])
def test_positions_can_be_asked_for_at_any_size(size: int) -> None:
    net = ReferenceNet(size)
    whole = Network(net, net.dim, 10, torch.zeros(3), torch.ones(3))
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    loss = RelativePosition(size, FP32_CPU)(whole, images, seeded())
    assert loss.isfinite()


def test_the_head_for_positions_is_that_of_the_reference() -> None:
    head = RelativePosition(12, FP32_CPU).head
    shapes = [(p.in_features, p.out_features) for p in head if isinstance(p, nn.Linear)]
    assert shapes == [(2 * 128 * 2 * 2, 1024), (1024, 512), (512, 4)]
    assert [type(part) for part in head] == [
        nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    assert [part.p for part in head if isinstance(part, nn.Dropout)] == [0.3]
