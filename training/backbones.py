"""The networks: a compact residual network, and the reference experiment's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Normalisation, a backbone that gives an embedding, and a linear classifier."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, dim: int, n_classes: int, mean: Tensor, std: Tensor
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("std", std.view(1, 3, 1, 1))
        self.backbone = backbone
        self.classifier = nn.Linear(dim, n_classes)

    def normalise(self, images: Tensor) -> Tensor:
        """Uint8 [N, 3, H, W] to float32 [N, 3, H, W] of zero mean and unit variance."""
        return (images.float() / 255 - self.mean) / self.std

    def embed(self, normalised: Tensor) -> Tensor:
        """Float [N, 3, H, W] to the embedding, float [N, D]."""
        out: Tensor = self.backbone(normalised)
        return out

    def forward(self, normalised: Tensor) -> Tensor:
        """Float [N, 3, H, W] to logits, float [N, K]."""
        out: Tensor = self.classifier(self.embed(normalised))
        return out


def conv(c_in: int, c_out: int) -> nn.Sequential:
    """3 x 3 convolution, batch norm, ReLU; ONNX Runtime runs the three as one node."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two convolutions and a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        out: Tensor = x + self.body(x)
        return out


class ResNet9(nn.Module):
    """The nine-layer residual network of the DAWNBench CIFAR-10 entries, narrowed for CPUs.

    Source: D. Page, How to train your ResNet, 2018. Pooling follows batch norm and ReLU, so that
    every batch norm folds into its convolution.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        a, b, c, d = widths
        self.dim = d
        self.layers = nn.Sequential(
            conv(3, a),
            conv(a, b),
            nn.MaxPool2d(2),
            Residual(b),
            conv(b, c),
            nn.MaxPool2d(2),
            conv(c, d),
            nn.MaxPool2d(2),
            Residual(d),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, dim]: the maximum over positions."""
        return torch.amax(self.layers(x), dim=(2, 3))


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
