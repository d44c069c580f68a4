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


def test_an_environment_is_kept_until_its_requirements_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    folder = tmp_path / "peers" / "none"
    server = servers.Server("none", "none", ("labelcurve==0.0.0a0", "b"), (), servers.raw)
    lines: list[str] = []
    for noted, kept in (
        (("labelcurve==0.0.0a0", "b", *servers._COMMON), True),
        (("labelcurve==0.0.0a1", "b", *servers._COMMON), False),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "requirements.txt").write_text("\n".join(noted))
        if kept:
            assert servers.python(server, tmp_path, lines.append) == folder / "bin" / "python"
            assert lines == []
        else:
            with pytest.raises(LabelcurveError, match=r"`.*uv pip install` failed: "):
                servers.python(server, tmp_path, lines.append)
            assert lines.pop() == f"  none: installing labelcurve==0.0.0a0, b in {folder}"
            assert not (folder / "requirements.txt").exists()


def test_a_peer_gets_its_own_variables_and_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"):
        monkeypatch.setenv(name, "ours")
    monkeypatch.setenv("OTHER", "kept")
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    interpreter = tmp_path / "peers/none/bin/python"
    found = servers.environment(interpreter, Path("model.onnx"), 3001, 2)
    assert "ours" not in found.values()
    assert found["OTHER"] == "kept"
    assert found["PATH"] == f"{interpreter.parent}:/usr/bin"
    assert (found["PEER_PORT"], found["PEER_THREADS"]) == ("3001", "2")
    assert found["PEER_MODEL"] == str(tmp_path / "model.onnx")
    assert found["BENTOML_HOME"] == str(tmp_path / "peers/none/bentoml")


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


def test_servers_are_loaded_in_turn_and_the_figures_of_both_models_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = (job.OWN, servers.PEERS[0])
    own, other = (server.name for server in both)
    loads: list[tuple[str, int, float]] = []

    def load(url: str, request: object, work: Path, pid: int, clients: int, seconds: float) -> Turn:
        loads.append((url, clients, seconds))
        return turn(float(len(loads)))

    def start_all(*_: object) -> list[job._Running]:
        return [
            job._Running(server, server.name, os.getpid(), server.request(IMAGE)) for server in both
        ]

    monkeypatch.setattr(wrk, "load", load)
    monkeypatch.setattr(job._Run, "_start_all", start_all)
    bench = job.BenchPeers(
        null_clients=(1, 2), clients=(3,), most_clients=(4,), seconds=5, rounds=2, out=tmp_path
    )
    lines: list[str] = []
    run = job._Run(bench, lines.append, tmp_path, IMAGE)
    run.peers = {
        name: Peer(name=name, label=name, packages={}, ready_s={}, memory_mb={})
        for name in (own, other)
    }

    found = run.measure("null", tmp_path, tmp_path, ())
    there = [(own, 1), (other, 1), (own, 2), (other, 2), (own, 4)]
    back = [(other, 1), (own, 1), (other, 2), (own, 2), (own, 4)]
    assert loads[:2] == [(own, 8, job.WARM_SECONDS), (other, 8, job.WARM_SECONDS)]
    assert loads[2:] == [(name, clients, 5) for name, clients in there + back]
    rates = {(one.server, one.clients): [t.requests_per_s for t in one.turns] for one in found}
    assert rates == {
        (own, 1): [3, 9], (other, 1): [4, 8], (own, 2): [5, 11], (other, 2): [6, 10],
        (own, 4): [7, 12],
    }  # fmt: skip
    assert {one.model for one in found} == {"null"}
    assert lines[0].split()[:7] == ["round", "1", "of", "2,", "1", "clients", own]
    assert "3 requests/s, p99    2.0 ms, 0.50 ms of CPU each" in lines[0]

    loads.clear()
    found = run.measure("real", tmp_path, tmp_path, ("a", "b"))
    assert [load[:2] for load in loads[2:]] == [(own, 3), (other, 3), (other, 3), (own, 3)]
    assert {one.model for one in found} == {"real"}
    for peer in run.peers.values():
        assert set(peer.memory_mb) == {"null", "real"}
        assert min(peer.memory_mb.values()) > 20


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


def compared(*series: tuple[str, str, int, float]) -> Peers:
    """Peers with the requests/s of servers by model and number of clients."""
    names = {name: None for name, *_ in series}
    return Peers(
        bundle="digits-100@0",
        parameters=1,
        image="a digit",
        threads=1,
        rounds=1,
        limits={},
        peers=tuple(
            Peer(name=name, label=f"the {name}", packages={}, ready_s={}, memory_mb={})
            for name in names
        ),
        series=tuple(
            Series(server=name, model=model, clients=clients, turns=(turn(rate),))
            for name, model, clients, rate in series
        ),
        provenance=provenance.here(["bench", "peers"]),
    )


def test_a_target_beside_a_peer_is_kept_from_its_share() -> None:
    found = {
        finding.target: finding
        for finding in table._beside(
            compared(
                ("labelcurve", "null", 32, 1800.0),
                ("starlette", "null", 32, 2000.0),
                ("triton", "null", 32, 1000.0),
                ("fastapi", "null", 32, 1001.0),
                ("fastapi", "null", 64, 5000.0),
                ("bentoml", "real", 32, 100.0),
            )
        )
    }
    assert {target: finding.kept for target, finding in found.items()} == {
        "at least 0.9 of bare Starlette": True,
        "at least 1.8 of the triton": True,
        "at least 1.8 of the fastapi": False,
    }
    starlette = found["at least 0.9 of bare Starlette"]
    assert starlette.what == "null model, 32 clients"
    assert starlette.found == "1,800 and 2,000 requests/s, 0.90"


def test_with_the_real_model_the_best_peer_is_the_measure() -> None:
    first, second = table._beside(
        compared(
            ("labelcurve", "real", 32, 970.0),
            ("slow", "real", 32, 500.0),
            ("fast", "real", 32, 1000.0),
            ("labelcurve", "real", 64, 960.0),
            ("fast", "real", 64, 1000.0),
            ("fast", "null", 32, 9000.0),
        )
    )
    assert (first.what, first.target) == (
        "real model, 32 clients",
        "at least 0.97 of the best (the fast)",
    )
    assert first.kept
    assert (second.what, second.found, second.kept) == (
        "real model, 64 clients",
        "960 and 1,000 requests/s, 0.96",
        False,
    )


@pytest.mark.parametrize(("lowest", "kept"), [(900.0, True), (899.0, False)])
def test_the_rate_may_not_fall_beyond_its_peak(lowest: float, kept: bool) -> None:
    """What fewer clients than the best number reach does not count."""
    series = [(1, 100.0), (32, 1000.0), (128, lowest), (512, 950.0)]
    (finding,) = table._beside(
        compared(*(("labelcurve", "null", clients, rate) for clients, rate in series))
    )
    assert finding.what == "null model, from the best number of clients (32) to 512"
    assert finding.found.startswith(f"1,000 requests/s, lowest {lowest:,.0f} at 128 clients, -10")
    assert finding.kept is kept
    fewer = compared(*(("labelcurve", "null", clients, 1.0) for clients in (32, 511)))
    assert list(table._beside(fewer)) == []


def test_errors_are_no_requests_that_were_answered() -> None:
    half = turn(100.0).model_copy(update={"errors": 100})
    assert (half.n, half.requests_per_s) == (200, 50.0)
    found = compared(("one", "null", 8, 0.0))
    series = found.series[0].model_copy(update={"turns": (half, turn(100.0))})
    assert table.rate(series) == 75.0


def test_an_unknown_peer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelcurveError, match="--only nobody: no such peer; there are starlette"):
        job.check(job.BenchPeers(only=("nobody",), out=tmp_path))
