from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import Service
from tests.serving.web.test_request import problem


def environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def test_bentomls_telemetry_is_off_in_every_process(service: Service) -> None:
    (worker,) = service.workers()
    assert environment(worker)["BENTOML_DO_NOT_TRACK"] == "True"


def test_bentoml_agrees_that_it_must_not_track(tmp_path: Path) -> None:
    script = (
        "import sys, labelcurve.serving.service\n"
        "from bentoml._internal.utils.analytics.usage_stats import do_not_track\n"
        "assert do_not_track()\n"
        "asgi = labelcurve.serving.service.Classifier.to_asgi()\n"
        "print(type(asgi).__name__, [r.path for r in asgi._inner._others.router.routes][:3])\n"
        "names = ('torch', 'training', 'benchmarks', 'opentelemetry.exporter')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BENTOML_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**clean, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "BENTOML_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    front, imported = done.stdout.splitlines()
    assert front == "Front ['/embed', '/models', '/livez']"
    assert imported == "[]"


def test_the_worker_runs_on_uvloop_and_httptools(service: Service) -> None:
    (worker,) = service.workers()
    loaded = Path(f"/proc/{worker}/maps").read_text()
    assert "uvloop" in loaded
    assert "httptools" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize(
    "path",
    ["/docs.json", "/schema.json", "/healthz", "/static_content/", "/assets/", "/__metrics__"],
)
def test_bentomls_own_routes_are_closed(client: httpx.Client, path: str) -> None:
    problem(client.get(path), 404)
    problem(client.post(path), 404)


def test_no_line_for_each_request_unless_asked_for(client: httpx.Client, service: Service) -> None:
    client.get("/models")
    assert "/models" not in service.output


def test_a_worker_imports_what_it_needs_and_the_rest_when_it_is_used(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from labelcurve.serving.workers import bento\n"
        "bento.defer_unused()\n"
        "import labelcurve.serving.service\n"
        "print([name for name in ('aiohttp', 'httpx_ws', 'circus') if name in sys.modules])\n"
        "from bentoml._internal.cloud import BentoCloudClient\n"
        "from bentoml._internal.cloud.client import RestApiClient\n"
        "from _bentoml_impl.server.proxy import create_proxy_app\n"
        "print([each.__name__ for each in (BentoCloudClient, RestApiClient, create_proxy_app)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
            "BENTOML_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported, used = done.stdout.splitlines()
    assert imported == "[]"
    assert used == "['BentoCloudClient', 'RestApiClient', 'create_proxy_app']"
