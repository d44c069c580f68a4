from __future__ import annotations

from labelcurve.benchmarks.quality.accuracy import Predictions
from labelcurve.benchmarks.quality.gallery import Gallery
from labelcurve.bundle.store import Bundle
from labelcurve.training.data.dataset import Data


def test_every_gallery_keeps_its_rule(
    galleries: tuple[Gallery, ...],
    bundles: list[Bundle],
    data: Data,
    predictions: dict[str, Predictions],
) -> None:
    titles = [gallery.title for gallery in galleries]
    assert titles[0] == "Corrected by more labels"
    assert titles[-1] == "At random"
    few, many = bundles[0].name, bundles[-1].name
    for gallery in galleries:
        assert 0 < len(gallery.examples) <= 6
        for example in gallery.examples:
            truth = data.class_names[data.test.labels[example.row]]
            assert example.truth == truth
            assert example.uri.startswith("data:image/png;base64,")
            assert [a.model for a in example.answers] == [bundle.name for bundle in bundles]
            said = {a.model: a for a in example.answers}
            for name, answer in said.items():
                label = data.class_names[predictions[name].labels[example.row]]
                assert answer.label == label
                assert answer.right == (label == truth)
            if "Corrected" in gallery.title:
                assert (said[few].right, said[many].right) == (False, True)
            if "Broken" in gallery.title:
                assert (said[few].right, said[many].right) == (True, False)
            if "errors" in gallery.title:
                assert not said[many].right


def test_the_worst_are_surest(galleries: tuple[Gallery, ...]) -> None:
    (worst,) = [gallery for gallery in galleries if gallery.title == "Most confident errors"]
    sure = [example.answers[-1].probability for example in worst.examples]
    assert sure == sorted(sure, reverse=True)
