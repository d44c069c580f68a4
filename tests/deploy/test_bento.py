"""`bentoml build` on the project, and the bento served by BentoML itself, as its users would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from labelcurve.bundle import store
from tests.models import digit_png
from tests.serving.conftest import free_port

ROOT = Path(__file__).parents[2]
BENTOML = Path(sys.executable).with_name("bentoml")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("bentoml")
    return {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}


@pytest.fixture(scope="module")
def bento(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], digits_models: Path
) -> Path:
    """The folder of the built bento."""
    project = tmp_path_factory.mktemp("project")
    caches = shutil.ignore_patterns("__pycache__")
    for name in ("labelcurve", "bundle", "serving", "training", "benchmarks"):
        shutil.copytree(ROOT / name, project / name, symlinks=True, ignore=caches)
    # Locking the versions is BentoML's own work, and asks the package index.
    text = (ROOT / "bentofile.yaml").read_text()
    assert "\npython:\n" in text
    text = text.replace("\npython:\n", "\npython:\n  lock_packages: false\n")
    (project / "bentofile.yaml").write_text(text)
    shutil.copytree(digits_models, project / "models", symlinks=True)
    done = subprocess.run(
        [str(BENTOML), "build", "--version", "1", str(project)],
        env=environment,
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(environment["BENTOML_HOME"]) / "bentos/labelcurve/1"


@pytest.fixture(scope="module")
def url(bento: Path, environment: dict[str, str]) -> Iterator[str]:
    port = free_port()
    command = [str(BENTOML), "serve", "labelcurve:1", "--host", "127.0.0.1", "--port", str(port)]
    log = bento.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, cwd=bento.parent
        )
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_it_holds_the_service_and_the_bundles_and_nothing_of_training(bento: Path) -> None:
    there = {path.name for path in (bento / "src").iterdir()}
    assert {"labelcurve", "bundle", "serving", "models"} <= there
    assert not there & {"training", "benchmarks", "tests"}
    assert store.names(bento / "src/models") == ["digits-10", "digits-100", "digits-50"]
    assert "onnxruntime-gpu[cuda,cudnn]" in (bento / "env/python/requirements.txt").read_text()
    assert "ENTRYPOINT" in (bento / "env/docker/Dockerfile").read_text()


def test_bentoml_serves_it(url: str) -> None:
    answer = httpx.post(f"{url}/classify?top_k=3", content=digit_png(0), timeout=30)
    assert answer.status_code == 200, answer.text
    assert len(json.loads(answer.text)) == 3
    assert answer.headers["x-model-name"] == "digits-100"
