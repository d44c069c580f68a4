from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from labelcurve.serving.telemetry import output
from labelcurve.serving.telemetry.output import Output
from tests.serving.conftest import wait_for


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_lines_come_out_in_order_and_all_of_them_at_the_end(pipe: tuple[int, int]) -> None:
    read, write = pipe
    out = Output(write)
    assert out.write("é\n") == 2
    assert out.write("") == 0
    for i in range(100):
        out.write(f"{i}\n")
    out.write("\udcff\n")
    out.finish()
    expected = "é\n" + "".join(f"{i}\n" for i in range(100)) + "\\udcff\n"
    found = b""
    while len(found) < len(expected.encode()):
        found += os.read(read, 2**16)
    assert found.decode() == expected
    assert (out.fileno(), out.writable(), out.isatty()) == (write, True, False)


def test_what_a_stalled_reader_leaves_no_room_for_is_dropped_and_counted(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, write = pipe
    dropped: list[int] = []
    out = Output(write, dropped.append)
    os.set_blocking(write, True)
    monkeypatch.setattr(output, "HELD_BYTES", 200_000)
    line = "x" * 99_999 + "\n"  # more than a pipe holds
    for _ in range(2):
        out.write(line)
    assert dropped == []
    out.write("a\nb\n")
    out.write("no end")
    assert dropped == [2, 1]
    got = 0
    while got < 200_000:
        got += len(os.read(read, 2**16))
    wait_for(lambda: "3 log lines were dropped: nothing read them" in caplog.text)
    out.write("again\n")
    out.finish()
    assert os.read(read, 100) == b"again\n"
    said = [record.getMessage() for record in caplog.records]
    assert said == ["3 log lines were dropped: nothing read them"]


def test_lines_that_nobody_can_read_any_more_are_counted(pipe: tuple[int, int]) -> None:
    read, write = pipe
    dropped: list[int] = []
    out = Output(write, dropped.append)
    os.close(read)
    out.write("a\nb\n")
    wait_for(lambda: dropped == [2])
