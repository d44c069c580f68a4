from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bundle import store
from bundle.errors import LabelcurveError
from tests.training.conftest import QUICK, environment, finished
from training import options, sweep
from training.options import SweepOptions, parse_sweep

SWEEP = Path(sys.executable).with_name("sweep")


def jobs(*arguments: str) -> list[sweep.Job]:
    chosen, others = parse_sweep(arguments)
    return sweep._jobs(chosen, options.parse(others), others)


def test_the_grid_is_every_data_set_with_every_fraction_and_seed() -> None:
    found = jobs(
        *("--data", "digits", "--data", "a/photos", "--fraction", "1", "--fraction", "0.1"),
        *("--seed", "3", "--seeds", "2", "--epochs", "4", "--out", "there"),
    )
    assert {(job.data, job.fraction, job.seed) for job in found} == {
        (data, fraction, seed)
        for data in ("digits", "a/photos")
        for fraction in (0.1, 1.0)
        for seed in (3, 4)
    }
    assert len(found) == 8
    for job in found:
        given = options.parse(job.arguments)
        assert (given.data, given.fractions, list(given.all_seeds)) == (
            job.data,
            (job.fraction,),
            [job.seed],
        )
        assert (given.epochs, given.out) == (4, Path("there"))


def test_without_options_it_is_what_train_does() -> None:
    found = jobs()
    assert [(job.data, job.fraction, job.seed) for job in found] == [
        ("cifar10", fraction, 0) for fraction in options.DEFAULT_FRACTIONS
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "a/x", "--data", "b/x"), "two of them would have the same bundles' names"),
        (("--data", "a", "--data", "b", "--name", "c"), "--name c: allowed with one --data"),
        (("--fraction", "2"), "--fraction 2: allowed are values above 0 and up to 1"),
        (("--dry-run",), "--dry-run and --self-test are options of `train` alone"),
        (("--seeds", "0"), "--seeds 0: allowed are 1 and more"),
        (("--cpus", "0"), "--cpus 0: allowed are values above 0"),
        (("--gpus", "-1"), "--gpus -1: allowed are 0 and more"),
        (("--retries", "-1"), "--retries -1: allowed are 0 and more"),
        (("--address", ""), "--address : allowed are HOST:PORT"),
        (("--address", "head"), "--address head: allowed are HOST:PORT of the cluster's head"),
    ],
)
def test_a_bad_value_names_the_flag_and_what_is_allowed(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(LabelcurveError, match=re.escape(message)):
        jobs(*arguments)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LabelcurveError, match=r"Ray is not installed\. It is the extra `scale`"):
        sweep.run(SweepOptions(data=("digits",)), [])


def test_an_address_where_nothing_listens_is_said_at_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(
            LabelcurveError, match=rf"--address {address}: no Ray cluster answers .*refused"
        ):
            sweep.run(SweepOptions(data=("digits",), address=address), [])


def test_jobs_that_no_machine_has_room_for_are_an_error_or_wait_aloud(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    sweep._check_room(SweepOptions(cpus=2), 0.5, nodes)
    with pytest.raises(
        LabelcurveError,
        match="--cpus 4 and --gpus 0: this machine has 2 CPUs and 1 GPUs",
    ):
        sweep._check_room(SweepOptions(cpus=4), 0, nodes)
    sweep._check_room(SweepOptions(address="head:6379"), 2, nodes)
    assert "the jobs wait for a larger one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("--epoch", "--epochs"),
        ("--adress", "--address"),
        ("--check_point-seconds=3", "--checkpoint"),
    ],
)
def test_a_typing_error_proposes_the_right_option(
    wrong: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        jobs(wrong, "3")
    assert (
        f"error: {wrong}: neither `sweep` nor `train` has this option (perhaps you meant {right}"
        in (capsys.readouterr().err)
    )


def test_data_that_is_not_there_is_said_before_ray_starts() -> None:
    with pytest.raises(LabelcurveError, match=r"--data nowhere: no such folder\. Allowed: cifar10"):
        sweep.run(SweepOptions(data=("digits", "nowhere")), [])


def test_the_cache_is_cleared_once_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep"])
    cleared: list[bool] = []

    def run(given: options.Options, **_: object) -> dict[str, Any]:
        cleared.append(given.clear_cache)
        pixels = tmp_path / "pixels" / str(len(cleared))
        pixels.mkdir(parents=True)
        return {"bundles": [{"there": sorted(path.name for path in pixels.parent.iterdir())}]}

    monkeypatch.setattr("training.job.run", run)
    (tmp_path / "pixels" / "before").mkdir(parents=True)
    both = jobs(
        *("--data", "digits", "--fraction", "0.1", "--fraction", "0.5", "--clear-cache"),
        *("--out", str(tmp_path / "out"), "--cache", str(tmp_path)),
    )
    assert [sweep.train(one)["there"] for one in both] == [["1"], ["1", "2"]]
    assert cleared == [False, False]


def test_every_option_has_its_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        jobs("--help")
    text = capsys.readouterr().out
    for name in vars(SweepOptions()):
        assert f" --{name}" in text


def test_mean_and_spread_are_over_the_seeds() -> None:
    def entry(data: str, accuracy: float, test: bool = True) -> dict[str, object]:
        figures = {"accuracy": accuracy}
        return {
            "data": data,
            "fraction": 0.1,
            "val": figures if not test else {"accuracy": 0.0},
            "test": figures if test else None,
        }

    one, two = sweep.summarise([entry("a", 0.5), entry("b", 0.9, test=False), entry("a", 0.7)])
    assert (one["data"], one["seeds"]) == ("a", 2)
    assert one["mean"] == pytest.approx(0.6)
    assert one["std"] == pytest.approx(0.1414, abs=1e-4)
    assert two == {"data": "b", "fraction": 0.1, "seeds": 1, "mean": 0.9, "std": None}


def test_a_second_attempt_goes_on_and_finds_what_the_first_published(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep"])
    (job,) = jobs(
        *QUICK, "--fraction", "0.1", "--out", str(tmp_path), "--cache", str(cache), "--fresh"
    )
    first = sweep.train(job)
    log = tmp_path / ".runs" / "sweep" / job.log
    assert log.read_text().count("  2/2 ") == 1
    assert sweep.train(job) == first
    assert "was published before the interruption" in log.read_text()
    assert log.read_text().count("  2/2 ") == 1
    # Another sweep starts over, as --fresh says.
    again = sweep.train(replace(job, sweep="later"))
    assert again["version"] == first["version"]
    assert log.read_text().count("  2/2 ") == 1
    assert log.read_text().startswith("later\n")
    run = store.read_run(store.read(tmp_path, first["name"]).path)
    assert run.command.startswith("train --data digits --fraction 0.1 --seed 0 ")


def listening(parent: psutil.Process) -> set[str]:
    """Addresses on which a process and those below it listen."""
    found = set()
    for process in [parent, *parent.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            found |= {
                socket.laddr.ip.removeprefix("::ffff:")  # IPv4 by a socket of IPv6
                for socket in process.net_connections("inet")
                if socket.status == psutil.CONN_LISTEN
            }
    return found


def started(command: list[str], cache: Path, until: str) -> tuple[subprocess.Popen[str], str]:
    """A sweep with the line of its output that it has come to."""
    process = subprocess.Popen(
        [*command, "--cache", str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(cache),
    )
    assert process.stdout is not None
    line = next((line for line in process.stdout if until in line), None)
    if line is None:
        raise AssertionError(f"it ended before {until!r}: {process.communicate()[1]}")
    return process, line


def test_a_sweep_on_this_machine_says_each_result_and_each_failure(
    tmp_path: Path, cache: Path
) -> None:
    command = [
        *(str(SWEEP), *QUICK[2:], "--fraction", "0.1", "--cpus", "0.5"),
        *("--out", str(tmp_path)),
    ]
    empty = tmp_path / "nothing"
    empty.mkdir()
    both = [*command, "--data", "digits", "--data", str(empty)]
    process, _ = started(both, cache, sweep.HEADER)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "\nstopped; bundles that were published before stay, and the same command" in stderr
    assert "Traceback" not in stderr
    assert below
    assert psutil.wait_procs(below, timeout=30)[1] == []
    process, line = started(both, cache, "/2 ")
    try:
        assert listening(psutil.Process(process.pid)) == {"127.0.0.1"}
        rest, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "error: 1 of 2 jobs failed; the same command runs them again:" in stderr
    assert f"--data {empty} --fraction 0.1 --seed 0: {empty}" in stderr
    assert "Traceback" not in stderr
    row = r"(?m)^ +\d/2 +digits +10 % +0 +0\.\d{4} +0\.\d{4} +\w{12} "
    assert re.search(row, line + rest)
    # What was published is not trained again, until all of it is there.
    assert (tmp_path / ".runs" / "digits-scratch-10" / "finished.json").exists()
    done = finished(tmp_path, cache, *command, "--data", "digits")
    assert done.code == 0, done.stderr
    (entry,) = done.document["bundles"]
    assert entry["version"] == store.read(tmp_path, "digits-scratch-10").version
    log = (tmp_path / ".runs" / "sweep" / "digits-0.1-s0.log").read_text()
    assert "was published before the interruption" in log
    assert not (tmp_path / ".runs" / "digits-scratch-10" / "finished.json").exists()
