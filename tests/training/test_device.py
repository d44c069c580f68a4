from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from bundle.machine import cpu_name
from bundle.manifest import Choice
from training import device

HAS_GPU = torch.cuda.is_available()


def test_without_a_gpu_cuda_is_refused_and_auto_says_why_it_is_the_cpu() -> None:
    # In a process of its own, which sees no GPU even where there is one.
    code = (
        "from training import device\n"
        "print(device.choose('auto').choice)\n"
        "try:\n"
        "    device.choose('cuda')\n"
        "except device.DeviceError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    auto, refused = done.stdout.splitlines()
    assert "value='cpu' reason='torch sees no NVIDIA GPU; " in auto
    assert refused.startswith("--device cuda: torch sees no NVIDIA GPU")
    assert refused.endswith("Allowed here: --device cpu, or auto")


@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU")
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_is_taken_and_named(wanted: str) -> None:
    chosen = device.choose("cuda" if wanted == "cuda" else "auto")
    assert chosen.device.type == chosen.choice.value == "cuda"
    assert torch.cuda.get_device_name() in chosen.choice.reason
    assert torch.cuda.get_device_name() in device.hardware(chosen)


def test_the_cpu_by_name_says_that_it_was_asked_for() -> None:
    chosen = device.choose("cpu")
    assert chosen.device.type == "cpu"
    assert chosen.choice.value == "cpu"
    assert "asked for" in chosen.choice.reason
    assert f"{torch.get_num_threads()} threads" in chosen.choice.reason


def test_the_precision_is_the_one_that_autocast_computes_in() -> None:
    chosen = device.choose("cpu")
    expected = {"bf16": torch.bfloat16, "fp32": torch.float32}[chosen.precision.value]
    assert chosen.dtype == expected
    assert "processor has" in chosen.precision.reason or "no faster" in chosen.precision.reason
    with chosen.autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == expected


@pytest.mark.parametrize(
    ("flags", "pays", "precision", "reason"),
    [
        ({"avx2"}, True, "fp32", "the processor has no bf16 arithmetic"),
        ({"avx512_bf16"}, False, "fp32", "avx512_bf16 is no faster here"),
        ({"avx512_bf16"}, True, "bf16", "the processor has avx512_bf16"),
        ({"amx_bf16", "avx512_bf16"}, True, "bf16", "the processor has amx_bf16"),
    ],
)
def test_bf16_is_taken_where_it_is_faster(
    flags: set[str], pays: bool, precision: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: flags)
    monkeypatch.setattr(device, "bf16_pays", lambda: pays)
    assert device.choose("cpu").precision == Choice(value=precision, reason=reason)


def test_the_measure_of_bf16_says_the_same_again_and_moves_no_seed() -> None:
    torch.manual_seed(1)
    first = torch.rand(1)
    torch.manual_seed(1)
    found = device.bf16_pays.__wrapped__()
    assert found in (True, False)
    assert torch.equal(torch.rand(1), first)


def test_the_reference_device_computes_in_fp32() -> None:
    with device.FP32_CPU.autocast():
        product = torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    assert product.dtype == torch.float32


def test_the_hardware_names_the_processor() -> None:
    assert cpu_name()
    assert cpu_name() in device.hardware(device.FP32_CPU)
