from __future__ import annotations

import numpy as np
import pytest

from labelcurve.benchmarks.study import documents
from labelcurve.benchmarks.training_runs import distillation
from labelcurve.benchmarks.training_runs.distillation import ALONE, DISTILLED, TEACHER
from tests.photos import LITE0_FILE, photos


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> distillation.Study:
    folder = tmp_path_factory.mktemp("study")
    options = distillation.Distillation(
        data=photos(folder / "pictures"),
        extractor=f"timm:tf_efficientnet_lite0={LITE0_FILE}",
        image_size=32,
        cache=folder / "cache",
    )
    return distillation.Study(options)


def test_each_photo_has_one_place_in_a_split(study: distillation.Study) -> None:
    tenth, everything = (study.split(0, labels) for labels in ("10%", "all"))
    for split in (tenth, everything):
        rows = np.concatenate([split.train, split.others, split.test])
        assert len(np.unique(rows)) == len(rows)
        assert not np.isin(split.val, rows).any()
    assert set(study.classes[tenth.train]) == {0, 1}
    assert len(tenth.train) == 2
    assert len(everything.others) == 0
    assert np.array_equal(
        np.sort(np.concatenate([tenth.train, tenth.others])), np.sort(everything.train)
    )
    assert np.array_equal(np.sort(tenth.test), np.sort(everything.test))


def test_the_smaller_network_has_the_same_weights(study: distillation.Study) -> None:
    whole, half = (study.network(factor).state_dict() for factor in (1, 2))
    names = [name for name in whole if not name.startswith("classifier")]
    assert all(bool((whole[name] == half[name]).all()) for name in names)


def test_the_table_shows_the_mean_over_the_splits(study: distillation.Study) -> None:
    splits = [study.split(number, "10%") for number in range(2)]
    measured = [
        {
            kind: {"accuracy": accuracy, "balanced_accuracy": accuracy - 0.1}
            for kind, accuracy in ((TEACHER, best), (DISTILLED, best - 0.1), (ALONE, best - 0.2))
        }
        for best in (0.7, 0.9)
    ]
    times = {TEACHER: 9.0, "student": 3.0}
    figures = distillation.over_splits(splits, measured, times)
    assert [(f["kind"], f["p50_ms"]) for f in figures] == [
        (TEACHER, 9.0), (DISTILLED, 3.0), (ALONE, 3.0)
    ]  # fmt: skip
    assert figures[0]["mean"] == pytest.approx(0.8)
    about = {"data": "photos", "images": 40, "classes": 2, "extractor": "timm:x", "image_size": 32}
    where = {"hardware": "a CPU", "packages": {}, "date": "", "command": "", "load_average": 0.0}
    text = documents.render("distillation", factor=2, figures=figures, **about, **where)
    assert "| 10% | teacher | 9.0 | 0.800 ± 0.141 | 0.700 ± 0.141 | 2 |" in text
    assert "| 10% | 1/2 of the side, distilled on all images | 3.0 | 0.700 ± 0.141 |" in text
