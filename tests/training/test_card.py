from __future__ import annotations

from pathlib import Path

import pytest

from bundle import store
from bundle.manifest import Manifest, Pretrained, Run
from training import card


@pytest.fixture
def manifest(digits_models: Path) -> Manifest:
    return store.read(digits_models, "digits-10").manifest


@pytest.fixture
def record(digits_models: Path) -> Run:
    return store.read_run(store.read(digits_models, "digits-10").path)


def test_the_card_says_what_the_model_is_and_how_good(manifest: Manifest, record: Run) -> None:
    text = card.write(manifest, record)
    assert text.startswith("# digits-10\n")
    assert "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in text
    assert "10 % of the labels of `digits`" in text
    assert f"{manifest.n_labels_train:,} to\ntrain, {manifest.n_labels_val:,} to choose" in text
    assert manifest.test is not None
    assert f"| test | 360 | {manifest.test.accuracy:.4f} | – | " in text, "made before it was there"
    measured = manifest.test.model_copy(update={"balanced_accuracy": 0.4321})
    text = card.write(manifest.model_copy(update={"test": measured}), record)
    assert f"| test | 360 | {manifest.test.accuracy:.4f} | 0.4321 | " in text
    assert record.command in text
    assert "uint8 [N, 8, 8, 3]" in text
    assert "at most 1.0e-06 from torch" in text


def test_what_is_to_be_known_first_comes_first(manifest: Manifest, record: Run) -> None:
    warned = record.model_copy(update={"warnings": ("0.20 epochs: too few",)})
    text = card.write(manifest, warned)
    assert text.startswith("# digits-10\n\n**Warning**: 0.20 epochs: too few.\n\nClassifies ")
    assert "Warning" not in card.write(manifest, record)


def test_a_test_split_that_was_not_read_is_said_to_be_unread(
    manifest: Manifest, record: Run
) -> None:
    text = card.write(manifest.model_copy(update={"test": None}), record)
    assert "| test | left unread |" in text


def test_rows_of_the_table_are_of_one_width(manifest: Manifest, record: Run) -> None:
    for shown in (manifest, manifest.model_copy(update={"test": None})):
        rows = [line for line in card.write(shown, record).splitlines() if line.startswith("|")]
        assert len(rows) == 4
        assert len({row.count("|") for row in rows}) == 1


def test_many_classes_are_counted_instead_of_listed(manifest: Manifest, record: Run) -> None:
    names = tuple(f"species {i}" for i in range(120))
    text = card.write(manifest.model_copy(update={"class_names": names}), record)
    assert "120 classes" in text
    assert "species 49 and 70 more." in text
    assert "species 50" not in text


def test_a_class_is_named_as_it_is(manifest: Manifest, record: Run) -> None:
    names = ("<b>", "snake_case_", *manifest.class_names[2:])
    text = card.write(manifest.model_copy(update={"class_names": names}), record)
    assert r"10 classes: \<b\>, snake\_case\_, 2, " in text


def test_what_taught_without_labels_is_on_the_card(manifest: Manifest, record: Run) -> None:
    began = Pretrained(
        version="0123456789ab", objective="contrastive", dataset="photos", pixels_hash="0" * 64
    )
    text = card.write(
        manifest.model_copy(update={"extractor": began, "n_unlabelled": 12_345}), record
    )
    assert "feature extractor (`0123456789ab`, contrastive)" in text
    assert "without labels from images of `photos`" in text
    assert "12,345 other training images taught without their labels." in text


def test_where_nothing_taught_without_labels_the_card_does_not_mention_it(
    manifest: Manifest, record: Run
) -> None:
    text = card.write(manifest, record)
    assert "extractor" not in text
    assert "without their labels" not in text
