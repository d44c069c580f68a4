from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from labelcurve.bundle import preprocess, store
from labelcurve.bundle.errors import BundleError
from labelcurve.bundle.manifest import Preprocessing, Run, Variant
from tests.models import publish_digits
from tests.permissions import forbidden, public_copy

CARD = "# digits\n"


def test_what_is_published_is_read_back(tmp_path: Path, bundle: store.Bundle, record: Run) -> None:
    path = store.publish(tmp_path, bundle.manifest, bundle.graph, CARD, record)
    found = store.read(tmp_path, "digits-10")
    assert found.path == path
    assert found.name == "digits-10"
    assert found.manifest == bundle.manifest
    assert found.graph == bundle.graph
    assert store.read_run(path) == record
    assert (path / "README.md").read_text() == CARD
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md",
        "manifest.json",
        "model.onnx",
        "run.json",
    ]


def test_the_version_covers_a_variant(tmp_path: Path, bundle: store.Bundle, record: Run) -> None:
    variant = Variant(
        precision="int8",
        graph_hash=hashlib.sha256(b"a graph").hexdigest(),
        n_calibration=1,
        val=bundle.manifest.val,
        test=None,
        n_compared=1,
        agreement=1.0,
    )
    manifest = bundle.manifest.model_copy(update={"variants": (variant,)})
    graphs = {"int8": b"a graph"}
    path = store.publish(tmp_path, manifest, bundle.graph, CARD, record, graphs)
    found = store.read(tmp_path, "digits-10")
    assert found.version != bundle.version
    assert found.variants == graphs
    (path / "model.int8.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"int8\.onnx is damaged"):
        store.read(tmp_path, "digits-10")
    store.publish(tmp_path, manifest, bundle.graph, CARD, record, graphs)
    assert store.read(tmp_path, "digits-10").variants == graphs
    (path / "model.int8.onnx").unlink()
    with pytest.raises(BundleError, match=r"cannot read .*int8\.onnx"):
        store.read(tmp_path, "digits-10")


def test_the_version_is_a_hash_over_graph_and_manifest(bundle: store.Bundle) -> None:
    parts = [(bundle.path / name).read_bytes() for name in ("model.onnx", "manifest.json")]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    assert bundle.path.name == bundle.version == digest[:12]


def test_other_times_and_cards_are_the_same_version(
    tmp_path: Path, bundle: store.Bundle, record: Run
) -> None:
    first = store.publish(tmp_path, bundle.manifest, bundle.graph, CARD, record)
    later = record.model_copy(update={"started": "2030-01-01T00:00:00Z", "host": "other"})
    second = store.publish(tmp_path, bundle.manifest, bundle.graph, "# other\n", later)
    assert first == second
    assert store.read_run(second) == record, "a published bundle is immutable"


def test_every_bundle_is_listed_and_read_fewest_labels_first(root: Path) -> None:
    assert store.names(root) == ["digits-10", "digits-100", "digits-50"]
    assert [b.name for b in store.read_all(root)] == ["digits-10", "digits-50", "digits-100"]


def test_of_some_bundles_no_other_is_read(root: Path) -> None:
    (root / "digits-50" / store.CURRENT / store.GRAPH).write_bytes(b"damaged")
    found = store.read_all(root, only=["digits-100", "digits-10"])
    assert [bundle.name for bundle in found] == ["digits-10", "digits-100"]
    with pytest.raises(BundleError, match="is damaged"):
        store.read_all(root)


def test_an_older_version_stays_and_can_be_pointed_back_to(root: Path) -> None:
    old = store.read(root, "digits-10").version
    new = publish_digits(root, 0.1, seed=1).name
    assert new != old
    assert store.read(root, "digits-10").version == new
    assert store.read(root, "digits-10", old).version == old
    publish_digits(root, 0.1, seed=0)
    assert store.read(root, "digits-10").version == old
    (root / "digits-10" / "next").symlink_to(new)
    (root / "digits-10" / "next").replace(root / "digits-10" / "current")
    assert store.read(root, "digits-10").version == new


def test_a_loop_of_links_is_an_error(root: Path) -> None:
    (root / "loop").mkdir()
    (root / "loop" / store.CURRENT).symlink_to(store.CURRENT)
    with pytest.raises(BundleError, match="cannot read the bundle"):
        store.read_all(root)


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow"])
def test_a_tampered_file_is_noticed(root: Path, file: str, damage: str) -> None:
    path = root / "digits-10" / "current" / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if damage == "cut" else data + b" " * (damage == "grow"))
    with pytest.raises(BundleError, match="is damaged: its content hashes to"):
        store.read(root, "digits-10")


def test_publishing_again_repairs_a_damaged_bundle(root: Path) -> None:
    path = store.read(root, "digits-10").path
    (path / "model.onnx").write_bytes(b"torn")
    assert publish_digits(root, 0.1) == path
    assert store.read(root, "digits-10").path == path
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, "current"])


@pytest.mark.parametrize("file", ["README.md", "run.json", "model.onnx", "manifest.json"])
def test_publishing_again_brings_a_missing_file_back(root: Path, file: str) -> None:
    path = store.read(root, "digits-10").path
    (path / file).unlink()
    publish_digits(root, 0.1)
    assert (path / file).exists()
    store.read_run(store.read(root, "digits-10").path)


def test_a_file_of_another_user_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = root / "digits-10" / "current" / "model.onnx"
    graph.chmod(0)
    read = Path.read_bytes

    def as_user(path: Path) -> bytes:
        if not path.stat().st_mode & 0o400:  # root may still read it
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", as_user)
    with pytest.raises(BundleError, match=r"model\.onnx: Permission denied .*docker: --user"):
        store.read(root, "digits-10")


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
def test_a_missing_file_is_named(root: Path, file: str) -> None:
    (root / "digits-10" / "current" / file).unlink()
    with pytest.raises(BundleError, match=r"cannot read the bundle .*digits-10.*No such file"):
        store.read(root, "digits-10")


@pytest.mark.parametrize("file", [store.GRAPH, store.MANIFEST])
def test_a_fifo_is_not_waited_for(root: Path, file: str) -> None:
    path = root / "digits-10" / store.CURRENT / file
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match="it is a pipe"):
        store.read(root, "digits-10")


def forge(root: Path, graph: bytes, manifest: bytes, name: str = "digits-10") -> None:
    """Puts a bundle with the right hash in place, whatever its manifest says."""
    version = store.version_of(graph, manifest)
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    (folder / "manifest.json").write_bytes(manifest)
    (root / name / "current").symlink_to(version)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('{"schema_version": 2}', "has schema_version 2, this release reads 1"),
        ("{}", "has schema_version None, this release reads 1"),
        ("[]", "has schema_version none"),
        ("no json", "has schema_version none"),
        ('{"schema_version": 1}', "does not follow the schema: name: Field required$"),
    ],
)
def test_another_schema_is_refused(
    tmp_path: Path, bundle: store.Bundle, manifest: str, message: str
) -> None:
    forge(tmp_path, bundle.graph, manifest.encode())
    with pytest.raises(BundleError, match=message):
        store.read(tmp_path, "digits-10")


def test_another_preprocessing_is_refused(
    tmp_path: Path, bundle: store.Bundle, record: Run
) -> None:
    other = bundle.manifest.model_copy(update={"preprocessing": Preprocessing(version=99, size=8)})
    store.publish(tmp_path, other, bundle.graph, CARD, record)
    with pytest.raises(
        BundleError, match=rf"with preprocessing 99, this release computes {preprocess.VERSION}"
    ):
        store.read(tmp_path, "digits-10")


def test_a_bundle_cannot_be_renamed(root: Path) -> None:
    (root / "digits-10").rename(root / "letters-10")
    with pytest.raises(BundleError, match="is named digits-10 inside"):
        store.read(root, "letters-10")


@pytest.mark.parametrize(("name", "version"), [("letters", None), ("digits-10", "0" * 12)])
def test_a_missing_bundle_is_named(root: Path, name: str, version: str | None) -> None:
    with pytest.raises(BundleError, match=rf"cannot read the bundle .*{name}.*No such file"):
        store.read(root, name, version)


def test_a_copy_without_links_is_read_where_it_has_one_version(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    path = store.read(root, "digits-10").path
    shutil.copytree(path, copy / "digits-10" / path.name)
    assert store.read(copy, "digits-10").version == store.read(root, "digits-10").version
    assert store.names(copy) == ["digits-10"]
    (version,) = (copy / "digits-10").iterdir()
    shutil.copytree(version, copy / "digits-10" / "current")  # by a copy that follows links
    assert store.read(copy, "digits-10").version == version.name
    shutil.copytree(version, copy / "digits-10" / "0123456789ab")
    with pytest.raises(BundleError, match="no bundle in"):
        store.names(copy)


def test_a_link_to_nowhere_is_an_error(root: Path) -> None:
    shutil.rmtree(store.read(root, "digits-10").path)
    with pytest.raises(BundleError, match=r"cannot read the bundle .*digits-10/current"):
        store.read(root, "digits-10")


def test_working_folders_and_stray_files_are_ignored(root: Path) -> None:
    shutil.copytree(root / "digits-10", root / ".runs", symlinks=True)
    shutil.copytree(root / "digits-10", root / ".digits-20", symlinks=True)
    (root / "notes.txt").write_text("bought more labels")
    (root / "empty").mkdir()
    assert store.names(root) == ["digits-10", "digits-100", "digits-50"]


def test_a_missing_folder_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"no folder .*nowhere: name the folder that `labelcurve train"
    ):
        store.names(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="no folder"):
        store.names(tmp_path / "file")


def test_a_model_in_place_of_the_folder_around_it_names_that(digits_models: Path) -> None:
    model = digits_models / store.names(digits_models)[0]
    for given in (
        model,
        model / "current",
        model.resolve() / store.read(digits_models, model.name).version,
    ):
        with pytest.raises(BundleError, match=rf"is one model, .* around it: {digits_models}$"):
            store.names(given)


def test_an_empty_folder_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle in .*NAME/VERSION/model.onnx.*train --out"):
        store.names(tmp_path)


def test_a_folder_that_cannot_be_read_names_the_remedy(root: Path) -> None:
    message = r"cannot read the folder .*: Permission denied for user \d+\. .*--user"
    for read in (store.names, store.scan):
        with forbidden(root), pytest.raises(BundleError, match=message):
            read(root)


@pytest.mark.parametrize("mode", [0, 0o444])
def test_a_folder_among_the_bundles_that_cannot_be_read_is_left_out(
    digits_models: Path, mode: int
) -> None:
    with public_copy(digits_models) as models:
        before = store.scan(models)
        lost = models / "lost+found"
        lost.mkdir()
        with forbidden(lost, mode):
            assert store.names(models) == ["digits-10", "digits-100", "digits-50"]
            unreadable = store.Found(None, {}, "Permission denied")
            assert store.scan(models) == {**before, "lost+found": unreadable}


def test_names_that_are_not_utf8_are_left_out_or_legible(root: Path) -> None:
    names = store.names(root)
    before = store.scan(root)
    other = root / os.fsdecode(b"caf\xe9")
    shutil.copytree(root / names[0], other, symlinks=True)
    assert store.names(root) == names
    error = "its name is not UTF-8"
    assert store.scan(root) == {**before, other.name: store.Found(None, {}, error)}

    link = root / names[0] / "current"
    link.resolve().rename(link.with_name(os.fsdecode(b"\xe9")))
    link.unlink()
    link.symlink_to(os.fsdecode(b"\xe9"))
    found = store.scan(root)[names[0]]
    assert (found.current, [*found.versions]) == ("\ufffd", ["\ufffd"])

    for name in names:
        shutil.rmtree(root / name)
    with pytest.raises(BundleError, match="no bundle in"):
        store.names(root)


def test_nothing_but_a_folder_that_cannot_be_read_is_an_error(digits_models: Path) -> None:
    with public_copy(digits_models) as models:
        for name in ("digits-50", "digits-100"):
            shutil.rmtree(models / name)
        message = r"cannot read the folder .*/digits-10: Permission denied for user \d+\. .*--user"
        with forbidden(models / "digits-10"), pytest.raises(BundleError, match=message):
            store.names(models)
