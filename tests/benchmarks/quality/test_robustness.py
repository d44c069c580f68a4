from __future__ import annotations

from io import BytesIO
from weakref import ref

import numpy as np
import pytest
from PIL import Image, ImageFilter

from labelcurve.benchmarks.quality import robustness
from labelcurve.benchmarks.quality.accuracy import Predictions
from labelcurve.benchmarks.record import Report
from labelcurve.bundle import preprocess
from labelcurve.bundle.preprocess import prepare, resize
from labelcurve.bundle.store import Bundle
from labelcurve.training.data.dataset import Data


def test_clean_images_have_the_accuracy_of_the_answers(
    measured: Report, data: Data, predictions: dict[str, Predictions]
) -> None:
    rows = np.random.default_rng(0).permutation(len(data.test.labels))[:40]
    for model in measured.models:
        found = model.robustness
        assert found is not None
        assert found.n == 40
        right = predictions[model.name].right(data.test.labels)
        assert found.accuracy == pytest.approx(right[rows].mean())
        assert len(found.shifts) == 15
        for shift in found.shifts:
            assert shift.drop.value == pytest.approx(found.accuracy - shift.accuracy)
            assert shift.drop.low <= shift.drop.value <= shift.drop.high


def test_a_quarter_of_the_pixels_costs_digits_their_accuracy(measured: Report) -> None:
    found = measured.models[-1].robustness
    assert found is not None
    (worst,) = [s for s in found.shifts if (s.kind, s.level) == ("shrunk to", "25 %")]
    assert worst.drop.low > 0.2


@pytest.mark.parametrize("kind", list(robustness.KINDS))
def test_damage_grows_with_the_level_and_is_the_same_again(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    image = Image.fromarray(pixels).resize((64, 48)).convert("RGB")
    clean = resize(image, 32).astype(float)
    damage = []
    for corrupt in robustness.KINDS[kind].values():
        found = corrupt(image, 32, 7)
        assert found.shape == (32, 32, 3)
        assert found.dtype == np.uint8
        assert (corrupt(image, 32, 7) == found).all()
        damage.append(float(np.abs(found - clean).mean()))
    assert min(damage) > 0
    assert damage == sorted(damage)


def test_corruptions_by_hand() -> None:
    """On images of one shade or of two halves, whose corrupted pixels are known."""
    grey = Image.new("RGB", (40, 20), (100, 100, 100))
    kinds = robustness.KINDS
    assert np.unique(kinds["darker"]["x 0.7"](grey, 16, 0)).tolist() == [70]
    assert np.unique(kinds["darker"]["x 0.4"](grey, 16, 0)).tolist() == [40]
    assert np.unique(kinds["brighter"]["x 1.5"](grey, 16, 0)).tolist() == [150]
    for level, deviation in (("5", 5), ("15", 15), ("30", 30)):
        noisy = kinds["noise, sigma of 255"][level](grey.resize((64, 64)), 64, 0)
        assert noisy.std() == pytest.approx(deviation, rel=0.03)
        assert noisy.mean() == pytest.approx(100, abs=1)
    other = kinds["noise, sigma of 255"]["5"](grey.resize((64, 64)), 64, 1)
    assert (other != kinds["noise, sigma of 255"]["5"](grey.resize((64, 64)), 64, 0)).any()
    random = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    photo = Image.fromarray(random)
    for level, radius in (("1.5 %", 0.6), ("3 %", 1.2), ("5 %", 2.0)):  # of the shorter side, 40
        blurred = resize(photo.filter(ImageFilter.GaussianBlur(radius)), 16)
        assert (kinds["blur, sigma of side"][level](photo, 16, 0) == blurred).all()
    for level, side in (("75 %", (60, 30)), ("50 %", (40, 20)), ("25 %", (20, 10))):
        small = resize(photo.resize(side, Image.Resampling.BILINEAR), 16)
        assert (kinds["shrunk to"][level](photo, 16, 0) == small).all()
    for level in ("90", "50", "20"):
        buffer = BytesIO()
        photo.save(buffer, "JPEG", quality=int(level))
        assert (kinds["JPEG quality"][level](photo, 16, 0) == prepare(buffer.getvalue(), 16)).all()


def test_few_photos_are_in_memory_at_a_time(
    bundles: list[Bundle], data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ref[Image.Image]] = []
    most = 0

    def decode(content: bytes) -> Image.Image:
        nonlocal most
        image = preprocess.decode(content)
        seen.append(ref(image))
        most = max(most, sum(each() is not None for each in seen))
        return image

    monkeypatch.setattr(robustness, "decode", decode)
    monkeypatch.setattr(robustness, "KINDS", {})
    robustness.measure(bundles[:1], data, 200, say=lambda _: None)
    assert 0 < most <= 2 * robustness.CHUNK < 100


def test_fewer_images_than_asked_for(bundles: list[Bundle], data: Data) -> None:
    some = data.test.take(np.arange(5))
    few = Data(data.name, data.hash, data.class_names, data.size, data.train, some)
    found = robustness.measure(bundles[:1], few, 1000, say=lambda _: None)
    assert found["digits-10"].n == 5
