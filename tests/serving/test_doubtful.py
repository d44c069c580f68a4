"""Uploads that are kept for labelling: by a running service, and what bounds the folder."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving import doubtful
from labelcurve.serving.doubtful import COLUMNS, Answer, Doubtful, table
from labelcurve.serving.settings import Settings
from labelcurve.training.data import dataset
from labelcurve.training.jobs.suggestions import _table
from tests.models import digit_label, digit_png
from tests.serving.conftest import Service, wait_for
from tests.serving.web.test_openapi import check

ANSWER = Answer("3", 0.4, "digits@0123456789ab")
DIGITS = range(1437, 1497)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "doubtful"


@pytest.fixture
def open_folder(folder: Path) -> Iterator[Callable[..., Doubtful]]:
    """Opens the folder as a worker does; all that was offered is written at the end."""
    opened: list[Doubtful] = []

    def open_folder(most_images: int = 100, most_bytes: int = 10**6) -> Doubtful:
        doubtful.prepare(folder, folder.parent / "models")
        opened.append(Doubtful(folder, most_images, most_bytes, pause=0.0))
        return opened[-1]

    yield open_folder
    for each in opened:
        each.close()


def images(folder: Path) -> list[Path]:
    """The images that are kept; hidden files are being written."""
    names = (path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in names if path.suffix != ".json"]


def test_what_is_not_accepted_is_kept_and_can_be_labelled(
    start_service: Callable[..., Service], digits_models: Path, folder: Path
) -> None:
    service = start_service(
        digits_models, "--accept", "0.95", "--workers", "2", "--keep-doubtful", str(folder)
    )
    service.wait_until_ready()
    assert f"doubtful kept in {folder}: at most 1,000 images and 500 MB" in service.output
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    asked: set[bytes] = set()
    with httpx.Client(base_url=service.url, timeout=30) as client:
        for i in (*DIGITS, *DIGITS):
            answer = client.post("/classify", content=digit_png(i))
            if answer.headers["x-accepted"] == "false":
                asked.add(digit_png(i))
        several = [("images", digit_png(i)) for i in DIGITS]
        client.post("/classify", files=several)
        client.post("/embed", content=digit_png(0))
        assert client.post("/classify", content=b"no image").status_code == 415
        wait_for(lambda: len(list(folder.glob("*.json"))) == len(asked))
        assert {path.read_bytes() for path in images(folder)} == asked
        assert 0 < len(asked) < len(DIGITS)
        document = client.get("/openapi.json").json()
        check(document, found := client.get("/doubtful.csv"))
        assert client.get("/readyz").json()["keeps_doubtful"] is True
    rows = list(csv.DictReader(StringIO(found.text)))
    assert [row["probability"] for row in rows] == sorted(row["probability"] for row in rows)
    assert {row["label"] for row in rows} == {""}
    (model,) = {row["reason"] for row in rows}
    assert model.startswith("not accepted by digits-100@")
    labels = {digit_png(i): "odd" if digit_label(i) % 2 else "even" for i in DIGITS}
    for row in rows:
        row["label"] = labels[(folder.parent / row["path"]).read_bytes()]
    with (folder.parent / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    data = dataset.load(str(folder.parent / "labels.csv"), size=8, cache=folder.parent / "cache")
    assert data.train.n_labelled + len(data.test) == len(rows)


def test_without_the_option_nothing_is_kept(client: httpx.Client) -> None:
    assert client.get("/doubtful.csv").status_code == 404
    assert client.get("/readyz").json()["keeps_doubtful"] is False
    assert "/doubtful.csv" not in client.get("/openapi.json").json()["paths"]


def test_a_full_disk_stops_no_request(
    start_service: Callable[..., Service], digits_models: Path, folder: Path
) -> None:
    options = ("--accept", "0.999", "--keep-doubtful", str(folder))
    service = start_service(digits_models, *options)
    service.wait_until_ready()
    (worker,) = service.workers()
    before = folder.stat().st_mtime_ns
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (16, 16))  # every file is cut off
    with httpx.Client(base_url=service.url, timeout=30) as client:
        for i in range(20):
            assert client.post("/classify", content=digit_png(i)).status_code == 200
        wait_for(lambda: folder.stat().st_mtime_ns != before and not list(folder.iterdir()))
        assert client.get("/doubtful.csv").text == ",".join(COLUMNS) + "\n"
    assert service.workers() == [worker]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--keep-doubtful", "kept"], "--keep-doubtful kept needs --accept"),
        (["--keep-doubtful", "{models}/kept", "--accept", "0.9"], "is in the models folder"),
        (["--keep-doubtful", "/dev/null/kept", "--accept", "0.9"], "cannot be written (Not a dir"),
        (["--doubtful-mb", "0"], "--doubtful-mb 0: allowed are 1 and more"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_the_start(
    options: list[str],
    says: str,
    start_service: Callable[..., Service],
    digits_models: Path,
    tmp_path: Path,
) -> None:
    given = [option.format(models=digits_models) for option in options]
    service = start_service(digits_models, *given, folder=tmp_path)
    assert service.process.wait(30) == 1
    assert says in service.output
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_bounded_in_images_and_bytes(
    open_folder: Callable[..., Doubtful], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for most in ({"most_images": 3}, {"most_bytes": 1500}):
        both = open_folder(**most), open_folder(**most)
        for i in range(20):
            both[i % 2].offer(digit_png(i), ANSWER)
        for each in both:
            each.close()
        n = len(images(folder))
        assert n == 3 if "most_images" in most else 3 < n < 10
        assert len(table(folder).splitlines()) == n + 1
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1500
    assert f"{folder} holds 3 images" in caplog.text
    assert "label and remove some, or allow more" in caplog.text


def test_a_jpeg_with_further_pictures_is_kept_under_a_name_that_train_reads(
    open_folder: Callable[..., Doubtful], folder: Path
) -> None:
    file, two = BytesIO(), [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))]
    two[0].save(file, "MPO", save_all=True, append_images=two[1:])
    keeper = open_folder()
    keeper.offer(file.getvalue(), ANSWER)
    keeper.close()
    (kept,) = images(folder)
    assert kept.suffix == ".jpeg"


def test_the_last_answer_to_an_image_counts(
    open_folder: Callable[..., Doubtful], folder: Path
) -> None:
    keeper = open_folder(most_images=1)
    keeper.offer(digit_png(0), ANSWER)
    keeper.offer(digit_png(0), Answer("8, or so", 0.3, "digits@ba9876543210"))
    keeper.close()
    (row,) = csv.DictReader(StringIO(table(folder)))
    assert (row["guess"], row["probability"]) == ("8, or so", "0.3000")


def test_a_link_to_nowhere_among_the_images_is_not_counted(
    open_folder: Callable[..., Doubtful], folder: Path
) -> None:
    keeper = open_folder(most_images=1)
    (folder / "moved.png").symlink_to("nowhere")
    keeper.offer(digit_png(0), ANSWER)
    keeper.close()
    assert len(images(folder)) == 2


def test_a_missing_or_invalid_folder_is_tried_again(
    open_folder: Callable[..., Doubtful], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="labelcurve")
    keeper = open_folder()
    shutil.rmtree(folder)
    folder.touch()
    keeper.offer(digit_png(0), ANSWER)
    wait_for(lambda: "cannot be written" in caplog.text)
    folder.unlink()
    keeper.offer(digit_png(1), ANSWER)
    wait_for(lambda: "kept again" in caplog.text)
    keeper.offer(digit_png(2), ANSWER)
    keeper.close()
    assert caplog.text.count("kept again") == 1
    assert sorted(path.read_bytes() for path in images(folder)) == sorted(
        [digit_png(1), digit_png(2)]
    )
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_reason_is_logged_once_and_again_after_uploads_were_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="labelcurve")
    doubtful.prepare(folder, folder.parent / "models")
    keeper = Doubtful(folder, 1, 10**6, pause=0.0)
    for i in (0, 1, 2):  # one is kept, two find the folder full
        keeper.offer(digit_png(i), ANSWER)
    wait_for(lambda: keeper._done == keeper._taken)
    for path in folder.iterdir():
        path.unlink()
    for i in (3, 4):
        keeper.offer(digit_png(i), ANSWER)
    keeper.close()
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == [
        "doubtful uploads are not kept",
        "doubtful uploads are kept again",
        "doubtful uploads are not kept",
    ]


def test_the_folder_is_no_folder_of_models_and_checking_it_leaves_nothing(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for wrong in (models, models / "a/b"):
        with pytest.raises(LabelcurveError, match="is in the models folder: name one outside"):
            doubtful.prepare(wrong, models)
    assert not models.exists()
    doubtful.prepare(tmp_path / "a/b", models)
    assert list((tmp_path / "a/b").iterdir()) == []


def test_an_upload_is_kept_under_its_digest_with_the_answer_beside_it(
    open_folder: Callable[..., Doubtful], folder: Path
) -> None:
    keeper = open_folder()
    keeper.offer(digit_png(0), Answer("é", 0.25, "digits@1"))
    keeper.offer(digit_png(1), Answer("1", 0.125, "digits@2"))
    keeper.close()
    names = [f"{hashlib.sha256(digit_png(i)).hexdigest()[:32]}.png" for i in (0, 1)]
    for i, name in enumerate(names):
        assert (folder / name).read_bytes() == digit_png(i)
    assert json.loads((folder / names[0]).with_suffix(".json").read_bytes()) == {
        "file": names[0], "guess": "é", "probability": 0.25, "model": "digits@1",
    }  # fmt: skip
    assert len(list(folder.iterdir())) == 4
    assert table(folder) == (  # the least probable first
        "path,label,sample,reason,guess,probability\n"
        f"doubtful/{names[1]},,chosen,not accepted by digits@2,1,0.1250\n"
        f"doubtful/{names[0]},,chosen,not accepted by digits@1,é,0.2500\n"
    )


def test_nothing_is_tried_during_the_pause(folder: Path) -> None:
    doubtful.prepare(folder, folder.parent / "models")
    keeper = Doubtful(folder, 1, 10**6, pause=1e6)
    for i in (0, 1):
        keeper.offer(digit_png(i), ANSWER)
    wait_for(lambda: keeper._done == keeper._taken)
    for path in folder.iterdir():
        path.unlink()
    keeper.offer(digit_png(2), ANSWER)
    keeper.close()
    assert images(folder) == []


def test_a_disk_that_hangs_blocks_no_request(
    open_folder: Callable[..., Doubtful],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper = open_folder()
    monkeypatch.setattr(doubtful, "WAITING_BYTES", 3 * len(digit_png(0)))
    with doubtful._alone(folder):  # the thread waits, as for a disk
        for _ in range(10):
            keeper.offer(digit_png(0), ANSWER)
        assert "faster than they can be written" in caplog.text
    keeper.close()
    assert len(images(folder)) == 1


def test_what_is_written_leaves_room_for_more(
    open_folder: Callable[..., Doubtful], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(n: int) -> bool:
        return len(images(folder)) == n

    keeper = open_folder()
    uploads = [digit_png(i) for i in range(6)]
    monkeypatch.setattr(doubtful, "WAITING_BYTES", 3 * max(map(len, uploads)))
    for n, upload in enumerate(uploads, 1):
        keeper.offer(upload, ANSWER)
        wait_for(partial(kept, n))


def test_what_others_put_there_is_not_in_the_table(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.json").write_text("[]")
    (folder / "b.json").write_bytes(b"\xff")
    (folder / "c.json").write_text('{"file": "c.png", "guess": "1", "probability": 1, "model": ""}')
    os.mkfifo(folder / "d.png")
    assert table(folder) == ",".join(COLUMNS) + "\n"


def test_the_columns_are_those_of_suggest() -> None:
    assert _table([], [], ()).strip().split(",") == list(COLUMNS)


def test_a_worker_reads_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(accept=0.9, keep_doubtful=Path("a b"))
    assert Settings.loads(settings.dumps()) == settings
    with pytest.raises(LabelcurveError, match="needs --accept"):
        Settings(keep_doubtful=Path("a")).check()
