from __future__ import annotations

import pytest
import torch

from training.backbones import Network, ReferenceNet, ResNet9, n_parameters


def network(name: str, size: int, n_classes: int = 10) -> Network:
    backbone = ResNet9() if name == "resnet9" else ReferenceNet(size)
    return Network(backbone, backbone.dim, n_classes, torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize("name", ["resnet9", "reference"])
@pytest.mark.parametrize("size", [8, 11, 16, 32, 48])
def test_any_size_gives_logits_and_an_embedding(name: str, size: int) -> None:
    net = network(name, size, n_classes=7)
    images = torch.rand(3, 3, size, size)
    assert net(images).shape == (3, 7)
    embedding = net.embed(images)
    assert embedding.shape == (3, 256)
    assert embedding.dtype == torch.float32
    assert (embedding >= 0).all()


def test_the_reference_network_has_the_published_number_of_parameters() -> None:
    reference = ReferenceNet(32)
    assert n_parameters(reference.backbone) == 52_288
    assert n_parameters(network("reference", 32)) == 9_754_952
    assert reference.backbone(torch.rand(1, 3, 32, 32)).shape == (1, 128, 7, 7)


def test_frozen_parameters_are_not_counted() -> None:
    net = network("resnet9", 32)
    everything = n_parameters(net)
    net.classifier.requires_grad_(False)
    assert everything - n_parameters(net) == 256 * 10 + 10


def test_pixels_are_normalised_by_channel() -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 1.0])
    backbone = ResNet9()
    net = Network(backbone, backbone.dim, 10, mean, std)
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    found = net.normalise(pixels)
    expected = torch.tensor([-0.2, 0.0, 0.7]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-6)


def test_normalisation_is_saved_with_the_weights_and_never_trained() -> None:
    net = network("resnet9", 32)
    assert {"mean", "std"} <= set(net.state_dict())
    assert {"mean", "std"}.isdisjoint(dict(net.named_parameters()))


@pytest.mark.parametrize("name", ["resnet9", "reference"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    net = network(name, 16)
    net(torch.rand(4, 3, 16, 16)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["resnet9", "reference"])
def test_in_evaluation_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    torch.manual_seed(0)
    net = network(name, 16).eval()
    images = torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        together = net(images)
        alone = torch.cat([net(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
