"""The tables of `peers.json`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from benchmarks.peers.record import Peer, Peers, Series
from benchmarks.tables import markdown as rows_to_markdown

TITLES = {"null": "A model that does nothing", "real": "The real model"}


def markdown(found: Peers) -> str:
    """Both tables, what is missing and under which conditions it was measured."""
    parts = []
    for model, title in TITLES.items():
        if any(series.model == model for series in found.series):
            parts.append(f"### {title}\n\n{_table(found, model)}")
    limits = "; ".join(
        f"{name} model: {each.decode_ms:.3f} ms to decode and {each.inference_ms:.3f} ms in ONNX "
        f"Runtime (batch {each.batch})"
        for name, each in found.limits.items()
    )
    missing = [f"{p.label}: {p.error}" for p in found.peers if p.error]
    made = found.provenance
    ours = ", ".join(f"{n} {v}" for n, v in made.packages.items() if n in _SHOWN)
    theirs = ", ".join(
        f"{n} {v}" for n, v in sorted({i for p in found.peers for i in p.packages.items()})
    )
    parts.append(
        f"Requests/s: mean ± standard deviation over {found.rounds} turns of "
        f"{found.series[0].turns[0].seconds:.0f} s, in brackets the ratio to the best. p99: median "
        "of the turns. CPU: of the server's processes, a request. Ready: from the start of the "
        "process to the first answer, on a machine where the others run already. Memory: "
        "proportional set size after the load. One worker process each, "
        f"{found.threads} threads in ONNX Runtime; wrk with one thread on the same machine, which "
        f"had {_client(found)} of its {made.cores} cores. CPU in a loop without a server, one "
        f"thread, an image: {limits}. Real model: {found.bundle}, "
        f"{found.parameters:,} parameters. Image: {found.image}. {made.cpu}, {made.system}, "
        f"Python {made.python}, {ours}; peers: {theirs}; {made.date[:10]}, with `{made.command}`.\n"
    )
    parts += [f"**Left out.** {text}\n" for text in missing]
    return "\n".join(parts)


_SHOWN = ("onnxruntime", "onnxruntime-gpu", "bentoml")


def _table(found: Peers, model: str) -> str:
    counts = sorted({s.clients for s in found.series if s.model == model})
    by = {(s.server, s.clients): s for s in found.series if s.model == model}
    best = {c: max(rate(s) for (_, k), s in by.items() if k == c) for c in counts}
    peers = [p for p in found.peers if any((p.name, c) in by for c in counts)]
    busiest = max((c for c in counts if all((p.name, c) in by for p in peers)), default=counts[0])
    peers.sort(key=lambda p: -rate(by[p.name, busiest]))
    header = ["server", *(f"{c} client{'s' * (c > 1)}" for c in counts)]
    shared = [c for c in counts if all((p.name, c) in by for p in peers)]
    header += [f"p99 ms ({', '.join(map(str, shared))})", "CPU ms", "ready s", "MB", "errors"]
    body = [_row(peer, by, counts, shared, best, model) for peer in peers]
    return rows_to_markdown(header, body)


def _row(
    peer: Peer,
    by: dict[tuple[str, int], Series],
    counts: Sequence[int],
    shared: Sequence[int],
    best: dict[int, float],
    model: str,
) -> list[str]:
    cells = [peer.label]
    for count in counts:
        series = by.get((peer.name, count))
        if series is None:
            cells.append("")
            continue
        rates = [turn.requests_per_s for turn in series.turns]
        spread = f" ± {stdev(rates):,.0f}" if len(rates) > 1 else ""
        cells.append(f"{mean(rates):,.0f}{spread} ({mean(rates) / best[count]:.2f})")
    cells.append(
        " / ".join(f"{_middle([t.p99_ms for t in by[peer.name, c].turns]):.1f}" for c in shared)
    )
    cells.append(f"{mean(t.server_cpu_ms for t in by[peer.name, shared[-1]].turns):.2f}")
    cells.append(f"{peer.ready_s[model]:.1f}")
    cells.append(f"{peer.memory_mb[model]:.0f}")
    errors = sum(t.errors for c in counts if (s := by.get((peer.name, c))) for t in s.turns)
    return [*cells, f"{errors:,}"]


def rate(series: Series) -> float:
    """Mean requests/s over the turns."""
    return mean(turn.requests_per_s for turn in series.turns)


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _client(found: Peers) -> str:
    used = [turn.client_cpu for series in found.series for turn in series.turns]
    return f"{min(used):.2f} to {max(used):.2f}"
