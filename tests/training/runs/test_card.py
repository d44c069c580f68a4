from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from labelcurve.bundle import preprocess, store
from labelcurve.bundle.manifest import (
    Gain,
    Latency,
    Manifest,
    Measured,
    Metrics,
    Predicted,
    Pretrained,
    Run,
    Teacher,
    Variant,
)
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


def figures(n: int, accuracy: float) -> Metrics:
    """All of them different."""
    more = {"f1": 0.3, "precision": 0.4, "recall": 0.5, "loss": 0.6}
    return Metrics(n=n, accuracy=accuracy, balanced_accuracy=0.2, **more)


def test_each_figure_stands_in_its_column_and_split(manifest: Manifest, record: Run) -> None:
    given = {"val": figures(1_234, 0.1), "test": figures(5, 0.7)}
    text = card.write(manifest.model_copy(update=given), record)
    assert "balanced accuracy | F1 (weighted) | precision | recall | loss |\n" in text
    assert "| validation | 1,234 | 0.1000 | 0.2000 | 0.3000 | 0.4000 | 0.5000 | 0.6000 |\n" in text
    assert "| test | 5 | 0.7000 | 0.2000 | 0.3000 | 0.4000 | 0.5000 | 0.6000 |\n" in text


def test_the_card_says_how_it_was_made(manifest: Manifest, record: Run) -> None:
    parity = manifest.parity.model_copy(update={"n_images": 77, "top1_agreement": 0.5})
    dataset = manifest.dataset.model_copy(update={"dropped": 1_002, "relabelled": 3})
    given = {
        **{"seed": 5, "temperature": 1.2344, "epochs": 9, "best_epoch": 7, "parity": parity},
        **{"dataset": dataset, "recipe": {"schedule": "plateau"}, "n_parameters": 12_345},
        **{"preset": "reference", "backbone": "reference", "packages": {"a": "1", "b": "2"}},
    }
    ran = record.model_copy(update={"seconds": {"train": 61.4}, "hardware": "a machine"})
    text = card.write(manifest.model_copy(update=given), ran)
    assert "to choose the epoch and the temperature. No other label was used." in text
    assert "One run with seed 5." in text
    assert "(1.234) are inside" in text
    assert (
        "- reference preset: reference, 12,345 parameters; 9 epochs, weights of\n  epoch 7;" in text
    )
    assert "\n  61 s on a machine\n" in text
    assert (
        "on 77\n  held-out images, from file bytes to probabilities,\n  top-1 agreement 50%" in text
    )
    hashes = f"`{manifest.dataset.hash[:16]}`, labelled rows `{manifest.indices_hash[:16]}`"
    assert f"- data hash {hashes}\n- 1,002 training images left out (--drop)\n- 3 tr" in text
    assert "- 3 training images with another label than the data (--relabel)\n- a 1, b 2\n" in text


def test_a_final_model_names_the_one_whose_figures_it_has(manifest: Manifest, record: Run) -> None:
    measured = Measured(
        name="digits-90",
        version="0123456789ab",
        graph_hash="",
        n_labels_train=1_100,
        n_labels_val=9,
    )
    predicted = Predicted(
        split="test", n=4, classes=(1, 0, 0, 3, *[0] * 8), confidence=(*[0] * 12, 4)
    )
    names = tuple("abcdefghijkl")
    given = {"measured": measured, "predicted": predicted, "class_names": names}
    text = card.write(
        manifest.model_copy(update={**given, "n_labels_train": 1_437, "temperature": 1.0}), record
    )
    assert "trained on all 1,437 labels of `digits`, those\n" in text
    assert "validation images among them, as `digits-90` was on 1,100." in text
    assert "**The figures are those of `digits-90`** (version `0123456789ab`)" in text
    shown = "d 75.0%, a 25.0%, b 0.0%, c 0.0%, e 0.0%, f 0.0%, g 0.0%, h 0.0%, i 0.0%, j 0.0%"
    more = "; 2 more in `manifest.json`. The"
    assert f"Predicted classes on test, by `digits-90`: {shown}{more}" in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "L2 penalty 0.01, labels weighted equally, both by cross-validation;\n"),
        ({"balanced": True}, "L2 penalty 0.01, classes weighted equally, both by cross"),
        ({"accuracy": None}, "both with too few labels to cross-validate;\n"),
        ({"n_unlabelled": 1}, "its answers to 1 image without labels,\n"),
    ],
)
def test_how_a_linear_head_was_chosen(
    manifest: Manifest, record: Run, more: dict[str, Any], said: str
) -> None:
    head = {"penalty": 0.01, "balanced": False, "accuracy": 0.9, **more}
    assert said in card.write(manifest.model_copy(update={"recipe": {"linear_head": head}}), record)


def test_weights_of_others_are_named_with_their_license(manifest: Manifest, record: Run) -> None:
    given = {"version": "0123456789ab", "dataset": "ImageNet-1k", "pixels_hash": "0" * 64}
    theirs = Pretrained(objective="supervised", license="MIT", source="hub.org", **given)
    text = card.write(manifest.model_copy(update={"extractor": theirs}), record)
    assert "(`0123456789ab`), trained with labels on images of `ImageNet-1k`. License" in text
    assert "License of the weights: MIT; source: hub.org." in text
    file = Pretrained(objective="self-supervised", **given)
    text = card.write(manifest.model_copy(update={"extractor": file}), record)
    assert "trained without labels on images that the file `ImageNet-1k` does not name." in text
    assert "License of the weights: not known; source: a file." in text


def test_a_variant_is_compared_with_fp32_on_the_same_split(manifest: Manifest, record: Run) -> None:
    both = {"val": figures(10, 0.61), "test": figures(20, 0.62)}
    int8 = Variant(
        precision="int8",
        graph_hash="",
        n_calibration=1,
        val=figures(10, 0.51),
        test=figures(20, 0.52),
        n_compared=1_500,
        agreement=0.9876,
    )
    fp16 = int8.model_copy(update={"precision": "fp16", "test": None})
    gain = Gain(
        images_per_s=3, images_per_s_fp32=2, ratio=1.456, batch=8, turns=3, hardware="a Zen 4"
    )
    text = card.write(
        manifest.model_copy(update={**both, "variants": (fp16, int8)}),
        record.model_copy(update={"gains": {"int8": gain, "fp16": None}}),
    )
    assert (
        "`model.int8.onnx` is the same model in int8: accuracy 0.5200 on test where fp32 has "
        "0.6200, the same class on 98.76% of 1,500 held-out images, 1.46 times fp32's images/s in "
        "ONNX Runtime on one thread of a Zen 4.\n"
    ) in text
    assert (
        "in fp16: accuracy 0.5100 on validation where fp32 has 0.6100, the same class on 98.76% of "
        "1,500 held-out images (judged on a CPU, which rounds weights and maps to fp16 and "
        "computes in fp32); its speed was not measured.\n"
    ) in text
    on_gpu = fp16.model_copy(update={"provider": "CUDAExecutionProvider"})
    text = card.write(manifest.model_copy(update={**both, "variants": (on_gpu,)}), record)
    assert "judged on a CPU" not in text


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
