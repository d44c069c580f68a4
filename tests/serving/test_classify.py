from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from labelcurve.bundle import store
from labelcurve.bundle.acceptance import threshold
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.classify import Options, find, run
from labelcurve.serving.errors import UnknownModel
from labelcurve.serving.tables import Answer, everything
from tests.models import digit_png, publish_digits
from tests.serving.conftest import LABELCURVE

CLASSIFY = (LABELCURVE, "classify")


def classify(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*CLASSIFY, *(str(argument) for argument in arguments)]
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


def test_a_photo_in_a_format_that_is_not_read_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("a.HEIC", "b.png", "c.tif", "d.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in find([tmp_path])] == ["a.HEIC", "b.png", "c.tif"]


def test_what_a_system_put_into_a_folder_is_no_image_and_what_is_left_out_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("@eaDir/1.png", ".thumbs/1.png", "a/._1.png", "a/1.png", "a/2", "3.txt", "4.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(find([tmp_path])) == [tmp_path / "a/1.png"]
    assert capsys.readouterr().err == (
        f"{tmp_path}: left out: .txt (2), files without an ending (1), hidden and system folders "
        "(2), hidden files (1); a file named as a PATH is read whatever it is called\n"
    )
    assert list(find([tmp_path / "a/._1.png", tmp_path / "a/2"])) == [
        tmp_path / "a/._1.png",
        tmp_path / "a/2",
    ]
    assert not capsys.readouterr().err


def test_folders_are_read_through_links_and_each_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.png").write_bytes(digit_png(1))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/up").symlink_to(tmp_path / "images")
    (tmp_path / "images/lost.png").symlink_to(tmp_path / "nowhere.png")
    found = [str(path.relative_to(tmp_path)) for path in find([tmp_path / "images"])]
    assert found == ["images/linked/1.png", "images/lost.png"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("er"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(LabelcurveError, match=r"cannot read the folder .*er: Permission denied"):
        list(find([images]))


def test_a_device_is_not_read_without_end_and_a_name_stays_on_its_line(
    digits_models: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "a\nb.png"
    odd.write_bytes(digit_png(3))
    done = classify("/dev/zero", odd, "--models", digits_models)
    assert done.returncode == 1
    assert "/dev/zero: it is a pipe, a socket or a device" in done.stderr
    assert done.stdout.startswith(f"{tmp_path}/a\\x0ab.png: ")
    assert len(done.stdout.splitlines()) == 1


def test_a_table_does_not_take_the_place_of_an_image(images: Path, digits_models: Path) -> None:
    first = images / "00.png"
    options = Options((images / "01.png",), models=digits_models, csv=first)
    with pytest.raises(LabelcurveError, match=r"--csv .*00\.png: that is the name of an image"):
        run(options)
    assert first.read_bytes() == digit_png(0)


def test_a_table_that_is_there_is_kept(images: Path, digits_models: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,label\n00.png,0\n")
    done = classify(images, "--models", digits_models, "--csv", table)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: --csv {table} exists, and labels may be in it: name a new file, or remove it\n"
    )
    assert table.read_text() == "path,label\n00.png,0\n"


def test_a_table_is_complete_or_not_there(
    images: Path, digits_models: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    command = [*CLASSIFY, str(images), "--models", str(digits_models), "--csv", str(table)]
    # A limit on the size of files stands for a full disk.
    limit = "trap '' XFSZ; ulimit -f 1; exec \"$@\""
    done = subprocess.run(
        ["bash", "-c", limit, "-", *command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"error: cannot write --csv {table} (File too large)" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    with suppress(KeyboardInterrupt), everything(table, 1, accept=False, sets=False) as write:
        write(Answer(images / "00.png", ()))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_table_may_go_to_a_pipe(images: Path, digits_models: Path) -> None:
    done = classify(images / "03.png", "--models", digits_models, "--csv", "/dev/stderr")
    assert done.returncode == 0
    assert "path,label,score," in done.stderr


def test_unreadable_files_are_reported_and_the_rest_is_classified(
    images: Path, digits_models: Path, tmp_path: Path
) -> None:
    (images / "10.png").write_bytes(b"not an image")
    (images / "11.png").write_bytes(digit_png(0)[:-30])
    table = tmp_path / "table.csv"
    done = classify(images, tmp_path / "none.png", "--models", digits_models, "--csv", table)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 69
    left_out, _, *errors = done.stderr.splitlines()
    assert left_out.startswith(f"{images}: left out: .txt (1); ")
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


def test_a_version_that_is_not_current_can_be_named_beside_a_damaged_model(
    images: Path, digits_models: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    old = (models / "digits-10/current").readlink().name
    publish_digits(models, 0.1, seed=1)
    with (models / "digits-50/current/model.onnx").open("ab") as graph:
        graph.write(b"\0")
    done = classify(images / "03.png", "--models", models, "--model", f"digits-10@{old}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"digits-10@{old} on ")


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
        (options(one, top_k=0), "--top-k 0: allowed are 1 and more"),
        (options(one, threads=99_999), "--threads 99999: allowed are 1 to "),
        (options(one, csv=tmp_path), "--csv .* is a folder"),
        (options(one, csv=tmp_path / "none/a.csv"), "there is no folder .*none"),
        (options(tmp_path / "empty"), "holds no image"),
        (options(), "no PATH"),
    ):
        with pytest.raises(LabelcurveError, match=says):
            run(wrong)


@pytest.mark.parametrize("table", [True, False])
def test_output_that_is_read_in_part_only_ends_without_a_traceback(
    images: Path, digits_models: Path, tmp_path: Path, table: bool
) -> None:
    file = tmp_path / "all.csv"
    more = ["--csv", str(file)] if table else []
    command = [*CLASSIFY, str(images), "--models", str(digits_models), *more]
    # The reader has closed the pipe before the first line.
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if table else 128 + signal.SIGPIPE)
    if table:
        assert len(file.read_text().splitlines()) == 72, "each image and the header"


@pytest.mark.parametrize("table", ["--csv", "--accept"])
def test_an_output_on_a_full_disk_is_not_taken_for_the_tables(
    images: Path, digits_models: Path, tmp_path: Path, table: str
) -> None:
    more = ("--csv", tmp_path / "a.csv") if table == "--csv" else (table, "0.5", "--out", tmp_path)
    command = [*CLASSIFY, images, "--models", digits_models, *more]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    says = "error: the answers cannot be printed: No space left on device"
    assert done.stderr.splitlines()[-1] == says
    assert not list(tmp_path.glob("*.csv"))


def test_names_of_classes_that_the_output_cannot_encode_are_written_as_escapes(
    images: Path, digits_models: Path
) -> None:
    (images / "猫.png").write_bytes(digit_png(3))
    command = [*CLASSIFY, str(images / "猫.png"), "--models", str(digits_models)]
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    assert b"\\u732b.png: " in done.stdout


def test_the_sure_are_accepted_and_the_rest_is_asked(
    images: Path, digits_models: Path, client: httpx.Client, tmp_path: Path
) -> None:
    (images / "10.png").write_bytes(b"not an image")
    for i in range(1437, 1537):
        (images / f"{i}.png").write_bytes(digit_png(i))
    out, table = tmp_path / "sorted", tmp_path / "all.csv"
    asked = ("--accept", 0.95, "--set", 0.9, "--out", out, "--csv", table)
    done = classify(images, "--models", digits_models, *asked)
    assert done.returncode == 1, "one file is not an image"
    accepted, ask = (
        list(csv.DictReader((out / name).read_text(encoding="utf-8").splitlines()))
        for name in ("accepted.csv", "ask.csv")
    )
    assert sorted(path.name for path in out.iterdir()) == ["accepted.csv", "ask.csv"]
    with pytest.raises(LabelcurveError, match=r"--out .*ask.csv is there, and labels may be in it"):
        run(Options((images,), models=digits_models, accept=0.9, out=out))
    assert len(accepted) + len(ask) == 171
    assert len(accepted) > len(ask) > 1
    assert min(float(row["score"]) for row in accepted) > max(
        float(row["score"]) for row in ask if not row["error"]
    )
    assert [row["path"].rpartition("/")[2] for row in ask if row["error"]] == ["10.png"]
    assert f"accepted {len(accepted)} of 171" in done.stderr
    with table.open(encoding="utf-8") as file:
        everything = {row["path"]: row for row in csv.DictReader(file)}
    for row in (*accepted[::20], *ask[::5]):
        line = next(line for line in done.stdout.splitlines() if line.startswith(row["path"]))
        assert line.endswith(" accepted" if row in accepted else " ask")
        assert everything[row["path"]]["accepted"] == ("true" if row in accepted else "false")
        data = Path(row["path"]).read_bytes()
        response = client.post("/classify", content=data, params={"accept": 0.95, "set": 0.9})
        answer = response.json()
        assert answer["accepted"] is (row in accepted)
        assert response.headers["x-accepted"] == str(answer["accepted"]).lower()
        assert answer["set"] == json.loads(row["set"])
        assert answer["classes"][0]["label"] == row["label"] == answer["set"][0]


def test_what_the_held_out_images_do_not_show_is_refused_before_anything_is_written(
    images: Path, digits_models: Path, tmp_path: Path
) -> None:
    def options(**others: Any) -> Options:
        return Options((images,), models=digits_models, out=tmp_path / "sorted", **others)

    for wrong, says in (
        (options(accept=0.999), "needs at least 2,995 held-out images, and the model has 360"),
        (options(set=0.999), "need at least 999 held-out images"),
        (options(accept=98), r"--accept 98 is not a share from 0.5 to 0.9999"),
        (options(set=0.1), r"--set 0.1 is not a share from 0.5 to 0.9999"),
    ):
        with pytest.raises(LabelcurveError, match=says):
            run(wrong)
    assert not (tmp_path / "sorted").exists()
    (tmp_path / "file").touch()
    with pytest.raises(LabelcurveError, match=r"cannot write accepted.csv and ask.csv.*--out"):
        run(Options((images,), models=digits_models, accept=0.9, out=tmp_path / "file"))


def test_each_line_and_the_summary_say_what_was_found(
    tmp_path: Path, digits_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(1437, 1467):
        (tmp_path / f"{i}.png").write_bytes(digit_png(i))
    (tmp_path / "bad.png").write_bytes(b"no image")
    out = tmp_path / "out"
    options = Options(
        (tmp_path,), models=digits_models, top_k=2, accept=0.95, set=0.9, out=out, csv=out / "a.csv"
    )
    out.mkdir()
    assert run(options) == 1
    said = capsys.readouterr()
    with (out / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["error"]]
    assert said.out.splitlines() == [
        f"{row['path']}: {row['label']} {float(row['score']):.4f}, "
        f"{row['label_2']} {float(row['score_2']):.4f} [{', '.join(json.loads(row['set']))}] "
        f"{'accepted' if row['accepted'] == 'true' else 'ask'}"
        for row in rows
    ]
    held = store.read(digits_models, "digits-100").manifest.held_out
    n = sum(row["accepted"] == "true" for row in rows)
    first, bad, last = said.err.splitlines()
    version = (digits_models / "digits-100/current").readlink().name
    assert first.startswith(f"digits-100@{version} on ")
    assert bad.startswith(f"{tmp_path}/bad.png: ")
    assert last == (
        f"accepted {n} of 31 ({n / 31:.1%}; {threshold(held, 0.95).coverage:.1%} of the 360 "
        f"held-out images), of which 0.95 are right unless these images are of another kind: "
        f"{out}/accepted.csv; a person looks at the rest: {out}/ask.csv"
    )
