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
import torch

from bundle.errors import LabelcurveError
from tests.training.conftest import PRETRAIN, SMALL, Finished, environment, pretrain, train
from tests.training.sets import digit_rows
from training import data, extractor, pretrain_job
from training.backbones import build
from training.data import Data, Split
from training.device import FP32_CPU
from training.extractor import Extractor
from training.options import PretrainOptions
from training.pretrain_job import Request, make, obtain, short, split
from training.recipes import pretraining, recipe


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that ships with the package, and no git, whose state may change."""
    monkeypatch.setattr(extractor, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("GIT_DIR", os.devnull)


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretraining that `train` starts is one epoch."""
    monkeypatch.setattr(pretrain_job, "SHORT_IMAGES", 1)


def made(images: Data, out: Path, **more: Any) -> Extractor:
    """One epoch of the usual pretraining."""
    plan = replace(pretraining("contrastive", len(images.train), 8), epochs=1)
    return make(images, replace(Request(plan, False), **more), FP32_CPU, out)


def few(digits: Data, n: int) -> Data:
    return replace(digits, train=digits.train.take(np.arange(n)))


def blinded(split: Split, seed: int) -> Split:
    labels = np.random.default_rng(seed).permutation(split.labels)
    return replace(split, labels=labels)


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


def test_no_label_and_no_test_image_reaches_the_extractor(tmp_path: Path, digits: Data) -> None:
    some = few(digits, 700)
    blind = replace(some, train=blinded(some.train, 0), test=digits.test.take(np.arange(1)))
    first = made(some, tmp_path / "seeing.safetensors")
    second = made(blind, tmp_path / "blind.safetensors")
    assert first.version == second.version
    assert all(torch.equal(value, second.weights[k]) for k, value in first.weights.items())
    assert first.card.pixels_hash == second.card.pixels_hash
    assert first.card.probe is not None
    assert second.card.probe is not None
    assert first.card.probe > second.card.probe + 0.3, "the other labels are judged by"


def test_no_held_out_image_reaches_the_extractor(tmp_path: Path, digits: Data) -> None:
    # Pixels of held-out images may change neither what is learnt nor the normalisation.
    some = few(digits, 400)
    _, held = split(400)
    pixels = np.array(some.train.images)
    pixels[held] = 255 - pixels[held]
    other = replace(some, train=replace(some.train, images=pixels))
    first = made(some, tmp_path / "a.safetensors")
    assert first.version == made(other, tmp_path / "b.safetensors").version
    assert first.card.n_held_out == len(held)
    assert first.card.n_images == 400 - len(held)


def test_the_same_seed_gives_the_same_extractor_and_another_seed_another(
    tmp_path: Path, digits: Data
) -> None:
    some = few(digits, 300)
    versions = [
        made(some, tmp_path / f"{number}.safetensors", seed=seed).version
        for number, seed in enumerate((3, 3, 4))
    ]
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize("n", [20, 39, 200, 1_442, 49_999, 50_000, 100_000])
def test_held_out_rows_are_disjoint_and_evenly_spaced(n: int) -> None:
    learn, held = split(n)
    assert len(held) == min(5_000, n // 10)
    assert np.array_equal(np.sort(np.concatenate([learn, held])), np.arange(n))
    gaps = np.diff(held)
    assert gaps.max() - gaps.min() <= 1 if len(gaps) else n < 20
    assert held[0] == 0
    assert held[-1] == n - 1


def test_the_fewest_images_are_enough_and_fewer_are_refused(tmp_path: Path, digits: Data) -> None:
    found = made(few(digits, 20), tmp_path / "a.safetensors")
    assert (found.card.n_images, found.card.n_held_out) == (18, 2)
    with pytest.raises(LabelcurveError, match="19 training images: pretraining needs 20 at least"):
        made(few(digits, 19), tmp_path / "b.safetensors")


def test_the_card_tells_how_it_came_about(tmp_path: Path, digits: Data) -> None:
    some = few(digits, 300)
    found = made(some, tmp_path / "a.safetensors", seed=5)
    card = found.card
    assert (card.dataset, card.image_size, card.backbone) == ("digits", 8, "convnet")
    assert card.pixels_hash == some.pixels_hash
    assert (card.objective, card.flip) == ("contrastive", False)
    assert card.knn is not None
    assert 0 <= card.knn <= 1
    (this,) = card.runs
    assert this.seed == 5
    assert this.epochs == 1
    assert this.recipe["epochs"] == 1
    assert this.views_seen > 0
    assert this.precision == "fp32"
    assert np.isfinite(this.loss)
    assert {"python", "torch", "lightly"} <= set(this.packages)


def test_a_run_can_begin_with_an_extractor_and_adds_to_its_card(
    tmp_path: Path, digits: Data
) -> None:
    some = few(digits, 300)
    first = made(some, tmp_path / "a.safetensors")
    second = made(some, tmp_path / "b.safetensors", start=first)
    other = made(some, tmp_path / "c.safetensors")
    assert second.card.runs[0] == first.card.runs[0]
    assert len(second.card.runs) == 2
    assert second.version != other.version == first.version


def test_an_extractor_of_another_backbone_is_no_beginning(tmp_path: Path, digits: Data) -> None:
    first = made(few(digits, 300), tmp_path / "a.safetensors")
    plan = replace(pretraining("relative-position", 300, 8), epochs=1)
    with pytest.raises(LabelcurveError, match="does not fit this network"):
        make(few(digits, 300), Request(plan, False, start=first), FP32_CPU, tmp_path / "b")


def test_the_reference_pretext_makes_an_extractor_for_the_reference_network(
    tmp_path: Path, digits: Data
) -> None:
    some = few(digits, 300)
    plan = replace(pretraining("relative-position", 300, 8), epochs=1)
    found = make(some, Request(plan, False), FP32_CPU, tmp_path / "a.safetensors")
    assert found.card.backbone == "reference"
    found.load_into(build("reference", some.train.images, 10))


def test_without_labels_there_is_no_figure(tmp_path: Path, digits: Data) -> None:
    found = made(few(digits, 200), tmp_path / "a.safetensors", labelled=False)
    assert found.card.knn is found.card.probe is None
    assert "No labels were there" in (tmp_path / "a.md").read_text()


class Stopped(Exception):
    """Where the test interrupts the run."""


def interrupted(monkeypatch: pytest.MonkeyPatch, rows: int, images: Data, out: Path) -> None:
    """`made`, interrupted at a row of the table, with a checkpoint of the step before."""
    left = [rows]

    def say(line: str) -> None:
        if re.match(r" +\d+\.\d/", line):
            left[0] -= 1
            if left[0] == 0:
                raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_job, "say", say)
        plan = replace(pretraining("contrastive", len(images.train), 8), epochs=1)
        with pytest.raises(Stopped):
            make(images, Request(plan, False), FP32_CPU, out, checkpoint_seconds=0)


def test_an_interrupted_run_goes_on_and_leaves_no_checkpoint(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = few(digits, 300)
    undisturbed = made(some, tmp_path / "whole.safetensors")
    out = tmp_path / "again" / "a.safetensors"
    interrupted(monkeypatch, 4, some, out)
    assert [file.name for file in out.parent.iterdir()] == [".a.checkpoint"]
    found = made(some, out)
    assert found.version == undisturbed.version
    assert sorted(file.name for file in out.parent.iterdir()) == ["a.md", "a.safetensors"]


@pytest.mark.parametrize("change", ["seed", "recipe", "flip", "images", "start"])
def test_a_run_with_other_arguments_does_not_go_on_unless_it_starts_over(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    some = few(digits, 200)
    plan = replace(pretraining("contrastive", 200, 8), epochs=1)
    request, out = Request(plan, False), tmp_path / "out" / "a.safetensors"
    interrupted(monkeypatch, 2, some, out)
    if change == "images":
        some = few(digits, 201)
    elif change == "start":
        request = replace(request, start=made(some, tmp_path / "start.safetensors"))
    else:
        value: Any = {"seed": 1, "recipe": replace(plan, epochs=2), "flip": True}[change]
        request = replace(request, **{change: value})
    with pytest.raises(LabelcurveError, match=r"with other arguments: .* there, .*--fresh"):
        make(some, request, FP32_CPU, out)
    assert make(some, request, FP32_CPU, out, fresh=True).card.seconds > 0


def from_cache(digits: Data, cache: Path, wanted: str = "auto", **more: Any) -> Extractor | None:
    given: dict[str, Any] = {"flip": False, "cache": cache, "seconds": None}
    plan = recipe("default", 100, flip=False, unlabelled=False)
    return obtain(wanted, digits, plan, FP32_CPU, **(given | more))


def test_with_none_nothing_is_read_or_made(tmp_path: Path, digits: Data) -> None:
    assert from_cache(digits, tmp_path, "none") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("briefly")
def test_the_second_time_the_extractor_of_the_cache_is_taken(
    tmp_path: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    first = from_cache(digits, tmp_path)
    assert first is not None
    text = capsys.readouterr().out
    assert "none is made from these images yet" in text
    assert "--extractor none leaves it out" in text
    assert "contrastive on 1,298 images" in text
    changed = first.path.stat().st_mtime_ns
    second = from_cache(digits, tmp_path)
    assert second is not None
    text = capsys.readouterr().out
    assert text.startswith(f"extractor: {first.path.name} {first.version}, contrastive on 1,298")
    assert text.count("\n") == 1, "nothing is trained"
    assert second.version == first.version
    assert second.path.stat().st_mtime_ns == changed


@pytest.mark.usefixtures("briefly")
def test_an_extractor_for_mirrored_images_is_another_one(tmp_path: Path, digits: Data) -> None:
    some = few(digits, 250)
    as_they_are, mirrored = (from_cache(some, tmp_path, flip=flip) for flip in (False, True))
    assert as_they_are is not None
    assert mirrored is not None
    assert as_they_are.path != mirrored.path
    assert as_they_are.version != mirrored.version
    assert (as_they_are.card.flip, mirrored.card.flip) == (False, True)


def test_a_file_is_taken_whatever_the_images(tmp_path: Path, digits: Data) -> None:
    first = made(few(digits, 250), tmp_path / "a.safetensors")
    for images in (digits, few(digits, 30)):
        found = from_cache(images, tmp_path / "cache", str(first.path))
        assert found is not None
        assert found.version == first.version
    assert not (tmp_path / "cache").exists()


def test_from_too_few_images_nothing_is_learnt(
    tmp_path: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    assert from_cache(few(digits, 199), tmp_path) is None
    assert capsys.readouterr().out == (
        "extractor: none (199 images are too few to learn one from)\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("briefly")
def test_a_damaged_extractor_in_the_cache_is_made_anew(tmp_path: Path, digits: Data) -> None:
    path = extractor.cached(digits.pixels_hash, "convnet", 8, False, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    found = from_cache(digits, tmp_path)
    assert found is not None
    assert extractor.read(path).version == found.version


@pytest.mark.usefixtures("briefly")
def test_a_cache_that_cannot_be_written_is_announced_and_done_without(
    tmp_path: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    found = from_cache(few(digits, 250), tmp_path / "cache")
    assert found is not None
    assert "cannot be written: the extractor is not kept" in capsys.readouterr().out
    assert (tmp_path / "cache").read_text() == "a file in the way"


@pytest.mark.usefixtures("briefly")
def test_a_checkpoint_that_another_pretraining_left_is_no_dead_end_for_train(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = few(digits, 250)
    out = extractor.cached(some.pixels_hash, "convnet", 8, False, tmp_path)
    interrupted(monkeypatch, 2, some, out)
    # `train` has no --fresh, so it makes its own extractor or names another way.
    said = ""
    try:
        found = from_cache(some, tmp_path)
    except LabelcurveError as error:
        found, said = None, str(error)
    assert found is not None or "`pretrain" in said or "--fresh" not in said


@pytest.mark.parametrize("n", [300, 1_442, 50_000, 10_000_000])
def test_a_short_pretraining_is_no_longer_than_a_whole_one(n: int) -> None:
    plan = pretraining("contrastive", n, 32)
    found = short(plan, n)
    assert 1 <= found.epochs <= plan.epochs
    assert replace(found, epochs=plan.epochs) == plan


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
    assert found.card.runs[0].command.startswith(f"pretrain --out {done.out} --data digits")
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
    assert "contrastive on 1,298 images; 144 held out to judge by k-NN" in text
    assert len(re.findall(r"(?m)^ +\d\.\d/2 ", text)) == 10
    assert re.search(r"(?m)^k-NN 0\.\d{4}, linear probe 0\.\d{4} on 144 held-out", text)


def test_the_digits_are_never_mirrored(done: Finished) -> None:
    assert extractor.read(done.out).card.flip is False


def test_an_embedding_that_was_learnt_tells_the_digits(done: Finished) -> None:
    assert done.document["extractor"]["probe"] > 0.8


def test_train_finds_what_pretrain_left_in_the_cache(tmp_path: Path, cache: Path) -> None:
    found = pretrain_job.run(options(cache))["extractor"]
    assert Path(found["path"]).is_relative_to(cache)
    finished = train(tmp_path, cache, *SMALL, *("--epochs", "1", "--fraction", "0.2"))
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
    assert "no labels to judge by" in finished.stdout
    json.loads(finished.stdout.splitlines()[-1], parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": "nowhere", "unlabelled": True}, "--data nowhere: with --unlabelled it must be"),
        ({"data": "nowhere"}, "--data nowhere: no such folder"),
        ({"start": Path("nowhere.safetensors")}, r"nowhere\.safetensors: .*No such file"),
    ],
)
def test_what_is_not_there_is_named(cache: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelcurveError, match=message):
        pretrain_job.run(options(cache, **more))


def test_a_beginning_that_is_not_there_is_named_by_its_own_option(cache: Path) -> None:
    with pytest.raises(LabelcurveError) as error:
        pretrain_job.run(options(cache, start=Path("nowhere.safetensors")))
    assert "--extractor" not in str(error.value), "`pretrain` has no such option"


def test_a_limit_of_minutes_ends_the_run_with_its_extractor(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    entry = pretrain_job.run(options(cache, epochs=None, max_minutes=0.03, out=out))["extractor"]
    assert 0 < entry["epochs"] < 10_000
    assert extractor.read(out).version == entry["version"]


def test_a_limit_that_reading_has_used_up_is_no_run_without_end(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Request] = []

    def caught(images: Data, request: Request, *_: object, **__: object) -> Extractor:
        seen.append(request)
        raise Stopped

    monkeypatch.setattr(pretrain_job, "make", caught)
    # An explained error is as good as a last moment of time.
    with pytest.raises((Stopped, LabelcurveError)):
        pretrain_job.run(
            options(cache, epochs=None, max_minutes=1e-6, out=tmp_path / "a.safetensors")
        )
    assert all(request.seconds is not None and request.seconds > 0 for request in seen)


def test_an_interrupted_command_says_how_to_go_on(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "a.safetensors"
    command = [str(PRETRAIN), "--out", str(out), "--cache", str(cache), *SMALL]
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
    assert stderr == "\nstopped; the same command goes on from here\n"
    assert not out.exists()


def test_the_same_command_in_another_process_gives_the_same_version(
    tmp_path: Path, cache: Path, done: Finished
) -> None:
    again = pretrain_job.run(options(cache, epochs=2.0, out=tmp_path / "a.safetensors"))
    assert again["extractor"]["version"] == done.document["extractor"]["version"]


def test_the_cache_can_be_cleared_without_losing_extractors(tmp_path: Path, digits: Data) -> None:
    found = made(few(digits, 200), extractor.cached("ab" * 32, "convnet", 8, False, tmp_path))
    data.clear(tmp_path)
    assert found.path.exists()


def test_a_run_that_went_on_began_when_its_first_part_did(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, out = few(digits, 200), tmp_path / "a.safetensors"
    interrupted(monkeypatch, 2, some, out)
    checkpoint = tmp_path / ".a.checkpoint"
    saved = torch.load(checkpoint, weights_only=True)
    saved["state"]["started"] = "2001-02-03T04:05:06+00:00"
    torch.save(saved, checkpoint)
    assert made(some, out).card.runs[-1].started == "2001-02-03T04:05:06+00:00"
