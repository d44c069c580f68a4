"""What the models cost to serve: load, stages, saturation, fixed rates, sessions, money."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import tables
from benchmarks.record import Load, Report, Step
from benchmarks.report import serving_plots
from benchmarks.report.blocks import (
    NONE,
    Block,
    Plot,
    Rows,
    Section,
    Text,
    count,
    ms,
    yes,
)
from benchmarks.report.drawing import colour
from benchmarks.report.shown import loaded, main_models


def sections(report: Report) -> list[Section]:
    """Load, saturation, money, sessions."""
    found = [_load(report), _saturation(report), _money(report), _sessions(report)]
    return [section for section in found if section]


def per_million(requests_per_s: float, price_per_hour: float) -> float:
    """What a million images cost on a machine that answers so many a second."""
    return 1e6 / requests_per_s / 3600 * price_per_hour


def _load(report: Report) -> Section:
    models = loaded(report)
    if not models:
        return Section("Load test", [Text("Not measured (`--no-load`).")])
    first = models[0].load
    assert first is not None
    rows: list[tuple[str, Load, str]] = [
        (m.name, m.load, colour(report, m)) for m in models if m.load
    ]
    if report.null and report.null.load:
        rows.append(("null", report.null.load, "var(--soft)"))
    body = [
        (
            name,
            count(load.n),
            count(load.errors),
            count(load.requests_per_s),
            f"{count(load.requests_per_s_low)} to {count(load.requests_per_s_high)}",
            ms(load.p50_ms),
            ms(load.p95_ms),
            ms(load.p99_ms),
            yes(load.stable),
            f"{load.client_cpu:.2f}",
            ms(load.server_cpu_ms),
            NONE if load.server_memory_mb is None else count(load.server_memory_mb),
        )
        for name, load, _ in rows
    ]
    header = (
        *("model", "n", "errors", "requests/s", "range of rounds", "p50 ms", "p95 ms", "p99 ms"),
        *("windows", "client CPU, cores", "server CPU, ms/request", "server memory, MB"),
    )
    blocks: list[Block] = [
        Text(
            f"`POST /classify` with raw test images, closed loop, {first.users} clients on "
            f"{'the same' if first.same_machine else 'another'} machine, {first.rounds} "
            f"round{'s' if first.rounds > 1 else ''} in which the models take turns, one seed of "
            "each fraction; every answer is checked. Percentiles are from raw latencies. Stable: "
            "requests/s and p50 of the last three windows lie within 10 % of their mean. Near 1 "
            "core of client CPU the load generator measures itself. Memory is of the whole "
            "service, every model loaded."
            + (
                " `null` is a model that does nothing, in a service of its own: what the harness "
                "costs."
                if report.null and report.null.load
                else ""
            )
        ),
        Rows(header, body, [hue for _, _, hue in rows]),
    ]
    staged = [(name, load) for name, load, _ in rows if load.stages]
    if staged:
        names = list(staged[0][1].stages)
        blocks += [
            Plot(
                "stages",
                serving_plots.stages,
                "Mean time of a request by stage",
                "Mean time of a request by stage. Decode, queue, inference (of the whole batch) "
                "and encode as the service says in `Server-Timing`; other is HTTP on both sides, "
                "the network and waiting for a core.",
            ),
            Rows(
                ("model", "n", *(f"{name}, p50 / p99 ms" for name in names)),
                [
                    (
                        name,
                        count(load.n - load.errors),
                        *(f"{ms(s.p50_ms)} / {ms(s.p99_ms)}" for s in load.stages.values()),
                    )
                    for name, load in staged
                ],
                summary="Stages, median and 99th percentile",
            ),
        ]
    return Section("Load test", blocks)


def _saturation(report: Report) -> Section | None:
    found = report.saturation
    if found is None:
        return None
    knee = next((s for s in found.steps if s.users == found.knee), None)
    text = f"{found.model}, from one client on, {found.steps[0].seconds:.0f} s a step."
    if knee:
        text += (
            f" The knee is at {knee.users} clients and {count(knee.requests_per_s)} requests/s: "
            "the fewest clients with 95 % of the best rate; "
        )
        last = knee.users == max(step.users or 0 for step in found.steps)
        text += (
            "**no more were tried (`--clients`), so it may lie beyond.**"
            if last
            else "more of them only wait longer."
        )
    if found.client_bound:
        text += " **The load generator was the limit there, not the service.**"
    blocks: list[Block] = [
        Text(text, soft=False),
        Plot(
            "saturation",
            serving_plots.saturation,
            "Requests a second and latency over the number of clients",
            "Left and middle: closed loop; the dotted line is the knee, grey the null model. "
            "Right: latency at a rate, closed loop and fixed arrival rate. Pale: p99.",
        ),
        Rows(_STEPS, [_step(step) for step in found.steps]),
    ]
    if found.rates:
        blocks += [
            Rows(("arrivals/s", *_STEPS[1:]), [_step(step) for step in found.rates]),
            Text(
                "Fixed arrival rate: a Poisson process at 30, 60 and 90 % of the best rate of the "
                "closed loop. Latency counts from the moment when a request was due, so a queue "
                "cannot hide."
            ),
        ]
    if report.null and report.null.saturation:
        blocks.append(
            Rows(
                _STEPS,
                [_step(step) for step in report.null.saturation.steps],
                summary="The null model: what the harness itself can do",
            )
        )
    return Section("From one client to saturation", blocks)


_STEPS = (
    *("clients", "n", "errors", "requests/s", "p50 ms", "p95 ms", "p99 ms", "images a batch"),
    *("client CPU, cores", "server CPU, cores", "windows"),
)


def _step(step: Step) -> Sequence[str]:
    return (
        f"{step.users if step.users else step.rate:g}",
        count(step.n),
        count(step.errors),
        count(step.requests_per_s),
        ms(step.p50_ms),
        ms(step.p95_ms),
        ms(step.p99_ms),
        NONE if step.batch is None else f"{step.batch:.1f}",
        f"{step.client_cpu:.2f}",
        NONE if step.server_cpu is None else f"{step.server_cpu:.2f}",
        yes(step.stable),
    )


def _money(report: Report) -> Section | None:
    models = loaded(report)
    if not models:
        return None
    price = report.price_per_hour
    threads = models[0].latency.threads
    sessions = max(1, report.provenance.cores // threads)
    body = []
    for model in models:
        assert model.load is not None
        rate = model.load.requests_per_s
        best = max(batch.images_per_s for batch in model.latency.batches)
        row = [model.name, f"{model.accuracy.accuracy * 100:.2f} %"]
        for each, mark in ((rate, tables.unstable([model])), (best * sessions, "")):
            row.append(f"{1e6 / each / 3600:.2f}{mark}" if each else NONE)
            if price is not None:
                row.append(f"{per_million(each, price):,.3f}" if each else NONE)
        body.append(row)
    header = ["model", "accuracy", "served: hours"]
    header += [] if price is None else ["served: cost"]
    header += ["in batches: hours"] + ([] if price is None else ["in batches: cost"])
    text = (
        "Machine hours for a million images: served as in the load test above, with the load "
        "generator on the same cores where it is so (then the service alone would need less), and "
        "offline in the best batch size, without decoding, by "
        f"{tables.counted(sessions, 'session')} with {tables.counted(threads, 'thread')} each, "
        "reckoned from one such session."
    )
    if found := report.saturation:
        best_step = max(found.steps, key=lambda step: step.requests_per_s)
        if best_step.requests_per_s:
            text += (
                f" At its best rate, {count(best_step.requests_per_s)} requests/s of "
                f"{tables.counted(best_step.users or 0, 'client')}, serving {found.model} takes "
                f"{1e6 / best_step.requests_per_s / 3600:.2f} hours."
            )
    if len({(model.graph_bytes, model.n_parameters) for model in models}) == 1:
        text += " All of these are the same network: what differs between them here is chance."
    if price is None:
        text += " `--price-per-hour` turns them into money."
    else:
        text += f" At {price:g} an hour."
    return Section("What a million images cost", [Rows(header, body, [
        colour(report, model) for model in models
    ]), Text(text)])  # fmt: skip


def _sessions(report: Report) -> Section:
    models = main_models(report)
    first = models[0].latency
    rows = [(m.name, m.latency, colour(report, m)) for m in report.models]
    if report.null:
        rows.append(("null", report.null.latency, "var(--soft)"))
    body, hues = [], []
    for name, latency, hue in rows:
        for b in latency.batches:
            hues.append(hue)
            body.append(
                (
                    name,
                    str(b.batch),
                    count(b.n),
                    ms(b.p50_ms),
                    f"{ms(b.p50_low_ms)} to {ms(b.p50_high_ms)}",
                    ms(b.p95_ms),
                    ms(b.p99_ms),
                    count(b.images_per_s),
                    yes(b.stable),
                )
            )
    header = (
        *("model", "batch", "n", "p50 ms", "range of p50", "p95 ms", "p99 ms", "images/s"),
        "windows",
    )
    return Section(
        "Session latency",
        [
            Text(
                f"{first.provider}, {first.threads} thread{'s' if first.threads > 1 else ''}, "
                f"{first.rounds} rounds in which the models take turns, so that the machine's "
                "drift hits all of them. Without decoding and without the service."
            ),
            Plot(
                "latency",
                serving_plots.latency,
                "Session latency and throughput by batch size",
                "Left: median of a call, the band spans the medians of the run's fifths; the null "
                "model is what a call costs that computes nothing. Right: images a second, from "
                "the mean.",
            ),
            Rows(header, body, hues, summary="All figures, in ms a call"),
            Text("Below n = 100, p99 is close to the slowest call."),
        ],
    )
