from __future__ import annotations

import pytest

from benchmarks import wrk


def test_without_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(
        SystemExit, match=r"no command `wrk`, the load generator: apt-get install wrk"
    ):
        wrk.main([])
