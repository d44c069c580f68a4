"""The blocks of docs/photos.md are run in order, as a reader would, without a network.

Stated substitutions: the Hub's cache holds the backbone already; `serve` runs in the background, on
a free port, until the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labelcurve.bundle import store
from tests.photos import hub_cache, photos
from tests.test_readme import background, free_port, wait_until_ready

__all__ = ["background"]

PAGE = (Path(__file__).parent.parent / "docs/photos.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_a_folder_of_photos_ends_in_an_answered_request(
    tmp_path: Path,
    background: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos(tmp_path / "pictures")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cache = str(tmp_path / "cache")
    more = {"PATH": path, "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **more, "HF_HUB_CACHE": str(hub_cache(tmp_path / "hub"))}
    port = free_port()
    train, serve, ask = (block.replace("127.0.0.1:3000", f"127.0.0.1:{port}") for block in BLOCKS)

    def run(block: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    document = json.loads(run(train).splitlines()[-1])
    assert [b["name"] for b in document["bundles"]] == ["pictures-50", "pictures-100"]
    (final,) = document["final"]
    assert (final["name"], final["n_labels_train"]) == ("pictures-final", 40)
    heads = [
        store.read(tmp_path / "models", name).manifest.recipe["linear_head"]
        for name in ("pictures-100", "pictures-final")
    ]
    assert heads[1] == {**heads[0], "accuracy": None, "balanced_accuracy": None}
    command = ["bash", "-c", f"exec {serve.strip()} --port {port}"]
    background.append(subprocess.Popen(command, cwd=tmp_path, env=environment))
    wait_until_ready(background[-1], port)
    answer = json.loads(run(ask))
    assert "flower" in json.dumps(answer)
    assert "palace" not in json.dumps(answer)
