from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import load
from benchmarks.accuracy import Predictions
from benchmarks.load import Round
from benchmarks.server import Server
from training.data import Data


def test_loads_a_real_service(
    service: Server, data: Data, predictions: dict[str, Predictions]
) -> None:
    chosen = {name: predictions[name] for name in ("digits-10", "digits-100")}
    found = load.measure(service, data, chosen, users=4, seconds=1, rounds=1, say=lambda _: None)
    assert list(found) == list(chosen)
    for name, result in found.items():
        assert result.errors == 0, result.messages
        assert result.n > 10
        assert result.users == 4
        assert 0 < result.n_checked <= load.N_IMAGES
        assert result.p50_ms is not None
        assert result.p95_ms is not None
        assert result.p99_ms is not None
        assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms
        assert result.requests_per_s == pytest.approx(result.n / result.seconds)
        assert result.client_cpu > 0
        assert result.server_cpu_ms is not None
        assert result.server_cpu_ms > 0
        assert not [text for text in load.doubts(name, result) if "FAILED" in text]


def test_wrong_labels_are_failures(
    service: Server, data: Data, predictions: dict[str, Predictions]
) -> None:
    """The answers of one model are held against the predictions of another."""
    swapped = {"digits-10": predictions["digits-100"]}
    found = load.measure(service, data, swapped, users=2, seconds=1, rounds=1, say=lambda _: None)[
        "digits-10"
    ]
    assert found.errors
    assert any("was expected" in message for message in found.messages)
    assert "requests FAILED" in load.doubts("digits-10", found)[0]


def test_only_what_ends_in_the_measured_time_counts(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    requests = [
        [99.0, 500.0, None],  # ends before every user runs
        [99.9, 500.0, None],
        [101.0, 10.0, "status 500"],
        [101.5, 20.0, None],
        [101.9, 500.0, None],  # ends after the stop
    ]
    record = {"spawned": 100.0, "stopping": 102.0, "cpu_seconds": 0.5, "requests": requests}
    path.write_text(json.dumps(record))
    found = load.read_record(path, 1.0)
    assert found == Round(2.0, (500.0, 20.0), ("status 500",), 0.5, 1.0, 5)


def test_summary_of_rounds() -> None:
    rounds = [
        Round(2.0, (1.0, 2.0, 3.0), (), 1.0, 0.5, 5),
        Round(1.0, (4.0,), ("a", "b", "a"), 0.5, 0.5, 5),
    ]
    found = load.summarise(rounds, users=3, local=True, n_checked=7)
    assert (found.n, found.errors, found.messages) == (7, 3, {"a": 2, "b": 1})
    assert found.requests_per_s == pytest.approx(4 / 3)
    assert (found.requests_per_s_low, found.requests_per_s_high) == (1.0, 1.5)
    assert found.p50_ms == 2.5
    assert found.client_cpu == 0.5
    assert found.server_cpu_ms == 100.0


def test_nothing_but_failures() -> None:
    found = load.summarise([Round(1.0, (), ("a",), 0.95, None, 1)], 1, True, 0)
    assert found.p99_ms is None
    assert found.server_cpu_ms is None
    assert len(load.doubts("m", found)) == 2
