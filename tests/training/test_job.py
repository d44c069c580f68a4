from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bundle import store
from bundle.errors import BundleError, ExportError, LabelcurveError
from training import export, fractions, job
from training.data import Data, Split
from training.device import FP32_CPU
from training.options import Options
from training.recipes import recipe


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit made while the tests run would change the version of a bundle."""
    monkeypatch.setenv("GIT_DIR", os.devnull)


def options(out: Path, cache: Path, **more: object) -> Options:
    values: dict[str, object] = {
        "data": "digits",
        "image_size": 8,
        "fraction": (0.2,),
        "epochs": 1,
        "device": "cpu",
    }
    return Options(out=out, cache=cache, **(values | more))  # type: ignore[arg-type]


def published(out: Path) -> list[str]:
    return sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))


def relabelled(split: Split, keep: NDArray[np.int64]) -> Split:
    """The split with every label outside `keep` replaced by another."""
    labels = (split.labels + 1 + np.arange(len(split)) % 9) % 10
    labels[keep] = split.labels[keep]
    assert (labels != split.labels).sum() == len(split) - len(keep)
    return replace(split, labels=labels)


def test_no_label_outside_the_fraction_and_none_of_test_reaches_the_model(
    tmp_path: Path, digits: Data
) -> None:
    subset = fractions.subset(digits.train, digits.class_names, 0.2, 0)
    own = np.concatenate([subset.train, subset.val])
    blind = replace(
        digits,
        train=relabelled(digits.train, own),
        test=relabelled(digits.test, np.array([], np.int64)),
    )
    first, second = (
        store.read(
            out := tmp_path / name,
            job._train_one(options(out, out), images, subset, FP32_CPU, None)["name"],
        )
        for name, images in (("seeing", digits), ("blind", blind))
    )
    assert first.graph == second.graph
    assert first.manifest.test != second.manifest.test, "the other labels are measured against"
    without_test = [b.manifest.model_copy(update={"test": None}) for b in (first, second)]
    assert without_test[0] == without_test[1]


def test_a_bundle_that_fails_the_gate_is_not_published(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", 1e-12)
    with pytest.raises(ExportError, match=r"probabilities are up to \d\.\d+e-\d+ apart"):
        job.run(options(tmp_path, cache))
    assert published(tmp_path) == []


def test_a_run_that_diverges_publishes_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = recipe("default", 200, flip=False)
    monkeypatch.setattr("training.job.recipe", lambda *_: replace(plan, lr=1e30))
    with pytest.raises(LabelcurveError, match=r"loss is (nan|inf)"):
        job.run(options(tmp_path, cache))
    assert published(tmp_path) == []


def test_an_impossible_fraction_is_refused_before_anything_is_trained(
    tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(LabelcurveError, match="the smallest fraction possible here is 0"):
        job.run(options(tmp_path, cache, fraction=(0.5, 0.001)))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_trained(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match=r"--out .*file/models cannot be made: .*--out"):
        job.run(options(tmp_path / "file" / "models", cache))
    assert "epoch" not in capsys.readouterr().out


def test_runs_of_one_name_keep_their_events_apart(tmp_path: Path, cache: Path) -> None:
    job.run(options(tmp_path, cache))
    (events,) = (tmp_path / ".runs" / "digits-20").iterdir()
    assert next(events.iterdir()).name.startswith("events.out.tfevents")
    assert store.names(tmp_path) == ["digits-20"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("cifar10", "default", 0.1), "cifar10-10"),
        (("cifar10", "default", 1.0), "cifar10-100"),
        (("cifar10", "default", 0.025), "cifar10-2.5"),
        (("cifar10", "default", 0.29), "cifar10-29"),
        (("pets", "reference", 0.5), "pets-reference-50"),
    ],
)
def test_a_bundle_is_named_by_data_and_percent(
    arguments: tuple[str, str, float], name: str
) -> None:
    assert job.bundle_name(*arguments) == name


def test_the_bundled_digits_are_never_mirrored_and_others_may_be(digits: Data) -> None:
    assert not job._recipe(Options(data="digits"), digits, 100).flip
    assert job._recipe(Options(data="photos"), digits, 100).flip
    assert not job._recipe(Options(data="photos", no_flip=True), digits, 100).flip


def test_a_bundle_of_other_classes_is_not_replaced_unless_by_another_name(
    tmp_path: Path, cache: Path, digits: Data
) -> None:
    first = options(tmp_path, cache)
    job.run(first)
    current = (tmp_path / "digits-20" / "current").readlink()
    other = replace(digits, class_names=tuple("abcdefghij"))
    subset = fractions.subset(digits.train, digits.class_names, 0.2, 0)
    with pytest.raises(BundleError, match=r"other classes \(0, 1.*\(a, b, .*--name"):
        job._check_replaced(first, other, [subset])
    job._check_replaced(replace(first, name="letters"), other, [subset])
    job._check_replaced(first, digits, [subset])
    assert (tmp_path / "digits-20" / "current").readlink() == current
