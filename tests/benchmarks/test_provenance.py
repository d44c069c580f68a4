from __future__ import annotations

import platform
import re

import onnxruntime

from benchmarks import provenance


def test_says_what_a_figure_needs() -> None:
    found = provenance.here(["bench", "--data", "a folder"])
    assert found.command == "bench --data 'a folder'"
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_gb > 0
    assert found.python == platform.python_version()
    assert onnxruntime.__version__ in found.packages.values()
    assert {"labelcurve", "bentoml", "locust", "numpy"} <= found.packages.keys()
    assert found.date.endswith("+00:00")
    assert found.git_commit is None or re.fullmatch(r"[0-9a-f]{40}\+?", found.git_commit)
