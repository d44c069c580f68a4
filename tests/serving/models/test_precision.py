from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelcurve.bundle import store
from labelcurve.bundle.errors import BundleError
from labelcurve.bundle.manifest import Variant
from labelcurve.bundle.store import Bundle
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.model import open_model
from labelcurve.serving.models.precision import choose
from tests.serving.models.test_engine import CPU, digits

CUDA = Device("cuda", "a test")


@pytest.fixture
def bundle(digits_models: Path) -> Bundle:
    """digits-100 with a variant that is another model, to show which one answers."""
    found = store.read(digits_models, "digits-100")
    graph = store.read(digits_models, "digits-10").graph
    test = found.manifest.val.model_copy(update={"accuracy": 0.123})
    variant = Variant(
        precision="int8",
        graph_hash=hashlib.sha256(graph).hexdigest(),
        n_calibration=1,
        val=found.manifest.val,
        test=test,
        n_compared=1,
        agreement=1.0,
    )
    manifest = found.manifest.model_copy(update={"variants": (variant,)})
    return replace(found, manifest=manifest, variants={"int8": graph})


def test_fp32_unless_asked_otherwise(bundle: Bundle) -> None:
    assert choose(bundle, CPU, "fp32") == ("fp32", bundle.graph)
    assert choose(bundle, CPU, "int8") == ("int8", bundle.variants["int8"])
    assert choose(bundle, CPU, "auto") == ("int8", bundle.variants["int8"])
    assert choose(bundle, CUDA, "auto") == ("fp32", bundle.graph)


def test_what_a_bundle_lacks_is_refused_with_what_adds_it(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="digits-100 has no int8 graph: `labelcurve quantize"):
        choose(replace(bundle, variants={}), CPU, "int8")
    assert choose(replace(bundle, variants={}), CPU, "auto")[0] == "fp32"


def test_a_precision_of_the_other_device_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="--precision fp16 is not for the CPU"):
        choose(bundle, CPU, "fp16")
    with pytest.raises(BundleError, match="--precision int8 is not for the CUDA"):
        choose(bundle, CUDA, "int8")


def test_a_model_says_its_precision_and_that_ones_accuracy(
    bundle: Bundle, digits_models: Path
) -> None:
    model = open_model(bundle, CPU, 1, 8, "auto")
    fp32 = open_model(bundle, CPU, 1, 8)
    try:
        assert model.describe()["precision"] == "int8"
        assert model.describe()["test"]["accuracy"] == 0.123
        assert fp32.describe()["precision"] == "fp32"
        image = digits(1)
        assert not np.allclose(model.engine.run(image), fp32.engine.run(image))
    finally:
        model.retire()
        fp32.retire()
