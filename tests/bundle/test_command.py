"""The entry of commands, each as a real process, and the numbers of their options."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import Annotated, Any

import pytest

from labelcurve.bundle.command import MOST_A_CORE, PerCore, Within, check
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import cores

BEGIN = """
import os, signal, sys
from labelcurve.bundle import command
from labelcurve.bundle.errors import LabelcurveError
def main(arguments):
    {body}
command.enter(main, extra="train")
"""

MORE = "allow the process more (`ulimit -v`, the container's limit)\n"


def run(body: str, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    program = BEGIN.format(body=body)
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], text=True, check=False, **given
    )


def test_a_command_that_is_done_exits_0_and_gets_its_arguments() -> None:
    done = run("print(arguments)", "--seed", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "['--seed', '1']\n", "")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--out", ""), "--out"),
        (("--out=", "a.png"), "--out"),
        (("",), "an argument"),
        (("a.png", ""), "an argument"),
    ],
)
def test_an_empty_argument_is_refused_and_does_not_mean_the_current_folder(
    arguments: tuple[str, ...], option: str
) -> None:
    done = run("print(arguments)", *arguments)
    said = f"error: {option} is empty: is a shell variable unset?\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise LabelcurveError('--seed 1: no')", 1, "error: --seed 1: no\n"),
        ("raise SystemExit(2)", 2, ""),
        ("raise KeyboardInterrupt", 130, ""),
        ("open('/nowhere/at/all')", 1, "error: /nowhere/at/all: No such file or directory\n"),
        (
            "raise MemoryError('bytes')",
            1,
            f"error: no memory is left (bytes): {MORE}",
        ),
        (
            "raise ImportError('libx.so: failed to map segment from shared object')",
            1,
            f"error: no memory is left (libx.so: failed to map segment from shared object): {MORE}",
        ),
        (
            "import no_such_package",
            1,
            "error: this needs no_such_package, which is not installed: it comes with the "
            "extra `train`, pip install 'labelcurve[train]'\n",
        ),
    ],
)
def test_an_end_that_is_explained_is_one_line_and_an_exit_code(
    body: str, code: int, said: str
) -> None:
    done = run(body)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


@pytest.mark.parametrize("body", ["1 / 0", "import labelcurve.bundle.no_such_module"])
def test_a_mistake_of_ours_keeps_its_traceback(body: str) -> None:
    done = run(body)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_unwinds_the_stack_and_has_its_code(number: signal.Signals, code: int) -> None:
    body = """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print("ready", flush=True)
        signal.pause()
    finally:
        print("unwound", flush=True)
    """
    command = ["env", "--default-signal=HUP", sys.executable, "-c", BEGIN.format(body=body.strip())]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (code, "unwound\n", "")


def test_nohup_is_heeded() -> None:
    body = "os.kill(os.getpid(), signal.SIGHUP); print('still here')"
    command = ["nohup", sys.executable, "-c", BEGIN.format(body=body)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "still here\n")


@pytest.mark.parametrize("flush", ["False", "True"])
def test_a_reader_that_disconnected_ends_it_quietly(flush: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(f"print('row', flush={flush})", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_another_kind_is_not_hidden() -> None:
    done = run("raise BrokenPipeError('a socket')")
    assert done.returncode == 1
    assert "BrokenPipeError: a socket" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "2>&-", ">&- 2>&-"])
def test_closed_descriptors_are_no_error(closed: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(BEGIN.format(body="print('x'); open('file', 'w').write('y'); print('z')"))
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} {script} {closed}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "y"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_descriptor(closed: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    body = "open('file', 'w').write(str(os.open('other', os.O_CREAT)))"
    script.write_text(BEGIN.format(body=body))
    command = ["sh", "-c", f"exec {sys.executable} {script} {closed}"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here: a full disk")
def test_a_full_disk_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = run("print('row')", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_a_terminal_that_is_not_utf_8_gets_escapes() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run("print('93 % ± 1'); raise LabelcurveError('Größe')", env=environment)
    assert done.stdout == "93 % \\xb1 1\n"
    assert done.stderr == "error: Gr\\xf6\\xdfe\n"


ANSWER = "command.answer({'a': arguments}, lambda: print('a table'))"


def test_the_answer_is_json_where_stdout_is_no_terminal() -> None:
    assert run(ANSWER, "x").stdout == '{"a": ["x"]}\n'
    assert run(ANSWER, "x", "--json").stdout == '{"a": ["x"]}\n'


@pytest.mark.parametrize(
    ("arguments", "said"), [(["x"], "a table"), (["x", "--json"], '{"a": ["x"]}')]
)
def test_the_answer_is_a_table_on_a_terminal_unless_json_is_asked_for(
    arguments: list[str], said: str
) -> None:
    ours, theirs = pty.openpty()
    try:
        done = run(ANSWER, *arguments, stdout=theirs)
        assert done.returncode == 0, done.stderr
        assert os.read(ours, 1000).decode().strip() == said
    finally:
        os.close(theirs)
        os.close(ours)


@dataclass(frozen=True)
class Given:
    a_number: Annotated[int, Within(1)] = 1
    share: Annotated[float | None, Within(0, 1, above=True)] = None
    several: Annotated[tuple[float, ...], Within(0, 1, above=True, below=True, note="(0.9)")] = ()
    side: Annotated[int, Within(8, 1024, note="pixels")] = 8
    threads: Annotated[int | None, PerCore()] = None
    free: int = -5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a_number": 0}, "--a-number 0: allowed are 1 and more"),
        ({"share": 0.0}, "--share 0: allowed are values above 0 and up to 1"),
        ({"share": 1.5}, "--share 1.5: allowed are values above 0 and up to 1"),
        ({"share": nan}, "--share nan: allowed are values above 0 and up to 1"),
        ({"several": (0.5, 1.0)}, r"--several 1: allowed are values between 0 and 1 \(0.9\)"),
        ({"side": 7}, "--side 7: allowed are 8 to 1024 pixels"),
        ({"side": 2**32}, "--side 4294967296: allowed are 8 to 1024 pixels"),
        ({"a_number": inf}, "--a-number inf: allowed are 1 and more"),
    ],
)
def test_what_is_not_allowed_is_said_with_what_is(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelcurveError, match=f"^{message}$"):
        check(Given(**values))


def test_the_ends_that_belong_to_a_range_are_allowed() -> None:
    check(Given(share=1.0, several=(0.1, 0.9), side=1024, free=-(10**9)))
    check(Given(side=8))
    assert str(Within(0, above=True)) == "values above 0"


def test_threads_are_bounded_by_the_cores() -> None:
    most = MOST_A_CORE * cores()
    check(Given(threads=1))
    check(Given(threads=most))
    for wrong in (0, most + 1):
        with pytest.raises(LabelcurveError, match=f"^--threads {wrong}: allowed are 1 to {most}"):
            check(Given(threads=wrong))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here: a full disk")
def test_a_result_that_cannot_be_written_is_an_error_that_says_that_all_is_done() -> None:
    with Path("/dev/full").open("w") as full:
        done = run(ANSWER, stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "error: all is done, but its result cannot be written to stdout: No space left on device\n"
    )
    assert MOST_A_CORE == 8
