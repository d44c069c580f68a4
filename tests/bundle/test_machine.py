from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labelcurve.bundle import machine
from labelcurve.bundle.machine import cores, cpu_name, git_commit, memory, scheduled, versions


def test_cgroup_v2_quota_limits_the_cores(tmp_path: Path) -> None:
    unlimited = cores(tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores(tmp_path) == unlimited


@pytest.mark.parametrize(
    ("quota", "expected"), [("250000 100000", 3), ("20000 10000", 2), ("1000 100000", 1),
                            ("1600000 100000", 8), ("max 100000", 8), ("x", 8)],
)  # fmt: skip
def test_a_part_of_a_core_counts_as_one(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu.max").write_text(quota)
    assert cores(tmp_path) == expected


def test_cgroup_v1_quota_limits_the_cores(tmp_path: Path) -> None:
    unlimited = cores(tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000")
    assert cores(tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert cores(tmp_path) == unlimited


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_cgroup_limits_the_memory(tmp_path: Path, file: str) -> None:
    unlimited = memory(tmp_path)
    assert unlimited > 2**28
    (tmp_path / file).parent.mkdir(exist_ok=True)
    for text, expected in (("1000000\n", 1_000_000), ("max\n", unlimited), (str(2**62), unlimited)):
        (tmp_path / file).write_text(text)
        assert memory(tmp_path) == expected


def test_processes_of_a_launcher_share_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = memory(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory(tmp_path) == alone // 4


def test_threads_that_have_to_wait_for_a_core_are_seen() -> None:
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this system does not tell how long threads wait for a core (Linux does)")
    held = os.sched_getaffinity(0)
    core = min(held)
    busy = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            os.sched_setaffinity(0, {core})
            before = scheduled()
            until = time.process_time() + 0.4
            while time.process_time() < until:
                pass
            after = scheduled()
        finally:
            os.sched_setaffinity(0, held)
            other.kill()
    assert before is not None
    assert after is not None
    assert after.ran - before.ran > 0.3
    assert after.waited - before.waited > 0.1
    assert after.others - before.others > 0.1


def test_how_the_cores_were_shared_out_or_none_where_the_system_does_not_tell(
    tmp_path: Path,
) -> None:
    assert scheduled(tmp_path) is None
    (tmp_path / "stat").write_text("cpu  1 2 3 4 5 6 7 8 9 10\n")
    assert scheduled(tmp_path) is None
    task = tmp_path / "self/task/1"
    task.mkdir(parents=True)
    (task / "schedstat").write_text("50000000 20000000 7\n")
    found = scheduled(tmp_path)
    assert found is not None
    assert (found.ran, found.waited) == (0.05, 0.02)
    assert found.others == pytest.approx(27 / os.sysconf("SC_CLK_TCK") - 0.05)


def test_the_processor_has_a_name() -> None:
    assert cpu_name().strip()


def test_versions_are_those_of_what_is_installed() -> None:
    found = versions(["numpy", "onnxruntime", "no-such-distribution"])
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert len(found.keys() & {"onnxruntime", "onnxruntime-gpu"}) == 1
    assert len(found) == 2


def test_the_commit_is_that_of_the_code_and_of_no_other_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABELCURVE_COMMIT", raising=False)

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "training" / "job.py"
    module.parent.mkdir()
    module.write_text("")
    (tmp_path / "notes.txt").write_text("")
    assert git_commit(module) is None, "no repository"
    git("init", "--quiet")
    git("add", "notes.txt")
    git("commit", "--quiet", "--message", "notes")
    assert git_commit(module) is None, "a repository that the code is no part of"
    git("add", "training")
    git("commit", "--quiet", "--message", "code")
    assert git_commit(module) == git("rev-parse", "HEAD")
    module.write_text("# changed")
    assert git_commit(module) == git("rev-parse", "HEAD") + "+"
    monkeypatch.setenv("LABELCURVE_COMMIT", "abc")
    assert git_commit(module) == "abc", "an image says it in its environment"


@pytest.mark.parametrize(
    ("after", "share"),
    [
        (machine.Scheduled(4.0, 2.0, 9.0), 0.25),
        (machine.Scheduled(4.0, 2.0, 5.5), 0.125),  # half of it for its own threads
        (machine.Scheduled(2.0, 0.5, 9.0), 0.0),  # a thread that had waited has ended
        (None, None),
    ],
)
def test_the_share_of_waiting_for_other_work(
    after: machine.Scheduled | None, share: float | None
) -> None:
    assert machine.waited_share(machine.Scheduled(1.0, 1.0, 5.0), after) == share
    assert machine.waited_share(None, after) is None
