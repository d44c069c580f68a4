"""The tables of `peers.json` and `targets.json`."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean, median_low, stdev
from typing import Any

from labelcurve.benchmarks.peers.record import Finding, Peer, Peers, Series, Targets
from labelcurve.benchmarks.report.templates import render

TITLES = {"null": "A model that does nothing", "real": "The real model"}
FACTORS = {"starlette": 0.9, "triton": 1.8, "fastapi": 1.8, "litserve": 1.8, "bentoml": 8.0}
"""Requests/s that the service should reach with the null model and 32 clients, in multiples of each
peer's."""


def markdown(found: Peers) -> str:
    """Render a table per model, the servers left out, and the conditions."""
    made = found.provenance
    shown = ("onnxruntime", "onnxruntime-gpu", "bentoml")
    # A traceback on one line; its end is the most informative.
    missing = [(p.label, " ".join(p.error.split())[-300:]) for p in found.peers if p.error]
    return render(
        "labelcurve.benchmarks.peers",
        "peers",
        found=found,
        made=made,
        tables=[
            _table(found, model) for model in TITLES if any(s.model == model for s in found.series)
        ],
        client_cpu=[turn.client_cpu for series in found.series for turn in series.turns],
        ours={name: made.packages[name] for name in shown if name in made.packages},
        theirs=sorted({item for peer in found.peers for item in peer.packages.items()}),
        missing=missing,
    )


def _table(found: Peers, model: str) -> dict[str, Any]:
    by = {(s.server, s.clients): s for s in found.series if s.model == model}
    clients = sorted({n for _, n in by})
    best = {c: max(rate(s) for (_, n), s in by.items() if n == c) for c in clients}
    peers = [p for p in found.peers if any((p.name, c) in by for c in clients)]
    shared = [c for c in clients if all((p.name, c) in by for p in peers)]
    peers.sort(key=lambda p: -rate(by[p.name, shared[-1]]))
    rows = []
    for peer in peers:
        own = {c: by[peer.name, c] for c in clients if (peer.name, c) in by}
        p99 = [f"{median_low(t.p99_ms for t in own[c].turns):.1f}" for c in shared]
        rows.append(
            [
                peer.label,
                *(_rates(own[c], best[c]) if c in own else "" for c in clients),
                " / ".join(p99),
                f"{mean(t.server_cpu_ms for t in own[shared[-1]].turns):.2f}",
                f"{peer.ready_s[model]:.1f}",
                f"{peer.memory_mb[model]:.0f}",
                f"{sum(t.errors for series in own.values() for t in series.turns):,}",
            ]
        )
    return {"title": TITLES[model], "clients": clients, "shared": shared, "rows": rows}


def _rates(series: Series, best: float) -> str:
    rates = [turn.requests_per_s for turn in series.turns]
    spread = f" ± {stdev(rates):,.0f}" if len(rates) > 1 else ""
    return f"{mean(rates):,.0f}{spread} ({mean(rates) / best:.2f})"


def rate(series: Series) -> float:
    """Mean requests/s over the rounds."""
    return mean(turn.requests_per_s for turn in series.turns)


def targets(found: Targets, peers: Peers) -> str:
    """Render the targets: those relative to the peers, then those of the service alone."""
    return render(
        "labelcurve.benchmarks.peers",
        "targets",
        findings=[*_beside(peers), *found.findings],
        made=found.provenance,
    )


def _beside(peers: Peers) -> Iterator[Finding]:
    named = {peer.name: peer for peer in peers.peers}
    rates = {(s.server, s.model, s.clients): rate(s) for s in peers.series}
    own = rates.get(("labelcurve", "null", 32))
    for name, factor in FACTORS.items():
        if own and (other := rates.get((name, "null", 32))):
            label = "bare Starlette" if name == "starlette" else named[name].label
            yield _ratio("null model, 32 clients", factor, own, other, label)
    for clients in (32, 64):
        real = {n: r for (n, model, c), r in rates.items() if (model, c) == ("real", clients)}
        if "labelcurve" in real:
            best: Peer = named[max(real, key=real.__getitem__)]
            what, own_real = f"real model, {clients} clients", real["labelcurve"]
            yield _ratio(what, 0.97, own_real, real[best.name], f"the best ({best.label})")
    null = {c: r for (n, model, c), r in rates.items() if (n, model) == ("labelcurve", "null")}
    if null and max(null) >= 512:
        peak = max(null, key=null.__getitem__)
        low = min((c for c in null if c >= peak), key=null.__getitem__)
        yield Finding(
            what=f"null model, from the best number of clients ({peak}) to {max(null)}",
            target="never more than 10 % below the peak",
            found=f"{null[peak]:,.0f} requests/s, lowest {null[low]:,.0f} at {low} clients, "
            f"{null[low] / null[peak] - 1:+.0%}",
            kept=null[low] >= 0.9 * null[peak],
        )


def _ratio(what: str, target: float, own: float, other: float, label: str) -> Finding:
    return Finding(
        what=what,
        target=f"at least {target:g} of {label}",
        found=f"{own:,.0f} and {other:,.0f} requests/s, {own / other:.2f}",
        kept=own / other >= target,
    )
