from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bundle import preprocess, store
from bundle.errors import BundleError, DeviceError
from serving.device import Device, visible_gpus
from serving.engine import Engine
from tests.models import SIZE, digit_label, digit_png

CPU = Device("cpu", "a test")


def open_digits(models: Path, device: Device = CPU, n_classes: int = 10) -> Engine:
    graph = store.read(models, "digits-100").graph
    return Engine(graph, device, 1, size=SIZE, n_classes=n_classes, name="digits-100")


def digits(n: int) -> list[NDArray[np.uint8]]:
    return [preprocess.prepare(digit_png(i), SIZE) for i in range(n)]


def test_every_batch_size_gives_what_one_image_alone_gives(digits_models: Path) -> None:
    engine = open_digits(digits_models)
    images = digits(engine.batch_sizes[-1])
    alone = np.concatenate([engine.run([image]) for image in images])
    assert alone.dtype == np.float32
    labels = np.array([digit_label(i) for i in range(len(images))])
    assert np.mean(alone.argmax(axis=1) == labels) > 0.8
    for n in range(1, len(images) + 1):
        np.testing.assert_allclose(engine.run(images[:n]), alone[:n], atol=1e-6)


def test_a_batch_is_padded_to_the_next_size(digits_models: Path) -> None:
    engine = open_digits(digits_models)
    images = digits(3)
    expected = engine.run(images)
    engine.batch_sizes = (1, 8)
    np.testing.assert_allclose(engine.run(images), expected, atol=1e-6)


def test_the_real_provider_is_reported(digits_models: Path) -> None:
    engine = open_digits(digits_models)
    engine.warm()
    assert engine.provider == "CPUExecutionProvider"


def test_a_session_that_is_not_on_the_gpu_is_refused(digits_models: Path) -> None:
    device = Device("cuda", "a test")
    if visible_gpus():
        assert open_digits(digits_models, device).provider == "CUDAExecutionProvider"
    else:
        with pytest.raises(DeviceError, match="asked for CUDAExecutionProvider and got CPU"):
            open_digits(digits_models, device)


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(BundleError, match="broken: ONNX Runtime cannot load the graph"):
        Engine(b"no onnx", CPU, 1, size=8, n_classes=2, name="broken")


def test_a_graph_that_differs_from_its_manifest_is_refused(digits_models: Path) -> None:
    with pytest.raises(BundleError, match="the manifest says probabilities float32"):
        open_digits(digits_models, n_classes=11)
    graph = store.read(digits_models, "digits-100").graph
    with pytest.raises(BundleError, match="the manifest says images uint8"):
        Engine(graph, CPU, 1, size=9, n_classes=10, name="digits-100")
