"""The tables of `peers.json`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from benchmarks.peers.record import Finding, Peer, Peers, Series, Targets
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
    # A traceback on one line; its end says most.
    missing = [f"{p.label}: {' '.join(p.error.split())[-300:]}" for p in found.peers if p.error]
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


def targets(found: Targets, peers: Peers) -> str:
    """What was meant to be kept: of the service alone, and beside its peers."""
    made = found.provenance
    findings = (*_beside(peers), *found.findings)
    body = [[f.what, f.target, f.found, "yes" if f.kept else "**no**"] for f in findings]
    return (
        f"{rows_to_markdown(['what', 'target', 'found', 'kept'], body)}\n"
        f"{made.cpu}, {made.cores} cores, {made.date[:10]}, with `{made.command}`; the first rows "
        "from the tables above.\n"
    )


def _beside(peers: Peers) -> list[Finding]:
    by = {(s.server, s.model, s.clients): s for s in peers.series}
    found = []

    def ratio(what: str, target: float, a: float, b: float, other: str) -> None:
        found.append(
            Finding(
                what=what,
                target=f"at least {target:g} of {other}",
                found=f"{a:,.0f} and {b:,.0f} requests/s, {a / b:.2f}",
                kept=a / b >= target,
            )
        )

    own, bare = by.get(("labelcurve", "null", 32)), by.get(("starlette", "null", 32))
    if own and bare:
        ratio("null model, 32 clients", 0.75, rate(own), rate(bare), "bare Starlette")
    for name, times in (
        *((n, 1.8) for n in ("triton", "fastapi", "mlserver", "litserve")),
        ("bentoml", 8.0),
    ):
        if own and (other := by.get((name, "null", 32))):
            ratio("null model, 32 clients", times, rate(own), rate(other), _label(peers, name))
    for clients in (32, 64):
        real = {n: s for (n, model, c), s in by.items() if model == "real" and c == clients}
        if own_real := real.get("labelcurve"):
            best = max(real.values(), key=rate)
            what = f"real model, {clients} clients"
            ratio(
                what, 0.97, rate(own_real), rate(best), f"the best ({_label(peers, best.server)})"
            )
    rates = {c: rate(s) for (n, m, c), s in by.items() if (n, m) == ("labelcurve", "null")}
    if rates and max(rates) >= 512:
        peak = max(rates, key=rates.__getitem__)
        low = min((c for c in rates if c >= peak), key=rates.__getitem__)
        found.append(
            Finding(
                what=f"null model, from the best number of clients ({peak}) to {max(rates)}",
                target="never more than 10 % below the peak",
                found=f"{rates[peak]:,.0f} requests/s, lowest {rates[low]:,.0f} at {low} clients, "
                f"{rates[low] / rates[peak] - 1:+.0%}",
                kept=rates[low] >= 0.9 * rates[peak],
            )
        )
    return found


def _label(peers: Peers, name: str) -> str:
    return next(peer.label for peer in peers.peers if peer.name == name)
