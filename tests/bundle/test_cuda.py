from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labelcurve.bundle import cuda
from labelcurve.bundle.errors import DeviceError

STUB = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDriverGetVersion(int *version) { *version = 11040; return 0; }
"""


@pytest.fixture(scope="module")
def old_driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment with a libcuda that reports one GPU and CUDA 11.4,
    too old for every torch and ONNX Runtime that are allowed."""
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "stub.c"
    source.write_text(STUB)
    library = str(folder / "libcuda.so.1")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, str(source)], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return environment | {"LD_LIBRARY_PATH": str(folder)}


def run(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_the_driver_is_asked_for_its_gpus_and_its_version(old_driver: dict[str, str]) -> None:
    code = (
        "from labelcurve.bundle import cuda\n"
        "print(cuda.visible_gpus(), cuda.driver_version())\n"
        "cuda.check_driver('11.8', 'torch 2.7')\n"
        "cuda.check_driver(None, 'torch for the CPU')\n"
        "try:\n"
        "    cuda.check_driver('13.0', 'torch 2.15')\n"
        "except cuda.DeviceError as error:\n"
        "    print(error)\n"
    )
    assert run(code, old_driver).splitlines() == [
        "1 (11, 4)",
        "the NVIDIA driver supports CUDA 11.4, and torch 2.15 needs CUDA 13.0: update the driver "
        "to 580.65 or newer, or use --device cpu",
    ]


def test_hidden_gpus_are_none(old_driver: dict[str, str]) -> None:
    code = (
        "from labelcurve.bundle import cuda\n"
        "cuda.check_driver('13.0', 'torch')\n"
        "print(cuda.visible_gpus())\n"
    )
    for value in ("", "-1", " "):
        assert run(code, old_driver | {"CUDA_VISIBLE_DEVICES": value}) == "0\n"


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("from labelcurve.training.runtime.device import choose", "torch "),
        (
            "from labelcurve.serving.models.device import choose_device as choose",
            "onnxruntime-gpu ",
        ),
    ],
)
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_training_and_serving_refuse_a_driver_that_is_too_old(
    module: str, package: str, wanted: str, old_driver: dict[str, str]
) -> None:
    code = (
        f"{module}\n"
        "try:\n"
        f"    print(choose('{wanted}'))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    found = run(code, old_driver)
    assert "DeviceError the NVIDIA driver supports CUDA 11.4, and " + package in found, found
    assert re.search(r"update the driver to (580\.65|525\.60) or newer", found)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),  # older than all of them
        ((7, 5), True),
        ((8, 6), True),  # by the code for 8.0
        ((8, 9), True),
        ((9, 0), True),  # exactly 9.0a
        ((9, 1), False),  # code with a letter runs nowhere else
        ((10, 0), False),
    ],
)
def test_which_cards_have_code(capability: tuple[int, int], runs: bool) -> None:
    assert cuda.has_kernels(capability, ["sm_75", "sm_80", "sm_90a"]) is runs


def test_ptx_runs_on_every_later_card() -> None:
    assert cuda.has_kernels((12, 0), ["sm_80", "compute_90"])
    assert not cuda.has_kernels((8, 9), ["compute_90"])
    assert not cuda.has_kernels((9, 0), [])


def test_a_new_driver_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "driver_version", lambda: (13, 1))
    cuda.check_driver("13.0", "torch")
    monkeypatch.setattr(cuda, "driver_version", lambda: (12, 9))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cuda.check_driver("12.9", "torch")
    with pytest.raises(DeviceError, match=r"needs CUDA 13\.0: .* the packages for CUDA 12 \("):
        cuda.check_driver("13.0", "torch")


def test_several_processes_say_it_too(old_driver: dict[str, str], tmp_path: Path) -> None:
    environment = old_driver | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "labelcurve", "train"]
    command += ["--data", "digits", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: the NVIDIA driver supports CUDA 11.4, and torch " in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("message", "memory", "failed"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", False, True),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0", False, True),
        ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0", False, True),
        ("CUDA error: unspecified launch failure", False, True),
        ("CUDA failure 2: out of memory ; GPU=0", True, False),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", True, False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True, False),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True, False),
        ("Failed to allocate memory for requested buffer of size 1048576", True, False),
        ("Available memory of 5 is smaller than requested bytes of 9", True, False),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions", False, False),
    ],
)
def test_which_errors_are_of_memory_and_which_are_the_end_of_the_gpu(
    message: str, memory: bool, failed: bool
) -> None:
    error = RuntimeError(message)
    assert (cuda.out_of_memory(error), cuda.failed(error)) == (memory, failed)


def test_the_driver_names_its_gpus(tmp_path: Path) -> None:
    source = tmp_path / "stub.c"
    source.write_text(
        f"{STUB}\n#include <string.h>\n"
        "int cuDeviceGet(int *device, int i) { *device = i; return 0; }\n"
        'int cuDeviceGetName(char *name, int n, int i) { strncpy(name, "NVIDIA H200", n);'
        " return 0; }\n"
    )
    library = str(tmp_path / "libcuda.so.1")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, str(source)], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    code = "from labelcurve.bundle import cuda; print(cuda.names())"
    found = environment | {"LD_LIBRARY_PATH": str(tmp_path)}
    assert run(code, found) == "['NVIDIA H200']\n"
    assert run(code, found | {"CUDA_VISIBLE_DEVICES": ""}) == "[]\n"
