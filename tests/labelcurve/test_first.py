"""As the first process of a container, where the kernel drops signals without a handler."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
ALLOWED = shutil.which("unshare") is not None and not subprocess.run([*UNSHARE, "true"]).returncode

PROGRAM = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from labelcurve import __main__

class Signalled(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith(("labelcurve.training", "labelcurve.serving")):
            os.kill(1, signal.SIGTERM)
            os._exit(7)

sys.meta_path.insert(0, Signalled())
__main__.main()
"""


@pytest.mark.skipif(not ALLOWED, reason="no new process namespace can be made here")
@pytest.mark.parametrize(("command", "status"), [("train", 143), ("serve", 0)])
def test_sigterm_ends_a_command_that_still_imports(command: str, status: int) -> None:
    done = subprocess.run([*UNSHARE, sys.executable, "-c", PROGRAM, command])
    assert done.returncode == status, "7: it was dropped"
