from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from labelcurve.bundle import preprocess, store
from labelcurve.bundle.errors import BundleError
from labelcurve.bundle.manifest import Manifest, Preprocessing, Run, Variant
from tests.models import publish_digits
from tests.permissions import forbidden, public_copy

CARD = "# digits\n"


@pytest.fixture
def root(tmp_path: Path, digits_models: Path) -> Path:
    """A models folder of digits-10, -50 and -100 that a test may change."""
    return Path(shutil.copytree(digits_models, tmp_path / "models", symlinks=True))


@pytest.fixture
def bundle(digits_models: Path) -> store.Bundle:
    return store.read(digits_models, "digits-10")


@pytest.fixture
def record(bundle: store.Bundle) -> Run:
    return store.read_run(bundle.path)


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
    with forbidden(root), pytest.raises(BundleError, match=message):
        store.names(root)


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


def test_an_output_folder_that_cannot_be_written_is_named(
    tmp_path: Path, bundle: store.Bundle, record: Run
) -> None:
    (tmp_path / "models").write_text("a file in the way")
    with pytest.raises(BundleError, match=r"cannot write the bundle .*models.*--out"):
        store.publish(tmp_path / "models", bundle.manifest, bundle.graph, CARD, record)


def test_a_full_disk_leaves_no_half_bundle(
    tmp_path: Path, bundle: store.Bundle, record: Run
) -> None:
    # A limit on the size of a file fails the write as a full disk does, without being root.
    (tmp_path / "graph").write_bytes(bundle.graph * 20)
    (tmp_path / "manifest").write_text(bundle.manifest.model_dump_json())
    (tmp_path / "run").write_text(record.model_dump_json())
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from labelcurve.bundle import store\n"
        "from labelcurve.bundle.errors import BundleError\n"
        "from labelcurve.bundle.manifest import Manifest, Run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))\n"
        "here = Path(sys.argv[1])\n"
        "manifest = Manifest.model_validate_json((here / 'manifest').read_text())\n"
        "run = Run.model_validate_json((here / 'run').read_text())\n"
        "try:\n"
        "    store.publish(here / 'out', manifest, (here / 'graph').read_bytes(), '#', run)\n"
        "except BundleError as error:\n"
        "    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "cannot write the bundle" in done.stderr
    assert "File too large" in done.stderr
    assert "make room" in done.stderr
    assert list((tmp_path / "out" / "digits-10").iterdir()) == []


def test_several_writers_may_publish_under_one_name(
    tmp_path: Path, bundle: store.Bundle, record: Run
) -> None:
    failures: list[BaseException] = []
    manifests = [bundle.manifest.model_copy(update={"seed": seed}) for seed in range(6)]

    def publish() -> None:
        try:
            for manifest in manifests:
                start.wait()
                store.publish(tmp_path, manifest, bundle.graph, CARD, record)
        except BaseException as error:
            start.abort()
            failures.append(error)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    start = threading.Barrier(len(threads), timeout=30)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.read(tmp_path, "digits-10").manifest == manifests[-1]
    assert len(list((tmp_path / "digits-10").iterdir())) == len(manifests) + 1


PUBLISH_FOR_EVER = """
import itertools, sys
from pathlib import Path
from labelcurve.bundle import store
from labelcurve.bundle.manifest import Manifest

source, target = map(Path, sys.argv[1:])
first = store.read(source, "digits-10")
run = store.read_run(first.path)
for seed in itertools.count(int(sys.stdin.readline())):
    manifest = first.manifest.model_copy(update={"seed": seed})
    store.publish(target, manifest, first.graph, f"# seed {seed}", run)
    print(seed, flush=True)
"""


def test_a_reader_never_sees_half_a_bundle_of_a_writer_that_is_killed(
    tmp_path: Path, bundle: store.Bundle
) -> None:
    for round_number in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", PUBLISH_FOR_EVER, str(bundle.path.parent.parent), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        try:
            writer.stdin.write(f"{round_number * 10_000}\n")
            writer.stdin.flush()
            assert writer.stdout.readline(), "the writer has not begun"
            seeds = set()
            deadline = time.monotonic() + 0.4 + 0.07 * round_number
            while time.monotonic() < deadline:
                assert store.names(tmp_path) == ["digits-10"]
                found = store.read(tmp_path, "digits-10")
                seeds.add(found.manifest.seed)
                assert (found.path / "README.md").read_text() == f"# seed {found.manifest.seed}"
                store.read_run(found.path)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
        assert len(seeds) > 1, "the reader saw the link move"
        last = store.read(tmp_path, "digits-10").manifest.seed
        assert last >= max(seeds)
    for folder in (tmp_path / "digits-10").iterdir():
        if not folder.name.startswith(".") and folder.name != "current":
            assert store.read(tmp_path, "digits-10", folder.name).version == folder.name


def test_a_manifest_on_disk_is_readable_json(bundle: store.Bundle) -> None:
    text = (bundle.path / "manifest.json").read_text()
    assert json.loads(text)["class_names"] == list(bundle.manifest.class_names)
    assert Manifest.model_validate_json(text) == bundle.manifest


@pytest.mark.parametrize("content", [None, "", "{}", "no json"])
def test_a_damaged_run_record_is_named(root: Path, content: str | None) -> None:
    path = store.read(root, "digits-10").path
    (path / "run.json").unlink()
    if content is not None:
        (path / "run.json").write_text(content)
    with pytest.raises(BundleError, match=r"cannot read .*run\.json"):
        store.read_run(path)


def test_a_bundle_is_on_the_disk_before_it_has_its_name_and_that_before_the_link(
    tmp_path: Path, bundle: store.Bundle, record: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def synced(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        events.append("sync " + ("temporary" if name.startswith(".") else name))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append(f"rename to {Path(target).name}")
        return rename(path, target)

    def replaced(path: Path, target: Path) -> Path:
        events.append(f"replace {Path(target).name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", replaced)
    path = store.publish(tmp_path, bundle.manifest, bundle.graph, CARD, record)
    assert sorted(events[:4]) == [
        "sync README.md", "sync manifest.json", "sync model.onnx", "sync run.json",
    ]  # fmt: skip
    assert events[4:] == [
        "sync temporary", f"rename to {path.name}", "replace current", "sync digits-10",
    ]  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o755
    events.clear()
    store.point(tmp_path, "digits-10", path.name)
    assert events == ["replace current", "sync digits-10"]


@pytest.mark.parametrize("file", [store.GRAPH, store.MANIFEST])
def test_a_version_that_is_written_again_has_another_stamp(root: Path, file: str) -> None:
    path = store.read(root, "digits-10").path
    before = store.scan(root)
    assert before == store.scan(root)
    there = (path / file).stat()
    copy = path / "copy"
    copy.write_bytes((path / file).read_bytes())
    os.utime(copy, ns=(there.st_atime_ns, there.st_mtime_ns))
    copy.replace(path / file)  # of the same size and time
    after = store.scan(root)
    assert after["digits-10"].versions[path.name] != before["digits-10"].versions[path.name]
    assert after["digits-50"] == before["digits-50"]
    os.utime(path / file, ns=(0, 10**9))
    assert store.scan(root)["digits-10"] != after["digits-10"]
