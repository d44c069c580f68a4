from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from labelcurve.benchmarks import job
from labelcurve.benchmarks.harness import null_model as null
from labelcurve.benchmarks.harness import provenance, server, statistics
from labelcurve.benchmarks.harness.server import Server
from labelcurve.benchmarks.load import latency
from labelcurve.benchmarks.quality import accuracy, gallery, learning_curve, robustness
from labelcurve.benchmarks.quality.gallery import Gallery
from labelcurve.benchmarks.record import Dataset, Null, Report
from labelcurve.bundle import store
from labelcurve.bundle.store import Bundle
from labelcurve.training.data import dataset as datasets
from labelcurve.training.data.dataset import Data
from tests.benchmarks.samples import LOAD, SATURATION
from tests.models import SIZE


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def data(cache: Path) -> Data:
    return datasets.load("digits", size=SIZE, cache=cache, say=lambda _: None)


@pytest.fixture(scope="session")
def bundles(digits_models: Path) -> list[Bundle]:
    return store.read_all(digits_models)


@pytest.fixture(scope="session")
def predictions(bundles: list[Bundle], data: Data) -> dict[str, accuracy.Predictions]:
    return accuracy.predict(bundles, data, say=lambda _: None)


@pytest.fixture(scope="session")
def nothing(bundles: list[Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The null model."""
    return null.publish(tmp_path_factory.mktemp("null"), bundles[-1])


@pytest.fixture(scope="session")
def measured(
    bundles: list[Bundle],
    data: Data,
    predictions: dict[str, accuracy.Predictions],
    nothing: Bundle,
) -> Report:
    """A report without load."""
    times = latency.measure([*bundles, nothing], 0, batches=(1, 4), say=lambda _: None)
    corrupted = robustness.measure(bundles, data, 40, say=lambda _: None)
    models = [
        job.describe(
            b,
            accuracy.score(b, predictions[b.name], data),
            times[b.name],
            robustness=corrupted[b.name],
        )
        for b in bundles
    ]
    right = {name: said.right(data.test.labels) for name, said in predictions.items()}
    return Report(
        dataset=Dataset(
            name=data.name,
            hash=data.hash,
            n_test=len(data.test.labels),
            class_names=data.class_names,
        ),
        models=tuple(models),
        warnings=("a warning",),
        notes=("a note",),
        curves=learning_curve.curves(models, right),
        comparisons=statistics.comparisons(models, right),
        null=Null(latency=times[null.NAME], load=None),
        price_per_hour=0.5,
        provenance=provenance.here(["bench", "--no-load"]),
    )


@pytest.fixture(scope="session")
def galleries(
    bundles: list[Bundle], data: Data, predictions: dict[str, accuracy.Predictions]
) -> tuple[Gallery, ...]:
    return gallery.galleries(bundles, data, predictions)


@pytest.fixture(scope="session")
def service(digits_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`serve` over `digits_models`."""
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    with server.started(digits_models, log, say=lambda _: None) as running:
        yield running


@pytest.fixture(scope="session")
def loaded(measured: Report) -> Report:
    models = tuple(model.model_copy(update={"load": LOAD}) for model in measured.models)
    assert measured.null is not None
    null = Null(latency=measured.null.latency, load=LOAD, saturation=SATURATION)
    return measured.model_copy(update={"models": models, "saturation": SATURATION, "null": null})
