from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from labelcurve.benchmarks.harness import processes
from labelcurve.bundle.errors import LabelcurveError

# A parent that ignores SIGTERM, with a child in a different session.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_command_is_this_environment_s_whatever_the_working_directory_holds(
    tmp_path: Path,
) -> None:
    (tmp_path / "labelcurve").mkdir()
    (tmp_path / "labelcurve" / "__main__.py").write_text("print('another')")
    command = processes.labelcurve("train", "--version")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("labelcurve 0")


def test_a_stubborn_family_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 1.0)
    family: list[psutil.Process] = []

    def fail() -> None:
        with processes.child([sys.executable, "-c", STUBBORN], subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            family.extend(processes.tree(process.pid))
            process.stdout.close()
            raise KeyError("as a failing run")

    with pytest.raises(KeyError):
        fail()
    assert len(family) == 2
    assert not any(map(processes.is_running, family))


def test_cpu_seconds_of_a_tree() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"
    process = subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        used = processes.cpu_seconds(process.pid)
        assert used is not None
        assert used >= 0.25
        process.kill()
    assert processes.cpu_seconds(process.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child of a killed process stays")
def test_a_child_ends_when_this_process_is_killed() -> None:
    code = (
        "import sys, time\nfrom labelcurve.benchmarks.harness import processes\n"
        "with processes.child([sys.executable, '-c', 'import time; time.sleep(600)'], None) as p:\n"
        "    print(p.pid, flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([child], timeout=30)
    assert not processes.is_running(child)


def test_a_command_that_does_not_end_in_time_is_ended_and_named_an_error() -> None:
    process = processes.trained([sys.executable, "-c", "import time; time.sleep(600)"])
    with process:
        with pytest.raises(LabelcurveError, match=r"did not end within 0\.1 s"):
            processes.document(process, 0.1)
        assert process.wait(10) < 0
