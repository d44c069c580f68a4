"""A GPU that fails under a running service."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.models import digit_png
from tests.serving.conftest import Service, wait_for

FAULT = """
import onnxruntime
from pathlib import Path

real = onnxruntime.InferenceSession.run_with_iobinding

def run(self, *args, **kwargs):
    if Path({flag!r}).exists():
        raise RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running a node. "
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x"
        )
    return real(self, *args, **kwargs)

onnxruntime.InferenceSession.run_with_iobinding = run
"""
"""Behaviour of CUDA after its first error: every later call of the process fails, too."""


def test_the_worker_whose_gpu_failed_is_replaced(
    start_service: Callable[..., Service], digits_models: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "failed"
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(flag=str(flag)))
    environment = {"PYTHONPATH": str(tmp_path)}
    service = start_service(digits_models, environment=environment)
    service.wait_until_ready()
    (first,) = service.workers()
    png = digit_png(0)
    assert httpx.post(f"{service.url}/classify", content=png).status_code == 200

    flag.touch()
    answer = httpx.post(f"{service.url}/classify", content=png)
    flag.unlink()  # a new process finds the GPU working
    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("the GPU failed")
    assert int(answer.headers["retry-after"]) >= 1

    # In either order: the next one may be started before the end of this one is noticed.
    wait_for(lambda: "is started in its place" in service.output)
    ended = rf"worker {first} [^:]*ended[^:]*: the GPU failed"
    wait_for(lambda: re.search(ended, service.output) is not None)
    assert "CUDA failure 700" in service.output

    def answers() -> bool:
        try:
            return httpx.get(f"{service.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(answers)
    assert httpx.post(f"{service.url}/classify", content=png).status_code == 200
    assert first not in service.workers()
