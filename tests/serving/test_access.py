from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from bundle.errors import LabelcurveError
from serving.access import HEADERS, Key, NewKey, make_key, read_keys
from tests.models import digit_png
from tests.serving.conftest import SERVE, Service, free_port, wait_for
from tests.serving.test_request import problem

PNG = digit_png(3)


def test_a_file_of_keys_holds_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    tokens = [make_key(NewKey("alice", file)), make_key(NewKey("bob", file, rate=2))]
    assert [(key.name, key.rate) for key in read_keys(file)] == [("alice", 0), ("bob", 2)]
    assert len(set(tokens)) == 2
    assert not any(token in file.read_text() for token in tokens)
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(LabelcurveError, match="has a key for bob"):
        make_key(NewKey("bob", file))
    for name in ("a b", ""):
        with pytest.raises(LabelcurveError, match="a name has 1 to 64 letters"):
            make_key(NewKey(name, file))
    for rate in (-1.0, 1e-9, 1e9, float("nan")):
        with pytest.raises(LabelcurveError, match="0 for no limit"):
            make_key(NewKey("x", file, rate=rate))
    for rate in (1e6, 0.001, 123456.75):
        make_key(NewKey(f"of-{rate:.0f}", file, rate=rate))
        assert read_keys(file)[-1].rate == rate


def test_a_key_is_added_to_what_an_editor_left(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    make_key(NewKey("alice", file))
    file.write_text("\ufeff" + file.read_text().rstrip("\n"), encoding="utf-8")
    make_key(NewKey("bob", file, rate=2))
    assert [(key.name, key.rate) for key in read_keys(file)] == [("alice", 0), ("bob", 2)]


@pytest.mark.parametrize("content", ["", "# nobody\n", "alice secret 0\n", f"a {'0' * 64} 1.2.3\n"])
def test_a_file_that_is_no_file_of_keys(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(LabelcurveError, match="api-key NAME"):
        read_keys(file)
    with pytest.raises(LabelcurveError, match="cannot read"):
        read_keys(tmp_path / "none")


def test_the_limit_of_a_key_is_shared_by_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("serving.access.monotonic", lambda: now)
    key = Key("alice", b"", rate=4)
    assert [key.wait(0.5) > 0 for _ in range(3)] == [False, False, True]
    assert key.wait(0.5) == pytest.approx(0.5)
    now += 0.6
    assert [key.wait(0.5) > 0 for _ in range(2)] == [False, True]
    free = Key("bob", b"", rate=0)
    assert not any(free.wait(0.5) for _ in range(100))


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
        assert "retry-after" in ask(**{"x-api-key": bob}).headers
        assert ask(**{"x-api-key": alice}).status_code == 200

        known = client.options("/classify", headers={
            "origin": "https://example.org", "access-control-request-method": "POST",
            "access-control-request-headers": "authorization"})  # fmt: skip
        assert known.headers["access-control-allow-origin"] == "https://example.org"
        other = ask(authorization=f"Bearer {alice}", origin="https://example.com")
        assert "access-control-allow-origin" not in other.headers

        problem(client.get("/metrics", headers={"x-api-key": alice}), 404)
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'labelcurve_batch_size_count{model="digits-100"}' in metrics

        assert httpx.get(f"http://127.0.0.1:{port}/models").status_code == 404

        # A slip in the file locks nobody out.
        good = file.read_text()
        file.write_text(f"{good}carol x 0\n")

        def refused() -> bool:
            assert ask(authorization=f"Bearer {alice}").status_code == 200
            return "keys, line 3: expected is NAME SHA256" in service.output

        wait_for(refused)
        assert "The keys of before go on" in service.output
        # A key that is taken out of the file is of no use a second later.
        file.write_text(good.splitlines(keepends=True)[1])
        wait_for(lambda: ask(authorization=f"Bearer {alice}").status_code == 401)
        unknown = problem(ask(authorization=f"Bearer {alice}"), 401)
        assert unknown["detail"].startswith("this API key is not known")
        time.sleep(1.1)  # bob's limit
        assert ask(authorization=f"Bearer {bob}").status_code == 200
        file.write_text("# nobody\n")
        wait_for(lambda: ask(authorization=f"Bearer {bob}").status_code == 401)
    assert alice not in service.output


def test_it_does_not_start_without_its_keys(digits_models: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(SERVE), "--models", str(digits_models), "--api-keys", str(tmp_path / "none")],
        capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot read the API keys" in done.stderr
