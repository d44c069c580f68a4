from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnxruntime
import pytest

from labelcurve.bundle import cuda
from labelcurve.bundle.errors import DeviceError
from labelcurve.serving.models.device import PROVIDERS, choose_device


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("_no_gpu")
def test_auto_says_why_it_is_the_cpu() -> None:
    device = choose_device("auto")
    assert (device.kind, device.reason) == ("cpu", "no NVIDIA GPU is visible")


@pytest.mark.usefixtures("_no_gpu")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="no NVIDIA GPU is visible; use --device cpu"):
        choose_device("cuda")


def test_the_cpu_can_be_asked_for() -> None:
    assert choose_device("cpu").reason == "asked for with --device cpu"


def test_two_packages_of_onnx_runtime_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceError, match="uninstall both"):
        choose_device("cpu")


@pytest.mark.parametrize(
    ("wanted", "reason"), [("auto", "2 NVIDIA GPU visible"), ("cuda", "asked for")]
)
def test_a_visible_gpu_is_used_and_refused_without_its_package(
    wanted: Literal["auto", "cuda"], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(cuda, "visible_gpus", lambda: 2)
    monkeypatch.setattr(cuda, "check_driver", lambda needed, package: checked.append(package))
    there = [PROVIDERS["cuda"], PROVIDERS["cpu"]]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    device = choose_device(wanted)
    assert (device.kind, device.reason) == ("cuda", reason)
    assert checked == [f"onnxruntime-gpu {onnxruntime.__version__}"]
    there.remove(PROVIDERS["cuda"])
    with pytest.raises(DeviceError, match="has only CPUExecutionProvider: install onnxruntime-gpu"):
        choose_device(wanted)
