from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from labelcurve.benchmarks.harness import server
from labelcurve.benchmarks.resilience import client as http
from labelcurve.benchmarks.resilience import leaks
from labelcurve.benchmarks.resilience.soak import bad_requests
from labelcurve.bundle.errors import LabelcurveError
from tests.models import digit_png


def test_each_kind_is_sent_and_its_answers_are_counted(digits_models: Path, tmp_path: Path) -> None:
    bad = bad_requests(digit_png(0))
    kinds = {name: [request] for name, request, allowed in bad if allowed}
    kinds["digits"] = [http.post(digit_png(n)) for n in range(3)]
    with server.started(digits_models, tmp_path / "log") as service:
        assert service.pid
        found = asyncio.run(leaks.by_kind(service.port, service.pid, kinds, 2))
    assert found["unexpected"] == {}
    assert found["kinds"].keys() == kinds.keys()
    assert found["kinds"]["digits"]["statuses"] == {"200": leaks.FIRST + 3}
    for name, _, allowed in bad:
        if allowed:
            assert set(found["kinds"][name]["statuses"]) <= set(map(str, allowed)), name
            assert found["kinds"][name]["requests"] == leaks.FIRST + 2


def test_files_are_sent_by_the_ending_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.png", "b.PNG", "more/c.webp", "d"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "empty.png").touch()
    found = leaks.files(tmp_path)
    assert {kind: len(requests) for kind, requests in found.items()} == {
        ".png": 2,
        ".webp": 1,
        "no ending": 1,
    }
    with pytest.raises(LabelcurveError, match="no file there"):
        leaks.files(tmp_path / "nothing")
