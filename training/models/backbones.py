"""The networks: a compact convolutional one, and the reference experiment's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.nn.utils.fusion import fuse_conv_bn_eval

from labelcurve.bundle.errors import DeviceError
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.recipes import LIBRARIES, TIMM, Backbone, divided
from labelcurve.training.runtime.device import Device, to_device
from labelcurve.training.runtime.memory import EnoughMemory

EMPTY = 1e-9
"""A direction with this share of the largest variance, or less, holds no signal (fp32's digits)."""


SMALL = 7
"""Maps of at most so many pixels on a side take `_Product`'s gradient."""


class Network(nn.Module):
    """Normalisation, a backbone that gives an embedding, and a linear classifier."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, dim: int, n_classes: int, mean: Tensor, std: Tensor
    ) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("std", std.view(1, 3, 1, 1))
        self.shrink: nn.Module = nn.Identity()
        """Mean pooling, where the backbone sees smaller images."""
        self.backbone = backbone
        self.classifier = nn.Linear(dim, n_classes)
        self.compiled: Callable[[Tensor], Tensor] | None = None
        """Takes the place of the backbone in training mode."""

    def normalise(self, images: Tensor) -> Tensor:
        """As `standardise`, of uint8 [N, 3, H, W]."""
        return self.standardise(images.float() / 255)

    def standardise(self, images: Tensor) -> Tensor:
        """Float [N, 3, H, W] from 0 to 1 to what the backbone sees: shrunk, of zero mean and unit
        variance."""
        seen: Tensor = self.shrink(images)
        return (seen - self.mean) / self.std

    def embed(self, normalised: Tensor) -> Tensor:
        """Float [N, 3, H, W] to the embedding, float [N, D]."""
        if self.training and self.compiled is not None:
            return self.compiled(normalised)
        out: Tensor = self.backbone(normalised)
        return out

    def forward(self, normalised: Tensor) -> Tensor:
        """Float [N, 3, H, W] to logits, float [N, K]."""
        out: Tensor = self.classifier(self.embed(normalised))
        return out


class Mirrored(nn.Module):
    """The mean embedding of each image and its mirror image.

    A linear classifier makes the mean of their logits of it.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, dim]."""
        both: Tensor = self.backbone(torch.cat([x, x.flip(-1)]))
        mean: Tensor = both.unflatten(0, (2, -1)).mean(0)
        return mean


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode; each part of it returns to the mode it had."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that learns a shift and no scale (the next layer's weights hold one)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight.requires_grad_(False)


class Convolution(nn.Conv2d):
    """3 x 3 with a border of zeros and no bias; on a CPU its gradient is faster for small maps."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] to [N, C_out, H, W]."""
        if self.training and not x.is_cuda and x.dtype == torch.bfloat16 and x.shape[-1] <= SMALL:
            out: Tensor = _Product.apply(x, self.weight.to(x.dtype))
            return out
        return super().forward(x)


class _Product(torch.autograd.Function):
    """A 3 x 3 convolution; the gradient of its weights is one product of matrices.

    With AMX oneDNN's takes 5 times as long for maps of 3 x 3 pixels, 2 times for 5 x 5, 1.3 times
    for 7 x 7 and less for larger ones; without AMX the two are even (docs/log.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        c_out, c_in = weight.shape[:2]
        n, _, height, width = x.shape
        below = None
        if ctx.needs_input_grad[0]:
            below = conv2d_input(x.shape, weight, gradient, padding=1)
        # The patches, [N, H, W, 3, 3 * C_in]: three rows of three neighbours with their channels.
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
        image, row, pixel, _ = padded.stride()
        patches = padded.as_strided((n, height, width, 3, 3 * c_in), (image, row, pixel, row, 1))
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, c_out)
        own = rows.T @ patches.reshape(len(rows), 9 * c_in)
        return below, own.view(c_out, 3, 3, c_in).permute(0, 3, 1, 2)


class Group(nn.Module):
    """Two 3 x 3 convolutions; the first halves the side of the map by max pooling."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1: nn.Conv2d = Convolution(c_in, c_out)
        self.norm1: nn.Module = BatchNorm(c_out)
        self.conv2: nn.Conv2d = Convolution(c_out, c_out)
        self.norm2: nn.Module = BatchNorm(c_out)
        for conv in (self.conv1, self.conv2):
            # The first filters pass their input through (partial identity, Jordan 2024).
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def fold(self) -> None:
        """Puts the norms into the convolutions before them, for good; in evaluation mode only."""
        assert isinstance(self.norm1, BatchNorm)
        assert isinstance(self.norm2, BatchNorm)
        self.conv1 = fuse_conv_bn_eval(self.conv1, self.norm1)
        self.conv2 = fuse_conv_bn_eval(self.conv2, self.norm2)
        self.norm1, self.norm2 = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] to [N, C_out, H // 2, W // 2], at least one pixel."""
        x = self.conv1(x)
        small = x.shape[-1] < 2
        # Pooling and a norm of positive scale commute: four times cheaper one way round, and one
        # node with the convolution in ONNX Runtime the other.
        if self.training:
            x = self.norm1(F.max_pool2d(x, 2, ceil_mode=small))
        else:
            x = F.max_pool2d(self.norm1(x), 2, ceil_mode=small)
        x = F.gelu(x)
        return F.gelu(self.norm2(self.conv2(x)))


class ConvNet(nn.Module):
    """Six convolutions behind a fixed one that whitens patches of 2 x 2 pixels.

    Source: K. Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024 (`airbench94`), with
    the mean over positions at the end in place of the maximum (docs/log.md).
    """

    def __init__(self, widths: tuple[int, int, int] = (64, 256, 256)) -> None:
        super().__init__()
        self.dim = widths[-1]
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.groups = nn.Sequential(
            *(Group(c_in, c_out) for c_in, c_out in zip((24, *widths), widths, strict=False))
        )

    @torch.no_grad()
    def fit_whitening(self, normalised: Tensor, eps: float = 5e-4) -> None:
        """Sets the fixed filters to the eigenvectors of the patches of some images.

        Args:
            normalised: float [N, 3, H, W]; no labels are needed.
            eps: added to the eigenvalues, so that hardly varying directions stay small.
        """
        patches = normalised.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5)
        rows = patches.reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        whitened = (vectors / (values + eps).sqrt()).T
        # Grey images have directions that hold nothing but rounding. Channels without signal have
        # huge gradients behind batch norms, which drown the others' in a step of Muon, and
        # amplified rounding differs between runtimes. Random directions with signal replace them.
        empty = values <= EMPTY * values[-1]
        if bool(empty.any()) and not bool(empty.all()):
            mixed = torch.randn(int(empty.sum()), int((~empty).sum()), dtype=torch.float64)
            whitened[empty] = nn.functional.normalize(mixed) @ whitened[~empty]
        filters = whitened.reshape(12, 3, 2, 2).float()
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        assert self.whiten.bias is not None
        self.whiten.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, dim]: the mean over positions."""
        out: Tensor = self.groups(F.gelu(self.whiten(x))).mean(dim=(2, 3))
        return out


class ReferenceNet(nn.Module):
    """The reference experiment's backbone (52,288 parameters) and head without its last layer.

    With the classifier on 10 classes 9,754,952 parameters at 32 pixels. See docs/reference.md.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dim = 256
        side = size // 4 - 1
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.3),
            nn.ZeroPad2d((0, 1, 0, 1)),  # a 2 x 2 kernel with `same` padding
            nn.Conv2d(64, 128, 2),
            nn.ReLU(),
            nn.MaxPool2d(2, stride=1),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * side * side, 1024),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(1024, 2046),
            nn.ReLU(),
            nn.Linear(2046, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 256]."""
        out: Tensor = self.head(self.backbone(x))
        return out


def n_parameters(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def build(name: Backbone, images: Images, n_classes: int) -> Network:
    """An untrained network; what it fits to the images needs no labels.

    Args:
        name: the backbone, of `training.recipes`.
        images: [N, H, W, 3], the training images.
        n_classes: outputs of the classifier.
    """
    size = images.shape[1]
    whole, factor = divided(name)
    if factor > 1:
        few = images[:: -(-len(images) // _most(size))]
        pool = nn.AvgPool2d(factor)
        smaller = pool(torch.from_numpy(few.copy()).permute(0, 3, 1, 2).float()).round().byte()
        network = build(whole, smaller.permute(0, 2, 3, 1).numpy(), n_classes)
        network.shrink = pool
        return network
    if name == "reference":
        # On inputs in [0, 1], as the experiment has it.
        reference = ReferenceNet(size)
        return Network(reference, reference.dim, n_classes, torch.zeros(3), torch.ones(3))
    if name.startswith(LIBRARIES):
        # Imported here: both libraries take a while.
        from labelcurve.training.models import timm_weights, torchvision_weights

        library = timm_weights if name.startswith(TIMM) else torchvision_weights
        theirs, dim = library.backbone(name, size)
        # Mean and deviation come with the weights.
        return Network(theirs, dim, n_classes, torch.zeros(3), torch.ones(3))
    few = images[:: -(-len(images) // _most(size))]
    mean = torch.from_numpy((few / 255).mean((0, 1, 2))).float()
    std = torch.from_numpy((few / 255).std((0, 1, 2))).float().clamp_min(1e-3)
    backbone = ConvNet()
    network = Network(backbone, backbone.dim, n_classes, mean, std)
    patches = torch.from_numpy(few[::2].copy()).permute(0, 3, 1, 2)
    backbone.fit_whitening(network.normalise(patches))
    return network


def _most(size: int) -> int:
    """Images that a network is fitted to at most before it is trained."""
    return max(100, 10_000 * 32**2 // max(32, size) ** 2)


def predict_logits(
    network: Network, images: Images, device: Device, batch: int | None = None
) -> NDArray[np.float64]:
    """Logits of uint8 [N, H, W, 3] in the device's precision, float64 [N, K].

    Args:
        batch: images at a time; by default as many as have the pixels of 500 at a size of 32.

    Raises:
        DeviceError: the memory of the device does not hold one image.
    """
    batch = batch or min(500, max(8, 500 * 32**2 // images.shape[1] ** 2))
    parts: list[Tensor] = []
    done = 0
    while done < len(images) or not parts:
        with (
            EnoughMemory() as enough,
            evaluating(network),
            torch.inference_mode(),
            device.autocast(),
        ):
            pixels = to_device(images[done : done + batch], device)
            parts.append(network(network.normalise(pixels)).double().cpu())
            done += batch
        if not enough and batch == 1:
            raise DeviceError(
                f"the memory of {device.choice.value} is too small for one image of this size: "
                "a smaller --image-size needs less, and --device cpu takes the machine's memory"
            )
        batch = batch if enough else batch // 2
    return torch.cat(parts).numpy()
