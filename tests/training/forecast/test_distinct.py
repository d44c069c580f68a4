"""Images with the same pixels count once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.forecast.distinct import distinct
from tests.training.sets import digit_rows, write_folder


def load(cache: Path, root: Path) -> Data:
    return dataset.load(str(root), cache=cache, say=lambda _: None)


def test_without_copies_all_rows_stay_as_they_are(cache: Path, tmp_path: Path) -> None:
    images = load(cache, write_folder(tmp_path / "once", digit_rows(10)))
    found = distinct(images, 0)
    assert found.train.tolist() == list(range(80))
    assert found.test.tolist() == list(range(20))
    assert (found.copies, found.n_labels) == (0, 100)


def test_of_copies_in_train_and_test_one_stays(cache: Path, tmp_path: Path) -> None:
    rows = [*digit_rows(10), *digit_rows(4)]
    images = load(cache, write_folder(tmp_path / "copies", rows))
    found = distinct(images, 0)
    kept = [images.train.take(found.train), images.test.take(found.test)]
    digests = [d.tobytes() for split in kept for d in split.digests[:]]
    assert len(set(digests)) == len(digests) == found.n_labels == 100
    assert found.copies == 40


def test_which_of_several_labels_an_image_keeps_is_random(cache: Path, tmp_path: Path) -> None:
    # The first ten zeros are ones, too.
    rows = [*digit_rows(40), *((1, data) for _, data in digit_rows(10)[:10])]
    images = load(cache, write_folder(tmp_path / "doubtful", rows))
    ones = []
    for seed in range(8):
        found = distinct(images, seed)
        assert found.copies == 10
        splits = [images.train.labels[found.train], images.test.labels[found.test]]
        ones.append(int((np.concatenate(splits) == 1).sum()))
    assert all(40 <= n <= 50 for n in ones)
    assert len(set(ones)) > 1
