from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.extractors import choice
from labelcurve.training.extractors.choice import Wanted, check, doubts, obtain, short
from labelcurve.training.models import extractor
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.recipes import pretraining
from labelcurve.training.runtime.device import FP32_CPU
from tests.training.extractors.test_pretraining import few, interrupted, made

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that ships with the package, and no git, whose state may change."""
    monkeypatch.setattr(extractor, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("GIT_DIR", os.devnull)


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretraining that `train` starts is one epoch."""
    monkeypatch.setattr(choice, "SHORT_IMAGES", 1)


def from_cache(digits: Data, cache: Path, wanted: str = "auto", **more: Any) -> Extractor | None:
    given: dict[str, Any] = {"backbone": "convnet", "flip": False, "cache": cache}
    return obtain(wanted, digits, Wanted(**(given | more)), FP32_CPU)


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
    assert "WARNING: the extractor a.safetensors was trained on other images than these" in said
    assert "if the test images were among them" in said
    (warning,) = doubts(first, replace(some, size=16))
    assert "was trained at 8 px, and these images have 16" in warning
    odd = replace(first, path=tmp_path / os.fsdecode(b"\xff.safetensors"))
    (warning,) = doubts(odd, replace(some, size=16))
    assert r"the extractor \xff.safetensors was" in warning, "it is written into the bundle"
    assert doubts(None, digits) == ()


@pytest.mark.usefixtures("briefly")
def test_colour_images_without_an_extractor_take_the_shipped_one_of_others(
    tmp_path: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = made(few(digits, 250), tmp_path / "shipped" / "a.safetensors")
    coloured = digits.train.images[:].copy()
    coloured[..., 0] //= 2
    images = replace(digits, train=replace(digits.train, images=coloured))
    found = from_cache(images, tmp_path / "cache")
    assert found is not None
    assert found.path == shipped.path
    said = capsys.readouterr().out
    assert "none was made from these images, so the shipped a.safetensors is taken" in said
    assert "WARNING: the extractor a.safetensors was trained on other images" in said
    for given, flip in ((images, True), (digits, False)):  # mirrored ones, and images in gray
        own = from_cache(given, tmp_path / "cache", flip=flip)
        assert own is not None
        assert own.path.is_relative_to(tmp_path / "cache")


@pytest.mark.usefixtures("briefly")
def test_what_a_limit_of_time_cut_short_is_not_kept_for_runs_without_one(
    tmp_path: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = from_cache(digits, tmp_path, seconds=0.01)
    assert cut is not None
    assert cut.card.cut_short
    assert cut.card.knn is None, "there was no time to judge it"
    said = capsys.readouterr().out
    assert re.search(r"not evaluated: k-NN and linear probe would take some \d+ of 0 s", said)
    again = from_cache(digits, tmp_path, seconds=0.01)
    assert again is not None
    assert again.version == cut.version
    said = capsys.readouterr().out
    assert re.search(r"WARNING: the extractor .* was trained for only 0\.\d+ epochs", said)
    whole = from_cache(digits, tmp_path)
    assert whole is not None
    assert whole.card.runs[-1].epochs == 1
    assert f"{cut.path.name} in the cache was trained for only {cut.card.runs[-1].epochs:.3g}" in (
        capsys.readouterr().out
    )
    taken = from_cache(digits, tmp_path, seconds=0.01)
    assert taken is not None
    assert taken.version == whole.version


def test_from_too_few_images_nothing_is_learned(
    tmp_path: Path, digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    assert from_cache(few(digits, 199), tmp_path) is None
    assert capsys.readouterr().out == ("extractor: none (199 images are too few to train one on)\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("briefly")
def test_a_damaged_extractor_in_the_cache_is_made_again(tmp_path: Path, digits: Data) -> None:
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
    theirs = out.with_name(f".{out.stem}.checkpoint")
    before = theirs.read_bytes()
    found = from_cache(some, tmp_path)
    assert found is not None
    assert found.card.runs[-1].epochs == 1
    assert theirs.read_bytes() == before, "`pretrain` resumes from it all the same"


@pytest.mark.parametrize("n", [300, 1_442, 50_000, 10_000_000])
def test_a_short_pretraining_is_no_longer_than_a_whole_one(n: int) -> None:
    plan = pretraining("contrastive", n, 32)
    found = short(plan, n)
    assert 1 <= found.epochs <= plan.epochs
    assert replace(found, epochs=plan.epochs) == plan


@pytest.mark.parametrize(
    ("n", "epochs"), [(300, 20), (7_500, 20), (10_000, 15), (150_000, 1), (1_000_000, 1)]
)
def test_a_short_pretraining_sees_150000_images_at_most(n: int, epochs: float) -> None:
    plan = replace(pretraining("contrastive", n, 32), epochs=100)
    assert short(plan, n).epochs == epochs
    other = replace(plan, objective="relative-position")
    assert short(other, n) == other


def test_the_cache_can_be_cleared_without_losing_extractors(tmp_path: Path, digits: Data) -> None:
    found = made(few(digits, 200), extractor.cached("ab" * 32, "convnet", 8, False, tmp_path))
    dataset.clear(tmp_path)
    assert found.path.exists()
