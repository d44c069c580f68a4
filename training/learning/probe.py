"""Evaluates an embedding with labels that its training never sees: k-NN and a linear probe."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from labelcurve.training.data.source import Index
from labelcurve.training.models.backbones import Network, evaluating
from labelcurve.training.runtime.device import Device

NEIGHBOURS = 20
BANK = 20_000
"""Maximum number of images among which neighbours are searched."""

TIMED = 250
"""Images whose embedding is timed to estimate that of all."""
MARGIN = 1.5
"""Factor on the time of embedding, for the computations that follow."""


@dataclass(frozen=True)
class Probe:
    """Training images with labels, and held-out ones to classify."""

    images: Tensor
    """uint8 [N, 3, H, W]"""
    labels: Index
    held_out: Tensor
    held_out_labels: Index
    device: Device
    cost: float = 0.0
    """Seconds that `knn` is expected to take, where that was measured."""

    def seconds(self, network: Network) -> tuple[float, float]:
        """Expected seconds of `knn`, and of both evaluations together, from timing some images."""
        some = self.images[:TIMED]
        embed(network, some, self.device)  # the first takes longer
        since = time.monotonic()
        embed(network, some, self.device)
        one = (time.monotonic() - since) / len(some) * MARGIN
        knn = one * (min(len(self.images), BANK) + len(self.held_out))
        return knn, knn + one * (len(self.images) + len(self.held_out))

    def knn(self, network: Network) -> float:
        """Accuracy of 20 nearest neighbours by cosine, weighted by similarity (Wu et al., 2018)."""
        from sklearn.neighbors import KNeighborsClassifier

        step = -(-len(self.images) // BANK)
        bank = embed(network, self.images[::step], self.device)
        queries = embed(network, self.held_out, self.device)
        # Around the mean: the embedding of a rectifier points into one corner.
        mean = bank.mean(0)
        classifier = KNeighborsClassifier(
            n_neighbors=min(NEIGHBOURS, len(bank)), weights=_nearness, algorithm="brute"
        )
        classifier.fit(_unit(bank - mean), self.labels[::step])
        found = classifier.predict(_unit(queries - mean))
        return float((found == self.held_out_labels).mean())

    def linear(self, network: Network) -> float:
        """Accuracy of ridge regression on the standardised embedding of all training images."""
        from sklearn.linear_model import RidgeClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100.0))
        model.fit(embed(network, self.images, self.device), self.labels)
        found = model.predict(embed(network, self.held_out, self.device))
        return float((found == self.held_out_labels).mean())


def embed(
    network: Network, images: Tensor, device: Device, batch: int = 500
) -> NDArray[np.float32]:
    """Uint8 [N, 3, H, W] to float32 [N, D], in evaluation mode; the mode is restored."""
    with evaluating(network), torch.inference_mode(), device.autocast():
        parts = [network.embed(network.normalise(part)).float() for part in images.split(batch)]
    return torch.cat(parts).cpu().numpy()


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return F.normalize(torch.from_numpy(rows), dim=1).numpy()


def _nearness(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    # Of unit vectors, the squared distance is 2 - 2 cos; exp(cos / 0.1).
    return np.exp((1 - distances**2 / 2) / 0.1)
