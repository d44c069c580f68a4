from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.errors import LabelcurveError
from serving.classify import Options, run
from serving.errors import UnknownModel
from tests.models import digit_png

CLASSIFY = Path(sys.executable).with_name("classify")


def classify(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(CLASSIFY), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep/er").mkdir(parents=True)
    digits = [digit_png(i) for i in range(10)]
    for i in range(70):
        (folder / f"{i:02}.png").write_bytes(digits[i % 10])
    (folder / "deep/er/x.PNG").write_bytes(digit_png(3))
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    return folder


def test_it_answers_what_the_service_answers(
    images: Path, digits_models: Path, client: httpx.Client, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    done = classify(images, "--models", digits_models, "--top-k", 3, "--csv", table)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 71
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [line.partition(": ")[0] for line in lines] == [row["path"] for row in rows]
    for row in rows[::7]:
        data = Path(row["path"]).read_bytes()
        answer = client.post("/classify", content=data, params={"top_k": 3}).json()
        found = [(row[f"label{i}"], float(row[f"score{i}"])) for i in ("", "_2", "_3")]
        assert [label for label, _ in found] == [c["label"] for c in answer]
        scores = [c["score"] for c in answer]
        assert [score for _, score in found] == pytest.approx(scores, abs=1e-5)
        assert row["error"] == ""


def test_unreadable_files_are_reported_and_the_rest_goes_on(
    images: Path, digits_models: Path, tmp_path: Path
) -> None:
    (images / "10.png").write_bytes(b"not an image")
    (images / "11.png").write_bytes(digit_png(0)[:-30])
    table = tmp_path / "table.csv"
    done = classify(images, tmp_path / "none.png", "--models", digits_models, "--csv", table)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 69
    errors = done.stderr.splitlines()[1:]
    assert [error.partition(": ")[0].rpartition("/")[2] for error in errors[:3]] == [
        "10.png",
        "11.png",
        "none.png",
    ]
    assert errors[3] == "error: 3 of the files could not be classified"
    with table.open(newline="", encoding="utf-8") as file:
        assert sum(row["error"] != "" for row in csv.DictReader(file)) == 3


def test_the_model_can_be_named(images: Path, digits_models: Path) -> None:
    one = images / "03.png"
    done = classify(one, "--models", digits_models, "--model", "digits-10")
    assert done.returncode == 0
    assert done.stderr.startswith("digits-10@")


def test_an_error_is_one_line(images: Path, tmp_path: Path) -> None:
    done = classify(images, "--models", tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no folder")
    assert done.stderr.count("\n") == 1


def test_impossible_requests(images: Path, digits_models: Path, tmp_path: Path) -> None:
    def options(*paths: Path, **others: Any) -> Options:
        return Options(paths, **{"models": digits_models, **others})

    one = images / "03.png"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnknownModel, match="no model 'x'; there are digits-10@"):
        run(options(one, model="x"))
    for wrong, says in (
        (options(one, top_k=0), "at least 1"),
        (options(one, csv=tmp_path), "cannot write"),
        (options(tmp_path / "empty"), "holds no image"),
        (options(), "no PATH"),
    ):
        with pytest.raises(LabelcurveError, match=says):
            run(wrong)
