"""A linear head on a pretrained network: few labels, and photos without any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelcurve.bundle import store
from labelcurve.training import recipes
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.fractions import Subset
from labelcurve.training.jobs import train
from labelcurve.training.learning.finetune import Labelled, Result
from labelcurve.training.models import propagation
from labelcurve.training.models.backbones import Network, build, predict_logits
from labelcurve.training.models.linear_head import LinearHead
from labelcurve.training.models.propagation import Trial
from labelcurve.training.options import Options
from labelcurve.training.recipes import MOST_UNLABELLED
from labelcurve.training.runs import frozen, grid
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runtime.device import FP32_CPU
from tests.photos import LITE0_FILE, photos
from tests.training.sets import digit_rows, write_folder

NAME = "pictures-tf_efficientnet_lite0-25"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "pictures")


def options(data: Path, **more: Any) -> Options:
    given = {
        "data": str(data),
        "image_size": 64,
        "fraction": (0.25,),
        "extractor": f"timm:tf_efficientnet_lite0={LITE0_FILE}",
        "device": "cpu",
    }
    return Options(**{**given, **more})


def test_photos_without_labels_teach_the_head(
    data: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = options(data, cache=cache, out=tmp_path)
    (made,) = train.run(given)["bundles"]
    said = capsys.readouterr().out
    assert "label propagation: cross-validated accuracy 0.8333 where the head has 0.8333" in said
    assert ", standard error of the difference 0." in said
    assert "(24 other images, --no-unlabelled leaves them out); " in said
    manifest = store.read(tmp_path, NAME).manifest
    assert (manifest.n_labels_train, manifest.n_unlabelled) == (6, 24)
    assert manifest.recipe["linear_head"]["n_unlabelled"] == 24
    again = train.run(replace(given, out=tmp_path / "again"))["bundles"][0]
    assert again["version"] == made["version"]
    capsys.readouterr()

    plain = train.run(replace(given, out=tmp_path / "plain", no_unlabelled=True))["bundles"][0]
    assert "label propagation" not in capsys.readouterr().out
    monkeypatch.setattr(propagation.Pool, "tried", lambda *_: Trial(0.9, 0.5, 0.1))
    refused = train.run(replace(given, out=tmp_path / "refused"))["bundles"][0]
    assert "label propagation: left out, cross-validated accuracy 0.5000 where" in (
        capsys.readouterr().out
    )
    for folder, bundle in (("plain", plain), ("refused", refused)):
        manifest = store.read(tmp_path / folder, NAME).manifest
        assert manifest.n_unlabelled == manifest.recipe["linear_head"]["n_unlabelled"] == 0
        assert bundle["version"] != made["version"]


def test_the_final_model_learns_from_them_as_the_model_before_did(
    data: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(recipes, "TUNED_FROM", 35)  # between the 28 labels of one and all 40
    unlabelled = photos(tmp_path / "more", n=6, side=200)
    given = options(data, cache=cache, out=tmp_path / "models", fraction=(1.0,))
    train.run(replace(given, unlabelled=unlabelled))
    said = capsys.readouterr().out
    assert "label propagation: as the measured model" in said
    models = [store.read(tmp_path / "models", f"{NAME[:-2]}{last}") for last in ("100", "final")]
    for model in models:
        assert model.manifest.n_unlabelled == 12
        assert model.manifest.recipe["linear_head"]["n_unlabelled"] == 12
    assert [model.manifest.n_labels_train for model in models] == [28, 40]
    one, two = (model.manifest.recipe["linear_head"] for model in models)
    assert (one["penalty"], one["balanced"]) == (two["penalty"], two["balanced"])
    card, final = (" ".join((m.path / "README.md").read_text().split()) for m in models)
    again = (
        "; fitted again, all images weighted equally, on the labels and on its answers to 12 "
        "images without labels, after label propagation"
    )
    assert f"both by cross-validation{again}" in card
    assert f"both as in the measured model{again}" in final
    assert "12 other training images used as unlabelled data." in card


@pytest.mark.parametrize(
    ("n", "others", "more", "reads"),
    [
        (999, 1, {}, True),
        (999, 0, {}, False),
        (1_000, 5_000, {}, False),
        (100, 900, {"no_unlabelled": True}, False),
        (100, 900, {"extractor": "none"}, False),
    ],
)
def test_where_they_do(n: int, others: int, more: dict[str, Any], reads: bool) -> None:
    own = cell(n, others, **more)
    assert own.recipe.propagation is reads
    if reads:
        assert len(own.others(n + others + 10)) == others
        assert own.n_images(n + others + 10) == n, "an epoch of fine-tuning has the labelled ones"


def test_of_many_images_some_teach_evenly_spread() -> None:
    rows = cell(100, 20_000).others(20_110)
    assert len(rows) == MOST_UNLABELLED == 5_000
    assert rows.min() >= 110
    assert rows.max() == 20_109
    assert np.diff(rows).max() <= 5


def cell(n: int, others: int, **more: Any) -> Cell:
    train, val = np.arange(n, dtype=np.int32), np.arange(n, n + 10, dtype=np.int32)
    subset = Subset(fraction=0.5, train=train, val=val, val_pool=val, hash="")
    plan = grid.plan(Options(**{"extractor": "timm:resnet18", **more}), subset, others)
    return Cell("name", 0, subset, plan)


def test_with_few_labels_fine_tuning_has_to_be_better_by_more_than_chance(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "digits8", digit_rows(5))
    images = dataset.load(str(folder), size=8, cache=cache, say=lambda _: None)
    pixels = images.train.images[:12]
    head, tuned = (_always(images, label) for label in (0, 1))

    def published(right: int, n_labels: int) -> Result:
        """Where `tuned` is right on so many of twelve images, and the head on the others."""
        val = Labelled(pixels, np.array([1] * right + [0] * (12 - right)))
        return frozen.better(head, tuned, val, n_labels)

    # The difference of each image is 1 or -1: 7 of 12 are 0.17 ± 0.28, 10 of 12 are 0.67 ± 0.22.
    assert published(7, 1_000) is tuned
    assert published(6, 1_000) is head, "of equals the linear head"
    assert "has to be" not in capsys.readouterr().out
    assert published(7, 999) is head
    said = capsys.readouterr().out
    assert "fine-tuning 0.5833" in said
    assert "(its lead must exceed 0.5693, twice the standard error)" in said
    assert said.rstrip().endswith(": the linear head is published")
    assert published(10, 999) is tuned
    assert "fine-tuning is published" in capsys.readouterr().out


def _always(images: Data, label: int) -> Result:
    """A network with one answer."""
    network: Network = build("convnet", images.train.images, 10).eval()
    network.classifier.weight.data.zero_()
    network.classifier.bias.data.zero_()
    network.classifier.bias.data[label] = 5.0
    return Result(network, (), 0, 0.0, 0.0, 1)


def test_few_labels_are_fewer_than_1000(capsys: pytest.CaptureFixture[str]) -> None:
    assert not frozen.few(1_000)
    assert capsys.readouterr().out == ""
    assert frozen.few(999)
    assert "fine-tuning: left out, since with fewer than 1,000 labels" in capsys.readouterr().out


def test_fine_tuning_learns_a_copy_that_begins_with_the_same_answers(digits: Data) -> None:
    network: Network = build("convnet", digits.train.images, 10)
    linear = Result(network.eval(), (), 0, 0.0, 0.0, 1)
    images = digits.train.images[:5]
    expected = predict_logits(network, images, FP32_CPU)
    copy = frozen.learning(
        linear, recipes.recipe("default", 9, flip=False, unlabelled=False), images
    )
    assert np.allclose(predict_logits(copy, images, FP32_CPU), expected, atol=1e-4)
    for parameter in copy.parameters():
        parameter.data.zero_()
    assert np.array_equal(predict_logits(network, images, FP32_CPU), expected)


def test_the_choice_of_a_linear_head_is_said() -> None:
    head = LinearHead(np.zeros((2, 2), np.float32), np.zeros(2, np.float32), 0.5, True, 0.75, 0.25)
    assert frozen._chosen(head, False) == (
        "penalty 0.5, classes weighted equally, by cross-validation (accuracy 0.7500, balanced "
        "0.2500)"
    )
    plain = replace(head, balanced=False, accuracy=None, balanced_accuracy=None)
    said = "penalty 0.5, labels weighted equally"
    assert frozen._chosen(plain, True) == f"{said} (as the measured model)"
    assert frozen._chosen(plain, False) == f"{said} (too few labels to choose by)"
