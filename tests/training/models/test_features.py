from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelcurve.bundle.errors import DataError
from labelcurve.training.data.dataset import Data
from labelcurve.training.models import features as module
from labelcurve.training.models.backbones import Network, build
from labelcurve.training.models.features import features
from labelcurve.training.runtime.device import FP32_CPU


@pytest.fixture(scope="module")
def network(digits: Data) -> Network:
    torch.manual_seed(0)
    return build("convnet", digits.train.images, 10).eval()


def test_they_are_the_embedding_in_the_order_of_the_rows(
    digits: Data, network: Network, tmp_path: Path
) -> None:
    rows = np.array([30, 2, 17, 2])
    found = features(network, digits.train.take(rows), "one", FP32_CPU, cache=tmp_path)
    pixels = torch.from_numpy(np.asarray(digits.train.images[rows])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = network.embed(network.normalise(pixels)).numpy()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4


def test_what_was_computed_once_is_not_computed_again(
    digits: Data, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    embedded = module._embedded

    def counted(*given: Any) -> Any:
        for rows, found in embedded(*given):
            computed.extend(rows.tolist())
            yield rows, found

    monkeypatch.setattr(module, "_embedded", counted)
    first = features(network, digits.train.take(np.arange(20)), "one", FP32_CPU, cache=tmp_path)
    assert len(computed) == 20
    more = features(
        network, digits.train.take(np.arange(25)[::-1]), "one", FP32_CPU, cache=tmp_path
    )
    assert len(computed) == 25
    assert np.array_equal(more[::-1][:20], first)
    features(network, digits.train.take(np.arange(20)), "other", FP32_CPU, cache=tmp_path)
    assert len(computed) == 45


def test_the_same_weights_with_another_normalisation_are_another_network(
    digits: Data, network: Network, tmp_path: Path
) -> None:
    few = digits.train.take(np.arange(5))
    other = deepcopy(network)
    other.mean += 0.5
    first = features(network, few, "one", FP32_CPU, cache=tmp_path)
    second = features(other, few, "one", FP32_CPU, cache=tmp_path)
    assert np.abs(first - second).max() > 0.01
    again = features(network, few, "one", FP32_CPU, cache=tmp_path)
    assert np.array_equal(first, again)


def test_a_folder_that_cannot_be_written_does_not_end_the_command(
    digits: Data, network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = digits.train.take(np.arange(5))
    expected = features(network, few, "one", FP32_CPU, cache=tmp_path / "writable")
    (tmp_path / "features").write_text("a file in the place of the folder")
    found = features(network, few, "one", FP32_CPU, cache=tmp_path)
    assert np.array_equal(found, expected)
    assert capsys.readouterr().out.count("cannot be written") == 1


@pytest.mark.parametrize("length", [100, 0])
def test_a_damaged_file_is_named(
    digits: Data, network: Network, tmp_path: Path, length: int
) -> None:
    few = digits.train.take(np.arange(5))
    features(network, few, "one", FP32_CPU, cache=tmp_path)
    (path,) = (tmp_path / "features").rglob("*.npz")
    os.truncate(path, length)
    with pytest.raises(DataError, match=r"\.npz is damaged .* remove it"):
        features(network, few, "one", FP32_CPU, cache=tmp_path)
