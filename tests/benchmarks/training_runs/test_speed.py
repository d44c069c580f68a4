from __future__ import annotations

import json
import subprocess
import sys

import pytest

from labelcurve.benchmarks.training_runs import speed
from labelcurve.bundle.errors import LabelcurveError


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--seconds", "0", "values above 0"),
        ("--seconds", "nan", "values above 0"),
        ("--image-size", "3", "8 to 1024 pixels"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line(
    option: str, value: str, allowed: str
) -> None:
    with pytest.raises(LabelcurveError, match=f"^{option} {value}: allowed are {allowed}$"):
        speed.main([option, value])


def test_the_last_line_holds_the_rate_and_the_share_of_the_ceiling() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "labelcurve.benchmarks.training_runs.speed"),
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
