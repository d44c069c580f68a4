"""`plan` on digits, in this process and as a command."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.embedding_options import PlanOptions
from labelcurve.training.forecast.advice import TargetLabels
from labelcurve.training.jobs import plan
from tests.photos import LITE0_FILE, photos
from tests.training.conftest import LABELCURVE, environment
from tests.training.sets import digit_rows, write_folder


def answered(cache: Path, out: Path, **given: Any) -> dict[str, Any]:
    options = PlanOptions(
        data="digits",
        more=2000,
        extractor="none",
        cache=cache,
        out=out / "plan.html",
    )
    return plan.run(replace(options, **given))


def test_the_document_says_answer_now_then_and_gain(cache: Path, tmp_path: Path) -> None:
    found = answered(cache, tmp_path, price_per_label=0.05, target=0.9)
    assert found["answer"] == "no"  # digits are at 94 % with an untrained network already
    assert (found["n_labels"], found["more"], found["price"]) == (1797, 2000, 100.0)
    for name in ("accuracy_now", "accuracy_then", "gain"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert 0.92 < found["accuracy_now"]["value"] < 0.96
    gain = (found["accuracy_then"]["value"] - found["accuracy_now"]["value"]) * 100
    assert found["gain"]["value"] == pytest.approx(gain, abs=1e-9)
    assert found["copies"] == 0
    assert 0.1 <= found["most_frequent_class"] < 0.11
    assert found["balanced_accuracy"] == pytest.approx(found["measured"][-1]["accuracy"], abs=0.01)
    assert [m["n_labels"] for m in found["measured"]][-1] == 1617
    assert found["target"]["accuracy"] == 0.9
    assert 200 < found["target"]["value"] < 600
    page = (tmp_path / "plan.html").read_text()
    assert "<h1>2,000 more labels? No.</h1>" in page
    assert "They cost 100.00 (0.05 a label)" in page
    assert f"<p>90 % takes about {found['target']['value']:,} labels (" in page


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (1300, 1100, 1700, "takes about 1,300 labels (at least 1,100, at most 1,700)"),
        (1300, 1100, None, "takes about 1,300 labels (at least 1,100, no upper bound is known)"),
        (None, 3100, None, "or cannot be reached; it takes at least 3,100"),
        (22, 0, 40, "takes about 22 labels (at most 40)"),
        (None, None, None, "takes more than 8 times these labels, or cannot be reached"),
    ],
)
def test_a_target_is_given_in_labels_as_far_as_they_are_known(
    value: int | None, low: int | None, high: int | None, said: str
) -> None:
    text = plan._target(TargetLabels(0.9, value, low, high))
    assert text.startswith(("90 % takes ", "90 % most likely takes "))
    assert text.endswith(said)


def test_a_bar_that_the_gain_clears_is_a_yes(cache: Path, tmp_path: Path) -> None:
    found = answered(cache, tmp_path, least_gain=0.1)
    assert found["answer"] == "yes"
    assert found["probability"] > 0.85


def test_a_given_test_split_is_used_as_it_is(cache: Path, tmp_path: Path) -> None:
    data = tmp_path / "split"
    write_folder(data / "train", digit_rows(20))
    later = [row for row in digit_rows(30) if row not in digit_rows(20)]
    write_folder(data / "test", later)
    found = answered(cache, tmp_path, data=str(data))
    assert found["n_labels"] == 200
    assert found["measured"][-1]["n_labels"] == 200


def test_copies_count_once(cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    once = write_folder(tmp_path / "once", digit_rows(20))
    plain = answered(cache, tmp_path, data=str(once))
    assert "with the same pixels" not in capfd.readouterr().out
    twice = write_folder(tmp_path / "twice", [*digit_rows(20), *digit_rows(20)])
    found = answered(cache, tmp_path, data=str(twice))
    assert (found["n_labels"], found["copies"]) == (200, 200)
    # Twice as many test images were held out of train, so that the rows have another order.
    accuracies = [[m["accuracy"] for m in each["measured"]] for each in (plain, found)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.05)
    said = "200 of 400 labels are of images with the same pixels as others"
    assert said in capfd.readouterr().out
    assert said in (tmp_path / "plan.html").read_text()


def test_copies_of_given_test_images_are_not_learned_from(cache: Path, tmp_path: Path) -> None:
    data = tmp_path / "split"
    write_folder(data / "train", digit_rows(20))
    write_folder(data / "test", [row for row in digit_rows(30) if row not in digit_rows(14)])
    found = answered(cache, tmp_path, data=str(data))
    assert (found["n_labels"], found["copies"]) == (140, 60)
    assert found["measured"][-1]["n_labels"] == 140


def test_labels_of_too_few_different_images_are_refused(cache: Path, tmp_path: Path) -> None:
    few = [r for r in digit_rows(20) if r[0] < 2]
    data = write_folder(tmp_path / "few", [*few, *few])
    with pytest.raises(LabelcurveError, match=r"40 labels .* \(40 copies of images count once\)"):
        answered(cache, tmp_path, data=str(data))


def test_two_labels_a_class_are_too_few_for_a_curve(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # 30 folders of two digits each.
    rows = [(i // 2, row[1]) for i, row in enumerate(digit_rows(6))]
    data = write_folder(tmp_path / "many", rows, [f"c{i:02d}" for i in range(30)])
    found = answered(cache, tmp_path, data=str(data), target=0.9, price_per_label=0.05)
    assert found["answer"] == "cannot tell"
    assert found["target"] is found["accuracy_then"] is found["gain"] is None
    out = capfd.readouterr().out
    assert "measured at 1 number of labels only" in out
    assert "They cost 100.00 (0.05 a label). The measurements hold" in out
    assert "Without a forecast no labels are named for 90 %." in out


def test_a_frequent_class_is_said(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [r for r in digit_rows(70) if r[0] == 1] + [r for r in digit_rows(4) if r[0] in (7, 8)]
    found = answered(cache, tmp_path, data=str(write_folder(tmp_path / "rare", rows)))
    assert found["most_frequent_class"] == pytest.approx(70 / 78)
    said = "always guessing '1' would give 89.7 % accuracy; 2 classes with fewer than 5 labels"
    assert said in capfd.readouterr().out
    assert "balanced accuracy" in (tmp_path / "plan.html").read_text()


def test_a_pool_smaller_than_what_is_asked_for_is_said() -> None:
    (said,) = plan._too_few(30, 31)
    assert said.startswith("only 30 images without labels are there to label, and --more asks for")
    assert plan._too_few(30, 30) == plan._too_few(0, 30) == ()


def test_too_few_labels_are_refused_with_how_many_it_takes(cache: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "few", [r for r in digit_rows(20) if r[0] < 2])
    with pytest.raises(LabelcurveError, match=r"has 40 labels to learn from: .* needs at least 50"):
        answered(cache, tmp_path, data=str(data))
    assert not (tmp_path / "plan.html").exists()


def test_one_class_is_refused(cache: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "one", [r for r in digit_rows(60) if r[0] == 3])
    with pytest.raises(LabelcurveError, match="one class folder, '3': at least two are needed"):
        answered(cache, tmp_path, data=str(data))


def test_a_class_with_one_image_is_named(cache: Path, tmp_path: Path) -> None:
    rows = [r for r in digit_rows(40) if r[0] < 3] + [r for r in digit_rows(1) if r[0] == 7]
    data = write_folder(tmp_path / "rare", rows)
    with pytest.raises(LabelcurveError, match=r"too few train images of '7' \(1\): at least 2"):
        answered(cache, tmp_path, data=str(data))


def test_images_without_labels_beside_an_extractor_that_is_there_are_said_to_be_unused(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "labelled", digit_rows(10))
    pool = write_folder(tmp_path / "pool", digit_rows(12)[-20:])
    found = answered(cache, tmp_path, data=str(data), unlabelled=pool)
    assert found["n_labels"] == 100
    assert "--unlabelled is not used: --extractor none" in capfd.readouterr().out


def test_photos_without_labels_that_only_train_learns_from_are_a_note(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = photos(tmp_path / "pictures", n=26)
    given = {
        "data": str(data),
        "extractor": f"timm:tf_efficientnet_lite0={LITE0_FILE}",
        "image_size": 32,
    }
    answered(cache, tmp_path, **given)
    assert "learns from" not in capfd.readouterr().out + (tmp_path / "plan.html").read_text()
    answered(cache, tmp_path, **given, unlabelled=photos(tmp_path / "pool", n=3, side=200))
    warned = "also learns from 6 images without labels, and this forecast does not"
    assert f"`train` {warned}" in capfd.readouterr().out
    assert warned in (tmp_path / "plan.html").read_text()


def test_labels_at_random_cannot_be_forecast_to_gain(cache: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "noise" / label).mkdir(parents=True)
        for i in range(60):
            pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "noise" / label / f"{i}.png")
    found = answered(cache, tmp_path, data=str(tmp_path / "noise"))
    assert found["answer"] != "yes"


def test_the_last_line_of_the_command_is_its_document(cache: Path, tmp_path: Path) -> None:
    options = ["--data", "digits", "--more", "3000", "--extractor", "none", "--cache", str(cache)]
    done = subprocess.run(
        [LABELCURVE, "plan", *options],
        cwd=tmp_path,
        env=environment(cache),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    assert json.loads(last)["answer"] == "no"
    fifth = next(i for i, line in enumerate(said) if "a stratified fifth is test" in line)
    assert "that fifth is for `train`: `plan` uses all 1,797 labels" in "".join(said[fifth:])
    assert said[-1].startswith("wrote plan.html")
    assert (tmp_path / "plan.html").stat().st_size > 3000
