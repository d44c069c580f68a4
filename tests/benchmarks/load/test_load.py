from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labelcurve.benchmarks.harness.server import Server
from labelcurve.benchmarks.harness.windows import Request
from labelcurve.benchmarks.load import load, saturation
from labelcurve.benchmarks.load.load import Round
from labelcurve.benchmarks.quality.accuracy import Predictions
from labelcurve.benchmarks.record import Load
from labelcurve.training.data.dataset import Data


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of locust that are set elsewhere: with both of them it ends with an error."""
    (tmp_path / "locust.conf").write_text("rate = 1\nsteps = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELCURVE_RATE", "1")
    monkeypatch.setenv("LABELCURVE_STEPS", "1")


def run(
    service: Server, data: Data, predictions: dict[str, Predictions], rounds: int = 1
) -> dict[str, Load]:
    with load.images_for(data, predictions) as (folder, checked):
        servers = dict.fromkeys(predictions, service)
        return load.measure(
            servers, folder, checked, users=4, seconds=1, rounds=rounds, say=lambda _: None
        )


@pytest.mark.usefixtures("by_hand")
def test_loads_a_real_service(
    service: Server, data: Data, predictions: dict[str, Predictions]
) -> None:
    chosen = {name: predictions[name] for name in ("digits-10", "digits-100")}
    found = run(service, data, chosen)
    assert list(found) == list(chosen)
    for name, result in found.items():
        assert result.errors == 0, result.messages
        assert result.n > 0
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
        assert result.server_memory_mb is not None
        assert result.server_memory_mb > 20
        assert list(result.stages) == ["decode", "queue", "inference", "encode", "other"]
        assert all(stage.mean_ms > 0 for stage in result.stages.values())
        assert sum(stage.mean_ms for stage in result.stages.values()) > result.p50_ms / 4
        assert sum(window.n for window in result.windows) == result.n
        assert result.stable is not None
        assert not [text for text in load.doubts(name, result) if "FAILED" in text]


def test_the_name_of_an_image_says_its_type(data: Data, tmp_path: Path) -> None:
    """Phones write JPEGs with further pictures behind the first."""
    image, file = Image.new("RGB", (8, 8)), BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[image])
    test = replace(data.test, read=lambda row: file.getvalue() if row % 2 else data.test.read(row))
    names = load.write_images(tmp_path / "images", replace(data, test=test))
    assert {name.partition(".")[2] for row, name in names.items() if row % 2} == {"jpeg"}
    assert {name.partition(".")[2] for row, name in names.items() if not row % 2} == {"png"}


def test_wrong_labels_are_failures(
    service: Server, data: Data, predictions: dict[str, Predictions]
) -> None:
    """The answers of one model are compared with the predictions of another."""
    found = run(service, data, {"digits-10": predictions["digits-100"]})["digits-10"]
    assert found.errors
    assert any("was expected" in message for message in found.messages)
    assert "requests FAILED" in load.doubts("digits-10", found)[0]


def test_steps_to_saturation_and_fixed_rates(
    service: Server,
    data: Data,
    predictions: dict[str, Predictions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: set[str | None] = set()

    def requests(record: dict[str, Any]) -> list[Request]:
        found = read(record)
        said.update(request.error for request in found)
        return found

    read = load.requests
    monkeypatch.setattr(load, "requests", requests)
    chosen = {"digits-50": predictions["digits-50"]}
    with load.images_for(data, chosen) as (folder, _):
        found = saturation.measure(
            service, folder, "digits-50", users=(1, 3), shares=(0.5,), seconds=2,
            say=lambda _: None,
        )  # fmt: skip
    assert [step.users for step in found.steps] == [1, 3]
    assert found.knee in (1, 3)
    (rate,) = found.rates
    best = max(step.requests_per_s for step in found.steps)
    assert rate.rate == pytest.approx(0.5 * best, abs=0.05)  # rounded to a decimal
    assert [step.errors for step in found.steps] == [0, 0]
    # What a client on busy cores could not send in time is no answer of the service.
    assert said <= {None, "not sent before the end"}
    assert rate.errors < rate.n
    for step in (*found.steps, rate):
        assert step.n > 0
        assert step.p50_ms is not None
        assert step.batch is not None
        assert step.batch >= 1
        assert step.server_cpu is not None
        assert step.server_cpu > 0
    failed = [text for text in saturation.doubts(found) if "FAILED" in text]
    assert bool(failed) == bool(rate.errors)


def test_only_what_ends_in_the_measured_time_counts() -> None:
    requests = [
        [99.0, 500.0, None, None],  # ends before every user runs
        [99.9, 500.0, None, None],
        [101.0, 10.0, "status 500", None],
        [101.5, 20.0, None, None],
        [101.9, 500.0, None, None],  # ends after the stop
    ]
    record = {"spawned": 100.0, "stopping": 102.0, "cpu_seconds": 0.5, "requests": requests}
    found = load.read_round(record, 1.0)
    assert (found.begin, found.end, found.n_sent) == (100.0, 102.0, 5)
    assert found.latencies == [500.0, 20.0]
    assert found.errors == ["status 500"]


def made(seconds: float, latencies: tuple[float, ...], errors: tuple[str, ...] = ()) -> Round:
    timing = "decode;dur=0.25, queue;dur=0.5, inference;dur=0.125, encode;dur=0"
    requests = [Request(9 + 0.1 * seconds, latency, None, timing) for latency in latencies]
    requests += [Request(9 + 0.2 * seconds, 1.0, error, None) for error in errors]
    return Round(9.0, 9.0 + seconds, tuple(requests), 0.5 * seconds, 0.25 * seconds, 5)


def test_summary_of_rounds() -> None:
    rounds = [made(2.0, (1.0, 2.0, 3.0)), made(1.0, (4.0,), ("a", "b", "a"))]
    found = load.summarise(rounds, users=3, local=True, n_checked=7, server_memory_mb=12.5)
    assert (found.n, found.errors, found.messages) == (7, 3, {"a": 2, "b": 1})
    assert (found.rounds, found.seconds, found.users) == (2, 3.0, 3)
    assert (found.same_machine, found.n_checked) == (True, 7)
    assert found.requests_per_s == pytest.approx(4 / 3)
    assert (found.requests_per_s_low, found.requests_per_s_high) == (1.0, 1.5)
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == pytest.approx((2.5, 3.85, 3.97))
    assert found.client_cpu == 0.5
    assert found.server_cpu_ms == pytest.approx(75.0)
    assert found.server_memory_mb == 12.5
    assert {name: stage.mean_ms for name, stage in found.stages.items() if name != "other"} == {
        "decode": 0.25, "queue": 0.5, "inference": 0.125, "encode": 0.0,
    }  # fmt: skip
    other = found.stages["other"]  # what is left of 1, 2, 3 and 4 ms
    assert (other.mean_ms, other.p50_ms, other.p99_ms) == pytest.approx((1.625, 1.625, 3.095))
    assert len(found.windows) == 6
    assert found.stable is False
    assert "UNSTABLE under load: m:" in load.unstable({"m": found})[0]


def test_nothing_but_failures() -> None:
    failed = Round(0.0, 1.0, (Request(0.1, 1.0, "a", None),), 0.95, None, 1)
    found = load.summarise([failed], 1, True, 0)
    assert found.p99_ms is None
    assert found.server_cpu_ms is None
    assert found.stages == {}
    assert len(load.doubts("m", found)) == 2


def test_two_rounds_unlike_each_other_are_not_stable() -> None:
    """The last three windows of two rounds are those of the second one alone."""
    slow, fast = (made(3.0, (10.0,) * n) for n in (30, 60))
    for rounds, expected in (((slow, slow), True), ((slow, fast), False), ((fast,), True)):
        spread = []
        for done in rounds:
            n = len(done.requests)
            starts = [done.begin + 3 * (i + 0.5) / n - 0.01 for i in range(n)]
            even = tuple(Request(start, 10.0, None, None) for start in starts)
            spread.append(replace(done, requests=even))
        assert load.summarise(spread, 1, True, 0).stable is expected
