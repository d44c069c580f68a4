from __future__ import annotations

import json
import os
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from labelcurve.benchmarks.harness import provenance
from labelcurve.benchmarks.peers import job, limit, servers, table, wrk
from labelcurve.benchmarks.peers.record import Limit, Peer, Peers, Series, Turn
from labelcurve.bundle import store
from labelcurve.bundle.errors import LabelcurveError
from tests.models import digit_png

IMAGE = digit_png(0)


def test_every_peer_is_asked_with_the_same_bytes() -> None:
    for server in servers.PEERS:
        request = server.request(IMAGE)
        assert request.path.startswith("/")
        assert IMAGE in request.body, server.name
    binary = servers.v2_binary(IMAGE)
    head = int(binary.headers["Inference-Header-Content-Length"])
    size = json.loads(binary.body[:head])["inputs"][0]["parameters"]["binary_data_size"]
    assert size == len(binary.body) - head == len(IMAGE) + 4


def test_both_protocols_name_the_best_class() -> None:
    assert job.best_class([{"label": "seven", "score": 0.9}], ("six", "seven")) == "seven"
    v2 = {"outputs": [{"data": [0.1, 0.9]}]}
    assert job.best_class(v2, ("six", "seven")) == "seven"


def test_an_environment_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    missing = servers.Server("none", "none", ("labelcurve==0.0.0a0",), (), servers.raw)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    with pytest.raises(LabelcurveError, match="failed: "):
        servers.python(missing, tmp_path, lines.append)
    assert not (tmp_path / "peers" / "none" / "requirements.txt").exists()


def test_wrk_counts_what_it_sends(tmp_path: Path) -> None:
    if shutil.which("wrk") is None:
        with pytest.raises(LabelcurveError, match="apt-get install wrk"):
            wrk.found()
        return
    bodies = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            bodies.add(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200 if self.headers["X-Test"] == "yes" else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        good = servers.Request("/", {"X-Test": "yes"}, b"\x00body\n")
        turn = wrk.load(url, good, tmp_path, os.getpid(), 2, 1)
        assert turn.n > 0
        assert turn.errors == 0
        assert 0 < turn.p50_ms <= turn.p99_ms <= turn.max_ms
        bad = wrk.load(url, servers.Request("/", {}, b"body"), tmp_path, os.getpid(), 2, 1)
        assert bad.errors == bad.n > 0
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert bodies == {b"\x00body\n", b"body"}


def test_the_limit_is_the_cost_of_decoding_and_of_the_session(
    digits_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit, "SECONDS", 0.05)
    found = limit.measure(store.read(digits_models, "digits-100").graph, IMAGE)
    assert found.decode_ms > 0
    assert found.inference_ms > 0
    assert found.total_ms == found.decode_ms + found.inference_ms


def turn(rate: float) -> Turn:
    return Turn(
        seconds=2.0,
        n=int(rate * 2),
        errors=0,
        p50_ms=1.0,
        p99_ms=2.0,
        max_ms=3.0,
        server_cpu_ms=0.5,
        client_cpu=0.1,
    )


def test_the_table_ranks_and_reports_what_is_missing() -> None:
    def peer(name: str, error: str | None = None) -> Peer:
        return Peer(
            name=name,
            label=f"the {name}",
            packages={},
            ready_s={"null": 1.0},
            memory_mb={"null": 50.0},
            error=error,
        )

    series = [
        Series(server=name, model="null", clients=8, turns=(turn(rate), turn(rate + 100)))
        for name, rate in (("slow", 100.0), ("fast", 300.0))
    ]
    found = Peers(
        bundle="digits-100@0",
        parameters=1,
        image="a digit",
        threads=1,
        rounds=2,
        limits={"null": Limit(decode_ms=0.1, inference_ms=0.2, batch=4)},
        peers=(peer("slow"), peer("fast"), peer("absent", "not installed: no network")),
        series=tuple(series),
        provenance=provenance.here(["bench", "peers"]),
    )
    text = table.markdown(found)
    assert Peers.model_validate_json(found.model_dump_json()) == found
    rows = [line for line in text.splitlines() if line.startswith("| the")]
    assert rows[0].startswith("| the fast | 350 ± 71 (1.00) |")
    assert rows[1].startswith("| the slow | 150 ± 71 (0.43) |")
    assert "**Left out.** the absent: not installed: no network" in text


def test_an_unknown_peer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelcurveError, match="--only nobody: no such peer; there are starlette"):
        job.check(job.BenchPeers(only=("nobody",), out=tmp_path))
