from __future__ import annotations

import math
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from labelcurve.bundle import store
from labelcurve.bundle.manifest import CONFIDENCE_BOUNDS, Manifest, Predicted
from labelcurve.serving.telemetry import metrics
from labelcurve.serving.telemetry.predictions import CLASSES, OTHER, Predictions
from tests.models import digit_png
from tests.serving.telemetry.test_metrics import grown, value


@pytest.fixture
def manifest(digits_models: Path) -> Manifest:
    return store.read(digits_models, "digits-100").manifest


def named(manifest: Manifest, name: str, n_classes: int, n: int = 1000) -> Manifest:
    """A manifest whose last class is predicted for half of the held-out images."""
    classes = [0] * n_classes
    classes[-1], classes[0] = n // 2, n - n // 2
    confidence = [0] * len(CONFIDENCE_BOUNDS) + [n]
    confidence[-1], confidence[4] = n // 4, n - n // 4
    return manifest.model_copy(
        update={
            "name": name,
            "class_names": tuple(f"class {i}" for i in range(n_classes)),
            "predicted": Predicted(
                split="test", n=n, classes=tuple(classes), confidence=tuple(confidence)
            ),
        }
    )


def share(name: str, label: str) -> float | None:
    return REGISTRY.get_sample_value(
        "labelcurve_reference_class_ratio", {"model": name, "class": label}
    )


def below(name: str, level: str) -> float | None:
    return REGISTRY.get_sample_value(
        "labelcurve_reference_confidence_ratio", {"model": name, "le": level}
    )


def series(client: httpx.Client, name: str, **labels: str) -> list[dict[str, str]]:
    return [
        sample.labels
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def test_predictions_are_counted_by_class_and_confidence(client: httpx.Client) -> None:
    def classify() -> None:
        for _ in range(3):
            answer = client.post("/classify?model=digits-50", content=digit_png(0)).json()
            assert answer[0]["label"] == "0"
            assert answer[0]["score"] > 0.5

    model = {"model": "digits-50"}
    counted = "labelcurve_predictions_total"
    # Each class has a series before its first image; its absence would look like no shift.
    assert len(series(client, counted, **model)) == 10
    assert grown(client, classify, counted, **model, **{"class": "0"}) == 3
    assert grown(client, classify, counted, **model) == 3
    assert grown(client, classify, "labelcurve_confidence_count", **model) == 3
    assert grown(client, classify, "labelcurve_confidence_bucket", **model, le="0.5") == 0


def test_the_reference_is_that_of_the_manifest(client: httpx.Client, manifest: Manifest) -> None:
    expected = manifest.predicted
    assert expected is not None
    model = {"model": "digits-100"}
    found = [
        value(client, "labelcurve_reference_class_ratio", **model, **{"class": name})
        for name in manifest.class_names
    ]
    np.testing.assert_allclose(found, np.array(expected.classes) / expected.n)
    cumulative = np.cumsum(expected.confidence) / expected.n
    for bound, ratio in zip(CONFIDENCE_BOUNDS, cumulative, strict=False):
        le = {"le": str(bound)}
        found_ratio = value(client, "labelcurve_reference_confidence_ratio", **model, **le)
        assert math.isclose(found_ratio, ratio)
        # Under the same label as the histogram, which the alert joins by.
        assert f'labelcurve_confidence_bucket{{le="{bound}",model="digits-100"}}' in (
            client.get("/metrics").text
        )


def test_many_classes_have_few_series(manifest: Manifest) -> None:
    many = Predictions(named(manifest, "many", 1000))
    many.publish_reference()
    labels = {
        sample.labels["class"]
        for family in metrics.PREDICTIONS.collect()
        for sample in family.samples
        if sample.labels.get("model") == "many"
    }
    assert len(labels) == CLASSES + 1
    assert {"class 0", "class 999", OTHER} <= labels  # 999 is predicted often
    assert share("many", "class 999") == 0.5
    assert share("many", OTHER) == 0
    probabilities = np.zeros((2, 1000), np.float32)
    probabilities[0, 999] = probabilities[1, 998] = 1
    many.count(probabilities)
    metrics.write()
    for label in ("class 999", OTHER):
        wanted = {"model": "many", "class": label}
        assert REGISTRY.get_sample_value("labelcurve_predictions_total", wanted) == 1


def test_a_new_version_has_its_own_reference(manifest: Manifest) -> None:
    Predictions(named(manifest, "new", 4)).publish_reference()
    assert (share("new", "class 3"), below("new", "0.4")) == (0.5, 0)
    assert below("new", "0.5") == 0.75
    Predictions(named(manifest, "new", 3)).publish_reference()
    assert (share("new", "class 3"), share("new", "class 2")) == (0, 0.5)


@pytest.mark.parametrize("change", ["few", "none"])
def test_without_a_reference_nothing_is_compared(manifest: Manifest, change: str) -> None:
    Predictions(named(manifest, change, 3)).publish_reference()
    without = named(manifest, change, 3, n=100)
    if change == "none":
        without = without.model_copy(update={"predicted": None})
    Predictions(without).publish_reference()
    for found in (share(change, "class 0"), share(change, "class 2"), below(change, "0.5")):
        assert found is not None
        assert math.isnan(found)
