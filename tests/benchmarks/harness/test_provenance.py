from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from labelcurve.benchmarks.harness import provenance
from labelcurve.benchmarks.study.documents import ROOT
from labelcurve.bundle import cuda, machine
from labelcurve.bundle.errors import LabelcurveError


def test_says_what_a_figure_needs() -> None:
    found = provenance.here(["bench", "--data", "a folder"])
    assert found.command == "bench --data 'a folder'"
    assert (found.cpu, found.cores) == (machine.cpu_name(), machine.cores())
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found.memory_gb == pytest.approx(pages / 2**30, abs=0.1)
    assert found.system.split() == [platform.system(), platform.release(), platform.machine()]
    assert found.python == platform.python_version()
    assert onnxruntime.__version__ in found.packages.values()
    assert {"labelcurve", "bentoml", "locust", "numpy"} <= found.packages.keys()
    assert found.date.endswith("+00:00")
    age = datetime.now(UTC) - datetime.fromisoformat(found.date)
    assert timedelta(seconds=-1) < age < timedelta(minutes=10)
    assert found.git_commit is None or re.fullmatch(r"[0-9a-f]{40}\+?", found.git_commit)


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("/home/me/my photos/cats", "cats"),
        ("/home/me/cats/", "cats"),
        ("/home/label=cat/a:b,c", "a:b,c"),
        ("--data=/home/me/cats", "--data=cats"),
        ("timm:lite0=/home/me/lite0.pth", "timm:lite0=lite0.pth"),
        ("--extractor=timm:lite0=/home/me/lite0.pth", "--extractor=timm:lite0=lite0.pth"),
        ("--set=a=/home/me/a,b=/home/me/b", "--set=a=b"),
        ("/home/me/photos:/photos:ro", "photos:ro"),
        ("--data=~/cats", "--data=cats"),
        ("~me/cats", "cats"),
        ("../../me/cats", "cats"),
        ("file:///home/me/cats", "cats"),
        ("//home/me/cats", "cats"),
        ("--note=read from /dev/shm", "--note=read from shm"),
        ("data/cifar10", "data/cifar10"),
        ("--out=runs/a", "--out=runs/a"),
        ("http://127.0.0.1:3000/classify", "http://127.0.0.1:3000/classify"),
        ("--url=http://localhost/a/b", "--url=http://localhost/a/b"),
        ("--note=1/2 of a/b in images / s", "--note=1/2 of a/b in images / s"),
        ("timm:lite0=lite0.pth", "timm:lite0=lite0.pth"),
        ("-", "-"),
        ("", ""),
    ],
)
def test_of_a_path_of_this_machine_the_command_keeps_the_last_name(
    argument: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ["bench", kept, "--seed", "1"]
    assert shlex.split(provenance.here(["bench", argument, "--seed", "1"]).command) == expected
    monkeypatch.setattr("sys.argv", ["/home/me/bin/labelcurve", "bench", argument])
    for command in (provenance.here().command, provenance.conditions()["command"]):
        assert shlex.split(command) == ["labelcurve", "bench", kept]


@pytest.mark.parametrize(
    ("module", "begin"),
    [
        ("labelcurve.benchmarks.backtest.__main__", "python -m labelcurve.benchmarks.backtest"),
        ("labelcurve.benchmarks.quality.audit", "python -m labelcurve.benchmarks.quality.audit"),
        (None, "audit.py"),
    ],
)
def test_the_command_of_a_module_is_what_runs_it_again(
    module: str | None, begin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = module and ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr("sys.argv", ["/home/me/audit.py", "--draws", "2"])
    assert provenance.here().command == f"{begin} --draws 2"


@pytest.mark.parametrize(("names", "said"), [(["A", "B"], "A, B"), ([], None)])
def test_without_a_gpu_none_is_named(
    names: list[str], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "names", lambda: names)
    assert provenance.here().gpu == provenance.conditions()["gpu"] == said


def test_no_result_in_the_repository_names_a_path_of_a_machine() -> None:
    files = [*(ROOT / "benchmarks/results").rglob("*.json"), *(ROOT / "docs").rglob("*.json")]
    assert len(files) > 15
    found = {
        f"{file.relative_to(ROOT)}: {text[:200]}"
        for file in files
        for text in _texts(json.loads(file.read_text()))
        if PATH.search(text)
    }
    assert not found


PATH = re.compile(provenance.MACHINE_PATH.pattern + r"[^\s/]+/[^\s/]")
"""Two names at least, since `POST /classify` is not a path."""


def _texts(value: Any) -> Iterator[str]:
    """The strings of a document, except `right`, one bit for each image in base64."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from _texts(child) if key != "right" else ()
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child)


def test_a_result_that_could_not_be_written_ends_the_command_before_its_work(
    tmp_path: Path,
) -> None:
    provenance.check_out(None)
    provenance.check_out(tmp_path / "new" / "result.json")
    assert not any(tmp_path.iterdir())
    with pytest.raises(LabelcurveError, match="is a folder: name a file in it"):
        provenance.check_out(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(LabelcurveError, match=r"file is not a writable folder \(Not a directory"):
        provenance.check_out(tmp_path / "file" / "result.json")
