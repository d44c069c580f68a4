from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bundle.errors import LabelcurveError
from training import data, extractor, pretrain_job
from training.backbones import build
from training.data import Data, Split
from training.device import FP32_CPU
from training.extractor import Extractor
from training.options import PretrainOptions
from training.pretrain_job import Request, check, doubts, make, obtain, short, split
from training.recipes import pretraining, recipe
from training.stored import Stored


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


def test_a_run_that_goes_on_with_another_order_of_the_images_says_so(
    tmp_path: Path,
    digits: Data,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(monkeypatch, 4, digits, tmp_path / "a.safetensors")
    made(data.load("digits", size=8, cache=cache, memory=50_000), tmp_path / "a.safetensors")
    said = capsys.readouterr().out
    assert "images in memory, and the run goes on on " in said
    assert "1,298 images from the cache, shuffled 0.005 MB at a time: its weights are" in said


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


def test_a_file_that_is_not_there_says_what_is_allowed() -> None:
    with pytest.raises(LabelcurveError) as error:
        check("aut")
    assert "--extractor aut: no such file (perhaps you meant auto). Allowed: auto, none, a" in str(
        error.value
    )


@pytest.mark.usefixtures("briefly")
def test_the_second_time_the_extractor_of_the_cache_is_taken(
    tmp_path: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    first = from_cache(digits, tmp_path)
    assert first is not None
    text = capsys.readouterr().out
    assert "a short one is made from these images first" in text
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


def test_an_extractor_of_other_images_or_another_size_is_taken_with_a_warning(
    tmp_path: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    some = few(digits, 250)
    first = made(some, tmp_path / "a.safetensors")
    from_cache(some, tmp_path / "cache", str(first.path))
    assert "WARNING" not in capsys.readouterr().out
    from_cache(digits, tmp_path / "cache", str(first.path))
    said = capsys.readouterr().out
    assert "WARNING: the extractor a.safetensors was learned from other images than these" in said
    assert "if the test images were among them" in said
    (warning,) = doubts(first, replace(some, size=16))
    assert "was learned at 8 px, and these images have 16" in warning
    assert doubts(None, digits) == ()


@pytest.mark.usefixtures("briefly")
def test_what_a_limit_of_time_cut_short_is_not_kept_for_runs_without_one(
    tmp_path: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = from_cache(digits, tmp_path, seconds=0.01)
    assert cut is not None
    assert cut.card.cut_short
    assert cut.card.knn is None, "there was no time to judge it"
    said = capsys.readouterr().out
    assert re.search(r"not judged: k-NN and linear probe would take some \d+ of 0 s", said)
    again = from_cache(digits, tmp_path, seconds=0.01)
    assert again is not None
    assert again.version == cut.version
    assert re.search(r"WARNING: the extractor .* had 0\.\d+ epochs only", capsys.readouterr().out)
    whole = from_cache(digits, tmp_path)
    assert whole is not None
    assert whole.card.runs[-1].epochs == 1
    assert f"{cut.path.name} in the cache had {cut.card.runs[-1].epochs:.3g} epochs only" in (
        capsys.readouterr().out
    )
    taken = from_cache(digits, tmp_path, seconds=0.01)
    assert taken is not None
    assert taken.version == whole.version


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
        f"`train` takes ours.safetensors by itself, which is no worse (k-NN 1.0000); --extractor "
        f"{first.path} takes this one"
    ) in said


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


def test_images_that_do_not_fit_into_memory_teach_without_labels(
    digits: Data, cache: Path, tmp_path: Path
) -> None:
    outside = data.load("digits", size=8, cache=cache, memory=50_000, say=lambda _: None)
    assert isinstance(outside.train.images, Stored)
    plan = replace(pretraining("contrastive", len(outside.train), 8), epochs=2)
    found, again = (
        make(outside, Request(plan, False), FP32_CPU, tmp_path / f"{name}.safetensors")
        for name in "ab"
    )
    inside = make(digits, Request(plan, False), FP32_CPU, tmp_path / "c.safetensors")
    assert found.version == again.version
    assert (found.card.pixels_hash, found.card.n_images, found.card.n_held_out) == (
        *(inside.card.pixels_hash, inside.card.n_images),
        inside.card.n_held_out,
    )
    assert found.card.knn == pytest.approx(inside.card.knn, abs=0.15)
    loss = found.card.runs[-1].loss
    assert loss == pytest.approx(inside.card.runs[-1].loss, abs=0.4)
    assert loss < math.log(2 * plan.batch_size - 1), "that of views that are all alike"
