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
        models=Path("/a b"),
        model=("a", "b"),
        port=1,
        threads=3,
        max_wait=0.25,
        accept=0.9,
        keep_doubtful=Path("kept"),
        api_keys=Path("/k"),
        cors=("a", "b"),
        metrics_port=2,
        access_log=True,
        log_format="json",
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


def test_the_limits_and_times_that_are_documented_are_the_defaults() -> None:
    found = Settings()
    assert (found.host, found.port, found.workers, found.precision) == (
        "127.0.0.1",
        3000,
        1,
        "fp32",
    )
    assert (found.queue, found.connections, found.keep) == (1024, 4096, 2)
    assert (found.max_wait, found.timeout, found.body_timeout, found.head_timeout) == (
        2,
        10,
        20,
        10,
    )
    assert (found.keep_alive, found.watch, found.lame_duck, found.drain) == (75, 1, 1, 7)
    assert (found.doubtful_images, found.doubtful_mb) == (1000, 500)
    assert (found.accept, found.keep_doubtful, found.api_keys, found.metrics_port) == (None,) * 4
    assert (found.access_log, found.log_format, found.self_test) == (False, "text", False)


@pytest.mark.parametrize(
    "options",
    [
        {"port": 65535}, {"port": 1}, {"accept": 0.5}, {"accept": 0.9999}, {"queue": 1},
        {"drain": 600}, {"drain": 0}, {"lame_duck": 0}, {"watch": 0}, {"keep": 0},
        {"timeout": 0.1}, {"max_wait": 0.01},
        {"cors": ("*", "http://localhost:8080", "https://example.org")},
        {"otlp_endpoint": "https://example.org:4318/otlp"}, {"metrics_port": 3001},
    ],
)  # fmt: skip
def test_what_is_just_allowed_is_taken(options: dict[str, Any]) -> None:
    Settings(**options).check()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"port": 65536}, "--port 65536: allowed are 1 to 65535"),
        ({"accept": 0.49}, "--accept 0.49: allowed are 0.5 to 0.9999"),
        ({"drain": 601}, "--drain 601: allowed are 0 to 600"),
        ({"lame_duck": 600.5}, "--lame-duck 600.5: allowed are 0 to 600"),
        ({"queue": 0}, "--queue 0: allowed are 1 and more"),
        ({"max_wait": 0.009}, "--max-wait 0.009: allowed are 0.01 and more"),
        ({"metrics_port": 3000}, "--metrics-port 3000: allowed is any but --port"),
        ({"cors": ("https://example.org/",)}, "--cors https://example.org/: allowed are"),
        ({"doubtful_images": 0}, "--doubtful-images 0: allowed are 1 and more"),
    ],
)
def test_what_is_just_not_allowed_is_refused_by_its_flag(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(LabelcurveError, match=says):
        Settings(**options).check()
