"""Bundles that are written: whole, by several writers, on a full disk, by one that is killed."""

from __future__ import annotations

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

from labelcurve.bundle import store
from labelcurve.bundle.errors import BundleError
from labelcurve.bundle.manifest import Manifest, Run
from tests.bundle.test_store import CARD


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


def test_the_first_link_in_a_copy_without_links_leaves_no_model_out(
    root: Path, bundle: store.Bundle, record: Run
) -> None:
    for link in root.glob("*/current"):
        link.unlink()
    # A copy that followed links has a folder in place of one.
    (only,) = (root / "digits-100").iterdir()
    shutil.copytree(only, root / "digits-100" / store.CURRENT)
    versions = {name: found.current for name, found in store.scan(root).items()}
    manifest = bundle.manifest.model_copy(update={"name": "new"})
    path = store.publish(root, manifest, bundle.graph, CARD, record)
    versions["new"] = path.name
    del versions["digits-100"]
    assert {name: store.read(root, name).version for name in store.names(root)} == versions
    with pytest.raises(
        BundleError, match=r"digits-100/current is a folder in place of a link.*rem"
    ):
        store.point(root, "digits-100", only.name)
