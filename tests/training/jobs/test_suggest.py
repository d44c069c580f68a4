"""`suggest`: which images to label next."""

from __future__ import annotations

import csv
import os
import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labelcurve.bundle.errors import DataError, LabelcurveError, UnreadableImage
from labelcurve.training.data.dataset import Data
from labelcurve.training.embedding_options import SuggestOptions
from labelcurve.training.jobs import suggest, suggestions
from labelcurve.training.jobs.suggestions import Suggestion
from labelcurve.training.learning import selection
from tests.models import digit_label, digit_png

N = 300


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "pool"
    (folder / "deeper").mkdir(parents=True)
    for i in range(N):
        (folder / ("deeper" if i % 2 else "") / f"{i}.png").write_bytes(digit_png(i))
    return folder


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(pool: Path, cache: Path, out: Path, **given: Any) -> dict[str, Any]:
    given = {"extractor": "none", "image_size": 16, **given}
    return suggest.run(SuggestOptions(pool=pool, out=out, cache=cache, **given))


def fill_in(table: Path, to: Path) -> None:
    with to.open("w", newline="", encoding="utf-8") as file:
        found = csv.writer(file)
        found.writerow(["path", "label"])
        for row in rows(table):
            found.writerow([row["path"], digit_label(int(Path(row["path"]).stem))])


def test_first_without_labels_then_with_them(pool: Path, cache: Path, tmp_path: Path) -> None:
    first = run(pool, cache, tmp_path / "first", n=100)
    assert first["strategy"] == "typical"
    assert (first["n"], first["n_random"], first["n_pool"]) == (100, 20, N)
    found = rows(tmp_path / "first/suggest.csv")
    assert [row["sample"] for row in found] == ["chosen"] * 80 + ["random"] * 20
    assert len({row["path"] for row in found}) == 100
    assert {row["label"] for row in found} == {row["guess"] for row in found} == {""}
    links = sorted((tmp_path / "first/images").iterdir())
    assert [str(link.resolve()) for link in links] == [row["path"] for row in found]
    assert links[0].name == f"0001-{Path(found[0]['path']).name}"
    assert (tmp_path / "first").stat().st_mode & 0o777 == 0o755, "others may label, too"
    page = (tmp_path / "first/index.html").read_text()
    assert page.count('<img src="data:image/webp;base64,') == 100
    assert "http" not in page

    fill_in(tmp_path / "first/suggest.csv", tmp_path / "labels.csv")
    second = run(pool, cache, tmp_path / "second", n=50, data=str(tmp_path / "labels.csv"))
    assert second["strategy"] == "unsure"
    assert second["n_labels"] == 100
    more = rows(tmp_path / "second/suggest.csv")
    assert len(more) == 50
    assert not {row["path"] for row in more} & {row["path"] for row in found}
    assert {row["guess"] for row in more} <= set("0123456789")
    page = (tmp_path / "second/index.html").read_text()
    shown = re.findall(r"(\d)\? (\d+) %<small>(\w+), ([^<]+)</small>", page)
    assert shown == [
        (r["guess"], f"{float(r['probability']) * 100:.0f}", r["reason"], Path(r["path"]).name)
        for r in more
    ]
    right = [row["guess"] == str(digit_label(int(Path(row["path"]).stem))) for row in more]
    assert sum(right) > 10, "of classes, not of rows"
    sure = {
        sample: [float(row["probability"]) for row in more if row["sample"] == sample]
        for sample in ("chosen", "random")
    }
    chosen, random = (sum(values) / len(values) for values in sure.values())
    assert chosen < random, "less sure of those that it chose"


def test_the_table_can_be_moved_although_a_name_is_not_utf_8(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    for i in range(4):
        name = os.fsdecode(b"caf\xe9.png") if i == 0 else f"{i}.png"
        (tmp_path / "pool" / name).write_bytes(digit_png(i))
    run(tmp_path / "pool", cache, tmp_path / "round1", n=4)
    paths = [Path(row["path"]) for row in rows(tmp_path / "round1/suggest.csv")]
    assert all(path.is_absolute() and path.suffix == ".png" for path in paths)
    assert {path.read_bytes() for path in paths} == {digit_png(i) for i in range(4)}


def test_a_model_says_what_it_is_unsure_of(
    pool: Path,
    cache: Path,
    tmp_path: Path,
    digits_models: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(pool, cache, tmp_path / "first", n=100, models=digits_models)
    assert (found["strategy"], found["n_labels"], found["n_pool"]) == ("unsure", 1596, N)
    said = capsys.readouterr().out
    assert "not known: --data LABELS leaves them out" in said
    assert "--extractor is not used: the model has its own features\n" in said
    assert "--image-size is not used: the model has its own size\n" in said
    assert said.count("is not used") == 2
    first = rows(tmp_path / "first/suggest.csv")
    assert len(first) == 100

    fill_in(tmp_path / "first/suggest.csv", tmp_path / "labels.csv")
    given = {"models": digits_models, "data": str(tmp_path / "labels.csv")}
    found = run(pool, cache, tmp_path / "second", n=30, **given)
    assert (found["strategy"], found["n_labels"], found["n_pool"]) == ("unsure", 1596, N - 100)
    assert "is not known" not in capsys.readouterr().out
    second = rows(tmp_path / "second/suggest.csv")
    assert len(second) == 30
    assert not {row["path"] for row in first} & {row["path"] for row in second}
    assert all(row["guess"] in "0123456789" and row["probability"] for row in second)


def test_where_random_images_are_as_good_it_says_so(
    pool: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(pool, cache, tmp_path / "out", n=200)
    assert "random is as good here" in capsys.readouterr().out
    assert (found["strategy"], found["n_random"]) == ("random", 200)
    assert {row["sample"] for row in rows(tmp_path / "out/suggest.csv")} == {"random"}
    found = run(pool, cache, tmp_path / "all", n=100_000)
    said = capsys.readouterr().out
    assert found["n"] == N
    assert "--n 100,000: the pool has 300 without a label, so all of them" in said
    assert "300 images of 300 without a label: 300 at random (for a test)\n" in said
    assert "random is as good" not in said


def test_what_cannot_be_is_said_before_the_work(pool: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(LabelcurveError, match="exists, and labels may be in it: name a new folder"):
        run(pool, cache, tmp_path / "there")
    with pytest.raises(LabelcurveError, match="--n 0: allowed are 1 and more"):
        SuggestOptions(pool=pool, n=0)
    with pytest.raises(LabelcurveError, match="--seed -1"):
        SuggestOptions(pool=pool, seed=-1)
    for name in (os.fsdecode(b"caf\xe9"), "two\nlines"):
        with pytest.raises(LabelcurveError, match=r"--out .*(xe9|x0alines): the table would"):
            run(pool, cache, tmp_path / name)
    with pytest.raises(DataError, match=r"--pool .*none: no such folder"):
        run(tmp_path / "none", cache, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pool_that_is_labelled_has_nothing_to_suggest(
    pool: Path, cache: Path, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    paths = sorted(pool.rglob("*.png"))
    lines = [f"{path},{digit_label(int(path.stem))}\n" for path in paths]
    table.write_text("path,label\n" + "".join(lines))
    with pytest.raises(DataError, match="each of its images has a label already"):
        run(pool, cache, tmp_path / "out", data=str(table))


def test_a_pool_within_the_data_is_read_once_and_is_no_class(
    pool: Path, cache: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for image in sorted(pool.rglob("*.png")):
        label = digit_label(int(image.stem))
        place = data / str(label) if label < 2 and int(image.stem) < 150 else data / "photos"
        place.mkdir(parents=True, exist_ok=True)
        (place / image.name).write_bytes(image.read_bytes())
    n = len(list((data / "photos").iterdir()))
    with pytest.raises(DataError, match=r"--pool .*/photos: each of its \d+ images is read as the"):
        run(data / "photos", cache, tmp_path / "out", n=10, data=str(data))
    (data / "photos").rename(data / "unlabelled")
    found = run(data / "unlabelled", cache, tmp_path / "out", n=30, data=str(data))
    assert (found["n"], found["n_pool"]) == (30, n)
    assert len({row["path"] for row in rows(tmp_path / "out/suggest.csv")}) == 30


def test_a_fifth_is_drawn_at_random_by_the_seed(
    digits: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = np.asarray(digits.train.images[:120], np.float32).reshape(120, -1)
    pool = np.arange(20, 120)
    known = suggest._Known(digits.train, features, None, (), np.arange(20), pool, 0)
    found = suggest._choose(known, "typical", 24, 3)
    drawn = np.random.default_rng(3).permutation(pool)
    assert [one.row for one in found[19:]] == drawn[:5].tolist(), "24 / 5, rounded"
    assert [(one.random, one.reason) for one in found] == [(False, "typical")] * 19 + [
        (True, "random")
    ] * 5
    assert len({one.row for one in found}) == 24
    assert min(one.row for one in found) >= 20
    other = suggest._choose(known, "random", 24, 4)
    assert [one.row for one in other] == np.random.default_rng(4).permutation(pool)[:24].tolist()
    assert {one.random for one in other} == {True}
    capsys.readouterr()
    monkeypatch.setattr(selection, "MOST", 30)
    few = suggest._choose(known, "typical", 24, 3)
    assert {one.row for one in few[:19]} <= set(drawn[5:35].tolist())
    assert capsys.readouterr().out == "30 images of the pool, drawn at random, are looked at\n"


def test_a_folder_that_cannot_be_completed_is_not_left(digits: Data, tmp_path: Path) -> None:
    found = [Suggestion(0, True, "random", None)]
    for error in (OSError(5, "Input/output error"), UnreadableImage("the file cannot be read")):

        def gone(_: int, error: Exception = error) -> bytes:
            raise error

        with pytest.raises(DataError, match=rf"^digit \d+: .*{str(error)[-10:]}"):
            suggestions.write(tmp_path / "out", found, replace(digits.train, read=gone), ())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(LabelcurveError, match=r"--out .*/out cannot be written: "):
        suggestions.write(tmp_path / "file" / "out", found, digits.train, ())


def test_a_link_has_a_shorter_name_where_the_image_s_is_as_long_as_can_be(
    digits: Data, tmp_path: Path
) -> None:
    image = tmp_path / f"{'a' * 251}.png"
    image.write_bytes(digit_png(0))
    split = replace(digits.train, where=lambda _: str(image))
    suggestions.write(tmp_path / "out", [Suggestion(0, True, "random", None)], split, ())
    (link,) = (tmp_path / "out/images").iterdir()
    assert (link.name, link.resolve()) == ("0001-image.png", image.resolve())


def test_a_picture_of_the_gallery_is_small() -> None:
    page = suggestions._picture(np.zeros((300, 200, 3), np.uint8))
    with Image.open(BytesIO(b64decode(page.removeprefix("data:image/webp;base64,")))) as image:
        assert image.size == (85, 128)
