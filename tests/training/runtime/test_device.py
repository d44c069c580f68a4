from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from labelcurve.bundle.machine import cpu_name
from labelcurve.bundle.manifest import Choice
from labelcurve.training.runtime import device

HAS_GPU = torch.cuda.is_available()


def test_without_a_gpu_cuda_is_refused_and_auto_says_why_it_is_the_cpu() -> None:
    # In a separate process, which sees no GPU even if there is one.
    code = (
        "from labelcurve.training.runtime import device\n"
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


def test_large_tensors_lie_in_large_pages_unless_the_switch_of_torch_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    device.choose("cpu", "fp32")
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    device.choose("cpu", "fp32")
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


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


def test_depthwise_convolutions_are_trained_in_fp32_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: {"amx_bf16"})
    monkeypatch.setattr(device, "bf16_pays", lambda: True)
    assert device.choose("cpu").precision.value == "bf16"
    chosen = device.choose("cpu", depthwise=True)
    assert chosen.precision.value == "fp32"
    assert "depthwise" in chosen.precision.reason
    assert chosen.dtype == torch.float32
    assert device.choose("cpu", "bf16", depthwise=True).precision.value == "bf16"


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_precision_that_was_asked_for_is_taken(
    precision: device.Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: pytest.fail("nothing is measured"))
    chosen = device.choose("cpu", precision)
    assert chosen.precision == Choice(value=precision, reason="asked for")
    with chosen.autocast():
        product = torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    assert product.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def test_a_run_that_is_continued_keeps_its_precision_and_says_where_that_differs() -> None:
    said: list[str] = []
    began = Choice(value="bf16", reason="the processor has amx_bf16")
    about = {"precision": began.model_dump()}
    found = device.continued(device.FP32_CPU, about, said.append)
    assert (found.precision, found.dtype) == (began, torch.bfloat16)
    assert found.choice == device.FP32_CPU.choice
    assert said == [
        "precision: bf16, in which the interrupted run began (a new one would take fp32: "
        "reference arithmetic)"
    ]
    assert device.continued(found, about, said.append) == found
    assert device.continued(device.FP32_CPU, None, said.append) == device.FP32_CPU
    assert len(said) == 1


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds of a convolution by the number of threads, for the test to set."""
    seconds: dict[int, float] = {}
    now = [1]
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(device, "_convolution_seconds", lambda _: seconds[now[0]])
    return seconds


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        ({1: 9.0}, 1),
        ({2: 0.5, 1: 1.0}, 2),
        ({2: 1.0, 1: 0.7}, 2),  # not worth another order of sums
        ({2: 8.0, 1: 1.0}, 1),
        ({8: 8.0, 4: 2.0, 2: 1.0, 1: 0.8}, 2),
        ({3: 8.0, 1: 1.0}, 1),
    ],
)
def test_fewer_threads_are_taken_where_more_are_slower(
    threads: dict[int, float], seconds: dict[int, float], taken: int
) -> None:
    threads.update(seconds)
    assert device.threads_that_pay(max(seconds)) == taken


def test_fewer_threads_are_announced_with_the_reason(
    threads: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads.update({2: 8.0, 1: 1.0})
    torch.set_num_threads(2)
    monkeypatch.setattr(device, "cores", lambda: 2)
    assert device.choose("cpu", "fp32").choice.reason == (
        "asked for; 1 threads, since 2 are slower with the other work here"
    )
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("fp32", "bf16", "pays"), [(1.2, 1.0, True), (1.19, 1.0, False)])
def test_bf16_pays_where_it_is_a_fifth_faster_after_the_first_time(
    fp32: float, bf16: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {False: [0.001, 3.0, fp32, 2.0], True: [0.001, bf16, 5.0, 4.0]}
    monkeypatch.setattr(device, "_convolution_seconds", lambda _, bf16: taken[bf16].pop(0))
    assert device.bf16_pays.__wrapped__() is pays


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
    threads = f"{cpu_name()}, {torch.get_num_threads()} threads"
    assert device.hardware(device.FP32_CPU) == threads
    bf16 = device.FP32_CPU.with_precision(Choice(value="bf16", reason=""))
    assert device.circumstances(bf16, None, "images in memory") == (
        f"{threads}, bf16, torch {torch.__version__}, commit unknown, images in memory"
    )
    assert ", fp32, " in device.circumstances(device.FP32_CPU, "abc", "")
    assert ", commit abc, " in device.circumstances(device.FP32_CPU, "abc", "")


def test_beside_a_gpu_the_threads_are_those_of_the_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[int] = []
    monkeypatch.setattr(device, "check", lambda wanted: None)
    monkeypatch.setattr(device, "cores", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert device.choose("auto", "fp32").choice.reason == "torch sees NVIDIA H200"
    assert given == [3]
