from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from labelcurve.bundle import preprocess, store
from labelcurve.bundle.manifest import Latency, Manifest, Predicted, Pretrained, Run, Teacher
from labelcurve.training.runs import card


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
    assert (
        f"{manifest.n_labels_train:,} to\ntrain, {manifest.n_labels_val:,} to fit the temperature"
        in text
    )
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
    few = {"class_names": names, "predicted": None}
    text = card.write(manifest.model_copy(update=few), record)
    assert "120 classes" in text
    assert "species 49 and 70 more." in text
    assert "species 50" not in text


def test_what_the_model_predicts_is_on_the_card(manifest: Manifest, record: Run) -> None:
    predicted = Predicted(
        split="validation",
        n=100,
        classes=(0, 60, 40, 0, 0, 0, 0, 0, 0, 0),
        confidence=(0, 0, 0, 0, 10, 20, 0, 0, 0, 30, 0, 0, 40),
    )
    text = card.write(manifest.model_copy(update={"predicted": predicted}), record)
    assert "Predicted classes on validation: 1 60.0%, 2 40.0%, 0 0.0%" in text
    assert "above\n0.9 in 70.0% of the images, and of at most 0.5 in 10.0%" in text
    assert "Predicted" not in card.write(manifest.model_copy(update={"predicted": None}), record)


def test_a_class_is_named_as_it_is(manifest: Manifest, record: Run) -> None:
    names = ("<b>", "snake_case_", *manifest.class_names[2:])
    text = card.write(manifest.model_copy(update={"class_names": names}), record)
    assert r"10 classes: \<b\>, snake\_case\_, 2, " in text


def test_unlabelled_data_is_on_the_card(manifest: Manifest, record: Run) -> None:
    began = Pretrained(
        version="0123456789ab", objective="contrastive", dataset="photos", pixels_hash="0" * 64
    )
    text = card.write(
        manifest.model_copy(update={"extractor": began, "n_unlabelled": 12_345}), record
    )
    assert "feature extractor (`0123456789ab`, contrastive)" in text
    assert "without labels on images of `photos`" in text
    assert "12,345 other training images used as unlabelled data." in text


def test_mirroring_in_the_graph_is_on_the_card(manifest: Manifest, record: Run) -> None:
    said = "the graph averages an image and its mirror image"
    assert said not in card.write(manifest, record)
    mirrored = manifest.model_copy(update={"recipe": {**manifest.recipe, "mirrored": True}})
    assert said in card.write(mirrored, record)


def test_without_unlabelled_data_the_card_does_not_mention_it(
    manifest: Manifest, record: Run
) -> None:
    text = card.write(manifest, record)
    assert "extractor" not in text
    assert "unlabelled" not in text


def test_the_teacher_and_the_latency_of_both_are_on_the_card(
    manifest: Manifest, record: Run
) -> None:
    teacher = Teacher(name="digits-10", version="0123456789ab", n_images=1_437)
    times = Latency(limit_ms=5.0, p50_ms=3.1, teacher_p50_ms=9.4)
    text = card.write(
        manifest.model_copy(update={"teacher": teacher}),
        record.model_copy(update={"latency": times}),
    )
    assert "the answers of `digits-10` 0123456789ab to 1,437 training images" in text
    assert "One image takes 3.10 ms" in text
    assert "`--max-latency 5`), its teacher 9.40 ms." in text
    assert "distillation" not in card.write(manifest, record)


def files(folder: Path) -> list[Path]:
    """A photograph in many formats, modes, sizes and orientations."""
    photo = Image.fromarray(load_sample_image("china.jpg"))  # 640 x 427
    exif = photo.getexif()
    exif[0x0112] = 6
    seen_through = photo.copy()
    seen_through.putalpha(Image.linear_gradient("L").resize(photo.size))
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "photo.jpg": (photo, {"quality": 90}),
        "large.jpg": (photo.resize((2561, 1709)), {}),
        "progressive.jpg": (photo.resize((1300, 900)), {"progressive": True}),
        "turned.jpg": (photo, {"exif": exif}),
        "turned.webp": (photo, {"exif": exif, "lossless": True}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "grey.jpg": (photo.convert("L"), {}),
        "photo.png": (photo, {}),
        "alpha.png": (seen_through, {}),
        "alpha.webp": (seen_through, {"lossless": True}),
        "grey-alpha.png": (seen_through.convert("LA"), {}),
        "palette.gif": (photo.convert("P"), {}),
        "key.png": (photo.convert("P"), {"transparency": 3}),
        "bits.png": (photo.convert("1"), {}),
        "photo.bmp": (photo, {}),
        "small.png": (photo.resize((20, 9)), {}),
        "exact.png": (photo.resize((32, 32)), {}),
    }
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
    return [folder / name for name in kinds]


@pytest.mark.parametrize("size", [8, 32, 224])
def test_the_lines_on_the_card_make_the_pixels_of_the_service(tmp_path: Path, size: int) -> None:
    code = re.search(r"```python\n(.*)```", card.pixels(size), re.DOTALL)
    assert code is not None
    found: dict[str, Any] = {}
    exec(code[1], found)
    for file in files(tmp_path):
        expected = preprocess.prepare(file.read_bytes(), size)
        assert np.array_equal(found["pixels"](file), expected), file.name


def test_the_manifest_and_the_card_say_the_preprocessing(manifest: Manifest, record: Run) -> None:
    assert manifest.preprocessing.resize.startswith("bilinear, antialiased")
    text = card.write(manifest, record)
    assert card.pixels(8) in text
    assert "bilinear without antialiasing" in text
