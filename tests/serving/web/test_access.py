from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.api_key import NewKey, make_key
from labelcurve.serving.web.access import HEADERS, Access, Key, read_keys
from tests.models import digit_png
from tests.serving.conftest import SERVE, Service, free_port, wait_for
from tests.serving.web.test_request import problem

PNG = digit_png(3)


RATES = ["1.2.3", ".", "1e3", "-1", "9" * 400, f"0.{'0' * 322}1"]


@pytest.mark.parametrize(
    "content",
    ["", "# nobody\n", "alice secret 0\n", *(f"a {'0' * 64} {rate}\n" for rate in RATES)],
)
def test_a_file_that_is_no_file_of_keys(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(LabelcurveError, match="api-key NAME"):
        read_keys(file)
    with pytest.raises(LabelcurveError, match="cannot read"):
        read_keys(tmp_path / "none")


def test_a_wrong_line_is_named_and_every_way_to_write_a_rate_is_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    good = "".join(f"a {'0' * 64} {rate}\n" for rate in ("0", "5.", ".5", "0.001", "1000000"))
    file.write_text(good)
    assert [key.rate for key in read_keys(file)] == [0, 5, 0.5, 0.001, 1e6]
    file.write_text(f"{good}carol {'0' * 64} .\n")
    with pytest.raises(LabelcurveError, match=r"keys, line 6: expected NAME SHA256"):
        read_keys(file)


def test_the_limit_of_a_key_is_shared_by_the_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 100.0
    monkeypatch.setattr("labelcurve.serving.web.access.monotonic", lambda: now)
    one, other = (Key("alice", b"a", rate=4) for _ in range(2))
    assert [key.wait(tmp_path) > 0 for key in [one, other, one, other, one]] == [False] * 4 + [True]
    assert other.wait(tmp_path) == pytest.approx(0.25)
    now += 1  # over one connection, to one worker
    assert [one.wait(tmp_path) > 0 for _ in range(5)] == [False] * 4 + [True]
    assert other.wait(tmp_path) > 0
    free = Key("bob", b"b", rate=0)
    assert not any(free.wait(tmp_path) for _ in range(100))


def test_a_limit_that_cannot_be_shared_is_kept_by_each_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("labelcurve.serving.web.access.monotonic", lambda: 100.0)
    key, other = (Key("alice", b"a", rate=2) for _ in range(2))
    assert key.wait(tmp_path) == 0
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open() as held:  # as by a worker that is stopped
        fcntl.flock(held, fcntl.LOCK_EX)
        assert [key.wait(tmp_path) > 0 for _ in range(2)] == [False, True]
    assert [other.wait(tmp_path / "gone") > 0 for _ in range(3)] == [False, False, True]
    file.write_bytes(b"")
    assert other.wait(tmp_path) > 0


@pytest.mark.parametrize(("rate", "seconds"), [(0.1, 10), (0.4, 3), (2.0, 1), (1000.0, 1)])
def test_beyond_a_limit_retry_after_says_the_seconds_and_they_suffice(
    rate: float, seconds: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 1e5
    monkeypatch.setattr("labelcurve.serving.web.access.monotonic", lambda: now)
    file = tmp_path / "keys"
    key = make_key(NewKey("alice", file, rate=rate))
    access = Access(file)
    scope = {
        "type": "http", "method": "POST", "path": "/classify",
        "headers": [(b"x-api-key", key.encode())],
    }  # fmt: skip
    for _ in range(max(1, int(rate))):
        assert access.refusal(scope) is None
    refusal = access.refusal(scope)
    assert refusal is not None
    assert refusal.status_code == 429
    assert refusal.headers["retry-after"] == str(seconds)
    assert f"the key alice may send {rate:g} requests per second".encode() in refusal.body
    # Another line in the file does not refill the limit.
    make_key(NewKey("bob", file))
    now += 0.5 * min(1.0, 1 / rate)
    access._looked = 0.0
    assert access.refusal(scope) is not None
    now += seconds
    assert access.refusal(scope) is None


def test_a_fifo_in_place_of_the_file_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    key = make_key(NewKey("alice", file))
    access = Access(file)
    file.unlink()
    os.mkfifo(file)
    access._looked = 0.0
    headers = [(b"x-api-key", key.encode())]
    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": headers}
    assert access.refusal(scope) is None
    assert "it is a pipe" in caplog.text
    assert "The previous keys remain valid" in caplog.text
    with pytest.raises(LabelcurveError, match="it is a pipe"):
        make_key(NewKey("bob", file))


def test_every_answer_has_the_security_headers(client: httpx.Client) -> None:
    for path in ("/", "/models", "/none", "/classify"):
        headers = client.get(path).headers
        assert {headers[name.decode()] for name, _ in HEADERS} == {v.decode() for _, v in HEADERS}


def test_other_sites_may_not_ask_unless_named(client: httpx.Client) -> None:
    response = client.post("/classify", content=PNG, headers={"origin": "https://example.org"})
    assert "access-control-allow-origin" not in response.headers


def test_keys_other_sites_and_metrics_apart(
    start_service: Callable[..., Service], digits_models: Path, tmp_path: Path
) -> None:
    file, port = tmp_path / "keys", free_port()
    alice, bob = make_key(NewKey("alice", file)), make_key(NewKey("bob", file, rate=1))
    service = start_service(
        digits_models, "--api-keys", str(file), "--metrics-port", str(port),
        "--cors", "https://example.org",
    )  # fmt: skip
    service.wait_until_ready()
    with httpx.Client(base_url=service.url, timeout=30) as client:

        def ask(path: str = "/classify", **headers: str) -> httpx.Response:
            return client.post(path, content=PNG, headers=headers)

        for headers in ({}, {"x-api-key": alice[:-1]}, {"authorization": f"Basic {alice}"},
                        {"x-api-key": file.read_text().split()[1]}):  # fmt: skip
            response = ask(**headers)
            problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        problem(client.get("/models"), 401)
        assert "/metrics" not in client.get("/").json()["links"]
        assert "/metrics" not in client.get("/openapi.json").json()["paths"]
        assert client.get("/readyz").status_code == client.get("/livez").status_code == 200
        assert ask(authorization=f"Bearer {alice}").status_code == 200
        assert [ask(**{"x-api-key": bob}).status_code for _ in range(2)] == [200, 429]
        assert ask(**{"x-api-key": bob}).headers["retry-after"] == "1"
        assert ask(**{"x-api-key": alice}).status_code == 200

        known = client.options("/classify", headers={
            "origin": "https://example.org", "access-control-request-method": "POST",
            "access-control-request-headers": "authorization"})  # fmt: skip
        assert known.headers["access-control-allow-origin"] == "https://example.org"
        allowed = set(known.headers["access-control-allow-headers"].lower().split(", "))
        assert allowed >= {"authorization", "content-type", "x-api-key", "x-request-id"}
        assert known.headers["access-control-allow-methods"] == "GET, POST"
        read = ask(authorization=f"Bearer {alice}", origin="https://example.org")
        assert read.headers["access-control-expose-headers"] == (
            "retry-after, server-timing, x-accepted, x-model-name, x-model-version, x-request-id"
        )
        other = ask(authorization=f"Bearer {alice}", origin="https://example.com")
        assert "access-control-allow-origin" not in other.headers

        problem(client.get("/metrics", headers={"x-api-key": alice}), 404)
        # A worker writes its metrics once a second, for the supervisor to read.
        wait_for(
            lambda: (
                'labelcurve_batch_size_count{model="digits-100"}'
                in httpx.get(f"http://127.0.0.1:{port}/metrics").text
            )
        )
        assert httpx.get(f"http://127.0.0.1:{port}/models").status_code == 404

        # A mistake in the file locks no client out.
        good = file.read_text()
        file.write_text(f"{good}carol {'0' * 64} .\n")

        def refused() -> bool:
            assert ask(authorization=f"Bearer {alice}").status_code == 200
            return "keys, line 3: expected NAME SHA256" in service.output

        wait_for(refused)
        assert "The previous keys remain valid" in service.output
        # A key that is removed from the file is invalid a second later.
        file.write_text(good.splitlines(keepends=True)[1])
        wait_for(lambda: ask(authorization=f"Bearer {alice}").status_code == 401)
        unknown = problem(ask(authorization=f"Bearer {alice}"), 401)
        assert unknown["detail"].startswith("this API key is not known")
        # Once the limit allows it.
        wait_for(lambda: ask(authorization=f"Bearer {bob}").status_code == 200)
        file.write_text("# nobody\n")
        wait_for(lambda: ask(authorization=f"Bearer {bob}").status_code == 401)
    assert alice not in service.output


def test_it_does_not_start_without_its_keys(digits_models: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*SERVE, "--models", str(digits_models), "--api-keys", str(tmp_path / "none")],
        capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot read the API keys" in done.stderr


def test_a_key_is_sent_in_either_header_and_a_few_paths_need_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    key = make_key(NewKey("alice", file))
    file.write_text(f"\ufeff# of the team\n\n{file.read_text()}", encoding="utf-8")
    access = Access(file)

    def refusal(path: str, method: str = "GET", **headers: str) -> bytes | None:
        sent = [(name.replace("_", "-").encode(), v.encode()) for name, v in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": sent}
        found = access.refusal(scope)
        assert found is None or (found.status_code, found.headers["www-authenticate"]) == (
            401, "Bearer",
        )  # fmt: skip
        return None if found is None else bytes(found.body)

    for headers in (
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key} "},
        {"x_api_key": key},
    ):
        assert refusal("/classify", **headers) is None
    for path in ("/", "/docs", "/livez", "/readyz", "/openapi.json", "/page/page.js",
                 "/v2/health/live", "/v2/health/ready"):  # fmt: skip
        assert refusal(path) is None
    assert refusal("/classify", "OPTIONS") is None  # a browser asks first, without the key
    for path in ("/classify", "/embed", "/models", "/metrics", "/doubtful.csv", "/page", "/v2"):
        assert b"an API key is needed" in (refusal(path) or b"")
    for headers in ({"authorization": f"Token {key}"}, {"x_api_key": "x"}):
        said = refusal("/classify", **headers)
        assert said is not None
        assert (b"this API key is not known" in said) == ("x_api_key" in headers)
    file.write_text("# nobody\n")
    access._looked = 0.0
    assert refusal("/classify", x_api_key=key) is not None
    assert "holds no API keys any more: all requests are refused" in caplog.text
