from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.models import publish_digits


def pytest_configure() -> None:
    """A shell's background job ignores SIGINT, and so would every command that a test starts.

    With a handler of our own, a child begins with the default again.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def digits_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with digits-10, digits-50 and digits-100; read it, do not change it."""
    root = tmp_path_factory.mktemp("models")
    for fraction in (0.1, 0.5, 1.0):
        publish_digits(root, fraction)
    return root


LONG = (
    "test_readme",
    "training/jobs/test_sweep",
    "test_photos_page",
    "training/jobs/test_train",
    "training/jobs/test_faults",
    "training/test_cli",
    "training/runtime/test_distributed",
    "training/jobs/test_pretrain",
    "benchmarks/test_cli",
    "benchmarks/test_demo",
    "benchmarks/resilience/test_faults",
)
"""Files that take minutes, each on one worker: they start first, so that none finishes last."""


SLOW = (
    *("test_readme", "test_labelling", "test_photos_page", "deploy", "labelcurve"),
    *("bundle/test_cuda", "bundle/test_promotion"),
    *(f"benchmarks/{name}" for name in ("test_cli", "test_demo", "test_render", "resilience")),
    *(f"benchmarks/{name}" for name in ("load/test_lo", "report/test_p", "training_runs")),
    *(f"benchmarks/{name}" for name in ("backtest/test_d", "harness/test_pr", "peers/test_job")),
    *(f"serving/test_{name}" for name in ("classify", "cli", "doubtful", "lifecycle")),
    *(f"serving/{name}" for name in ("test_selftest", "test_service", "models/test_catalogue")),
    *(f"serving/telemetry/test_{name}" for name in ("logs", "monitoring", "tracing")),
    *(f"serving/page/test_{name}" for name in ("browser", "documentation")),
    *(f"serving/{name}" for name in ("connections", "workers", "web/test_access")),
    *(f"serving/web/test_{name}" for name in ("app", "huggingface", "memory")),
    *(f"serving/web/test_{name}" for name in ("mutations", "nginx", "schemathesis")),
    *(f"training/{name}" for name in ("test_cli", "extractors", "forecast", "models", "runs")),
    *("training/runtime", "training/jobs/test_audit"),
    *(f"training/jobs/test_{name}" for name in ("classes", "faults", "outside")),
    *(f"training/jobs/test_{name}" for name in "pqst"),
    *(f"training/learning/test_{name}" for name in ("compilation", "finetune", "l", "p", "t")),
)
"""Tests below these start processes, train or draw plots: `make check` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(SLOW):
            item.add_marker("slow")
    places = {f"tests/{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


ALLOWED_SKIPS = ("no NVIDIA GPU", "data set not here")
"""Prefixes of the reasons of skips that are allowed where CI is set."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails skipped tests if CI is set, except for a missing GPU or missing outside data."""
    report = yield
    if report.skipped and os.environ.get("CI") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped where CI is set: {reason}"
    return report
