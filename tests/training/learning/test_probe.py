from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from labelcurve.training.data.dataset import Data
from labelcurve.training.learning import probe
from labelcurve.training.learning.probe import Probe, embed
from labelcurve.training.models.backbones import ConvNet, Network
from labelcurve.training.runtime.device import FP32_CPU, Device, choose, to_device


def network(backbone: nn.Module | None = None, dim: int = 64) -> Network:
    torch.manual_seed(0)
    backbone = backbone or ConvNet((16, 32, 64))
    return Network(backbone, dim, 10, torch.full((3,), 0.3), torch.full((3,), 0.35))


def raw() -> Network:
    """The pixels themselves are the embedding: digits are near digits of their class."""
    return network(nn.Flatten(), 192)


def of(digits: Data, n: int = 1_000) -> Probe:
    known, held = digits.train.take(np.arange(n)), digits.test
    return Probe(
        to_device(known.images, FP32_CPU),
        known.labels,
        to_device(held.images, FP32_CPU),
        held.labels,
        FP32_CPU,
    )


def test_near_neighbours_are_of_one_class(digits: Data) -> None:
    assert of(digits).knn(raw()) > 0.9


def test_a_linear_map_of_the_pixels_tells_the_digits(digits: Data) -> None:
    assert of(digits).linear(raw()) > 0.85


def test_labels_that_mean_nothing_are_not_found_again(digits: Data) -> None:
    blind = of(digits)
    labels = np.random.default_rng(0).permutation(blind.labels)
    blind = replace(blind, labels=labels)
    assert blind.knn(raw()) < 0.25
    assert blind.linear(raw()) < 0.25


def test_an_uninformative_embedding_is_at_chance_level(digits: Data) -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(x), 5)

    judge, empty = of(digits), network(Constant(), 5)
    assert judge.linear(empty) < 0.2
    assert judge.knn(empty) < 0.2


def test_neither_the_size_nor_the_place_of_an_embedding_matters_to_its_neighbours(
    digits: Data,
) -> None:
    class Moved(nn.Flatten):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 7 + 3

    judge = of(digits)
    assert judge.knn(network(Moved(), 192)) == pytest.approx(judge.knn(raw()), abs=0.01)


def test_a_held_out_image_that_is_known_is_found_by_its_nearest_neighbour(digits: Data) -> None:
    judge = of(digits, 500)
    known = replace(judge, held_out=judge.images, held_out_labels=judge.labels)
    assert known.knn(raw()) > 0.98


def test_fewer_images_than_neighbours_are_enough(digits: Data) -> None:
    assert 0 <= of(digits, 12).knn(raw()) <= 1


def test_of_many_images_every_so_many_is_a_neighbour(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = of(digits, 900)
    monkeypatch.setattr(probe, "BANK", 300)
    third = replace(judge, images=judge.images[::3], labels=judge.labels[::3])
    few = judge.knn(raw())
    assert few == third.knn(raw())
    # Images and labels stay together: otherwise this would be at chance level.
    assert few > 0.85
    monkeypatch.undo()
    assert judge.knn(raw()) != few


def test_the_embedding_does_not_depend_on_the_batch_and_is_of_evaluation(digits: Data) -> None:
    net = network()
    images = to_device(digits.train.images[:30], FP32_CPU)
    net.train()
    whole, parts = embed(net, images, FP32_CPU), embed(net, images, FP32_CPU, batch=7)
    assert whole.shape == (30, 64)
    assert whole.dtype == np.float32
    assert np.allclose(whole, parts, atol=1e-4)
    with torch.inference_mode():
        expected = net.eval().embed(net.normalise(images)).numpy()
    assert np.allclose(whole, expected, atol=1e-5)


def test_on_this_machine_the_embedding_is_float32_too(digits: Data) -> None:
    images = to_device(digits.train.images[:30], FP32_CPU)
    device = choose("cpu")
    found, expected = embed(network(), images, device), embed(network(), images, FP32_CPU)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=0.1)


def test_evaluation_changes_nothing(digits: Data) -> None:
    judge, net = of(digits, 200), network()
    before = copy.deepcopy(net.state_dict())
    state = torch.random.get_rng_state()
    results = [(judge.knn(net), judge.linear(net)) for _ in range(2)]
    assert results[0] == results[1]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_neighbour_counts_by_its_cosine() -> None:
    distances = np.array([0.0, 2**0.5, 2.0])  # of unit vectors at 0, 90 and 180 degrees
    assert probe._nearness(distances) == pytest.approx(np.exp([10.0, 0.0, -10.0]))


def test_the_time_of_both_evaluations_is_that_of_some_images_scaled_up(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, judge = [0.0], of(digits, 500)

    def slow(_: Network, images: torch.Tensor, __: Device) -> None:
        now[0] += 0.01 * len(images)

    monkeypatch.setattr(probe, "embed", slow)
    monkeypatch.setattr("labelcurve.training.learning.probe.time.monotonic", lambda: now[0])
    held = len(judge.held_out)
    knn, both = judge.seconds(raw())
    assert knn == pytest.approx(1.5 * 0.01 * (500 + held))
    assert both == pytest.approx(2 * knn)
    monkeypatch.setattr(probe, "BANK", 200)
    knn, both = judge.seconds(raw())
    assert knn == pytest.approx(1.5 * 0.01 * (200 + held))
    assert both - knn == pytest.approx(1.5 * 0.01 * (500 + held))
