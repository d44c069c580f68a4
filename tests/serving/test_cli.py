from __future__ import annotations

import shutil
import subprocess
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle.errors import BundleError, LabelcurveError
from labelcurve.serving.cli import serve
from labelcurve.serving.settings import Settings
from tests.serving.conftest import SERVE, Service, free_port


def test_it_says_what_it_serves(service: Service, digits_models: Path) -> None:
    lines = service.output.splitlines()
    assert lines[0].startswith(("device   cpu (no NVIDIA GPU", "device   cuda ("))
    models = [line for line in lines if line.startswith("model ")]
    assert [line.split()[1].partition("@")[0] for line in models] == [
        "digits-10",
        "digits-50",
        "digits-100",
    ]
    assert models[2].endswith("(default)")
    assert "default  digits-100: it has the most labels" in service.output
    # Other modules use the same service: log lines of their requests may follow.
    assert lines[lines.index(f"listen   {service.url}") + 1].startswith("ready    after")


def test_an_error_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [*SERVE, "--models", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: no bundle in {tmp_path}")
    assert done.stderr.count("\n") == 1


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no folder"):
        serve(Settings(models=tmp_path / "none"))


def test_a_damaged_bundle(digits_models: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    with (models / "digits-50/current/model.onnx").open("ab") as graph:
        graph.write(b"\0")
    with pytest.raises(BundleError, match="damaged"):
        serve(Settings(models=models))


def test_a_model_that_is_not_there(digits_models: Path) -> None:
    with pytest.raises(BundleError, match=r"--model digits-1: no such model; .* meant digits-10"):
        serve(Settings(models=digits_models, model=("digits-10", "digits-1")))
    with pytest.raises(BundleError, match="takes the name without a version"):
        serve(Settings(models=digits_models, model=("digits-10@0123456789ab",)))


def test_a_default_that_is_not_there(digits_models: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    (models / "default.json").write_text('{"default": "cats"}')
    with pytest.raises(BundleError, match=r"names cats as the default.*models promote NAME"):
        serve(Settings(models=models))


def test_a_port_that_is_taken(service: Service, digits_models: Path) -> None:
    with pytest.raises(LabelcurveError, match=f"cannot listen on 127.0.0.1 port {service.port}"):
        serve(Settings(models=digits_models, port=service.port))
    with pytest.raises(LabelcurveError, match=r"choose another with --host and --metrics-port$"):
        serve(Settings(models=digits_models, port=free_port(), metrics_port=service.port))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "300.1.1.1"}, "cannot listen on 300.1.1.1"),
        ({"port": 70000}, "--port 70000: allowed are 1 to 65535"),
        ({"port": 0}, "--port 0"),
        ({"workers": 0}, "--workers 0: allowed are 1 to "),
        ({"threads": 0}, "--threads 0: allowed are 1 to "),
        ({"device": "cuda"}, "no NVIDIA GPU is visible"),
        ({"watch": nan}, "--watch nan: allowed are 0 and more"),
        ({"timeout": inf}, "--timeout inf: allowed are 0.1 and more"),
        ({"keep_alive": 0}, "--keep-alive 0: allowed are 1 and more"),
        ({"cors": ("example.org",)}, "--cors example.org: allowed are https://HOST"),
        (
            {"cors": ("*", "https://example.org/a")},
            "--cors https://example.org/a: allowed are https://HOST",
        ),
        ({"otlp_endpoint": "localhost:4318"}, "--otlp-endpoint localhost:4318: allowed is a URL"),
    ],
)
def test_impossible_options(
    digits_models: Path, options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(LabelcurveError, match=says):
        serve(Settings(models=digits_models, **options))
