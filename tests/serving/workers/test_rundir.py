from __future__ import annotations

from pathlib import Path

from labelcurve.serving.workers.rundir import RunDir


def test_the_supervisor_receives_the_messages_of_workers(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert (run_dir.n_ready(), run_dir.failure()) == (0, None)
    run_dir.ready()
    run_dir.fail("no GPU")
    assert (run_dir.n_ready(), run_dir.failure()) == (1, "no GPU")
