from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from labelcurve.bundle import store
from labelcurve.bundle.errors import BundleError, ExportError, LabelcurveError
from labelcurve.bundle.store import Bundle
from labelcurve.training.data import dataset, fractions
from labelcurve.training.data.dataset import Data, Split
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.data.fractions import Subset
from labelcurve.training.data.source import UNLABELLED
from labelcurve.training.extractors import choice
from labelcurve.training.jobs import train
from labelcurve.training.learning import metrics
from labelcurve.training.models import export, extractor
from labelcurve.training.models.backbones import Network
from labelcurve.training.options import Options
from labelcurve.training.recipes import recipe
from labelcurve.training.runs import grid
from labelcurve.training.runtime.device import Device
from tests.training.sets import digit_rows, write_folder

pytestmark = pytest.mark.usefixtures("narrow")


def options(out: Path, cache: Path, **more: Any) -> Options:
    values: dict[str, Any] = {
        "data": "digits",
        "image_size": 8,
        "fraction": (0.2,),
        "epochs": 1,
        "device": "cpu",
        "extractor": "none",
    }
    return Options(out=out, cache=cache, **(values | more))


def published(out: Path) -> list[str]:
    return sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))


def relabelled(split: Split, keep: NDArray[np.int64]) -> Split:
    """The split with every label outside `keep` replaced by another."""
    labels = (split.labels + 1 + np.arange(len(split)) % 9) % 10
    labels[keep] = split.labels[keep]
    assert (labels != split.labels).sum() == len(split) - len(keep)
    return replace(split, labels=labels)


def trained_on(
    images: Data, plan: Options, subset: Subset, monkeypatch: pytest.MonkeyPatch
) -> Bundle:
    """One bundle, as `job.run` makes it of a data set and a subset that are there already."""
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "load", lambda *_, **__: images)
        patch.setattr(fractions, "subset", lambda *_: subset)
        (made,) = train.run(plan)["bundles"]
    return store.read(plan.out, made["name"])


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `train` pretrain for one epoch."""
    monkeypatch.setattr(choice, "SHORT_IMAGES", 1)


@pytest.mark.parametrize("extractor", ["none", "auto"])
@pytest.mark.usefixtures("briefly")
def test_no_label_outside_the_fraction_and_none_of_test_reaches_the_model(
    tmp_path: Path, digits: Data, extractor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subset = fractions.subset(digits.train, digits.class_names, 0.2, 0)
    own = np.concatenate([subset.train, subset.val])
    blind = replace(
        digits,
        train=relabelled(digits.train, own),
        test=relabelled(digits.test, np.array([], np.int64)),
    )
    first, second = (
        trained_on(
            images, options(out := tmp_path / name, out, extractor=extractor), subset, monkeypatch
        )
        for name, images in (("seeing", digits), ("blind", blind))
    )
    assert first.graph == second.graph
    assert (first.manifest.extractor is None) is (extractor == "none")
    assert first.manifest.test != second.manifest.test, "the other labels are measured against"
    without_test = [b.manifest.model_copy(update={"test": None}) for b in (first, second)]
    assert without_test[0] == without_test[1]


def test_a_label_of_the_fraction_does_reach_the_model(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    subset = fractions.subset(digits.train, digits.class_names, 0.2, 0)
    others = np.setdiff1d(np.arange(len(digits.train)), subset.train[:5])
    changed = replace(digits, train=relabelled(digits.train, others))
    first, second = (
        trained_on(images, options(tmp_path / name, tmp_path), subset, monkeypatch)
        for name, images in (("seeing", digits), ("changed", changed))
    )
    assert first.graph != second.graph


def test_a_fraction_of_the_labels_is_as_few_labels_and_other_images_without(
    digits: Data, tmp_path: Path
) -> None:
    tenth = fractions.subset(digits.train, digits.class_names, 0.2, 0)
    labels = np.full_like(digits.train.labels, UNLABELLED)
    for rows in (tenth.train, tenth.val):
        labels[rows] = digits.train.labels[rows]
    few = replace(digits, train=replace(digits.train, labels=labels))
    cells = [
        grid.cells(
            options(tmp_path, tmp_path, fraction=(fraction,), epochs=None), images, lambda _: None
        )[0]
        for images, fraction in ((digits, 0.2), (few, 1.0))
    ]
    assert cells[0].recipe == cells[1].recipe
    assert len(cells[0].subset.train) == len(cells[1].subset.train)
    # As from photos, whose linear head learns from the others, too.
    first, second = (
        replace(cell, recipe=replace(cell.recipe, propagation=True)).others(len(digits.train))
        for cell in cells
    )
    assert len(first) == len(digits.train) - len(tenth.train) - len(tenth.val)
    assert np.array_equal(first, second)


@pytest.mark.usefixtures("briefly")
def test_what_the_network_began_with_is_in_the_manifest_and_on_the_card(
    tmp_path: Path, digits: Data
) -> None:
    cache = tmp_path / "cache"
    train.run(options(tmp_path, cache, extractor="auto"))
    bundle = store.read(tmp_path, "digits-20")
    found = extractor.find(digits.pixels_hash, "convnet", 8, False, cache)
    assert found is not None
    assert bundle.manifest.extractor is not None
    assert bundle.manifest.extractor.version == found.version
    assert bundle.manifest.extractor.objective == "contrastive"
    assert bundle.manifest.extractor.dataset == "digits"
    assert bundle.manifest.extractor.pixels_hash == digits.pixels_hash
    assert store.read_run(bundle.path).pretraining_seconds == found.card.seconds > 0
    assert f"feature extractor (`{found.version}`" in (bundle.path / "README.md").read_text()


def test_without_an_extractor_none_is_in_the_manifest(
    tmp_path: Path, cache: Path, digits: Data
) -> None:
    train.run(options(tmp_path, cache))
    bundle = store.read(tmp_path, "digits-scratch-20")
    assert bundle.manifest.extractor is None
    run = store.read_run(bundle.path)
    assert run.pretraining_seconds is None
    seconds = run.seconds
    assert seconds["total"] == pytest.approx(
        seconds["train"] + seconds["export"] + seconds["evaluate"], abs=0.01
    )
    assert seconds["command"] > seconds["total"] > seconds["evaluate"] > 0
    # The temperature is inside the graph: its answers to the validation images need none.
    subset = fractions.subset(digits.train, digits.class_names, 0.2, 0)
    val = digits.train.take(subset.val)
    found = np.log(export.probabilities(export.session(bundle.graph), val.images))
    again = metrics.temperature(found * bundle.manifest.temperature, val.labels)
    assert again == pytest.approx(bundle.manifest.temperature, rel=1e-3)
    assert "feature extractor" not in (bundle.path / "README.md").read_text()


@pytest.mark.usefixtures("briefly")
def test_an_extractor_can_be_named_and_another_network_refuses_it(
    tmp_path: Path, digits: Data
) -> None:
    cache = tmp_path / "cache"
    train.run(options(tmp_path / "first", cache, extractor="auto"))
    path = extractor.cached(digits.pixels_hash, "convnet", 8, False, cache)
    named = options(tmp_path / "second", tmp_path / "empty", extractor=str(path))
    train.run(named)
    first, second = (store.read(tmp_path / out, "digits-20") for out in ("first", "second"))
    assert first.graph == second.graph
    with pytest.raises(LabelcurveError, match=r"holds a convnet for 8 px that does not fit"):
        train.run(replace(named, preset="reference", out=tmp_path / "third"))
    assert published(tmp_path / "third") == []


def test_an_extractor_that_is_not_there_is_refused_before_anything_is_trained(
    tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(LabelcurveError, match=r"--extractor .*nowhere\.safetensors"):
        train.run(options(tmp_path, cache, extractor=str(tmp_path / "nowhere.safetensors")))
    assert published(tmp_path) == []


def test_a_run_with_a_limit_of_minutes_ends_with_its_bundle(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelcurve.training.runs.budget.AFTERWARDS", (1.0, 1.0))
    train.run(options(tmp_path, cache, epochs=None, max_minutes=0.12))
    assert published(tmp_path) == ["digits-scratch-20"]
    bundle = store.read(tmp_path, "digits-scratch-20")
    run = store.read_run(bundle.path)
    assert 1 <= len(run.history) < grid.ENDLESS == bundle.manifest.recipe["epochs"]
    assert run.history[-1].lr < bundle.manifest.recipe["lr"] / 2, "the learning rate has come down"


def test_a_model_of_less_than_an_epoch_is_warned_of(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("labelcurve.training.runs.budget.Budget.finetuning", lambda _: 1e-6)
    train.run(options(tmp_path, cache, epochs=None, max_minutes=5))
    said = r"WARNING: digits-scratch-20: 0\.\d\d epochs: --max-minutes 5 ended .*--max-minutes \d"
    assert re.search(said, capsys.readouterr().out)
    bundle = store.read(tmp_path, "digits-scratch-20")
    (warning,) = store.read_run(bundle.path).warnings
    assert f"**Warning**: {warning}." in (bundle.path / "README.md").read_text()


def test_a_limit_of_minutes_that_leaves_no_time_publishes_nothing(
    tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(LabelcurveError, match=r"--max-minutes 0\.01 leaves no time to train"):
        train.run(options(tmp_path, cache, epochs=None, max_minutes=0.01))
    assert published(tmp_path) == []


def test_a_bundle_that_fails_the_gate_is_not_published(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", 1e-12)
    with pytest.raises(ExportError, match=r"probabilities are up to \d\.\d+e-\d+ apart"):
        train.run(options(tmp_path, cache))
    assert published(tmp_path) == []


def test_a_run_that_diverges_publishes_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recipe("default", 200, flip=False, unlabelled=False)
    monkeypatch.setattr(
        "labelcurve.training.runs.grid.recipe", lambda *_, **__: replace(plan, lr=1e30)
    )
    with pytest.raises(LabelcurveError, match=r"loss is (nan|inf)"):
        train.run(options(tmp_path, cache))
    assert published(tmp_path) == []


def test_an_impossible_fraction_is_refused_before_anything_is_trained(
    tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(LabelcurveError, match="the smallest fraction possible here is 0"):
        train.run(options(tmp_path, cache, fraction=(0.5, 0.001)))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_trained(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LabelcurveError, match=r"/file is not a writable .*Not a directory.*--out"):
        train.run(options(tmp_path / "file" / "models", cache))
    assert capsys.readouterr().out == "", "no image was read, either"


def test_a_file_in_the_place_of_a_bundle_is_refused_before_anything_is_trained(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digits-scratch-20").write_text("in the way")
    with pytest.raises(LabelcurveError, match=r"/digits-scratch-20 is not a writable .*--out"):
        train.run(options(tmp_path, cache))
    assert "epoch" not in capsys.readouterr().out


def test_the_speed_of_testing_is_measured_on_more_images_until_it_takes_long_enough(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, seen = [0.0], list[int]()

    def predict(_: Network, images: Images, __: Device) -> None:
        seen.append(len(images))
        now[0] += 0.002 * len(images)

    monkeypatch.setattr(train, "predict_logits", predict)
    monkeypatch.setattr("labelcurve.training.jobs.train.time.monotonic", lambda: now[0])
    (cell,) = grid.cells(Options(data="digits", fraction=(0.2,)), digits, print)
    assert train._test_speed(digits, cell) == pytest.approx(500)
    assert seen == [4, 4, 16, 64, 256]
    few = replace(digits, train=digits.train.take(np.arange(50)))
    assert train._test_speed(few, cell) == pytest.approx(500)
    assert seen[5:] == [4, 4, 16, 50]


def test_runs_of_one_name_keep_their_events_apart(tmp_path: Path, cache: Path) -> None:
    train.run(options(tmp_path, cache))
    (events,) = (tmp_path / ".runs" / "digits-scratch-20").iterdir()
    assert next(events.iterdir()).name.startswith("events.out.tfevents")
    assert store.names(tmp_path) == ["digits-scratch-20"]


@pytest.mark.parametrize(
    ("given", "fraction", "name"),
    [
        ({}, 0.1, "cifar10-10"),
        ({}, 1.0, "cifar10-100"),
        ({}, 0.025, "cifar10-2.5"),
        ({}, 0.29, "cifar10-29"),
        ({"preset": "reference"}, 0.5, "cifar10-reference-50"),
        ({"name": "pets"}, 0.5, "pets-50"),
        ({"extractor": "none"}, 0.1, "cifar10-scratch-10"),
        ({"extractor": "a.safetensors"}, 0.1, "cifar10-10"),
        ({"extractor": "none", "preset": "reference"}, 0.1, "cifar10-reference-scratch-10"),
        ({"seed": 3}, 0.1, "cifar10-10-s3"),
        ({"mirror": True, "extractor": "none"}, 0.1, "cifar10-scratch-mirror-10"),
    ],
)
def test_a_bundle_is_named_by_data_percent_and_what_differs_from_the_default(
    given: dict[str, Any], fraction: float, name: str
) -> None:
    assert grid.bundle_name(Options(**given), "cifar10", fraction, given.get("seed", 0)) == name


def test_the_bundled_digits_are_never_mirrored_and_others_may_be(digits: Data) -> None:
    subset = fractions.subset(digits.train, digits.class_names, 0.2, 0)
    assert not grid.plan(Options(data="digits"), subset).flip
    assert grid.plan(Options(data="photos"), subset).flip
    assert not grid.plan(Options(data="photos", no_flip=True), subset).flip


def test_a_bundle_of_other_classes_is_not_replaced_unless_by_another_name(
    tmp_path: Path, cache: Path, digits: Data
) -> None:
    first = options(tmp_path, cache)
    train.run(first)
    current = (tmp_path / "digits-scratch-20" / "current").readlink()
    other = replace(digits, class_names=tuple("abcdefghij"))
    # Of the first one there is no bundle yet.
    cells = grid.cells(replace(first, fraction=(0.1, 0.2)), digits, print)
    assert [cell.name for cell in cells] == ["digits-scratch-10", "digits-scratch-20"]
    said: list[str] = []
    with pytest.raises(BundleError, match=r"other classes \(0, 1.*\(a, b, .*--name"):
        grid.check_replaced(tmp_path, "digits", other, cells, said.append)
    letters = replace(first, name="letters")
    grid.check_replaced(tmp_path, "letters", other, grid.cells(letters, other, print), said.append)
    grid.check_replaced(tmp_path, "digits", digits, cells, said.append)
    assert said == []
    assert (tmp_path / "digits-scratch-20" / "current").readlink() == current


def test_images_that_do_not_fit_into_memory_train_on_the_same_rows(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {}
    for name, memory_gb in (("inside", None), ("outside", 1e-4), ("again", 1e-4)):
        chosen = options(
            tmp_path / name, cache, fraction=(0.9,), epochs=3, no_flip=True, memory_gb=memory_gb
        )
        (entry,) = train.run(chosen)["bundles"]
        made[name] = store.read(tmp_path / name, entry["name"]).manifest
        said = "digits: decoded images take 0.0 GB, more than the 0.0 GB of memory for them"
        assert (said in capsys.readouterr().out) == (memory_gb is not None)
    inside, outside, again = made.values()
    assert outside.indices_hash == inside.indices_hash
    assert outside.dataset == inside.dataset
    assert outside == again, "the same order twice"
    assert outside.test is not None
    assert inside.test is not None
    assert outside.test.accuracy > 0.8
    assert abs(outside.test.accuracy - inside.test.accuracy) < 0.1


def test_a_dry_run_tries_the_limit_of_latency_and_writes_nothing(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(tmp_path / "out", cache, dry_run=True, max_latency=1e-6)
    with pytest.raises(LabelcurveError, match="--max-latency 1e-06: the cheapest network"):
        train.run(given)
    train.run(replace(given, max_latency=1e6))
    assert "--max-latency 1e+06 needs no other network" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_mirrored_model_gives_an_image_and_its_mirror_image_one_answer(
    tmp_path: Path, cache: Path
) -> None:
    data = write_folder(tmp_path / "digits", digit_rows(5))
    given = options(tmp_path / "out", cache, data=str(data), fraction=(1.0,), no_final=True)
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    images = np.concatenate([images, images[:, :, ::-1]])
    answers = []
    for name, mirror in (("digits-scratch-100", False), ("digits-scratch-mirror-100", True)):
        (entry,) = train.run(replace(given, mirror=mirror))["bundles"]
        assert entry["name"] == name
        made = store.read(tmp_path / "out", name)
        assert made.manifest.recipe["mirrored"] is mirror
        answers.append(np.split(export.probabilities(export.session(made.graph), images), 2))
    assert np.abs(answers[0][0] - answers[0][1]).max() > 1e-3
    assert np.abs(answers[1][0] - answers[1][1]).max() < 1e-6
    # After the same training steps, log p is the mean of the two, up to a constant.
    logs = np.log(answers[0][0]) + np.log(answers[0][1])
    assert (logs.argmax(1) == answers[1][0].argmax(1)).all()


def test_few_test_images_are_warned_of_before_and_after(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "digits", digit_rows(5))
    given = options(tmp_path / "out", cache, data=str(data), fraction=(1.0,), no_final=True)
    train.run(replace(given, dry_run=True))
    assert "WARNING: an accuracy of 10 test images says little" in capsys.readouterr().out
    train.run(given)
    said = capsys.readouterr().out
    assert re.search(r"test: accuracy .* on 10 images\n", said)
    assert "WARNING: digits-scratch-100: an accuracy of 10 test images says little" in said
    card = (store.read(tmp_path / "out", "digits-scratch-100").path / store.CARD).read_text()
    assert "**Warning**: an accuracy of 10 test images says little" in card
