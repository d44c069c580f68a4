from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import speed


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--seconds", "0", "numbers above 0"),
        ("--seconds", "nan", "numbers above 0"),
        ("--image-size", "3", "8 to 1024 pixels"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, option: str, value: str, allowed: str
) -> None:
    monkeypatch.setattr("sys.argv", ["speed", option, value])
    with pytest.raises(SystemExit) as stopped:
        speed.main()
    assert stopped.value.code == f"error: {option} {value}: allowed are {allowed}"


def test_the_last_line_holds_the_rate_and_the_share_of_the_ceiling() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.speed"),
            *("--seconds", "0.05", "--image-size", "16", "--device", "cpu"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert set(document["speed"]) == {"pretraining", "fine-tuning"}
    for figure in document["speed"].values():
        assert 0 < figure["spread"][0] <= figure["images_per_s"] <= figure["spread"][1]
        assert figure["ratio"] == figure["images_per_s"] / figure["ceiling"]
