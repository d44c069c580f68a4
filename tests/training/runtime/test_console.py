from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Console

from labelcurve.bundle.manifest import Epoch
from labelcurve.training.runtime import console

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


def test_what_the_output_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(raw, encoding="ascii"))
    console.say(f"0.9 ± 0.1 in {os.fsdecode(bytes([0x61, 0xFF]))}")
    console.say("and on")
    assert raw.getvalue() == b"0.9 \\xb1 0.1 in a\\udcff\nand on\n"


def test_where_all_is_well_nothing_is_said() -> None:
    done = run(subprocess.PIPE)
    assert (done.stdout, done.stderr) == ("row 0\nrow 1\nrow 2\n{}\n", "")


def test_each_figure_of_an_epoch_stands_below_its_head() -> None:
    row = Epoch(
        epoch=7,
        train_loss=1.25,
        train_accuracy=0.125,
        val_loss=2.5,
        val_accuracy=0.25,
        val_f1=0.375,
        val_precision=0.0,
        val_recall=0.0,
        lr=0.03125,
        images_per_s=1234.4,
        seconds=5.06,
    )
    line = console.epoch(row, "/20", 61.4)
    figures = ("1.2500", "0.1250", "2.5000", "0.2500", "0.3750", "0.03125", "1234", "5.1", "61 s")
    assert line.split() == ["7/20", *" ".join(figures).split()]
    heads = (" loss", "accuracy", "val loss", "val accuracy", "val F1", "lr", "images/s", "seconds")
    for head, figure in zip(heads, figures, strict=False):
        assert line.index(f" {figure}") + 1 + len(figure) == console.EPOCHS.index(head) + len(head)


def test_a_bar_shows_the_share_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, out = [100.0], StringIO()
    monkeypatch.setattr("labelcurve.training.runtime.console.time.monotonic", lambda: now[0])
    with console.Bar("work", Console(file=out, force_terminal=True, width=80)) as bar:
        now[0] = 110.0
        bar.update(0.25)
        now[0] = 110.1
        bar.update(0.5)  # too soon to be drawn again
        now[0] = 110.3
        bar.update(0.75, 4.0)
    said = out.getvalue()
    assert "25%" in said
    assert "30.0 s left" in said
    assert "50%" not in said
    assert "75%" in said
    assert "4.0 s left" in said
    with console.Bar("work", Console(file=StringIO())) as bar:
        bar.update(0.5)
    assert not bar.shown
