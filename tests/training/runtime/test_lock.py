from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.runtime import lock

HOLD = """
import sys, pathlib
from labelcurve.training.runtime import lock
with lock.hold(pathlib.Path(sys.argv[1]), "{holder} has it"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it gets a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def test_one_process_at_a_time_and_the_message_says_who(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with (
        pytest.raises(LabelcurveError, match=f"process {holder.pid} on .* has it"),
        lock.hold(tmp_path / "lock", "{holder} has it"),
    ):
        raise AssertionError("held twice")


def test_it_dies_with_its_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").exists()
    with lock.hold(tmp_path / "lock", "{holder} has it"):
        pass
    assert not (tmp_path / "lock").exists()


def test_who_waits_gets_it_when_the_other_is_done(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    said: list[str] = []

    def release(line: str) -> None:
        said.append(line)
        threading.Timer(0.1, lambda: holder.stdin and holder.stdin.close()).start()

    with lock.hold(tmp_path / "lock", "{holder} has it", wait=True, say=release):
        assert holder.wait(timeout=30) == 0
    assert len(said) == 1
    assert said[0].startswith(f"process {holder.pid}")


def test_the_holder_is_named_whatever_was_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 123456789 on another machine with a long name")
    with lock.hold(tmp_path / "lock", ""):
        said = (tmp_path / "lock").read_text()
    assert said == f"process {os.getpid()} on {platform.node()}"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(
            LabelcurveError, match=r"file/lock cannot be written: .* user \d+\. .*--user.*--out"
        ),
        lock.hold(tmp_path / "file" / "lock", ""),
    ):
        raise AssertionError("held")
