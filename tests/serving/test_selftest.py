from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labelcurve.bundle import store
from labelcurve.bundle.errors import BundleError, DeviceError
from labelcurve.serving import selftest
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.engine import Engine
from tests.models import publish_digits
from tests.serving.conftest import SERVE

CPU = Device("cpu", "a test")


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*SERVE, "--self-test", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_line_for_each_model_says_what_ran_where(digits_models: Path) -> None:
    done = run("--models", digits_models, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head == "self-test: serve runs on cpu (asked for with --device cpu)"
    assert [re.split("[ @]", line)[1] for line in lines] == ["digits-10", "digits-50", "digits-100"]
    for line in lines:
        assert re.search(r"[1-9]\d* nodes on CPUExecutionProvider, ", line), line
        assert re.search(r"within \de[-+]\d\d of the CPU's at every batch size", line), line


def test_a_device_that_is_not_there(digits_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run("--models", digits_models, "--device", "cuda")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --device cuda: no NVIDIA GPU is visible")


def test_the_profile_names_the_operators(tmp_path: Path) -> None:
    publish_digits(tmp_path)
    (bundle,) = store.read_all(tmp_path)
    placed = selftest.placement(bundle, CPU, 1)
    assert {provider for _, provider in placed} == {"CPUExecutionProvider"}
    assert placed["Softmax", "CPUExecutionProvider"] == 1
    assert {operator for operator, _ in placed} & selftest.HEAVY


def test_a_model_that_ran_elsewhere_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_digits(tmp_path)
    (bundle,) = store.read_all(tmp_path)
    placed = selftest.placement(bundle, CPU, 1)
    moved = type(placed)(
        {(operator, "ElsewhereProvider"): n for (operator, _), n in placed.items()}
    )
    monkeypatch.setattr(selftest, "placement", lambda *_: moved)
    with pytest.raises(DeviceError, match=r"not everything runs on cpu: 1 .* on ElsewhereProvider"):
        selftest.run([bundle], CPU, 1)


def test_answers_that_are_no_probabilities_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_digits(tmp_path)
    (bundle,) = store.read_all(tmp_path)
    monkeypatch.setattr(
        "labelcurve.serving.models.engine.Engine.run",
        lambda self, images: np.zeros((len(images), 10), np.float32),
    )
    with pytest.raises(BundleError, match=r"add up to 0\.0000"):
        selftest.run([bundle], CPU, 1)


def test_a_device_that_gives_other_numbers_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_digits(tmp_path)
    (bundle,) = store.read_all(tmp_path)
    real = Engine.run

    def run(self: Engine, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        found = real(self, images)
        if len(images) == 7:  # at one batch size alone
            found[:, :2] += np.array([3e-4, -3e-4], np.float32)
        return found

    monkeypatch.setattr(Engine, "run", run)
    with pytest.raises(
        DeviceError, match=r"up to 3\.0e-04 from those of the same graph on the CPU"
    ):
        selftest.run([bundle], CPU, 1)
