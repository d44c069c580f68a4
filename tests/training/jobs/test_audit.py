"""`audit` on digits with planted errors, as a command, and `train` with its table."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelcurve.bundle import store
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.embedding_options import AuditOptions
from labelcurve.training.jobs import audit, train
from labelcurve.training.options import parse
from tests.training.conftest import LABELCURVE, Finished, finished
from tests.training.sets import digit_rows, write_folder

WRONG, COPIES = 20, 3


class Planted:
    """Digits in class folders, some with wrong labels, copies, a blank and a broken image."""

    def __init__(self, root: Path) -> None:
        rows = list(digit_rows(40))
        random = np.random.default_rng(0)
        flipped = random.choice(len(rows), WRONG, replace=False)
        for i in flipped:
            label, data = rows[i]
            rows[i] = ((label + int(random.integers(1, 10))) % 10, data)
        self.data = write_folder(root / "data", rows)
        self.wrong = {f"{rows[i][0]}/{i:05d}.png" for i in flipped}
        sure = [i for i in range(len(rows)) if i not in flipped][:COPIES]
        for i in sure:  # under another class
            other = self.data / str((rows[i][0] + 1) % 10) / f"copy-{i}.png"
            other.write_bytes(rows[i][1])
        self.copies = {f"{(rows[i][0] + 1) % 10}/copy-{i}.png": f"{rows[i][0]}" for i in sure}
        (self.data / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        from PIL import Image

        Image.new("L", (8, 8), 90).save(self.data / "1" / "blank.png")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def audited(planted: Planted, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("audited") / "audit.csv"
    command = (LABELCURVE, "audit", "--data", str(planted.data), "--out", str(out))
    done = finished(out, cache, *command, "--extractor", "none", "--image-size", "16")
    assert done.code == 0, done.stderr
    return done


def rows(audited: Finished) -> list[dict[str, str]]:
    with audited.out.open(newline="") as file:
        return list(csv.DictReader(file))


def kind(row: dict[str, str]) -> str:
    return row["reason"].partition(":")[0].partition(";")[0]


def test_planted_errors_are_found(audited: Finished, planted: Planted) -> None:
    found = rows(audited)
    assert audited.out.read_text().startswith("path,label,suggested,score,reason\n")
    by_path = {row["path"]: row for row in found}
    assert kind(by_path["0/broken.png"]) == "unreadable"
    assert kind(by_path["1/blank.png"]) == "blank"
    conflicts = {row["path"]: row for row in found if kind(row) == "conflict"}
    assert set(conflicts) >= set(planted.copies)
    for path, label in planted.copies.items():
        assert conflicts[path]["suggested"] == label
    # The features are those of an untrained network, and right on four fifths of the labels.
    doubted = [row["path"] for row in found if kind(row) == "label"]
    assert len(planted.wrong & set(doubted)) >= WRONG / 2
    assert len(planted.wrong & set(doubted[:10])) >= 5


def test_the_last_line_and_the_page_say_the_same(audited: Finished) -> None:
    document = audited.document
    assert document["doubtful"] == len(rows(audited)) == sum(document["reasons"].values())
    assert document["images"] == 400 + COPIES + 2, "the broken one, too"
    assert [row["path"] for row in document["first"]] == [r["path"] for r in rows(audited)[:10]]
    assert document["first"][0].keys() == rows(audited)[0].keys()
    accuracy = document["accuracy"]
    assert accuracy["n"] == 400 + COPIES + 1
    assert accuracy["learned_without"] > accuracy["as_it_is"]
    page = audited.out.with_suffix(".html").read_text()
    assert f"<h1>{document['doubtful']} doubtful images in data</h1>" in page
    assert page.index("broken.png") < page.index("blank.png")


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("flag", ["--drop", "--relabel"])
def test_train_takes_the_table(
    audited: Finished,
    planted: Planted,
    cache: Path,
    tmp_path: Path,
    flag: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = ("--image-size", "16", "--epochs", "1", "--extractor", "none", "--fraction", "1.0")
    broken = () if flag == "--drop" else ("--skip-unreadable",)
    given = ("--data", str(planted.data), *quick, "--device", "cpu", "--no-final")
    places = ("--out", str(tmp_path / "models"), "--cache", str(cache))
    train.run(parse([*given, *places, flag, str(audited.out), *broken]))
    said = capsys.readouterr().out
    manifest = store.read_all(tmp_path / "models")[0].manifest
    dropped, relabelled = manifest.dataset.dropped, manifest.dataset.relabelled
    if flag == "--drop":
        assert dropped > WRONG / 2
        assert relabelled == 0
        assert f"--drop: {dropped} training images left out" in said
    else:
        assert relabelled > WRONG / 2
        assert dropped == 0
        assert f"--relabel: {relabelled} training images with another label" in said
    card = (tmp_path / "models" / "data-scratch-100" / "current" / "README.md").read_text()
    assert f"{max(dropped, relabelled)} training images" in card


def test_a_line_that_was_edited_is_named(audited: Finished, planted: Planted, cache: Path) -> None:
    edited = audited.out.with_name("edited.csv")
    edited.write_text("path,label,suggested,score,reason\n0/none.png,0,1,0.9,label\n")
    given = ("--data", str(planted.data), "--skip-unreadable", "--dry-run", "--cache", str(cache))
    message = f"--relabel {edited} line 2: no image of --data"
    with pytest.raises(LabelcurveError, match=re.escape(message)):
        train.run(parse([*given, "--out", str(edited.parent / "m"), "--relabel", str(edited)]))


def test_a_table_that_is_there_is_kept(audited: Finished, planted: Planted, cache: Path) -> None:
    before = audited.out.read_bytes()
    with pytest.raises(LabelcurveError, match=r"--out .*audit.csv exists, and may have been edit"):
        audit.run(AuditOptions(data=str(planted.data), cache=cache, out=audited.out))
    assert audited.out.read_bytes() == before


def test_a_given_test_split_is_audited_too(cache: Path, tmp_path: Path) -> None:
    data = tmp_path / "split"
    write_folder(data / "train", digit_rows(20))
    later = [row for row in digit_rows(30) if row not in digit_rows(20)]
    write_folder(data / "test", [*later, digit_rows(20)[0]])
    options: dict[str, Any] = {"extractor": "none", "cache": cache, "out": tmp_path / "a.csv"}
    document = audit.run(AuditOptions(data=str(data), **options))
    json.dumps(document)
    found = (tmp_path / "a.csv").read_text().splitlines()
    crossing = [line for line in found if "in train and test: same pixels as" in line]
    assert len(crossing) == 1
    assert crossing[0].startswith("train/0/00000.png,0,")
