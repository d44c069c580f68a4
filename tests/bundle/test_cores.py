from __future__ import annotations

from pathlib import Path

from bundle.cores import cores


def test_cgroup_v2_quota_limits_the_cores(tmp_path: Path) -> None:
    unlimited = cores(tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores(tmp_path) == unlimited


def test_cgroup_v1_quota_limits_the_cores(tmp_path: Path) -> None:
    unlimited = cores(tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000")
    assert cores(tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert cores(tmp_path) == unlimited
