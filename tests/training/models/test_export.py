from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import ExportError
from labelcurve.serving.models.engine import BYTES_PER_PIXEL
from labelcurve.training.data.dataset import Data, Split
from labelcurve.training.models import export
from labelcurve.training.models.backbones import ConvNet, Network, ReferenceNet, build
from labelcurve.training.models.export import Served
from tests import models

NAMES = tuple(f"digit {i} – «{i}»" for i in range(10))
"""Characters outside ASCII must survive too."""


def network(backbone: str = "convnet", seed: int = 0) -> Network:
    """A network whose batch norm has seen digits, as after training."""
    torch.manual_seed(seed)
    net = ConvNet((16, 32, 64)) if backbone == "convnet" else ReferenceNet(8)
    return Network(net, net.dim, 10, torch.tensor([0.3, 0.4, 0.5]), torch.tensor([0.3, 0.2, 0.1]))


def trained(seed: int) -> Served:
    """One whose every weight has been trained: none is 0."""
    net = network(seed=seed)
    for name, tensor in net.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            torch.nn.init.uniform_(tensor)
    return Served(net, 1.7 + seed).eval()


@pytest.fixture(scope="module")
def served() -> Served:
    return Served(network(), 1.7).eval()


@pytest.fixture(scope="module")
def graph(served: Served) -> bytes:
    return export.to_onnx(served, 8, NAMES)


@pytest.fixture(scope="module")
def model(graph: bytes) -> onnx.ModelProto:
    return onnx.load(io.BytesIO(graph))


def some(digits: Data, n: int = 70) -> tuple[Split, list[bytes]]:
    rows = digits.train.take(np.arange(n))
    return rows, [rows.read(i) for i in range(n)]


def test_the_export_passes_the_gate(digits: Data, served: Served, graph: bytes) -> None:
    rows, files = some(digits)
    parity = export.check_parity(graph, served, rows.images, files, NAMES)
    assert parity.n_images == 70
    assert parity.batch_sizes == (1, 2, 7, 32)
    assert parity.max_abs_diff <= 1e-4
    assert parity.top1_agreement == 1.0


def test_the_reference_network_passes_the_gate_too(digits: Data) -> None:
    reference = Served(network("reference"), 0.8).eval()
    rows, files = some(digits)
    exported = export.to_onnx(reference, 8, NAMES)
    assert export.check_parity(exported, reference, rows.images, files, NAMES).n_images == 70


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_every_batch_size_runs_and_gives_both_outputs(
    served: Served, graph: bytes, batch: int
) -> None:
    images = np.random.default_rng(batch).integers(0, 256, (batch, 8, 8, 3), np.uint8)
    probabilities, embedding = export.session(graph).run(
        ["probabilities", "embedding"], {"images": images}
    )
    with torch.inference_mode():
        expected = served(torch.from_numpy(images))
    assert probabilities.dtype == embedding.dtype == np.float32
    assert probabilities.shape == (batch, 10)
    assert embedding.shape == (batch, 64)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert np.allclose(probabilities, expected[0].numpy(), atol=1e-4)
    assert np.allclose(embedding, expected[1].numpy(), atol=1e-3)


def test_the_batch_axis_alone_is_free(model: onnx.ModelProto) -> None:
    (images,) = model.graph.input
    shape = images.type.tensor_type.shape.dim
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert shape[0].dim_param
    assert [dim.dim_value for dim in shape[1:]] == [8, 8, 3]
    assert [output.name for output in model.graph.output] == ["probabilities", "embedding"]
    assert all(output.type.tensor_type.shape.dim[0].dim_param for output in model.graph.output)


def test_the_class_names_are_in_the_metadata(graph: bytes) -> None:
    metadata = export.session(graph).get_modelmeta().custom_metadata_map
    assert tuple(json.loads(metadata["class_names"])) == NAMES


def test_normalisation_and_temperature_are_inside(served: Served, graph: bytes) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    found = export.probabilities(export.session(graph), images)
    net = served.network
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    by_hand = (pixels - torch.tensor([0.3, 0.4, 0.5]).view(3, 1, 1)) / torch.tensor(
        [0.3, 0.2, 0.1]
    ).view(3, 1, 1)
    with torch.inference_mode():
        expected = torch.softmax(net(by_hand) / 1.7, dim=1).numpy()
        without = torch.softmax(net(by_hand), dim=1).numpy()
    assert np.allclose(found, expected, atol=1e-4)
    assert not np.allclose(found, without, atol=1e-3)


def test_the_weights_are_in_the_one_file(model: onnx.ModelProto) -> None:
    weights = model.graph.initializer
    assert sum(np.prod(w.dims) for w in weights) > 50_000
    assert all(w.data_location == onnx.TensorProto.DEFAULT for w in weights)
    assert not any(w.external_data for w in weights)


def strings(data: bytes) -> Iterator[str]:
    return (found.decode() for found in re.findall(rb"[\x20-\x7e]{4,}", data))


def test_the_graph_holds_no_path_and_no_trace_of_the_machine(graph: bytes) -> None:
    home, here = str(Path.home()), str(Path(__file__).parents[3])
    for text in strings(graph):
        assert ".py" not in text
        assert "site-packages" not in text
        assert here not in text
        assert not home.strip("/") or home not in text


def test_the_same_weights_give_the_same_bytes(graph: bytes) -> None:
    assert export.to_onnx(Served(network(), 1.7), 8, NAMES) == graph


def test_a_graph_that_was_traced_before_is_filled_to_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = trained(seed=2)
    alone = export.to_onnx(other, 8, NAMES)
    monkeypatch.setattr(export, "_traced", {})
    export.to_onnx(trained(seed=3), 8, NAMES)
    monkeypatch.setattr(export, "_trace", None)
    assert export.to_onnx(other, 8, NAMES) == alone


def test_weights_that_are_equal_are_kept_once_and_filled_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "_traced", {})
    twin, other, third = (trained(seed=seed) for seed in (2, 3, 4))
    for served, std in ((twin, 0.5), (third, 0.25)):
        served.network.mean.fill_(std)
        served.network.std.fill_(std)
    export.to_onnx(twin, 8, NAMES)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    for served in (other, third):  # of which the last is filled
        found = export.probabilities(export.session(export.to_onnx(served, 8, NAMES)), images)
        with torch.inference_mode():
            assert found == pytest.approx(served(torch.from_numpy(images))[0].numpy(), abs=1e-4)
    assert len(export._traced) == 2


def test_batch_norm_of_a_library_is_folded_so_that_its_graph_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "_traced", {})
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    for number in range(2):
        torch.manual_seed(number)
        net = build("torchvision:resnet18", images, len(NAMES)).eval()
        net.mean.copy_(torch.tensor([0.4, 0.5, 0.6]).view_as(net.mean))
        net.std.copy_(torch.tensor([0.2, 0.3, 0.25]).view_as(net.std))
        for name, tensor in net.backbone.state_dict().items():
            if name.endswith(("bn1.weight", "bn2.weight", "downsample.1.weight", "running_var")):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                torch.nn.init.uniform_(tensor, -0.1, 0.1)
        served = Served(net, 1.7)
        graph = export.to_onnx(served, 32, NAMES)
        found = export.probabilities(export.session(graph), images)
        with torch.inference_mode():
            assert found == pytest.approx(served(torch.from_numpy(images))[0].numpy(), abs=1e-4)
        monkeypatch.setattr(export, "_trace", None)  # not again
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())


def test_weights_that_the_exporter_leaves_out_are_traced_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Served(trained(seed=2).network, 1.0).eval()
    export.to_onnx(trained(seed=3), 8, NAMES)
    filled = export.to_onnx(plain, 8, NAMES)
    monkeypatch.setattr(export, "_traced", {})
    assert export.to_onnx(plain, 8, NAMES) == filled


def test_exporting_says_nothing(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    export.to_onnx(served, 8, NAMES)
    assert capfd.readouterr() == ("", "")


def test_a_network_that_was_altered_after_export_is_refused_by_how_much(
    digits: Data, served: Served, graph: bytes
) -> None:
    altered = Served(network(), 1.7).eval()
    with torch.no_grad():
        altered.network.classifier.bias[3] += 0.05
    rows, files = some(digits)
    found = export.probabilities(export.session(graph), rows.images)
    with torch.inference_mode():
        expected = altered(torch.from_numpy(rows.images))[0].numpy()
    apart = float(np.abs(found - expected).max())
    with pytest.raises(ExportError, match="Nothing was published") as error:
        export.check_parity(graph, altered, rows.images, files, NAMES)
    assert f"up to {apart:.1e}"[:9] in str(error.value)
    assert "(allowed 1e-04)" in str(error.value)
    assert "of 70 validation images" in str(error.value)


def test_another_top_1_is_refused_also_where_probabilities_are_close(
    digits: Data, graph: bytes
) -> None:
    flat = Served(network(), 5e3).eval()
    exported = export.to_onnx(flat, 8, NAMES)
    other = Served(network(seed=1), 5e3).eval()
    rows, files = some(digits)
    with pytest.raises(ExportError, match=r"top-1 agrees on \d+\.\d+% of 70") as error:
        export.check_parity(exported, other, rows.images, files, NAMES)
    apart = re.search(r"up to (\S+) apart", str(error.value))
    assert apart is not None
    assert float(apart[1]) < 1e-4
    assert exported != graph
    # Ten classes within the rounding of float32 have no top-1.
    tied, other = (Served(network(seed=seed), 1e7).eval() for seed in (0, 1))
    found = export.check_parity(export.to_onnx(tied, 8, NAMES), other, rows.images, files, NAMES)
    assert found.top1_agreement == 1.0
    assert found.max_abs_diff > 0


def test_a_network_of_nan_does_not_pass_the_gate(digits: Data) -> None:
    broken = network()
    with torch.no_grad():
        broken.classifier.bias[0] = torch.nan
    served = Served(broken, 1.0).eval()
    rows, files = some(digits)
    graph = export.to_onnx(served, 8, NAMES)
    with pytest.raises(ExportError, match="up to nan apart"):
        export.check_parity(graph, served, rows.images, files, NAMES)


def test_files_that_are_prepared_otherwise_than_in_training_are_refused(
    digits: Data, served: Served, graph: bytes
) -> None:
    rows, files = some(digits)
    shifted = np.roll(np.asarray(rows.images), 1, axis=2)
    assert np.array_equal(preprocess.prepare(files[0], 8), rows.images[0])
    with pytest.raises(ExportError, match="not the same function"):
        export.check_parity(graph, served, shifted, files, NAMES)


def test_other_class_names_are_refused(digits: Data, served: Served, graph: bytes) -> None:
    rows, files = some(digits)
    with pytest.raises(ExportError, match="the graph's class names are"):
        export.check_parity(graph, served, rows.images, files, tuple(reversed(NAMES)))


class Elsewhere:
    """A session that says it is on a GPU, and whose probabilities are off by `error`."""

    def __init__(self, graph: bytes, error: float) -> None:
        self.real, self.error = export.session(graph), np.float32(error)

    def get_providers(self) -> list[str]:
        return [export.GPU]

    def run(self, names: list[str], inputs: dict[str, Any]) -> list[Any]:
        found = self.real.run(names, inputs)[0]
        found[:, :2] += np.array([self.error, -self.error])
        return [found]


def test_with_a_gpu_the_gate_compares_on_it_too(
    digits: Data, served: Served, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, files = some(digits)
    monkeypatch.setattr(export, "gpu_session", lambda g: Elsewhere(g, 5e-5))
    parity = export.check_parity(graph, served, rows.images, files, NAMES, gpu=True)
    assert parity.providers == ("CPUExecutionProvider", "CUDAExecutionProvider")
    assert 4e-5 < parity.max_abs_diff < 1e-4
    # TF32 would be found: the fp32 of ONNX Runtime on a GPU by default.
    monkeypatch.setattr(export, "gpu_session", lambda g: Elsewhere(g, 5e-4))
    with pytest.raises(ExportError, match="on CPUExecutionProvider and CUDAExecutionProvider"):
        export.check_parity(graph, served, rows.images, files, NAMES, gpu=True)
    monkeypatch.setattr(export, "gpu_session", lambda g: None)
    parity = export.check_parity(graph, served, rows.images, files, NAMES, gpu=True)
    assert parity.providers == ("CPUExecutionProvider",)


def test_without_a_gpu_there_is_no_session_on_one(
    graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert export.gpu_session(graph) is None


@pytest.mark.parametrize("backbone", ["convnet", "reference"])
def test_no_node_needs_more_memory_than_the_service_reckons_with(backbone: str) -> None:
    model = onnx.load_from_string(export.to_onnx(Served(network(backbone), 1.0).eval(), 8, NAMES))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model)
    weights = {tensor.name for tensor in inferred.graph.initializer}
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    bytes_of = {
        v.name: 4 * int(np.prod([d.dim_value or 1 for d in v.type.tensor_type.shape.dim]))
        for v in values
    }
    most = max(
        sum(bytes_of.get(name, 0) for name in {*node.input, *node.output} - weights)
        for node in inferred.graph.node
    )
    # A third is kept for the workspace.
    assert 0 < most / 8**2 <= BYTES_PER_PIXEL * 2 / 3


def test_the_median_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    two_classes = models.graph(np.zeros((64, 2), np.float32), np.zeros(2, np.float32))
    took = [1.0] * export.WARM_UP + [0.002, 0.004, 0.003, 0.003, 9.0]
    monkeypatch.setattr("time.thread_time", clock(took).__next__)
    assert export.p50_ms(two_classes, images, timed=5) == 3.0


def clock(took: list[float]) -> Iterator[float]:
    """The time before and after each of these seconds."""
    now = 0.0
    for seconds in took:
        yield now
        now += seconds
        yield now
