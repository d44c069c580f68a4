from __future__ import annotations

import shutil
import subprocess
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle import store
from labelcurve.bundle.acceptance import threshold
from labelcurve.bundle.errors import BundleError, LabelcurveError
from labelcurve.serving import cli
from labelcurve.serving.cli import serve
from labelcurve.serving.models.device import Device
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


def test_what_is_served_is_said_to_people_and_to_programs(
    digits_models: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    (models / "digits-10" / store.CURRENT).unlink()
    said: list[tuple[str, str, dict[str, Any]]] = []

    def say(event: str, text: str, **fields: Any) -> None:
        said.append((event, text, fields))

    settings = Settings(models=models, workers=2, threads=3, connections=500, accept=0.95)
    cli._say_process(settings, Device("cpu", "a test"), 100, say)
    bundles = store.read_all(models, ["digits-50", "digits-100"])
    cli._say_models(settings, bundles, ["fp32", "int8"], say)
    cli._accepting(bundles[0], "fp32", 0.999, say)
    first, second = (bundle.version for bundle in bundles)
    shares = [threshold(bundle.manifest.held_out, 0.95).coverage for bundle in bundles]
    why = "it has the most labels, since there is no default.json"
    about = {"classes": 10, "size": 8}
    assert said[-1][2] == {"model": "digits-50", "share": 0.0}
    assert said[-1][1].startswith("accept   digits-50: nothing; accepting with 99.9 % accuracy")
    assert said[:-1] == [
        ("device", "device   cpu (a test)", {"kind": "cpu", "reason": "a test"}),
        ("workers", "workers  2, 3 threads each", {"workers": 2, "threads": 3}),
        ("connections", "limit    100 connections for each worker, for --connections 500: the "
         "limit of open files (ulimit -Hn) allows no more", {"connections": 100, "wanted": 500}),
        ("model", f"model    digits-50@{first}: 10 classes, 797 labels, 8 px, fp32",
         {"model": "digits-50", "version": first, "labels": 797, "precision": "fp32",
          "default": False, **about}),
        ("accept", f"accept   digits-50: {shares[0]:.0%} of the answers, a person looks at the "
         "rest", {"model": "digits-50", "share": round(shares[0], 4)}),
        ("model", f"model    digits-100@{second}: 10 classes, 1596 labels, 8 px, int8 (default)",
         {"model": "digits-100", "version": second, "labels": 1596, "precision": "int8",
          "default": True, **about}),
        ("accept", f"accept   digits-100: {shares[1]:.0%} of the answers, a person looks at the "
         "rest", {"model": "digits-100", "share": round(shares[1], 4)}),
        ("default", f"default  digits-100: {why}", {"model": "digits-100", "reason": why}),
        ("skipped", "skipped  digits-10: it has versions and no link `current`",
         {"model": "digits-10", "reason": "it has versions and no link `current`"}),
    ]  # fmt: skip
    said.clear()
    cli._say_process(settings, Device("cpu", "a test"), 500, say)
    assert [event for event, *_ in said] == ["device", "workers"]
