from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from labelcurve.bundle.errors import DeviceError
from labelcurve.training.jobs import selftest
from labelcurve.training.models.backbones import build
from labelcurve.training.runtime import device
from tests.training.conftest import train


def test_it_says_where_a_step_ran_and_reads_and_writes_nothing(tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    done = train(out, cache, "--self-test", "--device", "cpu", "--data", "no/such/folder")
    assert done.code == 0, done.stderr
    assert not out.exists()
    line, _ = done.stdout.splitlines()
    assert line.startswith("self-test: train runs on cpu (asked for; ")
    found = done.document["self_test"]
    assert found["device"] == "cpu"
    assert found["torch"] == torch.__version__
    assert found["step_milliseconds"] > 0


def test_the_time_of_a_step_is_in_milliseconds() -> None:
    images = np.zeros((selftest.BATCH, 32, 32, 3), np.uint8)
    network = build("convnet", images, selftest.N_CLASSES)
    start = time.perf_counter()
    _, milliseconds, _ = selftest._step(network, images, device.FP32_CPU)
    whole = (time.perf_counter() - start) * 1000
    assert whole / 10 < milliseconds <= whole


@pytest.mark.skipif(torch.cuda.is_available(), reason="an NVIDIA GPU is here")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match=r"^--device cuda: torch sees no NVIDIA GPU"):
        selftest.run("cuda")


@pytest.mark.usefixtures("narrow")
def test_wrong_results_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    bf16 = device.Device(
        torch.device("cpu"),
        torch.bfloat16,
        device.FP32_CPU.choice,
        device.FP32_CPU.precision,
    )
    monkeypatch.setattr(selftest, "choose", lambda _: bf16)
    assert selftest.run("cpu")["self_test"]["relative_difference"] < 0.05
    monkeypatch.setitem(selftest.TOLERANCE, torch.bfloat16, 0.0)
    with pytest.raises(DeviceError, match="results from there cannot be trusted"):
        selftest.run("cpu")
    monkeypatch.setitem(selftest.TOLERANCE, torch.bfloat16, 1.0)
    for loss, places, message in (
        (float("nan"), {"cpu"}, "loss on cpu in fp32 is nan, in fp32 on the CPU"),
        (1.0, {"cuda"}, r"gradients on \{'cuda'\}, expected on cpu"),
    ):
        monkeypatch.setattr(selftest, "_step", lambda *_, found=(loss, 1.0, places): found)
        with pytest.raises(DeviceError, match=message):
            selftest.run("cpu")
