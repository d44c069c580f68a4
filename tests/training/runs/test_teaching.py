"""Self-training of a pretrained network: few labels, other photos, the linear head's answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelcurve.bundle import store
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.jobs import train
from labelcurve.training.learning.finetune import Labelled, Result
from labelcurve.training.models.backbones import Network, build
from labelcurve.training.options import Options
from labelcurve.training.recipes import TAUGHT
from labelcurve.training.runs import grid, teaching
from labelcurve.training.runs.grid import Cell
from tests.photos import LITE0_FILE, photos
from tests.training.sets import digit_rows, write_folder

SIZE = 64
NAME = "pictures-tf_efficientnet_lite0-25"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "pictures")


def options(data: Path, **more: Any) -> Options:
    given = {
        "data": str(data),
        "image_size": SIZE,
        "fraction": (0.25,),
        "epochs": 1,
        "extractor": f"timm:tf_efficientnet_lite0={LITE0_FILE}",
        "device": "cpu",
    }
    return Options(**{**given, **more})


def cell(given: Options, images: Data) -> Cell:
    (found,) = grid.cells(given, images, lambda _: None)
    return found


def test_few_labels_and_many_images_make_a_network_learn_from_its_head(
    data: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(grid, "TUNED_FROM", 20)
    given = options(data, cache=cache, out=tmp_path)
    monkeypatch.setattr(teaching, "better", lambda linear, taught, val: taught)
    (made,) = train.run(given)["bundles"]
    said = capsys.readouterr().out
    assert "learns what the linear head answers to 30 images, 24 of them without labels" in said
    assert "precision: fp32 (depthwise convolutions" in said
    manifest = store.read(tmp_path, NAME).manifest
    assert (manifest.n_labels_train, manifest.n_unlabelled, manifest.epochs) == (6, 24, 1)
    assert "linear_head" not in manifest.recipe
    assert manifest.recipe["fixed_stages"] == 0.0
    assert manifest.parity.top1_agreement == 1.0
    again = train.run(replace(given, out=tmp_path / "again"))["bundles"][0]
    assert again["version"] == made["version"]
    plain = train.run(replace(given, out=tmp_path / "plain", no_unlabelled=True, epochs=None))
    other = store.read(tmp_path / "plain", NAME).manifest
    assert plain["bundles"][0]["version"] != made["version"]
    assert (other.n_unlabelled, "linear_head" in other.recipe) == (0, True)


@pytest.mark.parametrize(
    ("n", "others", "more", "taught"),
    [
        (999, 1, {}, True),
        (999, 0, {}, False),
        (1_000, 5_000, {}, False),
        (100, 899, {}, False),
        (100, 900, {}, True),
        (100, 900, {"no_unlabelled": True}, False),
        (100, 900, {"max_minutes": None}, False),
        (100, 900, {"max_minutes": None, "epochs": 5}, True),
        (100, 900, {"extractor": "none"}, False),
    ],
)
def test_where_it_does(n: int, others: int, more: dict[str, Any], taught: bool) -> None:
    subset = _subset(n)
    given = {"extractor": "timm:resnet18", "max_minutes": 5.0, **more}
    found = grid.plan(Options(**given), subset, others)
    own = Cell("name", 0, subset, found)
    assert own.teaches_itself is taught
    assert not replace(own, teacher="another").teaches_itself
    if taught:
        assert len(own.others(n + others + len(subset.val))) == others
        assert own.n_images(n + others + len(subset.val)) == n + others
        assert found.fixed_stages == 0
        assert found.epochs == more.get("epochs", max(3, min(8, round(16_000 / (n + others)))))


def test_of_many_images_some_teach_evenly_spread() -> None:
    subset = _subset(100)
    given = Options(extractor="timm:resnet18", max_minutes=5.0)
    own = Cell("name", 0, subset, grid.plan(given, subset, 20_000))
    rows = own.others(20_110)
    assert len(rows) == TAUGHT == 5_000
    assert rows.min() >= 110
    assert rows.max() == 20_109
    assert np.diff(rows).max() <= 5


def _subset(n: int) -> Any:
    from labelcurve.training.data.fractions import Subset

    train, val = np.arange(n, dtype=np.int32), np.arange(n, n + 10, dtype=np.int32)
    return Subset(fraction=0.5, train=train, val=val, val_pool=val, hash="")


def test_the_linear_head_is_kept_where_it_is_better_on_validation(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "digits8", digit_rows(5))
    images = dataset.load(str(folder), size=8, cache=cache, say=lambda _: None)
    val = Labelled(images.train.images, images.train.labels)
    good, bad = (_always(images, label) for label in (0, 1))
    half = Labelled(val.images[:12], np.array([0] * 8 + [1] * 4))
    assert teaching.better(good, bad, half) is good
    assert "0.6667" in capsys.readouterr().out
    assert teaching.better(bad, good, half) is good
    assert teaching.better(good, _always(images, 0), half) is not good, "of equals the latter"
    nothing = Labelled(val.images[:0], val.labels[:0])
    assert teaching.better(good, bad, nothing) is bad


def _always(images: Data, label: int) -> Result:
    """A network with one answer."""
    network: Network = build("convnet", images.train.images, 10).eval()
    network.classifier.weight.data.zero_()
    network.classifier.bias.data.zero_()
    network.classifier.bias.data[label] = 5.0
    return Result(network, (), 0, 0.0, 0.0, 1)
