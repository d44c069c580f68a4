"""Two real processes on the loopback interface."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from labelcurve.bundle import store
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.runtime import distributed
from labelcurve.training.runtime.distributed import part
from tests.training.conftest import NARROW, QUICK, SMALL, Finished, environment, finished
from tests.training.ranks import work

TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
    *("--nproc-per-node", "2"),
)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 33, 512])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_parts_are_all_rows_and_none_twice(n: int, size: int) -> None:
    parts = [range(n)[part(n, (rank, size))] for rank in range(size)]
    assert [row for rows in parts for row in rows] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, r"RANK=1, MASTER_ADDR=\(not set\), MASTER_PORT=\(not"),
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE=two .* RANK=\(not set\)"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=2, "),
    ],
)
def test_variables_that_no_launcher_sets_like_that_are_named(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], found: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LabelcurveError, match=found):
        distributed.run(dict, "cpu")


def test_a_rank_without_other_processes_is_a_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert distributed.run(lambda: {"done": 1}, "cpu") == {"done": 1}


def both(*lists: list[Any]) -> list[Any]:
    """Batches of several processes, put together."""
    return [[row for rows in batches for row in rows] for batches in zip(*lists, strict=True)]


def moved_alike(
    before: dict[str, torch.Tensor], one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]
) -> int:
    """Counts the tensors that changed; all of them by the same, but for rounding."""
    changed = 0
    for name, start in before.items():
        way = (one[name] - start).float().norm()
        assert (two[name] - one[name]).float().norm() <= 0.02 * way + 1e-6, name
        changed += bool(way > 0)
    return changed


def test_two_processes_are_one_run(tmp_path: Path, cache: Path, digits: object) -> None:
    """The same rows, the same batch statistics, the same gradients: only rounding differs."""
    done = subprocess.run(
        [*TORCHRUN, "-m", "tests.training.ranks", str(tmp_path / "two"), str(cache)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
        env=environment(cache),
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    work(tmp_path / "one", cache)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    # Every batch is split without overlap, and nothing of it is lost.
    (whole,) = one["rows"]
    first, second = two["rows"]
    assert both(first, second) == whole
    assert not set(map(tuple, first)) & set(map(tuple, second))
    assert len(first) == 12
    # Images outside memory, too, though in separate parts.
    first, second = two["rows_outside"]
    for epoch in range(0, 12, 4):
        seen = [
            row for rows in first[epoch : epoch + 4] + second[epoch : epoch + 4] for row in rows
        ]
        assert len(seen) == len(set(seen)) == 28
    assert moved_alike(one["before"], one["weights"], two["weights"]) > 10
    learned, both_learned = one["extractor"], two["extractor"]
    assert moved_alike(learned["before"], learned["projector"], both_learned["projector"]) > 3
    assert moved_alike(one["before"], learned["backbone"], both_learned["backbone"]) > 10
    assert both_learned["loss"] == pytest.approx(learned["loss"], rel=1e-3)
    for row, other in zip(one["history"], two["history"], strict=True):
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-3)
        assert other["val_accuracy"] == pytest.approx(row["val_accuracy"], abs=0.02)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def two(cache: Path, *command: str) -> Iterator[list[subprocess.Popen[str]]]:
    """A command in two processes, without a launcher to hide their exit codes."""
    given = {
        **environment(cache),
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()},
    }
    processes = [
        subprocess.Popen(
            [*NARROW, *command, "--cache", str(cache)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def until(process: subprocess.Popen[str], start: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"it ended before {start!r}: {process.communicate()[1]}")


def test_a_signal_to_one_ends_both_at_a_checkpoint_and_two_resume_to_the_result_of_one(
    tmp_path: Path, cache: Path, trained: Finished
) -> None:
    # So little memory that the images stay outside.
    command = (
        "train",
        *QUICK,
        "--fraction",
        "1.0",
        "--memory-gb",
        "0.0002",
        "--out",
        str(tmp_path),
    )
    with two(cache, *command) as (leader, follower):
        until(leader, "epoch ")
        follower.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60) for process in (leader, follower)]
        assert "  1/2 " not in said[0][0], "it ends before the epoch does"
    assert (leader.returncode, follower.returncode) == (143, 143)
    assert "the same command resumes from here" in said[0][1]
    assert "Traceback" not in said[0][1] + said[1][1]
    folder = tmp_path / ".runs" / "digits-scratch-100"
    assert (folder / "checkpoint.pt").exists()
    assert len(list(folder.rglob("*tfevents*"))) == 1, "one process writes"
    done = finished(tmp_path, cache, *TORCHRUN, *NARROW[1:], *command)
    assert done.code == 0, done.stderr
    assert "(--memory-gb): streamed from the disk" in done.stdout
    assert re.search(r"resuming at epoch \d\.\d from .*checkpoint\.pt", done.stdout)
    assert done.stdout.count("published ") == done.stdout.count("  2/2 ") == 1
    (entry,) = done.document["bundles"]
    alone = trained.document["bundles"][1]
    # Two epochs, and other crops: the spread over seeds is as wide.
    assert entry["test"]["accuracy"] == pytest.approx(alone["test"]["accuracy"], abs=0.08)
    path = store.read(tmp_path, "digits-scratch-100").path
    assert ", 2 processes" in store.read(tmp_path, "digits-scratch-100").manifest.device.reason
    assert store.read_run(path).command.startswith("labelcurve train --data digits ")


def test_a_process_that_is_killed_ends_the_other_with_one_message(
    tmp_path: Path, cache: Path
) -> None:
    out = tmp_path / "a.safetensors"
    command = ("pretrain", *SMALL, "--epochs", "500", "--checkpoint-seconds", "0")
    with two(cache, *command, "--out", str(out)) as (leader, follower):
        until(leader, "   epoch ")
        while not (tmp_path / ".a.checkpoint").exists():
            time.sleep(0.05)
        follower.kill()
        _, stderr = leader.communicate(timeout=60)
    assert leader.returncode == 1
    assert "error: one of the 2 processes ended without an error" in stderr
    assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == [".a.checkpoint"]


def test_what_is_wrong_with_the_options_is_said_once(tmp_path: Path, cache: Path) -> None:
    with two(cache, "train", *SMALL, "--fraction", "2", "--out", str(tmp_path)) as processes:
        said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert said[0][1].startswith("error: --fraction 2: allowed are values above 0")
    assert said[1] == ("", "")
