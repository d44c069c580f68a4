from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from labelcurve.bundle import store
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training import options
from labelcurve.training.jobs import sweep
from labelcurve.training.runtime import interruption
from labelcurve.training.sweep_options import SweepOptions, parse_sweep
from tests.training.conftest import LABELCURVE, QUICK, SMALL, environment, finished

SWEEP = (LABELCURVE, "sweep")


def jobs(*arguments: str) -> list[sweep.Job]:
    chosen, others = parse_sweep(arguments)
    return sweep._jobs(chosen, options.parse(others), others)


def test_the_grid_is_every_data_set_with_every_fraction_and_seed() -> None:
    found = jobs(
        *("--data", "digits", "--data", "a/photos", "--fraction", "1", "--fraction", "0.1"),
        *("--fraction", "1.0", "--cpus", "0.5"),
        *("--seed", "3", "--seeds", "2", "--epochs", "4", "--out", "there"),
    )
    assert [(job.data, job.fraction, job.seed) for job in found] == [
        (data, fraction, seed)
        for seed in (3, 4)
        for data in ("digits", "a/photos")
        for fraction in (0.1, 1.0)
    ]
    assert {(job.cpus, job.folder) for job in found} == {(0.5, Path.cwd())}
    assert [job.log for job in found[2:4]] == ["photos-0.1-s3.log", "photos-1-s3.log"]
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
        (("--data", "a x", "--data", "a-x"), "two of them would have the same bundles' names"),
        (("--data", "a.csv", "--data", "a"), "two of them would have the same bundles' names"),
        (("--fraction", "0.1", "0.1000000001"), "--fraction: two of them would have the same"),
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
    sweep._check_room(2, 0.5, nodes, None)
    with pytest.raises(
        LabelcurveError,
        match="--cpus 4 and --gpus 0: this machine has 2 CPUs and 1 GPUs",
    ):
        sweep._check_room(4, 0, nodes, None)
    sweep._check_room(1, 2, nodes, "head:6379")
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
    monkeypatch.setattr(sweep, "cores", lambda: 4)
    monkeypatch.setattr(sweep, "memory", lambda: 8e9)
    cleared: list[bool] = []
    memory: list[float | None] = []

    def run(given: options.Options, **_: object) -> dict[str, Any]:
        cleared.append(given.clear_cache)
        memory.append(given.memory_gb)
        pixels = tmp_path / "pixels" / str(len(cleared))
        pixels.mkdir(parents=True)
        return {"bundles": [{"there": sorted(path.name for path in pixels.parent.iterdir())}]}

    monkeypatch.setattr("labelcurve.training.jobs.train.run", run)
    (tmp_path / "pixels" / "before").mkdir(parents=True)
    both = jobs(
        *("--data", "digits", "--fraction", "0.1", "--fraction", "0.5", "--clear-cache"),
        *("--out", str(tmp_path / "out"), "--cache", str(tmp_path)),
    )
    assert [sweep.train(one)[0]["there"] for one in both] == [["1"], ["1", "2"]]
    assert cleared == [False, False]
    assert memory == [0.5, 0.5], "a quarter of 8 GB, for one core of four"
    sweep.train(replace(both[0], cpus=9.0))
    sweep.train(replace(both[0], arguments=(*both[0].arguments, "--memory-gb", "3")))
    assert memory[2:] == [2.0, 3.0]


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
    small = {**entry("b", 0.3), "teacher": {}}
    _, third = sweep.summarise([small, entry("b", 0.9)])
    assert (third["compact"], third["mean"]) == (True, 0.3)


def test_a_row_of_a_job_stands_below_its_head() -> None:
    entry = {
        **{"data": "a/photos", "fraction": 0.125, "seed": 3, "version": "0123456789ab"},
        **{"seconds": {"total": 61.7, "train": 5.0}, "node": "here", "val": {}},
        "test": {"accuracy": 0.75, "balanced_accuracy": 0.25},
    }
    row = sweep._row(entry)
    assert row.split() == [
        *("photos", "12.5", "%", "3", "0.7500", "0.2500", "0123456789ab", "62", "here"),
    ]
    head = sweep.HEADER.removeprefix("done     ")
    for name, value in (("accuracy", "0.7500"), ("balanced", "0.2500"), ("seconds", "62")):
        assert row.index(value) + len(value) == head.index(name) + len(name)
    table = sweep._table(
        [
            {"data": "a/photos", "fraction": 0.125, "seeds": 2, "mean": 0.5, "std": 0.0625},
            {"data": "b", "fraction": 1.0, "compact": True, "seeds": 1, "mean": 0.25, "std": None},
        ]
    )
    assert [list(column.cells) for column in table.columns] == [
        *(["photos", "b"], ["12.5 %", "100 % compact"], ["2", "1"]),
        ["0.5000 ± 0.0625", "0.2500"],
    ]


@pytest.mark.usefixtures("narrow")
def test_a_second_attempt_resumes_and_finds_what_the_first_published(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep"])
    (job,) = jobs(
        *QUICK, "--fraction", "0.1", "--out", str(tmp_path), "--cache", str(cache), "--fresh"
    )
    (first,) = sweep.train(job)
    log = tmp_path / ".runs" / "sweep" / job.log
    assert log.read_text().count("  2/2 ") == 1
    assert sweep.train(job) == [first]
    assert "was published before the interruption" in log.read_text()
    assert log.read_text().count("  2/2 ") == 1
    # Another sweep starts over, as --fresh says.
    (again,) = sweep.train(replace(job, sweep="later"))
    assert again["version"] == first["version"]
    assert log.read_text().count("  2/2 ") == 1
    assert log.read_text().startswith("later\n")
    run = store.read_run(store.read(tmp_path, first["name"]).path)
    assert run.command.startswith("labelcurve train --data digits --fraction 0.1 --seed 0 ")


def test_ray_has_three_attempts_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(tmp_path))
    monkeypatch.setattr(interruption, "remove_at_end", lambda _: None)
    fails, given = [2], list[dict[str, Any]]()

    def init(**options: Any) -> None:
        given.append(options)
        fails[0] -= 1
        if fails[0] >= 0:
            raise TimeoutError("too slow")

    sweep._start(SimpleNamespace(init=init))
    assert len(given) == 3
    assert (given[0]["address"], given[0]["_node_ip_address"]) == ("local", "127.0.0.1")
    assert capsys.readouterr().out.count("did not start in time: trying once more\n") == 2
    fails[0] = 3
    with pytest.raises(LabelcurveError, match="Ray does not start on this machine: too slow"):
        sweep._start(SimpleNamespace(init=init))
    assert len(given) == 6


class InProcess:
    """The part of Ray that `sweep` uses: runs each job in this process when its result is asked."""

    def __init__(self) -> None:
        import ray

        self.exceptions: Any = ray.exceptions
        self.asked: dict[str, Any] = {}

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "GPU": 1.0}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.cluster_resources()}]

    def remote(self, **asked: Any) -> Callable[..., Any]:
        self.asked = asked
        return lambda train: SimpleNamespace(remote=lambda job: (train, job))

    def wait(self, waiting: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return waiting[:1], waiting[1:]

    def get(self, reference: tuple[Callable[[sweep.Job], Any], sweep.Job]) -> Any:
        train, job = reference
        try:
            return train(job)
        except LabelcurveError as error:
            raise self.exceptions.RayTaskError("train", "", error) from error


@pytest.mark.usefixtures("narrow")
def test_what_was_published_is_not_trained_again_until_all_of_it_is_there(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep"])
    ray = InProcess()
    monkeypatch.setattr(sweep, "_ray", lambda address: nullcontext(ray))
    empty = tmp_path / "nothing"
    empty.mkdir()
    out = tmp_path / "out"
    others = [*QUICK[2:], "--out", str(out), "--cache", str(cache)]
    both = SweepOptions(data=("digits", str(empty)), fraction=(0.1,), cpus=1.5, retries=7)
    with pytest.raises(LabelcurveError, match="1 of 2 jobs failed; the same command runs them aga"):
        sweep.run(both, others)
    assert ray.asked == {"num_cpus": 1.5, "num_gpus": 0.0, "max_retries": 7}, "--device cpu"
    name = "digits-scratch-10"
    assert (out / ".runs" / name / "finished.json").exists()
    (entry,) = sweep.run(replace(both, data=("digits",)), others)["bundles"]
    assert entry["version"] == store.read(out, name).version
    log = (out / ".runs" / "sweep" / "digits-0.1-s0.log").read_text()
    assert "was published before the interruption" in log
    assert not (out / ".runs" / name / "finished.json").exists()


@pytest.mark.parametrize(
    ("gpus", "device", "asked"),
    [(None, "cpu", 0.0), (None, "auto", 1.0), (0.0, "auto", 0.0), (0.25, "auto", 0.25)],
)
def test_a_job_takes_a_gpu_where_there_is_one_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: float | None, device: str, asked: float
) -> None:
    ray = InProcess()
    monkeypatch.setattr(sweep, "_ray", lambda address: nullcontext(ray))
    (empty := tmp_path / "nothing").mkdir()
    chosen = SweepOptions(data=(str(empty),), fraction=(0.1,), gpus=gpus)
    others = ["--device", device, "--out", str(tmp_path), "--cache", str(tmp_path)]
    with pytest.raises(LabelcurveError, match="1 of 1 jobs failed"):
        sweep.run(chosen, others)
    assert ray.asked["num_gpus"] == asked


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


def nice(process: psutil.Process) -> int:
    """Niceness of a process, -20 if it has ended."""
    try:
        return int(process.nice())
    except psutil.NoSuchProcess:
        return -20


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


def test_a_sweep_that_is_stopped_has_said_what_failed_and_leaves_no_process(
    tmp_path: Path, cache: Path
) -> None:
    empty = tmp_path / "nothing"
    empty.mkdir()
    command = [
        *(*SWEEP, *SMALL, "--data", str(empty), "--fraction", "0.1", "--extractor", "none"),
        *("--epochs", "5000", "--cpus", "0.5", "--out", str(tmp_path / "out")),
    ]
    process, line = started(command, cache, "1/2 ")
    try:
        below = psutil.Process(process.pid).children(recursive=True)
        assert below
        assert listening(psutil.Process(process.pid)) == {"127.0.0.1"}
        # Ray's default, 15, would give them a thirtieth of a busy core.
        assert max(nice(child) for child in below) == psutil.Process().nice()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert f"--data {empty} --fraction 0.1 --seed 0: {empty}" in line
    assert process.returncode == 130, stderr
    assert "\nstopped; bundles already published are kept, and the same command" in stderr
    assert "Traceback" not in stderr
    assert psutil.wait_procs(below, timeout=30)[1] == []


def test_a_sweep_on_this_machine_says_each_result(tmp_path: Path, cache: Path) -> None:
    done = finished(tmp_path, cache, *SWEEP, *QUICK, "--fraction", "0.1", "--out", str(tmp_path))
    assert done.code == 0, done.stderr
    row = r"(?m)^ +1/1 +digits +10 % +0 +0\.\d{4} +0\.\d{4} +\w{12} "
    assert re.search(row, done.stdout)
    (entry,) = done.document["bundles"]
    assert entry["version"] == store.read(tmp_path, "digits-scratch-10").version
