from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks import robustness
from benchmarks.accuracy import Predictions
from benchmarks.record import Report
from bundle.preprocess import resize
from bundle.store import Bundle
from training.data import Data


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
    for spoil in robustness.KINDS[kind].values():
        found = spoil(image, 32, 7)
        assert found.shape == (32, 32, 3)
        assert found.dtype == np.uint8
        assert (spoil(image, 32, 7) == found).all()
        damage.append(float(np.abs(found - clean).mean()))
    assert min(damage) > 0
    assert damage == sorted(damage)


def test_fewer_images_than_asked_for(bundles: list[Bundle], data: Data) -> None:
    some = data.test.take(np.arange(5))
    few = Data(data.name, data.hash, data.class_names, data.size, data.train, some)
    found = robustness.measure(bundles[:1], few, 1000, say=lambda _: None)
    assert found["digits-10"].n == 5
