from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from labelcurve.bundle import store
from labelcurve.serving.models import model as module
from labelcurve.serving.models.model import Model, open_model
from labelcurve.serving.models.verdict import Wish
from tests.serving.models.test_engine import CPU


@pytest.fixture
def model(digits_models: Path) -> Iterator[Model]:
    model = open_model(store.read(digits_models, "digits-50"), CPU, 1, 8)
    yield model
    model.batcher.close()


def test_it_is_described_by_its_manifest_and_its_session(model: Model) -> None:
    manifest = model.bundle.manifest
    assert manifest.test is not None
    assert model.describe() == {
        "name": "digits-50",
        "version": model.bundle.path.name,
        "fraction": 0.5,
        "n_labels_train": 718,
        "n_labels_val": 79,
        "dataset": "digits",
        "class_names": list("0123456789"),
        "input_size": 8,
        "precision": "fp32",
        "test": manifest.test.model_dump(),
        "measured": None,
        "provider": "CPUExecutionProvider",
        "batch_sizes": list(range(1, 17)),
    }
    assert model.headers == (
        (b"x-model-name", b"digits-50"),
        (b"x-model-version", model.version.encode()),
    )
    assert model.heads[3] == '{"label": "3", "score": '
    # The session has its own copy of the graph.
    assert (model.bundle.graph, model.bundle.variants) == (b"", {})


def test_the_rules_of_recent_wishes_alone_are_kept(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_RULES", 2)
    first = model.rule(Wish(accept=0.9))
    assert model.rule(Wish(accept=0.9)) is first
    assert len({model.rule(Wish(accept=wish)).accept for wish in (0.8, 0.85, 0.9)}) > 1
    assert len(model.rules) <= 2


def test_it_ends_when_it_is_retired_and_nobody_holds_it(model: Model) -> None:
    thread = model.batcher._thread
    model.hold()
    model.release()
    model.hold()
    model.hold()
    model.retire()
    model.release()
    assert model.batcher._batches.empty()  # it goes on
    model.release()
    thread.join(10)
    assert not thread.is_alive()
