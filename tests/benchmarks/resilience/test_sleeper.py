from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from labelcurve.benchmarks.resilience import client as traffic
from labelcurve.benchmarks.resilience import sleeper
from labelcurve.benchmarks.resilience.client import Client
from labelcurve.bundle.errors import LabelcurveError
from tests.models import digit_png


def test_every_inference_sleeps(digits_models: Path, tmp_path: Path) -> None:
    async def ask(port: int) -> traffic.Answer:
        await traffic.ready(port)
        client = await Client.connect(port)
        answer = await client.ask(traffic.post(digit_png(0)))
        client.close()
        return answer

    with sleeper.started(digits_models, tmp_path, 0.25, 4) as (port, _):
        answer = asyncio.run(ask(port))
    assert answer.status == 200
    assert answer.seconds >= 0.25


def test_a_worker_that_dies_is_not_waited_for_without_end(
    digits_models: Path, tmp_path: Path
) -> None:
    with (
        pytest.raises(LabelcurveError, match=r"(?s)was not ready after 1 s.*no_such_module"),
        sleeper.started(digits_models, tmp_path, 0.0, 4, "no_such_module") as (port, _),
    ):
        asyncio.run(traffic.ready(port, 1))
