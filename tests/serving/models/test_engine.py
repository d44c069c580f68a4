from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from labelcurve.bundle import cuda, preprocess, store
from labelcurve.bundle.errors import BundleError, DeviceError
from labelcurve.serving.errors import DeviceLost
from labelcurve.serving.models import engine as engines
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.engine import Engine, batch_sizes
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
    probabilities, embeddings = engine.embed(images)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    scaled = np.stack([image[:, :, 0].ravel() for image in images]) / np.float32(255)
    np.testing.assert_array_equal(embeddings, scaled)


def test_the_real_provider_is_reported(digits_models: Path) -> None:
    engine = open_digits(digits_models)
    engine.warm()
    assert engine.provider == "CPUExecutionProvider"


def test_a_session_has_the_threads_it_was_given_and_they_do_not_spin(digits_models: Path) -> None:
    graph = store.read(digits_models, "digits-10").graph
    options = engines.open_session(graph, CPU, 3).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.use_env_allocators") == "1"


def test_a_session_that_is_not_on_the_gpu_is_refused(digits_models: Path) -> None:
    device = Device("cuda", "a test")
    if cuda.visible_gpus():
        assert open_digits(digits_models, device).provider == "CUDAExecutionProvider"
    else:
        with pytest.raises(
            DeviceError, match="CUDAExecutionProvider was requested, CPUExecutionProvider is used"
        ):
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


GPU = Device("cuda", "a test")

LOST = "CUDA failure 700: an illegal memory access was encountered ; GPU=0"


class StandIn:
    """A session that says it is on a GPU and computes on the CPU."""

    made: ClassVar[list[StandIn]] = []
    error: ClassVar[tuple[int, str] | None] = None
    """From which batch size on a run fails, and how."""

    def __init__(self, graph: bytes, options: Any, providers: list[Any]) -> None:
        self.providers = providers
        self.real = REAL(graph, options, providers=["CPUExecutionProvider"])
        self.sizes: list[int] = []
        StandIn.made.append(self)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self) -> Any:
        return self.real.io_binding()

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def run_with_iobinding(self, binding: Any) -> None:
        self.real.run_with_iobinding(binding)
        n = binding.get_outputs()[0].shape()[0]
        self.sizes.append(n)
        if self.error and n >= self.error[0]:
            raise RuntimeError(self.error[1])


REAL = onnxruntime.InferenceSession


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """A GPU as far as the engine can tell."""
    value = onnxruntime.OrtValue
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(StandIn, "error", None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", StandIn)
    monkeypatch.setattr(
        onnxruntime,
        "OrtValue",
        type(
            "Value",
            (),
            {"ortvalue_from_numpy": staticmethod(lambda a, *_: value.ortvalue_from_numpy(a))},
        ),
    )
    return StandIn


def test_on_a_gpu_no_session_sees_two_batch_sizes(gpu: type[StandIn], digits_models: Path) -> None:
    engine = open_digits(digits_models, GPU)
    engine.warm()
    images = digits(9)
    alone = np.concatenate([engine.run([image]) for image in images])
    for n in (9, 1, 4, 9, 2):
        np.testing.assert_allclose(engine.run(images[:n]), alone[:n], atol=1e-6)
    assert len(gpu.made) == len(engine.batch_sizes) == 7
    assert [set(session.sizes) for session in gpu.made] == [{n} for n in engine.batch_sizes]
    options = {
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": str(2 * 2**30),
        "use_tf32": "0",
    }
    assert [session.providers for session in gpu.made] == [
        [("CUDAExecutionProvider", options)] for _ in engine.batch_sizes
    ]


def test_a_gpu_that_failed_is_told_from_a_batch_that_failed(
    gpu: type[StandIn], digits_models: Path
) -> None:
    engine = open_digits(digits_models, GPU)
    gpu.error = (1, LOST)
    with pytest.raises(DeviceLost, match="the GPU failed: CUDA failure 700") as found:
        engine.run(digits(1))
    assert isinstance(found.value, DeviceError)
    assert found.value.status == 503
    gpu.error = (1, "INVALID_ARGUMENT")
    with pytest.raises(RuntimeError, match="INVALID_ARGUMENT"):
        engine.run(digits(1))


def test_sizes_for_which_the_memory_is_too_small_are_given_up(
    gpu: type[StandIn], digits_models: Path
) -> None:
    engine = open_digits(digits_models, GPU)
    gpu.error = (16, "Failed to allocate memory for requested buffer of size 9")
    engine.warm()
    assert engine.batch_sizes == (1, 2, 4, 8)
    assert engine.run(digits(8)).shape == (8, 10)
    gpu.error = (1, "CUDA failure 2: out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.warm()


def test_batch_sizes_fit_into_the_memory_of_a_session() -> None:
    assert batch_sizes("cpu", 320) == engines.BATCH_SIZES["cpu"]
    assert batch_sizes("cuda", 32) == engines.BATCH_SIZES["cuda"]
    assert batch_sizes("cuda", 224)[-1] == 32
    assert batch_sizes("cuda", 320)[-1] == 16
    assert batch_sizes("cuda", 5000) == (1,)
    for size in (64, 224, 320, 512):
        assert batch_sizes("cuda", size)[-1] * size**2 * engines.BYTES_PER_PIXEL <= engines.MEMORY
