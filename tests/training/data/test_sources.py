from __future__ import annotations

import hashlib
import io
import pickle
import socket
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import DataError
from labelcurve.training.data import sources
from labelcurve.training.data.sources import Selection
from tests.training.sets import digit_rows, write_folder, write_parquet


def silent(_: str) -> None:
    return


def test_the_bundled_digits_are_scikit_learns(tmp_path: Path) -> None:
    source = sources.open_source(Selection("digits"), tmp_path / "downloads", silent)
    rows = source.splits["train"]
    bunch = load_digits()
    assert list(source.splits) == ["train"]
    assert source.class_names == tuple("0123456789")
    assert rows.labels.tolist() == bunch.target.tolist()
    pixels = preprocess.prepare(rows.read(17), 8)
    assert np.abs(pixels[:, :, 0] - bunch.images[17] * 255 / 16).max() <= 0.5
    assert rows.where(17) == "digit 17"
    assert not (tmp_path / "downloads").exists(), "nothing is downloaded"


def test_a_folder_is_read_by_what_is_in_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", digit_rows()[:20])
    write_parquet(tmp_path / "hub" / "train.parquet", digit_rows()[:20], names=("a", "b"))
    for name, classes in (("pets", ("0", "1")), ("hub", ("a", "b"))):
        source = sources.open_source(Selection(str(tmp_path / name)), tmp_path, silent)
        assert source.name == name
        assert source.class_names == classes


def test_class_folders_beside_parquet_files_are_not_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path, digit_rows()[:20])
    write_parquet(tmp_path / "train.parquet", digit_rows()[:30], names=None)
    with pytest.raises(DataError, match="holds Parquet files and also 20 image files that they do"):
        sources.open_source(Selection(str(tmp_path)), tmp_path, silent)
    source = sources.open_source(Selection(str(tmp_path), "class"), tmp_path, silent)
    assert source.class_names == ("0", "1")


@pytest.mark.parametrize("kind", ["folders", "parquet"])
def test_the_folder_of_models_is_not_read_as_images(tmp_path: Path, kind: str) -> None:
    if kind == "folders":
        write_folder(tmp_path, digit_rows()[:20])
    else:
        write_parquet(tmp_path / "train.parquet", digit_rows()[:20], names=("0", "1"))
    out = tmp_path / "later"
    out.mkdir()
    chosen = Selection(str(tmp_path), out=out)
    said: list[str] = []
    source = sources.open_source(chosen, tmp_path, said.append)
    assert source.class_names == ("0", "1")
    assert [line for line in said if "holds results" in line] == [
        f"{out}: holds results of this program, not images: not read"
    ]
    write_folder(out, digit_rows()[:2])
    with pytest.raises(DataError, match=r"later/\d holds images, and models are written to"):
        sources.open_source(chosen, tmp_path, silent)


def test_the_option_that_named_further_images_is_in_what_is_wrong_with_them(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / "pets", digit_rows()[:20])
    more = tmp_path / "nowhere"
    for option in ("--unlabelled", "--images"):
        chosen = Selection(str(tmp_path / "pets"), unlabelled=more, option=option)
        with pytest.raises(DataError, match=f"{option} {more}"):
            sources.open_source(chosen, tmp_path, silent)


def test_what_lies_beside_parquet_files_is_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", digit_rows()[:20], names=("a", "b"))
    for name in (".test.parquet", "train-2.parquet.crdownload", "more.csv"):
        (tmp_path / name).touch()
    source = sources.open_source(Selection(str(tmp_path)), tmp_path, silent)
    assert {(Path(item.path).name, item.reason) for item in source.left_out} == {
        (".test.parquet", "hidden files"),
        ("train-2.parquet.crdownload", ".crdownload"),
        ("more.csv", ".csv"),
    }


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (Selection("labels.csv", "class"), "--layout says what folders mean, and --data labels.c"),
        (Selection(".", label_column="breed"), "--label-column breed: --data . is read as class"),
        (Selection("digits", "class"), "--layout class: --data digits has neither folders nor col"),
        (Selection("cifar10", label_column="a"), "--label-column a: --data cifar10 has neither fo"),
        (Selection(".", "class", labelled=False), "--layout class: --data . is a folder of images"),
    ],
)
def test_an_option_that_does_not_fit_the_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: Selection, message: str
) -> None:
    write_folder(tmp_path, digit_rows()[:20])
    (tmp_path / "labels.csv").write_text("path,label\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        sources.open_source(chosen, tmp_path, silent)


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "pets", digit_rows()[:20])
    assert sources.open_source(Selection("~/pets"), tmp_path, silent).name == "pets"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "--data is empty: is a shell variable unset? Allowed: cifar10, digits"),
        ("tables", "a.parquet has the columns img_bytes, target: it needs `img` or `image` (a st"),
        ("nowhere", "--data nowhere: no such folder. Allowed: cifar10, digits, a folder of class"),
        ("~nobody-here/x", "--data ~nobody-here/x: no such folder. Allowed: cifar10, digits, a"),
        ("CIFAR10", "--data CIFAR10: no such folder (perhaps you meant cifar10). Allowed: cifar"),
        ("digit", "--data digit: no such folder (perhaps you meant digits). Allowed: cifar10"),
        ("one.parquet", "one.parquet is one file: name the folder that it is in, "),
        ("two.PARQUET", "two.PARQUET is one file: name the folder that it is in, "),
        ("paths.parquet", "paths.parquet has no column `image` that holds images. A table of pa"),
        ("cats.zip", "cats.zip is a file. Allowed: cifar10, digits, a folder of class folders"),
    ],
)
def test_what_is_no_folder_says_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("one.parquet", "two.PARQUET", "cats.zip"):
        Path(file).write_bytes(b"")
    Path("tables").mkdir()
    pq.write_table(pa.table({"img_bytes": [b""], "target": ["cat"]}), "tables/a.parquet")
    pq.write_table(pa.table({"path": ["1.png"], "label": ["cat"]}), "paths.parquet")
    with pytest.raises(DataError) as error:
        sources.open_source(Selection(data), tmp_path, silent)
    assert message in str(error.value)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Mirrors(ThreadingHTTPServer):
    """Loopback mirrors: the first word of the path says how they behave."""

    archive = b""
    asked: list[str]


class Mirror(BaseHTTPRequestHandler):
    server: Mirrors

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        self.server.asked.append(kind)
        if kind == "missing":
            self.send_error(404)
        elif kind == "garbled":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.archive)))
            self.end_headers()
            half = self.server.archive[: len(self.server.archive) // 2]
            self.wfile.write(half if kind == "short" else self.server.archive)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def mirrors() -> Iterator[Mirrors]:
    with Mirrors(("127.0.0.1", 0), Mirror) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def point_to(monkeypatch: pytest.MonkeyPatch, server: Mirrors, *kinds: str) -> None:
    urls = tuple(
        f"http://127.0.0.1:{server.server_port}/{kind}/cifar-10-python.tar.gz" for kind in kinds
    )
    monkeypatch.setattr(sources, "CIFAR10_MIRRORS", urls)


@pytest.fixture
def small_cifar10(monkeypatch: pytest.MonkeyPatch, mirrors: Mirrors) -> tuple[str, ...]:
    """An archive like CIFAR-10's, with 20 images, whose checksums torchvision is given."""
    names = ("airplane", "automobile")
    rng = np.random.default_rng(0)
    contents = {
        "batches.meta": {"label_names": list(names)},
        "data_batch_1": {
            "data": rng.integers(0, 256, (12, 3072), np.uint8),
            "labels": [0, 1] * 6,
        },
        "test_batch": {"data": rng.integers(0, 256, (8, 3072), np.uint8), "labels": [1, 0] * 4},
    }
    buffer = io.BytesIO()
    checksums = {}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            data = pickle.dumps(content)
            checksums[name] = hashlib.md5(data, usedforsecurity=False).hexdigest()
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    mirrors.archive = buffer.getvalue()
    checksum = hashlib.md5(mirrors.archive, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", checksum)
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", checksums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", checksums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": checksums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return names


def test_cifar10_offline_names_what_works_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = tuple(f"http://127.0.0.1:{closed_port()}/{i}.tar.gz" for i in range(2))
    monkeypatch.setattr(sources, "CIFAR10_MIRRORS", urls)
    said: list[str] = []
    with pytest.raises(DataError, match="is not in the cache and could not be downloaded") as error:
        sources.open_source(Selection("cifar10"), tmp_path / "downloads", said.append)
    message = str(error.value)
    assert "--data digits" in message
    assert "--data PATH" in message
    for url in urls:
        assert f"{url}: " in message
        assert f"downloading CIFAR-10 (163 MiB) from {url}" in said
    assert "Connection refused" in message


def test_mirrors_are_tried_in_order_until_one_delivers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mirrors: Mirrors,
    small_cifar10: tuple[str, ...],
) -> None:
    point_to(monkeypatch, mirrors, "missing", "garbled", "short", "whole", "never")
    said: list[str] = []
    source = sources.open_source(Selection("cifar10"), tmp_path, said.append)
    # torchvision may ask twice: it looks for redirects first
    assert list(dict.fromkeys(mirrors.asked)) == ["missing", "garbled", "short", "whole"]
    assert source.class_names == small_cifar10
    assert source.splits["train"].labels.tolist() == [0, 1] * 6
    assert source.splits["test"].labels.tolist() == [1, 0] * 4
    assert preprocess.prepare(source.splits["test"].read(7), 32).shape == (32, 32, 3)
    assert sum(line.startswith("failed: ") for line in said) == 3
    assert socket.getdefaulttimeout() is None, "the timeout of the download is gone"

    n_asked = len(mirrors.asked)
    sources.open_source(Selection("cifar10"), tmp_path, said.append)
    assert len(mirrors.asked) == n_asked, "a second start downloads nothing"


def test_of_several_that_start_together_one_downloads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mirrors: Mirrors,
    small_cifar10: tuple[str, ...],
) -> None:
    point_to(monkeypatch, mirrors, "whole")
    sources.open_source(Selection("cifar10"), tmp_path / "alone", silent)
    alone = len(mirrors.asked)
    mirrors.asked.clear()
    with ThreadPoolExecutor(3) as pool:
        opened = [
            pool.submit(sources.open_source, Selection("cifar10"), tmp_path / "shared", silent)
            for _ in range(3)
        ]
        assert {len(source.result().splits["train"].labels) for source in opened} == {12}
    assert len(mirrors.asked) == alone
    assert len(small_cifar10) == 2


def test_an_archive_of_another_content_is_refused_by_its_checksum(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mirrors: Mirrors,
    small_cifar10: tuple[str, ...],
) -> None:
    mirrors.archive += b"\0"
    point_to(monkeypatch, mirrors, "whole")
    with pytest.raises(DataError, match=r"(?i)corrupted") as error:
        sources.open_source(Selection("cifar10"), tmp_path, silent)
    assert "--data PATH" in str(error.value)
    assert not (tmp_path / "cifar-10-batches-py").exists()
    assert len(small_cifar10) == 2


def test_the_real_mirrors_are_several_and_encrypted() -> None:
    assert len(sources.CIFAR10_MIRRORS) >= 2
    assert all(url.startswith("https://") for url in sources.CIFAR10_MIRRORS)
    assert all(url.endswith("cifar-10-python.tar.gz") for url in sources.CIFAR10_MIRRORS)
