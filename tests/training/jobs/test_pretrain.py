"""`pretrain` as a command: what it prints, refuses and leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data.dataset import Data
from labelcurve.training.extractors.pretraining import Request, lock_file, make
from labelcurve.training.jobs import pretrain as pretrain_job
from labelcurve.training.models import extractor
from labelcurve.training.models.backbones import build
from labelcurve.training.options import PretrainOptions
from labelcurve.training.recipes import pretraining
from labelcurve.training.runtime import lock
from labelcurve.training.runtime.device import FP32_CPU
from tests.training.conftest import LABELCURVE, NARROW, SMALL, Finished, environment, pretrain
from tests.training.conftest import finished as run
from tests.training.sets import digit_rows


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that ships with the package, and no git, whose state may change."""
    monkeypatch.setattr(extractor, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("GIT_DIR", os.devnull)


def options(cache: Path, **more: Any) -> PretrainOptions:
    values: dict[str, Any] = {
        "data": "digits",
        "image_size": 8,
        "epochs": 1.0,
        "device": "cpu",
        "cache": cache,
    }
    return PretrainOptions(**(values | more))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Finished:
    """`pretrain` as a real process, on digits; do not change it."""
    out = tmp_path_factory.mktemp("pretrained") / "digits.safetensors"
    finished = pretrain(out, cache, *SMALL, "--epochs", "2")
    assert finished.code == 0, finished.stderr
    return finished


def test_the_command_prints_its_document_on_the_last_line(done: Finished) -> None:
    entry = done.document["extractor"]
    assert set(done.document) == {"extractor"}
    assert set(entry) == {
        *("path", "version", "objective", "pixels_hash", "epochs", "seconds", "knn", "probe"),
    }
    found = extractor.read(Path(entry["path"]))
    assert found.path == done.out
    assert found.version == entry["version"]
    assert found.card.knn == entry["knn"]
    assert found.card.probe == entry["probe"]
    assert found.card.pixels_hash == entry["pixels_hash"]
    assert found.card.runs[0].command.startswith(
        f"labelcurve pretrain --out {done.out} --data digits"
    )
    assert entry["epochs"] == 2
    assert done.stderr == ""
    assert not any(line.startswith("{") for line in done.stdout.splitlines()[:-1])
    assert sorted(file.name for file in done.out.parent.iterdir()) == [
        "digits.md",
        "digits.safetensors",
    ]


def test_what_the_command_prints_is_for_people(done: Finished) -> None:
    text = done.stdout
    assert "data: digits, 1,442 training images, 8 px, pixels hash " in text
    assert "device: cpu (asked for; " in text
    assert "contrastive on 1,298 images; 144 held out for k-NN evaluation" in text
    assert len(re.findall(r"(?m)^ +\d\.\d/2 ", text)) == 10
    assert re.search(r"(?m)^k-NN 0\.\d{4}, linear probe 0\.\d{4} on 144 held-out", text)


def test_the_digits_are_never_mirrored(done: Finished) -> None:
    assert extractor.read(done.out).card.flip is False


def test_a_trained_embedding_separates_the_digits(done: Finished) -> None:
    assert done.document["extractor"]["probe"] > 0.8


def test_train_finds_what_pretrain_left_in_the_cache(tmp_path: Path, cache: Path) -> None:
    found = pretrain_job.run(options(cache))["extractor"]
    assert Path(found["path"]).is_relative_to(cache)
    command = (LABELCURVE, "train", "--out", str(tmp_path), *SMALL)
    finished = run(tmp_path, cache, *command, *("--epochs", "1", "--fraction", "0.2"))
    assert finished.code == 0, finished.stderr
    assert f"{found['version']}, contrastive on 1,298 images of digits" in finished.stdout
    assert "a short one is made" not in finished.stdout
    assert [entry["name"] for entry in finished.document["bundles"]] == ["digits-20"]


def test_a_folder_of_images_without_classes_is_enough(tmp_path: Path, cache: Path) -> None:
    for number, (_, file) in enumerate(digit_rows(5)):
        place = tmp_path / "photos" / ("" if number % 2 else "deep/er")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(file)
    (tmp_path / "photos" / "notes.txt").write_text("fluffy")
    finished = pretrain(
        tmp_path / "photos.safetensors",
        cache,
        *("--data", str(tmp_path / "photos"), "--unlabelled", "--image-size", "8"),
        *("--epochs", "1", "--device", "cpu"),
    )
    assert finished.code == 0, finished.stderr
    entry = finished.document["extractor"]
    assert entry["knn"] is entry["probe"] is None
    found = extractor.read(tmp_path / "photos.safetensors")
    assert found.version == entry["version"]
    assert found.card.dataset == "photos"
    assert found.card.n_images + found.card.n_held_out == 50
    assert found.card.flip
    assert "no labels to evaluate with" in finished.stdout
    json.loads(finished.stdout.splitlines()[-1], parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": "nowhere", "unlabelled": True}, "--data nowhere: with --unlabelled it must be"),
        ({"data": "nowhere"}, "--data nowhere: no such folder"),
        ({"start": Path("nowhere.safetensors")}, r"nowhere\.safetensors: no such file"),
    ],
)
def test_what_is_not_there_is_named(cache: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelcurveError, match=message):
        pretrain_job.run(options(cache, **more))


def test_a_beginning_that_is_not_there_is_named_by_its_own_option(cache: Path) -> None:
    with pytest.raises(LabelcurveError) as error:
        pretrain_job.run(options(cache, start=Path("nowhere.safetensors")))
    assert "--extractor" not in str(error.value), "`pretrain` has no such option"


@pytest.mark.usefixtures("narrow")
def test_a_limit_of_minutes_ends_the_run_with_its_extractor(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    entry = pretrain_job.run(options(cache, epochs=None, max_minutes=0.05, out=out))["extractor"]
    assert 0 < entry["epochs"] < 10_000
    assert extractor.read(out).version == entry["version"]


def test_a_limit_that_reading_has_used_up_is_refused(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(LabelcurveError, match=r"--max-minutes 0\.01 leaves no time to learn"):
        pretrain_job.run(options(cache, epochs=None, max_minutes=0.01, out=out))
    assert list(tmp_path.iterdir()) == []


def test_the_time_before_the_training_is_taken_off_the_limit() -> None:
    assert pretrain_job._time_left(None, 1e6) is None
    # A minute without 2 % in reserve, and without 1.5 s for starting and ending the interpreter.
    assert pretrain_job._time_left(1.0, 0.0) == pytest.approx(60 * 0.98 - 1.5)
    assert pretrain_job._time_left(1.0, 20.0) == pytest.approx(60 * 0.98 - 1.5 - 20)
    assert pretrain_job._time_left(1.0, 56.2) == pytest.approx(1.1)
    with pytest.raises(LabelcurveError, match=r"--max-minutes 1 leaves no .* took 56 s. Allow mo"):
        pretrain_job._time_left(1.0, 56.4)


def test_options_change_the_recipe_and_nothing_else(cache: Path, digits: Data) -> None:
    plain = pretraining("contrastive", len(digits.train), 8)
    for more, changed in (
        ({"epochs": None}, {}),
        ({"epochs": 2.5}, {"epochs": 2.5}),
        ({"epochs": None, "max_minutes": 3.0}, {"epochs": 10_000}),
        ({"epochs": None, "batch_size": 33}, {"batch_size": 33}),
        ({"epochs": 7.0, "trunk": Path("a")}, {"epochs": 7, "extendable": True, "decay": 0.25}),
    ):
        given: dict[str, Any] = more
        found = pretrain_job._recipe(options(cache, **given), digits)
        assert found == replace(plain, **changed)
    reference = pretrain_job._recipe(options(cache, objective="relative-position"), digits)
    assert reference.objective == "relative-position"


@pytest.mark.usefixtures("narrow")
def test_a_limit_within_the_first_epoch_is_warned_of(
    digits: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = replace(pretraining("contrastive", len(digits.train), 8), epochs=10_000)
    out = tmp_path / "a.safetensors"
    made = make(digits, Request(plan, False, seconds=1e-6), FP32_CPU, out)
    assert made.card.runs[0].epochs < 1
    assert "WARNING: 0." in capsys.readouterr().out


def test_an_interrupted_command_says_how_to_resume(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "a.safetensors"
    command = [*NARROW, "pretrain", "--out", str(out), "--cache", str(cache), *SMALL]
    process = subprocess.Popen(
        [*command, "--epochs", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(cache),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("   epoch "):
                break
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert stderr == "\nstopped; the same command resumes from here\n"
    assert not out.exists()


def test_the_same_command_in_another_process_gives_the_same_version(
    tmp_path: Path, cache: Path, done: Finished
) -> None:
    again = pretrain_job.run(options(cache, epochs=2.0, out=tmp_path / "a.safetensors"))
    assert again["extractor"]["version"] == done.document["extractor"]["version"]


@pytest.mark.usefixtures("narrow")
def test_pretrain_says_what_it_replaces_and_what_train_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = PretrainOptions(data="digits", image_size=8, epochs=1, cache=tmp_path, device="cpu")
    document = pretrain_job.run(given)["extractor"]
    said = capsys.readouterr().out
    assert "will be replaced" not in said
    assert "`train` takes" not in said
    first = extractor.read(Path(document["path"]))
    better = first.card.model_copy(update={"knn": 1.0})
    network = build("convnet", np.zeros((64, 8, 8, 3), np.uint8), 2)
    first.load_into(network)
    extractor.write(extractor.SHIPPED / "ours.safetensors", network, better)
    pretrain_job.run(replace(given, seed=1))
    said = capsys.readouterr().out
    assert f"{first.path} is there and will be replaced: contrastive on" in said
    assert (
        "`train` takes ours.safetensors by default, which is at least as good (k-NN 1.0000); "
        f"--extractor {first.path} takes this one"
    ) in said


@pytest.mark.usefixtures("narrow")
def test_a_batch_of_another_size_is_learnt_from(cache: Path, tmp_path: Path) -> None:
    given = options(cache, epochs=0.1, batch_size=100, out=tmp_path / "a.safetensors")
    found = extractor.read(Path(pretrain_job.run(given)["extractor"]["path"]))
    (this,) = found.card.runs
    assert this.recipe["batch_size"] == 100
    assert this.views_seen % (2 * 100) == 0


@pytest.mark.parametrize("option", ["out", "trunk"])
def test_a_file_that_another_run_is_making_is_refused(
    cache: Path, tmp_path: Path, option: str
) -> None:
    given = options(cache, out=tmp_path / "a.safetensors", trunk=tmp_path / "a.trunk")
    file = getattr(given, option)
    message = rf"process {os.getpid()} on .* is making {file} right now: .* with --{option}$"
    with lock.hold(lock_file(file), ""), pytest.raises(LabelcurveError, match=message):
        pretrain_job.run(given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("narrow")
def test_a_trunk_is_continued_by_the_same_command_for_any_length(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(cache, out=tmp_path / "a.safetensors", trunk=tmp_path / "a.trunk")
    first = pretrain_job.run(given)["extractor"]
    assert "a.trunk: 6 steps before the learning rate fell" in capsys.readouterr().out
    second = pretrain_job.run(replace(given, epochs=2.0))["extractor"]
    assert first["version"] != second["version"]
    (record,) = extractor.read(given.out or Path()).card.runs
    # 7 steps an epoch: 6 of the first part, 14 of the second.
    assert record.epochs == second["epochs"] == pytest.approx(20 / 7, abs=1e-3)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("a.md", "a.safetensors", "a.trunk"),
    ]
    with pytest.raises(LabelcurveError, match=r"with other arguments: --seed 0 there, 1 here"):
        pretrain_job.run(replace(given, seed=1))
    with pytest.raises(LabelcurveError, match=r"--trunk .*: allowed is the name of a file"):
        replace(given, trunk=given.out)


def test_the_options_reach_the_training(
    cache: Path, tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def take(*given: Any, **more: Any) -> None:
        found.append((*given, more))
        raise LabelcurveError("enough")

    monkeypatch.setattr(pretrain_job, "make", take)
    monkeypatch.setattr(pretrain_job, "_load", lambda _: digits)
    data = str(tmp_path)
    more: dict[str, Any] = {
        "checkpoint_seconds": 7.0,
        "fresh": True,
        "out": tmp_path / "a.safetensors",
    }
    plans: tuple[dict[str, Any], ...] = (
        {"seed": 5, "data": data, "epochs": None, "max_minutes": 9.0, "precision": "fp32", **more},
        {"data": data, "no_flip": True},
        {"unlabelled": True},
    )
    for given in plans:
        with pytest.raises(LabelcurveError, match="enough"):
            pretrain_job.run(options(cache, **given))
    requests = [each[1] for each in found]
    assert [request.flip for request in requests] == [True, False, False]
    assert [request.labelled for request in requests] == [True, True, False]
    assert [request.seed for request in requests] == [5, 0, 0]
    assert [request.precision for request in requests] == ["fp32", "auto", "auto"]
    assert 400 < requests[0].seconds < 9 * 60
    assert requests[1].seconds is None
    assert found[0][3] == tmp_path / "a.safetensors"
    policy = found[0][4]["policy"]
    assert (policy.fresh, policy.seconds) == (True, 7.0)
