"""As the first process of a container, where the kernel drops signals without a handler."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
ALLOWED = shutil.which("unshare") is not None and not subprocess.run([*UNSHARE, "true"]).returncode


@pytest.mark.skipif(not ALLOWED, reason="no new process namespace can be made here")
@pytest.mark.parametrize(("room", "status"), [("training", 143), ("serving", 0), ("os", 7)])
def test_sigterm_ends_a_command_that_still_imports(room: str, status: int) -> None:
    program = f"import os, signal, {room}; os.kill(1, signal.SIGTERM); os._exit(7)"
    done = subprocess.run([*UNSHARE, sys.executable, "-c", program])
    assert done.returncode == status, "7: it was dropped, as it is where nothing is imported"
