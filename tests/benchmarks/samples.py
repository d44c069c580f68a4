"""Figures of a load test, without running one."""

from __future__ import annotations

from labelcurve.benchmarks.record import Load, Report, Saturation, Stage, Step, Window

LOAD = Load(
    users=8,
    same_machine=True,
    rounds=3,
    seconds=15.0,
    n=1234,
    errors=7,
    messages={"status 503": 7},
    n_checked=64,
    requests_per_s=82.0,
    requests_per_s_low=80.0,
    requests_per_s_high=84.0,
    p50_ms=3.25,
    p95_ms=7.5,
    p99_ms=12.345,
    client_cpu=0.4,
    server_cpu_ms=0.9,
    stages={
        name: Stage(mean_ms=0.5, p50_ms=0.4, p99_ms=1.5)
        for name in ("decode", "queue", "inference", "encode", "other")
    },
    windows=(Window(seconds=5, n=400, requests_per_s=82.0, p50_ms=3.2),) * 3,
    stable=True,
    server_memory_mb=321.0,
)


def step(users: int | None, rate: float | None = None) -> Step:
    return Step(
        users=users,
        rate=rate,
        seconds=5,
        n=100,
        errors=0,
        requests_per_s=rate or 70.0 + (users or 0),
        p50_ms=4.5,
        p95_ms=6.5,
        p99_ms=8.765,
        batch=1.5,
        client_cpu=0.3,
        server_cpu=0.9,
        stable=users != 2,
    )


SATURATION = Saturation(
    model="digits-100",
    steps=(step(1), step(2), step(4)),
    knee=2,
    client_bound=False,
    rates=(step(None, 20.0), step(None, 60.0)),
)


def renamed(report: Report, names: tuple[str, ...]) -> Report:
    """With other names of its classes."""
    models = []
    for model in report.models:
        scores = dict(zip(names, model.accuracy.per_class.values(), strict=True))
        accuracy = model.accuracy.model_copy(update={"per_class": scores})
        models.append(model.model_copy(update={"accuracy": accuracy}))
    dataset = report.dataset.model_copy(update={"class_names": names})
    return report.model_copy(update={"models": tuple(models), "dataset": dataset})
