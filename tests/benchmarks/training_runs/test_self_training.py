from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from labelcurve.benchmarks.study import documents
from labelcurve.benchmarks.training_runs import photos as split
from labelcurve.benchmarks.training_runs import self_training
from tests.photos import LITE0_FILE, photos


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> self_training.Study:
    folder = tmp_path_factory.mktemp("study")
    options = self_training.SelfTraining(
        data=photos(folder / "pictures"),
        extractor=f"timm:tf_efficientnet_lite0={LITE0_FILE}",
        image_size=32,
        cache=folder / "cache",
    )
    return self_training.Study(options)


def test_both_kinds_are_judged_on_the_same_fifth_and_no_other_label_is_read(
    study: self_training.Study,
) -> None:
    learn, test = next(split.splits_of(study.classes))
    labelled = split.chosen_of(study.classes, learn, "10%", 0)
    assert np.isin(labelled, learn).all()
    first = study.models(learn, labelled, test, 0)
    assert [metrics.n for metrics, _ in first] == [len(test)] * 2
    others = np.setdiff1d(learn, labelled)
    kept = study.classes.copy()
    study.classes[others] = 1 - study.classes[others]
    second = study.models(learn, labelled, test, 0)
    study.classes[:] = kept
    assert [metrics for metrics, _ in first] == [metrics for metrics, _ in second]


def test_the_table_shows_both_kinds_at_each_number_of_labels(study: self_training.Study) -> None:
    made = self_training.figures(study, "10%", 2)
    assert [figure.kind for figure in made] == ["linear head", "self-trained"]
    assert [figure.n_images for figure in made] == [(0, 0), (32, 32)]
    about = {"data": "photos", "images": 40, "classes": 2, "extractor": "timm:x", "image_size": 32}
    where = {"hardware": "a CPU", "packages": {}, "date": "", "command": "", "load_average": 0.0}
    text = documents.render(
        "self_training", figures=[asdict(figure) for figure in made], **about, **where
    )
    assert "| 10% (2 to 2) | linear head | " in text
    assert "| 10% (2 to 2) | self-trained | " in text
    assert "the head's answers to the 32 others" in text
