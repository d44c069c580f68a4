"""The service behind a proxy: each request gets its own response, whatever others send."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from labelcurve.bundle.preprocess import MAX_BYTES
from tests.models import digit_png
from tests.serving.conftest import Service, free_port, wait_for

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian's is meant)")

AS_IT_COMES = "proxy_pass http://service;"
KEPT = 'proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection "";'
STREAMED = f"{KEPT} proxy_request_buffering off;"

CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{ }}
http {{
  access_log off; client_max_body_size 100m; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream service {{ server 127.0.0.1:{upstream}; keepalive 4; }}
  server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }}
}}
"""


@pytest.fixture(scope="module")
def serving(start_service: Callable[..., Service], digits_models: Path) -> Service:
    service = start_service(digits_models)
    service.wait_until_ready()
    return service


@pytest.fixture
def proxy(request: pytest.FixtureRequest, serving: Service, tmp_path: Path) -> Iterator[str]:
    """The URL of an nginx before the service; its parameter is what the location says."""
    port = free_port()
    text = CONFIGURATION.format(
        folder=tmp_path, port=port, upstream=serving.port, location=request.param
    )
    (tmp_path / "nginx.conf").write_text(text)
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])

    def listening() -> bool:
        assert process.poll() is None, (tmp_path / "error.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listening)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("proxy", [AS_IT_COMES, KEPT, STREAMED], indirect=True)
def test_a_large_body_that_is_refused_is_answered_and_no_502(proxy: str) -> None:
    for _ in range(10):
        answer = requests.post(f"{proxy}/classify", data=bytes(MAX_BYTES + 1), timeout=30)
        assert answer.status_code == 413
        answer = requests.post(f"{proxy}/classify?model=no", data=bytes(12_000_000), timeout=30)
        assert answer.status_code == 404


REQUESTS = (
    ("POST", "/classify", digit_png(0), 200),
    ("GET", "/livez", b"", 200),
    ("POST", "/classify?model=none", bytes(40_000), 404),
    ("POST", "/classify", digit_png(1), 200),
    ("POST", "/classify?top_k=0", bytes(300_000), 400),
    ("POST", "/classify", digit_png(2), 200),
    ("POST", "/nothing", bytes(33_000), 404),
    ("POST", "/classify", bytes(1000), 415),
)


def each_its_own(url: str, count: int, name: str) -> Counter[tuple[int, int]]:
    """Sends `count` requests on one session; counts expected and actual responses."""
    found: Counter[tuple[int, int]] = Counter()
    with requests.Session() as session:
        for number in range(count):
            method, path, body, expected = REQUESTS[number % len(REQUESTS)]
            request_id = f"{name}-{number}"
            answer = session.request(
                method, url + path, data=body, headers={"x-request-id": request_id}, timeout=30
            )
            assert answer.headers["x-request-id"] == request_id, (path, answer.text)
            found[expected, answer.status_code] += 1
    return found


def all_right(url: str, sessions: int, each: int) -> None:
    with ThreadPoolExecutor(sessions) as pool:
        jobs = [pool.submit(each_its_own, url, each, f"s{n}") for n in range(sessions)]
        found = sum((job.result() for job in jobs), Counter[tuple[int, int]]())
    assert found.total() == sessions * each
    assert {expected for expected, answered in found if expected != answered} == set()


@pytest.mark.parametrize("proxy", [KEPT, STREAMED], indirect=True)
def test_each_request_gets_its_own_answer_through_kept_connections(proxy: str) -> None:
    all_right(proxy, sessions=8, each=625)


def test_each_request_gets_its_own_answer_on_a_session(serving: Service) -> None:
    all_right(serving.url, sessions=4, each=250)
