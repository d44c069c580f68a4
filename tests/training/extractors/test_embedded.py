"""Labelled images with an extractor, as `plan`, `audit` and `suggest` embed them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from labelcurve.training.data.dataset import Data, Split
from labelcurve.training.embedding_options import AuditOptions
from labelcurve.training.extractors import choice, embedded
from labelcurve.training.extractors.choice import Wanted
from labelcurve.training.models.backbones import Network
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.runtime.device import FP32_CPU, Device
from tests.training.sets import digit_rows, write_folder


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Wanted]]:
    """The extractors that were asked for; none is made."""
    asked: list[tuple[str, Wanted]] = []

    def obtain(name: str, images: Data, how: Wanted, device: Device) -> Extractor | None:
        asked.append((name, how))
        return None

    monkeypatch.setattr(choice, "obtain", obtain)
    return asked


@pytest.mark.parametrize(
    ("flip", "no_flip", "mirrored"),
    [(True, False, True), (True, True, False), (False, False, False), (False, True, False)],
)
def test_images_are_mirrored_where_that_keeps_their_class_and_nobody_forbids_it(
    flip: bool,
    no_flip: bool,
    mirrored: bool,
    digits: Data,
    tmp_path: Path,
    wanted: list[tuple[str, Wanted]],
) -> None:
    options = AuditOptions(data="digits", no_flip=no_flip, cache=tmp_path, extractor="auto")
    embedded.obtain(options, digits, FP32_CPU, flip=flip)
    ((name, how),) = wanted
    assert (name, how.flip, how.cache) == ("auto", mirrored, tmp_path)
    assert (how.backbone, how.seconds) == ("convnet", 300.0)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Versions that features were computed for: by torch, without an export of seconds."""
    asked: list[str] = []

    def features(
        network: Network, split: Split, version: str, *_: Device, **__: object
    ) -> NDArray[np.float32]:
        asked.append(version)
        pixels = torch.from_numpy(np.array(split.images)).permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            found: NDArray[np.float32] = network.eval().embed(network.standardise(pixels)).numpy()
        return found

    monkeypatch.setattr(embedded, "features", features)
    return asked


def few(digits: Data, n_train: int, n_test: int) -> Data:
    rows = np.arange(max(n_train, n_test))
    train, test = digits.train.take(rows[:n_train]), digits.test.take(rows[:n_test])
    return replace(digits, train=train, test=test)


@pytest.mark.parametrize(("data", "flip"), [("digits", False), ("photos", True)])
def test_digits_are_not_mirrored_and_other_images_are(
    data: str,
    flip: bool,
    digits: Data,
    tmp_path: Path,
    wanted: list[tuple[str, Wanted]],
    versions: list[str],
) -> None:
    options = AuditOptions(data=data, extractor="none", cache=tmp_path, device="cpu")
    found = embedded.embed_labelled(options, few(digits, 7, 5))
    assert wanted[0][1].flip is flip
    dim = found.parts[0].shape[1]
    assert [part.shape for part in found.parts] == [(7, dim), (5, dim)]
    assert found.source == "an untrained network"


def test_an_untrained_network_is_the_same_again_and_its_features_are_of_this_data(
    digits: Data, tmp_path: Path, versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    some = few(digits, 7, 5)
    train, test = embedded.embedding(some, None, "none", FP32_CPU, tmp_path)
    assert (
        "WARNING: no extractor: the features are those of an untrained" in capsys.readouterr().out
    )
    torch.manual_seed(1)
    other = replace(some, hash="b" * 64)
    again = embedded.embedding(other, None, "none", FP32_CPU, tmp_path)
    assert (again[0] == train).all()
    assert (again[1] == test).all()
    assert versions == [f"untrained-{digits.hash[:12]}"] * 2 + ["untrained-bbbbbbbbbbbb"] * 2


def test_no_test_images_are_no_rows(digits: Data, tmp_path: Path, versions: list[str]) -> None:
    train, test = embedded.embedding(few(digits, 3, 0), None, "none", FP32_CPU, tmp_path)
    assert test.shape == (0, train.shape[1])
    assert test.dtype == np.float32
    assert len(versions) == 1


@pytest.mark.parametrize(("extractor", "said"), [("none", True), ("auto", False)])
def test_images_that_no_extractor_learns_from_are_announced(
    extractor: str, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "pets", digit_rows()[:20])
    more = write_folder(tmp_path / "more", digit_rows()[20:25])
    options = AuditOptions(
        data=str(tmp_path / "pets"),
        unlabelled=more,
        extractor=extractor,
        image_size=8,
        cache=tmp_path / "cache",
    )
    images, chosen = embedded.load_labelled(options, skip_unreadable=False)
    out = capsys.readouterr().out
    assert ("--unlabelled is not used: --extractor none learns nothing from it" in out) is said
    assert f"data: pets, {images.n_labels} labels, 8 px" in out
    assert chosen.extractor == extractor
    assert images.n_labels == 20
    assert len(images.train) + len(images.test) == 25
