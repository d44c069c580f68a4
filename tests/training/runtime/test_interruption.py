from __future__ import annotations

import signal
import subprocess
import sys
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


def test_the_first_signal_waits_and_the_second_ctrl_c_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interruption, "_came", None)
    with pytest.raises(interruption.Stopped) as stopped, interruption.deferred():
        interruption._handle(signal.SIGTERM, None)
        interruption._handle(signal.SIGTERM, None)  # forwarded by a launcher
        assert interruption.pending()
        assert interruption.came() == signal.SIGTERM
        with interruption.deferred():
            pass  # the outer one has the say
    assert stopped.value.code == 143
    assert not interruption.pending()
    with pytest.raises(interruption.Stopped) as stopped, interruption.deferred():
        interruption._handle(signal.SIGHUP, None)
        interruption._handle(signal.SIGINT, None)
        raise AssertionError("it went on")
    assert stopped.value.code == 130
    with pytest.raises(interruption.Stopped) as stopped:
        interruption._handle(signal.SIGHUP, None)
    assert stopped.value.code == 129
