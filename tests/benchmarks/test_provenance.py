from __future__ import annotations

import platform
import re
from pathlib import Path

import onnxruntime
import pytest

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


def test_a_result_that_could_not_be_written_ends_the_command_before_its_work(
    tmp_path: Path,
) -> None:
    provenance.check_out(None)
    provenance.check_out(tmp_path / "new" / "result.json")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(SystemExit, match="is a folder: name a file in it"):
        provenance.check_out(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"cannot be written: (Not a directory|File exists)"):
        provenance.check_out(tmp_path / "file" / "result.json")
