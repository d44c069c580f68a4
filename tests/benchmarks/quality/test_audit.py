"""Planted copies on a data set with fewer images than are usually copied; ranges of options."""

from __future__ import annotations

import numpy as np
import pytest

from labelcurve.benchmarks.harness.provenance import parsed
from labelcurve.benchmarks.quality import audit
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data.dataset import Data


def test_of_few_images_all_are_copied(data: Data) -> None:
    def embed(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1).astype(np.float32)

    embedded = audit.Embedded(data, embed(np.asarray(data.train.images)), embed)
    found = audit._copies(embedded, np.arange(60), "digits")
    assert [row["change"] for row in found] == list(audit.CHANGES)
    assert {(row["n"], row["images"]) for row in found} == {(60, 60)}
    assert all(0 <= row["found"] <= 1 for row in found)


def test_one_draw_has_no_deviation_and_is_refused_before_the_work() -> None:
    with pytest.raises(LabelcurveError, match="--seeds 1: allowed are 2 and more"):
        parsed(audit.AuditBench, ["--cifar10", "folder", "--seeds", "1"])
