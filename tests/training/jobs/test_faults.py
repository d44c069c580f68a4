"""Failures of machine, disk and data during `train`: docs/operating-training.md."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelcurve.bundle import store
from labelcurve.bundle.errors import DataError, LabelcurveError
from labelcurve.bundle.manifest import Choice
from labelcurve.training.data import dataset
from labelcurve.training.data.decoded import decoding
from labelcurve.training.jobs import pretrain, train
from labelcurve.training.learning import finetune, optimizers
from labelcurve.training.options import Options, PretrainOptions
from labelcurve.training.runs import publication
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runs.publication import Command
from labelcurve.training.runtime import device
from labelcurve.training.runtime.checkpoint import Checkpoint
from tests.training.conftest import LABELCURVE, SMALL, TRAIN, environment
from tests.training.data.test_dataset import loaded
from tests.training.jobs import test_train
from tests.training.jobs.test_train import published
from tests.training.sets import digit_rows, write_folder

pytestmark = pytest.mark.usefixtures("narrow")


def options(out: Path, cache: Path, **more: Any) -> Options:
    return test_train.options(out, cache, **({"no_unlabelled": True} | more))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what would be exported and published: without either, which take seconds."""
    names: list[str] = []

    def publish(_: Command, cell: Cell, *__: Any) -> dict[str, Any]:
        names.append(cell.name)
        figures = {"accuracy": 0.5 + cell.seed / 10, "balanced_accuracy": 0.4, "f1": 0.3}
        return {
            "name": cell.name,
            "version": "none",
            "fraction": cell.subset.fraction,
            "seed": cell.seed,
            "test": figures,
            "seconds": {"command": 1.0, "export": 0.5},
        }

    monkeypatch.setattr(publication, "publish", publish)
    return names


class Gone(BaseException):
    """The process is killed at this point."""


def gone(*_: Any, **__: Any) -> None:
    raise Gone


def versions(out: Path) -> dict[str, str]:
    return {name: store.read(out, name).version for name in store.names(out)}


def left(out: Path) -> list[str]:
    """Working files below `.runs` but TensorBoard's."""
    files = (path for path in (out / ".runs").rglob("*") if path.is_file())
    return sorted(path.name for path in files if "tfevents" not in path.name)


def test_a_command_that_was_interrupted_trains_nothing_twice(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = options(tmp_path / "whole", cache, fraction=(0.1, 0.2), epochs=2)
    whole = train.run(both)
    broken = options(tmp_path / "broken", cache, fraction=(0.1, 0.2), epochs=2)
    # Killed while the second one is exported: its training is done, the first is published.
    real, calls = publication.publish, []

    def second_time(*arguments: Any) -> Any:
        calls.append(1)
        return gone() if len(calls) == 2 else real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(publication, "publish", second_time)
        with pytest.raises(Gone):
            train.run(broken)
    assert published(tmp_path / "broken") == ["digits-scratch-10"]
    assert left(tmp_path / "broken") == ["checkpoint.pt", "finished.json"]
    capsys.readouterr()
    again = train.run(broken)
    said = capsys.readouterr().out
    assert re.search(r"digits-scratch-10: \w{12} was published before the interruption", said)
    assert "resuming at epoch 2.0 from" in said
    assert "  1/2 " not in said, "no epoch is run again"
    assert versions(tmp_path / "broken") == versions(tmp_path / "whole")
    assert [b["name"] for b in again["bundles"]] == [b["name"] for b in whole["bundles"]]
    assert left(tmp_path / "broken") == []
    run = store.read_run(store.read(tmp_path / "broken", "digits-scratch-20").path)
    assert (run.interruptions, len(run.history)) == (1, 2)


def interrupted(out: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """A run of two epochs, killed after the first one with a checkpoint."""
    real = Checkpoint.save

    def save(self: Checkpoint, *arguments: Any, **keywords: Any) -> None:
        real(self, *arguments, **keywords)
        raise Gone

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        with pytest.raises(Gone):
            train.run(options(out, cache, epochs=2, checkpoint_seconds=0.0, **more))
    assert left(out) == ["checkpoint.pt"]


def test_other_arguments_in_the_folder_of_an_interrupted_run_are_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, shown: list[str]
) -> None:
    interrupted(tmp_path, cache, monkeypatch)
    with pytest.raises(LabelcurveError, match=r"--epochs 2 there, 1 here\. .*--fresh"):
        train.run(options(tmp_path, cache, epochs=1))
    assert left(tmp_path) == ["checkpoint.pt"], "it is still there for who goes on with it"
    # Another fraction or seed has nothing to do with it.
    train.run(options(tmp_path, cache, fraction=(0.1,)))
    train.run(options(tmp_path, cache, seed=1))
    assert shown == ["digits-scratch-10", "digits-scratch-20-s1"]
    assert left(tmp_path) == ["checkpoint.pt"]
    train.run(options(tmp_path, cache, epochs=1, fresh=True))
    assert left(tmp_path) == []


def test_a_command_that_cannot_run_does_not_forget(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupted(out, cache, monkeypatch)
    other = tmp_path / "other.safetensors"
    given = PretrainOptions(
        data="digits", image_size=8, device="cpu", cache=cache, epochs=0.01, out=other
    )
    pretrain.run(replace(given, objective="relative-position"))
    for wanted, said in ((tmp_path / "nofile", "no such file"), (other, "does not fit")):
        with pytest.raises(LabelcurveError, match=said):
            train.run(options(out, cache, extractor=str(wanted), name="digits-scratch", fresh=True))
        assert left(out) == ["checkpoint.pt"]


def test_a_run_resumed_with_another_order_of_the_images_says_so(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tmp_path, cache, monkeypatch)
    train.run(options(tmp_path, cache, epochs=2, memory_gb=5e-5))
    said = capsys.readouterr().out
    assert re.search(
        r"images in memory, and the run continues on .*, \d+ images from the cache, shuffled "
        r"0\.005 MB at a time: its weights will be bitwise those of neither",
        said,
    )
    interrupted(tmp_path, cache, monkeypatch)
    capsys.readouterr()
    train.run(options(tmp_path, cache, epochs=2, memory_gb=1.0))
    assert "of neither" not in capsys.readouterr().out, "as many are in memory as before"


def test_several_seeds_are_reported_with_mean_and_spread(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], shown: list[str]
) -> None:
    document = train.run(options(tmp_path, cache, seeds=3))
    assert shown == ["digits-scratch-20", "digits-scratch-20-s1", "digits-scratch-20-s2"]
    assert [bundle["seed"] for bundle in document["bundles"]] == [0, 1, 2]
    (row,) = document["summary"]
    assert (row["fraction"], row["seeds"], row["split"]) == (0.2, 3, "test")
    accuracy = {"mean": 0.6, "std": 0.1, "min": 0.5, "max": 0.7}
    assert row["accuracy"] == pytest.approx(accuracy)
    assert "    20 %      3          0.6000 0.1000 0.5000 0.7000 " in capsys.readouterr().out


def test_a_resumed_run_keeps_its_precision(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A processor without bf16 arithmetic takes minutes for Muon's products in bf16.
    real = optimizers.orthogonal
    monkeypatch.setattr(optimizers, "orthogonal", lambda found, _: real(found, torch.float32))
    began = Choice(value="bf16", reason="the first machine")
    monkeypatch.setattr(device, "_cpu_precision", lambda: began)
    interrupted(tmp_path, cache, monkeypatch, fraction=(0.1,))
    monkeypatch.setattr(
        device, "_cpu_precision", lambda: Choice(value="fp32", reason="the second one")
    )
    seen: list[Choice] = []

    def publish(*given: Any) -> dict[str, Any]:
        seen.append(given[3].device.precision)
        figures = {"accuracy": 0.5, "balanced_accuracy": 0.4, "f1": 0.3}
        seconds = {"command": 1.0, "export": 0.5}
        return {"name": given[1].name, "version": "none", "test": figures, "seconds": seconds}

    monkeypatch.setattr(publication, "publish", publish)
    train.run(options(tmp_path, cache, fraction=(0.1,), epochs=2))
    said = capsys.readouterr().out
    assert "precision: bf16, in which the interrupted run began (a new one would take fp32" in said
    train.run(options(tmp_path, cache, fraction=(0.1,), epochs=2))
    assert seen == [began, Choice(value="fp32", reason="the second one")]
    interrupted(tmp_path, cache, monkeypatch, fraction=(0.1,))
    with pytest.raises(LabelcurveError, match="--precision auto there, bf16 here"):
        train.run(options(tmp_path, cache, fraction=(0.1,), epochs=2, precision="bf16"))


def test_a_loss_that_is_nan_leaves_no_checkpoint_to_resume(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, shown: list[str]
) -> None:
    # With averaged weights only the validation loss is NaN: a checkpoint was written before.
    real = finetune._check_finite

    def nan(which: str, loss: float, *more: Any) -> None:
        real(which, float("nan") if which == "validation" else loss, *more)

    monkeypatch.setattr(finetune, "_check_finite", nan)
    with pytest.raises(LabelcurveError, match=r"validation loss is nan in epoch 1 .*--seed"):
        train.run(options(tmp_path, cache, checkpoint_seconds=0.0))
    assert left(tmp_path) == []
    assert shown == []


def test_an_image_that_changes_during_the_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "mine", digit_rows(30)[:90])
    given = options(tmp_path / "out", tmp_path / "cache", data=str(folder), fraction=(1.0,))
    real = finetune.finetune
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)

    def meddle(*arguments: Any, **more: Any) -> Any:
        for path in folder.rglob("*.png"):
            path.write_bytes(digit_rows(30)[-1][1])
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "finetune", meddle)
        with pytest.raises(DataError, match=r"changed during the run: .*/mine/\d/.*\.png"):
            train.run(given)
    assert published(tmp_path / "out") == []
    with pytest.raises(
        LabelcurveError, match=r"the hash of --data .* there, .*--fresh|two classes"
    ):
        train.run(given)
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    train.run(given)  # from the checkpoint
    assert published(tmp_path / "out") == ["mine-scratch-100", "mine-scratch-final"]


@pytest.mark.parametrize("file", ["train-images.npy", "train-rows.npy", "train-digests.npy"])
def test_a_damaged_cache_says_how_to_clear_it(tmp_path: Path, file: str) -> None:
    write_folder(tmp_path / "set", digit_rows(12))
    loaded(tmp_path / "set", tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob(file)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"cached pixels in .* are damaged .*--clear-cache"):
        loaded(tmp_path / "set", tmp_path / "cache")


@pytest.mark.parametrize(
    "noise", [bytes(4_000), np.random.default_rng(0).bytes(4_000)], ids=("zeros", "any")
)
@pytest.mark.parametrize("file", ["train-rows.npy", "train-digests.npy", "meta.json"])
def test_a_cache_that_something_has_written_into_is_not_blamed_on_the_data(
    tmp_path: Path, file: str, noise: bytes
) -> None:
    write_folder(tmp_path / "set", digit_rows(12))
    loaded(tmp_path / "set", tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob(file)
    content = path.read_bytes()
    corrupted = content[:128] + noise[: len(content) - 128]
    path.write_bytes(b'{"name": "set"}' if file == "meta.json" else corrupted)
    with pytest.raises(DataError, match=r"cached pixels in .* are damaged .*--clear-cache"):
        loaded(tmp_path / "set", tmp_path / "cache")


def test_the_pixels_of_another_cache_are_not_taken_for_these(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", digit_rows(12))
    loaded(tmp_path / "set", tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("train-images.npy")
    np.save(path, np.load(path)[:-1])
    with pytest.raises(DataError, match=r"damaged \(train-images\.npy holds \(119, 8, 8, 3\)\)"):
        loaded(tmp_path / "set", tmp_path / "cache")


def test_cached_pixels_that_are_no_images_own_are_not_blamed_on_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(tmp_path / "out", tmp_path / "cache")
    train.run(replace(given, dry_run=True))
    (path,) = (tmp_path / "cache").rglob("train-images.npy")
    content = path.read_bytes()
    path.write_bytes(content[:128] + bytes(len(content) - 128))
    with pytest.raises(DataError, match=r"cached pixels in .* are damaged: .*--clear-cache.*--fre"):
        train.run(given)
    assert published(tmp_path / "out") == []
    train.run(replace(given, clear_cache=True, fresh=True))
    assert published(tmp_path / "out") == ["digits-scratch-20"]


def test_files_that_change_while_they_are_read_are_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "mine", digit_rows(30)[:90])
    changed = folder / "0" / "00000.png"
    real = decoding.decode

    def meddle(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        changed.write_bytes(digit_rows(30)[-1][1])
        os.utime(changed, (1, 1))
        return found

    monkeypatch.setattr("labelcurve.training.data.decoded.cache.decode", meddle)
    with pytest.raises(DataError, match=r"1 file changed while being read:\n  .*00000\.png"):
        dataset.load(str(folder), size=8, cache=tmp_path / "cache", say=lambda _: None)
    assert list((tmp_path / "cache" / "pixels").iterdir()) == []


def test_an_image_under_two_classes_is_reported(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", digit_rows(30)[:90])
    shutil.copy(folder / "0" / "00000.png", folder / "1" / "again.png")
    said: list[str] = []
    dataset.load(str(folder), size=8, cache=tmp_path / "cache", say=said.append)
    (line,) = [line for line in said if "same pixels" in line]
    assert line.startswith("mine: 2 train images with the same pixels as others under another cl")
    assert "00000.png (0)" in line
    assert "again.png (1)" in line


def test_two_runs_into_one_folder_exclude_each_other(
    tmp_path: Path, cache: Path, shown: list[str]
) -> None:
    process = subprocess.Popen(
        [
            *(*TRAIN, "--out", str(tmp_path), "--cache", str(cache), *SMALL),
            *("--extractor", "none", "--epochs", "5000", "--fraction", "0.2"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(cache),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("  1/5000"):
                break
        with pytest.raises(LabelcurveError, match=rf"process {process.pid} on .*digits-scratch-20"):
            train.run(options(tmp_path, cache, epochs=5000))
        train.run(options(tmp_path, cache, fraction=(0.1,)))  # another bundle, at the same time
        assert shown == ["digits-scratch-10"]
        # SIGTERM: a checkpoint, and out.
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert left(tmp_path) == ["checkpoint.pt"]


UNSHARE = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user", "--map-root-user"]


def apart(
    script: str, folder: Path, cache: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script with private mounts, which disappear when it ends."""
    given = (str(folder), LABELCURVE, str(cache), *arguments)
    return subprocess.run(
        ["unshare", *UNSHARE, "sh", "-ec", script, "sh", *given],
        capture_output=True,
        text=True,
        check=False,
        env=environment(cache),
        timeout=240,
    )


FULL = """
mount -t tmpfs -o size=$4 tmpfs "$1"
"$2" train --out "$1" --cache "$3" --data digits --image-size 8 --device cpu --extractor none \
  --epochs 2 --fraction 0.2 --checkpoint-seconds 0 || echo "exit $?"
find "$1" -type f -size +0 | grep -v tfevents || true
umount "$1"
"""


def test_a_disk_without_room_is_an_error_before_the_training(tmp_path: Path, cache: Path) -> None:
    done = apart(FULL, tmp_path, cache, "12m")
    assert "exit 1" in done.stdout, done.stderr
    message = r"a disk with \d+ MB free, and a bundle with its checkpoints takes up to \d+ MB"
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert "published" not in done.stdout
    assert str(tmp_path) not in done.stdout.split("exit 1")[1]


FILLING = """
mount -t tmpfs -o size=120m tmpfs "$1"
( while [ ! -e "$1"/.runs/*/checkpoint.pt ]; do sleep 0.05; done
  while true; do head -c 200m /dev/zero >> "$1/.filler" 2>/dev/null || sleep 0.1; done ) &
filler=$!
"$2" train --out "$1" --cache "$3" --data digits --image-size 8 --device cpu --extractor none \
  --epochs 3 --fraction 0.2 --checkpoint-seconds 0 || echo "exit $?"
kill $filler
find "$1" -name model.onnx; find "$1" -name '*.part'
rm "$1/.filler"
echo again
"$2" train --out "$1" --cache "$3" --data digits --image-size 8 --device cpu --extractor none \
  --epochs 3 --fraction 0.2 --checkpoint-seconds 0
umount "$1"
"""


def test_a_disk_that_fills_up_loses_a_bundle_and_not_the_work(tmp_path: Path, cache: Path) -> None:
    done = apart(FILLING, tmp_path, cache)
    first, again = done.stdout.split("\nagain\n")
    assert "cannot be written (No space left on device)" in first
    assert first.endswith("exit 1"), "no half bundle and no half checkpoint is found after it"
    assert re.search(
        r"error: cannot write the bundle .*: No space left on device\..*make", done.stderr
    )
    assert "Traceback" not in done.stderr
    assert "resuming at epoch" in again
    assert "published" in again
    assert done.returncode == 0


READ_ONLY = """
mount -t tmpfs -o ro tmpfs "$1"
"$2" train --out "$1" --cache "$3" --data digits --image-size 8 --device cpu --extractor none \
  --epochs 1
"""


def test_an_output_that_cannot_be_written_is_an_error_before_the_training(
    tmp_path: Path, cache: Path
) -> None:
    done = apart(READ_ONLY, tmp_path, cache)
    assert done.returncode == 1, done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    assert "data:" not in done.stdout
