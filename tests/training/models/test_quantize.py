from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from labelcurve.bundle.errors import ExportError
from labelcurve.bundle.manifest import Gain, Metrics
from labelcurve.training.data.dataset import Data
from labelcurve.training.models import export, quantize
from labelcurve.training.models.backbones import ReferenceNet
from labelcurve.training.models.export import Served
from tests.training.models.test_export import NAMES, network


@pytest.fixture(scope="module")
def graph() -> bytes:
    torch.manual_seed(0)
    return export.to_onnx(Served(network(), 1.7).eval(), 8, NAMES)


@pytest.fixture(scope="module")
def int8(digits: Data, graph: bytes) -> bytes:
    return quantize.int8(graph, np.asarray(digits.train.images[:100]))


def test_int8_is_static_unsigned_and_per_channel_with_7_bit_weights(int8: bytes) -> None:
    model = onnx.load_from_string(int8)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = [node.op_type for node in model.graph.node]
    assert "DynamicQuantizeLinear" not in nodes
    activations = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert activations
    assert all(values[node.input[2]].dtype == np.uint8 for node in activations)
    weights = [v for v in values.values() if v.dtype == np.int8 and v.ndim == 4]
    assert len(weights) == nodes.count("Conv") - 1  # the first layer stays in fp32
    assert all(np.abs(weight).max() <= 64 for weight in weights)
    per_channel = [v for n, v in values.items() if n.endswith("_scale") and v.ndim == 1]
    assert any(len(scale) > 1 for scale in per_channel)


def test_int8_gives_nearly_the_same_probabilities(digits: Data, graph: bytes, int8: bytes) -> None:
    images = np.asarray(digits.train.images[100:200])
    expected = export.probabilities(export.session(graph), images)
    found = export.probabilities(export.session(int8), images)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.1
    assert not np.array_equal(found, expected)


def test_the_same_images_give_the_same_bytes(digits: Data, graph: bytes, int8: bytes) -> None:
    assert quantize.int8(graph, np.asarray(digits.train.images[:100])) == int8


def test_int8_of_the_reference_network(digits: Data) -> None:
    torch.manual_seed(0)
    served = Served(network("reference"), 1.0).eval()
    images = np.asarray(digits.train.images[:100])
    graph = export.to_onnx(served, 8, NAMES)
    found = quantize.int8(graph, images)
    assert isinstance(served.network.backbone, ReferenceNet)
    assert len(found) < 0.35 * len(graph)
    expected = export.probabilities(export.session(graph), images)
    assert np.abs(export.probabilities(export.session(found), images) - expected).max() < 0.1


def test_fp16_has_half_the_size_and_the_same_input_and_outputs(digits: Data, graph: bytes) -> None:
    half = quantize.fp16(graph)
    assert len(half) < 0.7 * len(graph)
    images = np.asarray(digits.train.images[:50])
    sessions = [export.session(each) for each in (graph, half)]
    fp32, fp16 = ([(o.name, o.type) for o in s.get_outputs()] for s in sessions)
    assert fp32 == fp16
    expected, found = (export.probabilities(session, images) for session in sessions)
    assert 0 < np.abs(found - expected).max() < 0.02


def metrics(accuracy: float) -> Metrics:
    return Metrics(
        n=1000, accuracy=accuracy, f1=accuracy, precision=accuracy, recall=accuracy, loss=1.0
    )


def test_the_gate_allows_three_tenths_of_a_point() -> None:
    quantize.check("int8", metrics(0.897), metrics(0.9), 0.0, 1.0)
    quantize.check("int8", metrics(0.95), metrics(0.9), 0.0, 1.0)
    with pytest.raises(ExportError, match=r"89.60% where fp32 has 90.00% on 1,000 .* 0.3 points"):
        quantize.check("int8", metrics(0.896), metrics(0.9), 0.0, 1.0)
    with pytest.raises(ExportError, match="fp16 gives probabilities that are not numbers on 1,000"):
        quantize.check(
            "fp16", metrics(0.9).model_copy(update={"loss": np.nan}), metrics(0.9), 0.0, 1.0
        )


def test_the_gate_allows_what_may_be_chance() -> None:
    quantize.check("int8", metrics(0.88), metrics(0.9), 0.01, 1.0)
    with pytest.raises(ExportError, match=r"at most 1.8 points may be lost"):
        quantize.check("int8", metrics(0.88), metrics(0.9), 0.009, 1.0)


def test_the_gate_refuses_other_classes_where_the_labels_are_too_few_to_tell() -> None:
    # Of 12 labelled images two fewer are right, which may be chance.
    few, fp32 = (metrics(right / 12).model_copy(update={"n": 12}) for right in (7, 9))
    quantize.check("int8", few, fp32, 0.108, 0.95)
    with pytest.raises(ExportError, match=r"only 84.85% of the held-out images .* at least 95%"):
        quantize.check("int8", few, fp32, 0.108, 0.8485)


class Session:
    """Takes its own time, by a clock of the test's; the first two runs are slow."""

    def __init__(self, clock: list[float], seconds: Iterable[float]) -> None:
        self.clock, self.seconds = clock, iter(seconds)

    def run(self, names: list[str], given: dict[str, NDArray[np.uint8]]) -> None:
        assert names == ["probabilities"]
        assert len(given["images"]) == 8
        self.clock[0] += next(self.seconds)


def test_the_gain_is_how_much_faster_the_variant_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = [0.0], quantize.TURNS
    half = turns // 2
    sessions = {
        b"int8": Session(clock, [90, 90, *[2.0] * (half + 1), *[4.0] * (turns - half - 1)]),
        b"fp32": Session(clock, [9, 9, *[4.0] * (turns - half - 1), *[16.0] * (half + 1)]),
    }
    monkeypatch.setattr(quantize, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(export, "session", lambda graph, threads: sessions[graph])
    found = quantize.gain(b"int8", b"fp32", np.zeros((20, 8, 8, 3), np.uint8), "a test")
    assert found == Gain(
        images_per_s=8 / 2,
        images_per_s_fp32=8 / 16,
        ratio=4.0,  # of most turns, not of the medians
        batch=8,
        turns=turns,
        hardware="a test",
    )


def test_int8_that_gains_nothing_is_refused(digits: Data, graph: bytes) -> None:
    images = np.asarray(digits.train.images[:8])
    found = quantize.gain(graph, graph, images, "a test")
    assert isinstance(found, Gain)
    assert found.images_per_s > 0
    slower = found.model_copy(update={"ratio": 1.0})
    with pytest.raises(ExportError, match=r"1.00 times fp32's images/s on a test"):
        quantize.check_gain(slower)
    quantize.check_gain(found.model_copy(update={"ratio": 2.0}))
