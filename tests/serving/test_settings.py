from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import cores
from labelcurve.serving.settings import VARIABLE, Settings


def test_a_worker_reads_what_the_command_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        models=Path("/a b"), port=1, threads=3, api_keys=Path("/k"), cors=("a", "b")
    )
    monkeypatch.setenv(VARIABLE, settings.dumps())
    assert Settings.from_environment() == settings


def test_a_worker_that_was_started_by_hand_has_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Settings.from_environment() == Settings()


def test_workers_share_the_cores() -> None:
    assert Settings(workers=1).threads_of_worker() == cores()
    assert Settings(workers=10_000).threads_of_worker() == 1
    assert Settings(workers=10_000, threads=3).threads_of_worker() == 3


@pytest.mark.parametrize("flag", ["workers", "threads"])
def test_more_than_the_cores_can_use_are_refused(flag: str) -> None:
    wrong: dict[str, Any] = {flag: 100_000}
    with pytest.raises(LabelcurveError, match=f"--{flag} 100000: allowed are 1 to "):
        replace(Settings(), **wrong).check()
