from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from labelcurve.training.runtime import interruption

LONG_STEP = """
import os, signal, sys, time
from pathlib import Path
from labelcurve.training.runtime import interruption

interruption.GRACE = 0.1
interruption.install()
interruption.remove_at_end(Path(sys.argv[1]))
with interruption.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    if sys.argv[2] == "waits":
        while True:
            time.sleep(1)
"""


@pytest.mark.parametrize(("step", "said"), [("waits", "in the middle of a step"), ("ends", "")])
def test_folders_go_with_the_process_however_it_ends(tmp_path: Path, step: str, said: str) -> None:
    folder = tmp_path / "of-this-process"
    (folder / "sub").mkdir(parents=True)
    command = [sys.executable, "-c", LONG_STEP, str(folder), step]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 143) == bool(said), done.stderr
    assert said in done.stderr
    assert not folder.exists()


def test_it_ends_in_time_also_where_nobody_reads_what_it_says(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", LONG_STEP, str(tmp_path / "folder"), "waits"]
    done = subprocess.run(command, stderr=write, check=False, timeout=60)
    os.close(write)
    assert done.returncode == 143


def ended(*signals: signal.Signals, waiting: bool = True) -> tuple[int, bool]:
    """The exit code of a step that receives these signals, and whether it was done to its end."""
    done: list[bool] = []
    with pytest.raises(interruption.Stopped) as stopped:
        _step(signals, waiting, done)
    assert not interruption.pending()
    return stopped.value.code, done == [True]


def _step(signals: tuple[signal.Signals, ...], waiting: bool, done: list[bool]) -> None:
    with interruption.deferred() if waiting else nullcontext():
        for number in signals:
            interruption._handle(number, None)
        assert interruption.came() == signals[-1]
        with interruption.deferred():
            pass  # the outer one has the say
        done.append(True)


def test_the_first_signal_waits_and_the_second_ctrl_c_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interruption, "_came", None)
    forwarded = "a launcher may forward it once more"
    assert ended(signal.SIGTERM, signal.SIGTERM) == (143, True), forwarded
    assert ended(signal.SIGINT, signal.SIGTERM) == (143, True), forwarded
    assert ended(signal.SIGHUP, signal.SIGINT) == (130, False)
    assert ended(signal.SIGINT, signal.SIGINT) == (130, False)
    assert ended(signal.SIGINT) == (130, True)
    assert ended(signal.SIGHUP) == (129, True)
    assert ended(signal.SIGTERM, waiting=False) == (143, False)
