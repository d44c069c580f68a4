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

from labelcurve.bundle.errors import DivergedError, LabelcurveError
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data, Split
from labelcurve.training.data.decoded.stored import Stored
from labelcurve.training.extractors import pretraining as pretraining_job
from labelcurve.training.extractors.pretraining import Request, make, split
from labelcurve.training.learning.probe import Probe
from labelcurve.training.models import extractor
from labelcurve.training.models.backbones import Network, build
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.recipes import extendable, pretraining
from labelcurve.training.runtime.checkpoint import CheckpointPolicy
from labelcurve.training.runtime.device import FP32_CPU

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that ships with the package, and no git, whose state may change."""
    monkeypatch.setattr(extractor, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("GIT_DIR", os.devnull)


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
    # Pixels of held-out images may change neither the weights nor the normalisation.
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
    with pytest.raises(LabelcurveError, match="19 training images: pretraining needs at least 20"):
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
    assert {"python", "torch", "numpy"} <= set(this.packages)


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
    assert "It was not evaluated, for lack" in (tmp_path / "a.md").read_text()


def test_a_checkpoint_is_of_all_that_an_extractor_depends_on(digits: Data) -> None:
    plan = replace(pretraining("contrastive", 300, 8), epochs=3)
    request = Request(plan, True, seed=4, precision="fp32")
    found = pretraining_job.key(digits, request, 77)
    rest = {
        name: value for name, value in vars(plan).items() if name not in ("objective", "epochs")
    }
    assert found == {
        "the hash of the images": digits.pixels_hash,
        "images to learn from:": 77,
        "--image-size": 8,
        "--no-flip": False,
        "--seed": 4,
        "--precision": "fp32",
        "--start": None,
        "--objective": "contrastive",
        "--epochs": 3,
        **{f"the recipe's {name}": value for name, value in rest.items()},
    }
    longer = replace(request, recipe=extendable(plan))
    assert pretraining_job.key(digits, longer, 77)["--epochs"] is None


@pytest.mark.parametrize(("seconds", "judged", "left"), [(20.0, True, 10.0), (19.9, False, 19.9)])
def test_an_evaluation_takes_half_of_the_time_at_most(
    digits: Data, seconds: float, judged: bool, left: float
) -> None:
    class Timed(Probe):
        def seconds(self, network: Network) -> tuple[float, float]:
            return 3.0, 10.0

    nothing = torch.zeros(0), np.zeros(0, np.int64)
    probe, said = Timed(*nothing, *nothing, FP32_CPU), list[str]()
    network = build("convnet", digits.train.images, 2)
    found, time_left = pretraining_job._share_time(probe, network, seconds, said.append)
    assert time_left == left
    assert (found is not None) is judged
    if found is None:
        assert said == [
            "not evaluated: k-NN and linear probe would take some 10 of 20 s (--max-minutes)"
        ]
    else:
        assert (found.cost, said) == (3.0, [])
    assert pretraining_job._share_time(None, network, 5.0, said.append) == (None, 5.0)


class Stopped(Exception):
    """The point at which the test interrupts the run."""


def interrupted(monkeypatch: pytest.MonkeyPatch, rows: int, images: Data, out: Path) -> None:
    """`made`, interrupted at a row of the table, with a checkpoint of the step before."""
    left = [rows]

    def say(line: str) -> None:
        if re.match(r" +\d+\.\d/", line):
            left[0] -= 1
            if left[0] == 0:
                raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(pretraining_job, "say", say)
        plan = replace(pretraining("contrastive", len(images.train), 8), epochs=1)
        with pytest.raises(Stopped):
            make(images, Request(plan, False), FP32_CPU, out, policy=CheckpointPolicy(seconds=0))


def test_a_run_resumed_with_another_order_of_the_images_says_so(
    tmp_path: Path,
    digits: Data,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(monkeypatch, 4, digits, tmp_path / "a.safetensors")
    made(dataset.load("digits", size=8, cache=cache, memory=50_000), tmp_path / "a.safetensors")
    said = capsys.readouterr().out
    assert "images in memory, and the run continues on " in said
    assert "1,298 images from the cache, shuffled 0.005 MB at a time: its weights will be" in said


def test_an_interrupted_run_is_resumed_and_leaves_no_checkpoint(
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


def test_a_loss_that_is_no_number_leaves_the_trunk_of_the_runs_before_and_no_checkpoint(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise DivergedError("the loss is nan")

    some, out, trunk = few(digits, 200), tmp_path / "a.safetensors", tmp_path / "a.trunk"
    plan = replace(pretraining("contrastive", 200, 8), epochs=1)
    longer = Request(extendable(replace(plan, epochs=2)), False)
    make(some, replace(longer, recipe=extendable(plan)), FP32_CPU, out, path=trunk)
    before = trunk.read_bytes()
    interrupted(monkeypatch, 2, some, out)
    assert (tmp_path / ".a.checkpoint").exists()
    monkeypatch.setattr(pretraining_job, "learn_from", diverge)
    with pytest.raises(DivergedError):
        make(some, longer, FP32_CPU, out, path=trunk)
    assert trunk.read_bytes() == before
    with pytest.raises(DivergedError):
        make(some, Request(plan, False), FP32_CPU, out)
    assert not (tmp_path / ".a.checkpoint").exists()


@pytest.mark.parametrize("change", ["seed", "recipe", "flip", "images", "start"])
def test_a_run_with_other_arguments_is_not_resumed_but_may_start_over(
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
    assert make(some, request, FP32_CPU, out, policy=CheckpointPolicy(fresh=True)).card.seconds > 0


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
    outside = dataset.load("digits", size=8, cache=cache, memory=50_000, say=lambda _: None)
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
