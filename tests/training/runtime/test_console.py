from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from labelcurve.bundle import command
from labelcurve.training.runtime import console as output
from labelcurve.bundle.errors import LabelcurveError
for number in range(3):
    output.say(f"row {number}")
try:
    command.answer({})
except LabelcurveError as error:
    output.tell(f"error: {error}")
    sys.exit(1)
"""


def run(stdout: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=stdout, stderr=subprocess.PIPE, text=True
    )


def test_a_reader_that_went_away_ends_nothing_but_the_result() -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(write)
    os.close(write)
    assert done.stderr == (
        "warning: output cannot be written (Broken pipe); the work continues\n"
    ), "what follows goes nowhere, and nothing is said twice"
    assert done.returncode == 0


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no /dev/full: it stands for a full disk"
)
def test_a_full_disk_ends_nothing_but_the_result() -> None:
    with Path("/dev/full").open("w") as full:
        done = run(full.fileno())
    warning, error = done.stderr.splitlines()
    assert warning.startswith("warning: output cannot be written (No space left")
    assert error.startswith("error: all is done, but its result cannot be written")
    assert done.returncode == 1


def test_where_all_is_well_nothing_is_said() -> None:
    done = run(subprocess.PIPE)
    assert (done.stdout, done.stderr) == ("row 0\nrow 1\nrow 2\n{}\n", "")
