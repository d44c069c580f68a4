from __future__ import annotations

from collections.abc import Callable

import httpx
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from labelcurve.serving.telemetry import metrics
from tests.models import digit_png


def value(client: httpx.Client, sample: str, **labels: str) -> float:
    text = client.get("/metrics").text
    return sum(
        found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    )


def grown(client: httpx.Client, act: Callable[[], object], sample: str, **labels: str) -> float:
    before = value(client, sample, **labels)
    act()
    return value(client, sample, **labels) - before


def test_our_histograms_count_images_and_batches(client: httpx.Client) -> None:
    def classify() -> None:
        files = [("images", digit_png(i)) for i in range(3)]
        assert client.post("/classify", files=files, params={"model": "digits-50"}).is_success

    assert grown(client, classify, "labelcurve_decode_milliseconds_count") == 3
    model = {"model": "digits-50"}
    assert grown(client, classify, "labelcurve_queue_milliseconds_count", **model) == 3
    assert grown(client, classify, "labelcurve_batch_size_sum", **model) == 3
    assert 1 <= grown(client, classify, "labelcurve_inference_milliseconds_count", **model) <= 3


def test_bentomls_metrics_count_requests(client: httpx.Client) -> None:
    sample = "bentoml_service_request_total"
    labels = {"endpoint": "/classify", "http_response_code": "415"}
    assert grown(client, lambda: client.post("/classify", content=b"x"), sample, **labels) == 1


def test_unknown_paths_share_one_label(client: httpx.Client) -> None:
    def scan() -> None:
        for i in range(5):
            client.get(f"/wp-admin-{i}")

    sample = "bentoml_service_request_total"
    assert grown(client, scan, sample, endpoint="/unknown") == 5
    assert "wp-admin" not in client.get("/metrics").text


def test_asking_for_the_metrics_is_no_traffic(client: httpx.Client) -> None:
    client.get("/livez")
    assert value(client, "bentoml_service_request_total", endpoint="/livez") > 0
    assert 'endpoint="/metrics"' not in client.get("/metrics").text


def test_many_observations_at_once_are_what_they_are_one_by_one() -> None:
    values = [0.0, 5.0, 0.5, 1.0, 1.5, -1.0, 5.1, 1e9]
    one, many = (
        Histogram("x", "x", buckets=(0.5, 1, 5), registry=CollectorRegistry()) for _ in range(2)
    )
    for value in values:
        one.observe(value)
    metrics.observe_all(many, [*values])

    def samples(histogram: Histogram) -> list[tuple[str, dict[str, str], float]]:
        (family,) = histogram.collect()
        return [(s.name, s.labels, s.value) for s in family.samples if s.name != "x_created"]

    assert samples(many) == samples(one)
