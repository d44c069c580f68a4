from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from labelcurve.training.data.dataset import Data
from labelcurve.training.models.backbones import (
    ConvNet,
    Convolution,
    Group,
    Mirrored,
    Network,
    ReferenceNet,
    build,
    n_parameters,
)


def network(name: str, size: int, n_classes: int = 10) -> Network:
    backbone = ConvNet() if name == "convnet" else ReferenceNet(size)
    return Network(backbone, backbone.dim, n_classes, torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize("name", ["convnet", "reference"])
@pytest.mark.parametrize("size", [8, 11, 16, 32, 48])
def test_any_size_gives_logits_and_an_embedding(name: str, size: int) -> None:
    net = network(name, size, n_classes=7)
    images = torch.rand(3, 3, size, size)
    assert net(images).shape == (3, 7)
    embedding = net.embed(images)
    assert embedding.shape == (3, 256)
    assert embedding.dtype == torch.float32
    assert embedding.isfinite().all()
    assert embedding.std() > 0


def test_the_reference_network_has_the_published_number_of_parameters() -> None:
    reference = ReferenceNet(32)
    assert n_parameters(reference.backbone) == 52_288
    assert n_parameters(network("reference", 32)) == 9_754_952
    assert reference.backbone(torch.rand(1, 3, 32, 32)).shape == (1, 128, 7, 7)


def test_the_last_convolution_of_the_reference_network_pads_as_same_does() -> None:
    pad, convolution = ReferenceNet(8).backbone[7:9]
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    nn.init.ones_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    counted = convolution(pad(torch.ones(1, 64, 2, 2)))[0, 0] / 64
    assert counted.tolist() == [[4.0, 2.0], [2.0, 1.0]], "right and below"


def test_a_divided_network_sees_the_means_of_squares(digits: Data) -> None:
    images = digits.train.images[:50]
    shrunk = build("convnet/2", images, 10).eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    means = pixels.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    assert torch.allclose(shrunk.standardise(pixels), (means - shrunk.mean) / shrunk.std, atol=1e-6)
    small = (means * 255).round().byte().permute(0, 2, 3, 1).numpy()
    whole = build("convnet", small, 10).eval()
    assert torch.equal(shrunk.mean, whole.mean), "fitted to what it sees"
    whole.load_state_dict(shrunk.state_dict())
    assert torch.allclose(
        shrunk(shrunk.standardise(pixels)), whole(whole.standardise(means)), atol=1e-5
    )


def test_frozen_parameters_are_not_counted() -> None:
    net = network("convnet", 32)
    everything = n_parameters(net)
    net.classifier.requires_grad_(False)
    assert everything - n_parameters(net) == 256 * 10 + 10


def test_pixels_are_normalised_by_channel() -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 1.0])
    backbone = ConvNet()
    net = Network(backbone, backbone.dim, 10, mean, std)
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    found = net.normalise(pixels)
    expected = torch.tensor([-0.2, 0.0, 0.7]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-6)


def test_normalisation_is_saved_with_the_weights_and_never_trained() -> None:
    net = network("convnet", 32)
    assert {"mean", "std"} <= set(net.state_dict())
    assert {"mean", "std"}.isdisjoint(dict(net.named_parameters()))


@pytest.mark.parametrize("name", ["convnet", "reference"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    net = network(name, 16)
    net(torch.rand(4, 3, 16, 16)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_whitening_and_the_scales_of_the_batch_norms_are_frozen() -> None:
    frozen = {n for n, p in network("convnet", 16).named_parameters() if not p.requires_grad}
    norms = {f"backbone.groups.{i}.norm{j}.weight" for i in range(3) for j in (1, 2)}
    assert frozen == {"backbone.whiten.weight", *norms}


@pytest.mark.parametrize("name", ["convnet", "reference"])
def test_in_evaluation_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    torch.manual_seed(0)
    net = network(name, 16).eval()
    images = torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        together = net(images)
        alone = torch.cat([net(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_mirrored_network_has_the_mean_logits_of_image_and_mirror_image() -> None:
    torch.manual_seed(0)
    net = network("convnet", 16).eval()
    images = torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        expected = (net(images) + net(images.flip(3))) / 2
        assert not torch.allclose(net(images), expected, atol=1e-5)
        net.backbone = Mirrored(net.backbone)
        assert torch.allclose(net(images), expected, atol=1e-5)


def spread(n: int, size: int) -> NDArray[np.uint8]:
    """Images whose neighbouring pixels and channels go together, as in photographs."""
    coarse = np.random.default_rng(0).integers(0, 256, (n, size // 2, size // 2, 1))
    fine = np.random.default_rng(1).integers(-20, 20, (n, size, size, 3))
    return (coarse.repeat(2, 1).repeat(2, 2) + fine).clip(0, 255).astype(np.uint8)


def test_whitened_patches_are_uncorrelated_and_of_one_size() -> None:
    images = spread(50, 12)
    net = build("convnet", images, 10)
    assert isinstance(net.backbone, ConvNet)
    pixels = net.normalise(torch.from_numpy(images).permute(0, 3, 1, 2))
    with torch.inference_mode():
        rows = net.backbone.whiten(pixels).transpose(0, 1).flatten(1)
    assert torch.allclose(rows[:12], -rows[12:], atol=1e-5)
    # Half of the images are enough for the filters, so they do not fit the others exactly.
    second = rows[:12] @ rows[:12].T / rows.shape[1]
    assert torch.allclose(second, torch.eye(12), atol=0.25)
    before = pixels.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    assert not torch.allclose(before.T @ before / len(before), torch.eye(12), atol=0.25)


def test_every_filter_of_grey_images_holds_signal(digits: Data) -> None:
    torch.manual_seed(0)
    net = build("convnet", digits.train.images, 10)
    assert isinstance(net.backbone, ConvNet)
    pixels = net.normalise(torch.from_numpy(np.array(digits.train.images)).permute(0, 3, 1, 2))
    with torch.inference_mode():
        rows = net.backbone.whiten(pixels).transpose(0, 1).flatten(1)
    assert torch.allclose(rows[:12], -rows[12:], atol=1e-5)
    assert torch.allclose(rows.std(dim=1), torch.ones(24), atol=0.1)
    # The 4 directions of a grey patch of 2 x 2, none of them twice.
    assert torch.linalg.matrix_rank(rows[:12].double(), rtol=1e-5) == 4
    assert (torch.corrcoef(rows[:12]).abs() - torch.eye(12)).max() < 0.999


def test_no_channel_of_grey_images_has_a_gradient_that_drowns_the_others(digits: Data) -> None:
    torch.manual_seed(0)
    net = build("convnet", digits.train.images, 10)
    assert isinstance(net.backbone, ConvNet)
    pixels = net.normalise(torch.from_numpy(digits.train.images[:128]).permute(0, 3, 1, 2))
    labels = torch.from_numpy(digits.train.labels[:128]).long()
    F.cross_entropy(net.train()(pixels), labels).backward()
    first = net.backbone.groups[0]
    assert isinstance(first, Group)
    assert first.conv1.weight.grad is not None
    sizes = first.conv1.weight.grad.flatten(1).norm(dim=1)
    assert sizes.max() < 1e4 * sizes.median()


def test_images_of_one_colour_do_not_break_the_whitening() -> None:
    net = build("convnet", np.full((20, 8, 8, 3), 77, np.uint8), 2)
    out = net(net.normalise(torch.full((4, 3, 8, 8), 77, dtype=torch.uint8)))
    assert out.isfinite().all()


def test_a_network_is_built_to_the_mean_and_the_spread_of_its_images(digits: Data) -> None:
    net = build("convnet", digits.train.images, 7)
    pixels = net.normalise(torch.from_numpy(np.array(digits.train.images)).permute(0, 3, 1, 2))
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([0.0] * 3, abs=1e-4)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx([1.0] * 3, abs=1e-3)
    assert net.classifier.out_features == 7


def test_the_reference_network_is_built_for_pixels_from_0_to_1(digits: Data) -> None:
    net = build("reference", digits.train.images, 10)
    assert isinstance(net.backbone, ReferenceNet)
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert torch.equal(net.normalise(white), torch.ones(1, 3, 8, 8))
    assert net(net.normalise(white)).shape == (1, 10)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_pooling_before_and_after_the_norm_are_the_same(size: int) -> None:
    torch.manual_seed(0)
    group = Group(4, 6)
    group(torch.randn(8, 4, size, size))  # so that the norm is not the identity
    group.eval()
    x = torch.randn(5, 4, size, size)
    with torch.inference_mode():
        found = group(x)
        # What training computes, by the statistics of evaluation.
        pooled = F.max_pool2d(group.conv1(x), 2, ceil_mode=size < 2)
        expected = F.gelu(group.norm2(group.conv2(F.gelu(group.norm1(pooled)))))
    assert found.shape == (5, 6, max(1, size // 2), max(1, size // 2))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 3), (2, 5), (7, 7)])
def test_the_gradient_for_small_maps_is_that_of_a_convolution(height: int, width: int) -> None:
    torch.manual_seed(0)
    own = Convolution(16, 24)
    x = torch.randn(6, 16, height, width).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = own(x.bfloat16())
    assert type(out.grad_fn).__name__ == "_ProductBackward"
    gradient = torch.randn_like(out)
    found = torch.autograd.grad(out, [x, own.weight], gradient)
    # In float32, so that a figure of bfloat16 is compared with the exact one.
    exact = F.conv2d(x, own.weight, padding=1)
    for got, expected in zip(
        found, torch.autograd.grad(exact, [x, own.weight], gradient.float()), strict=True
    ):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert float((got - expected).norm() / expected.norm()) < 0.01
    assert float((out.float() - exact).detach().norm() / exact.detach().norm()) < 0.01


@pytest.mark.parametrize(("size", "dtype"), [(8, torch.bfloat16), (3, torch.float32)])
def test_other_maps_have_the_gradient_of_torch(size: int, dtype: torch.dtype) -> None:
    conv = Convolution(4, 4).to(dtype)
    out = conv(torch.randn(2, 4, size, size, dtype=dtype))
    assert type(out.grad_fn).__name__ == "ConvolutionBackward0"
    conv.eval()  # as it is exported
    assert type(conv(torch.randn(2, 4, 3, 3, dtype=dtype)).grad_fn).__name__ != "_ProductBackward"
