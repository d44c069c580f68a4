from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import accuracy, latency, provenance, report, server
from benchmarks.record import Dataset, Report
from benchmarks.server import Server
from bundle import store
from bundle.store import Bundle
from tests.models import SIZE
from training import data as datasets
from training.data import Data


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
    return accuracy.predict(bundles, data.test, say=lambda _: None)


@pytest.fixture(scope="session")
def measured(
    bundles: list[Bundle], data: Data, predictions: dict[str, accuracy.Predictions]
) -> Report:
    """A report without load."""
    times = latency.measure(bundles, 0, batches=(1, 4), say=lambda _: None)
    models = [
        report.model(b, accuracy.score(b, predictions[b.name], data), times[b.name], None)
        for b in bundles
    ]
    return Report(
        dataset=Dataset(
            name=data.name,
            hash=data.hash,
            n_test=len(data.test.labels),
            class_names=data.class_names,
        ),
        models=tuple(models),
        warnings=("a warning",),
        provenance=provenance.here(["bench", "--no-load"]),
    )


@pytest.fixture(scope="session")
def service(digits_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`serve` over `digits_models`."""
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    with server.started(digits_models, log, say=lambda _: None) as running:
        yield running
