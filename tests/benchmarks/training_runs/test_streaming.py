from __future__ import annotations

import json
from pathlib import Path

import pytest

from labelcurve.benchmarks.study import documents
from labelcurve.benchmarks.training_runs import streaming


def test_every_image_is_read_in_processes_of_their_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "streaming.json"
    streaming.main(
        ["--images", "3000", "--image-size", "8", "--memory-gb", "1e-4", "--out", str(out)]
    )
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(out.read_text()) == document
    decode, cache, anew = document["figures"]
    assert (decode["stage"], cache["stage"], anew["stage"]) == ("decode", "cache", "anew")
    assert decode["read"] == 2940
    # Nine tenths, in whole batches
    assert cache["read"] == anew["read"] == 2646 // streaming.BATCH * streaming.BATCH
    for figure in (decode, cache, anew):
        assert 0 < figure["opened_bytes"] <= figure["peak_bytes"]
    assert "an epoch from the cache" in documents.render("streaming", **document)
