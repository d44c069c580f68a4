"""Training, inference and benchmarks from Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import labelcurve
from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import BundleError, ImageError, MissingExtra
from tests.labelcurve.test_extras import MISSING
from tests.models import digit_png


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(digits_models: Path) -> labelcurve.Model:
    found: labelcurve.Model = labelcurve.load(digits_models, device="cpu", threads=1)
    return found


def test_the_model_with_the_most_labels_answers_unless_one_is_named(digits_models: Path) -> None:
    assert labelcurve.load(digits_models, device="cpu").name == "digits-100"
    for path, name in (
        (digits_models, "digits-10"),
        (digits_models / "digits-10", None),
        (digits_models / "digits-10" / "current", None),
        ((digits_models / "digits-10" / "current").resolve(), None),
    ):
        model = labelcurve.load(str(path), name, device="cpu", threads=1)
        assert model.name == "digits-10"
        assert model.version == (digits_models / "digits-10" / "current").resolve().name
        assert model.class_names == tuple("0123456789")
        assert model.provider == "CPUExecutionProvider"


def test_every_kind_of_image_has_the_answer_of_its_file(
    model: labelcurve.Model, tmp_path: Path
) -> None:
    data = digit_png(3)
    path = tmp_path / "digit.png"
    path.write_bytes(data)
    image = Image.open(BytesIO(data))
    grey = np.asarray(image.convert("L"))
    pixels = np.asarray(image.convert("RGB"))
    expected = model.predict(path).probabilities
    assert expected.shape == (1, 10)
    assert expected.dtype == np.float32
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    for given in (str(path), data, image, pixels, grey):
        np.testing.assert_array_equal(model.predict(given).probabilities, expected)
    both = model.predict([path, data, pixels]).probabilities
    np.testing.assert_allclose(both, np.repeat(expected, 3, 0), atol=1e-6)
    batch = model.predict(np.stack([pixels, pixels])).probabilities
    np.testing.assert_allclose(batch, np.repeat(expected, 2, 0), atol=1e-6)


def test_labels_are_the_most_probable_classes_in_the_order_of_the_images(
    model: labelcurve.Model,
) -> None:
    files = [digit_png(i) for i in range(40)]  # more than one batch
    found = model.predict(files)
    assert found.labels == tuple(str(i) for i in found.probabilities.argmax(1))
    assert len(set(found.labels)) > 1
    one = np.concatenate([model.predict(file).probabilities for file in files])
    np.testing.assert_allclose(found.probabilities, one, atol=1e-6)
    for label, row, best in zip(found.labels, found.probabilities, found.top(3), strict=True):
        assert [name for name, _ in best] == [str(i) for i in np.argsort(-row)[:3]]
        assert best[0] == (label, float(row.max()))
    assert model.predict([]).labels == ()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", "^image 1: not an image that can be read"),
        (
            np.zeros((4, 4, 3), np.float32),
            r"^image 1: an array float32 \[4, 4, 3\]: allowed are uint8",
        ),
        (np.zeros((4, 4, 4), np.uint8), r"^image 1: an array uint8 \[4, 4, 4\]"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(
    model: labelcurve.Model, image: labelcurve.library.ImageLike, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        model.predict([digit_png(0), image])


def test_a_file_that_is_not_there_is_named(model: labelcurve.Model, tmp_path: Path) -> None:
    with pytest.raises(labelcurve.LabelcurveError, match=r"nowhere\.png: No such file"):
        model.predict(tmp_path / "nowhere.png")
    with pytest.raises(TypeError, match="image 1 is of type int: allowed are paths, file bytes"):
        model.predict([digit_png(0), 3])  # type: ignore[list-item]


def test_what_is_not_there_is_explained(digits_models: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no folder"):
        labelcurve.load(tmp_path / "nowhere")
    with pytest.raises(labelcurve.LabelcurveError, match="no model 'other'; there are digits-10@"):
        labelcurve.load(digits_models, "other")
    with pytest.raises(
        labelcurve.LabelcurveError, match=r"no option epoch .perhaps you meant epochs"
    ):
        labelcurve.train("digits", epoch=3)
    with pytest.raises(labelcurve.LabelcurveError, match=r"^--fraction 2: allowed are"):
        labelcurve.train("digits", fraction=2)
    with pytest.raises(labelcurve.LabelcurveError, match="dry_run"):
        labelcurve.train("digits", dry_run=True)


def test_train_publishes_says_nothing_and_leaves_the_process_alone(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    more: dict[str, Any] = {"epochs": 1, "extractor": "none", "image_size": 8, "device": "cpu"}
    (trained,) = labelcurve.train(
        "digits", fraction=0.1, out=str(tmp_path), cache=str(cache), **more
    )
    assert capfd.readouterr() == ("", "")
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert trained.name == "digits-scratch-10"
    assert (trained.fraction, trained.seed, trained.n_labels) == (0.1, 0, 140)
    assert trained.test_accuracy is not None
    assert 0 <= trained.test_accuracy <= 1
    assert labelcurve.load(trained.path, device="cpu").version == trained.version
    report = labelcurve.bench(
        tmp_path, "digits", out=tmp_path / "report", cache=cache, load=False, latency_seconds=0.0,
        robustness_images=0,
    )  # fmt: skip
    assert capfd.readouterr().out == ""
    assert report.models[0].accuracy.accuracy == pytest.approx(trained.test_accuracy)
    assert (tmp_path / "report/report.html").exists()


def test_importing_it_is_quick_and_changes_nothing() -> None:
    code = """
import signal, sys
before = [signal.getsignal(number) for number in signal.valid_signals()]
import labelcurve
assert not {"numpy", "torch", "onnxruntime", "tyro", "rich"} & set(sys.modules)
import labelcurve.library, labelcurve.training.options, labelcurve.serving.models.engine
assert [signal.getsignal(number) for number in signal.valid_signals()] == before
import os
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "package", "extra"),
    [("train('digits')", "torch", "train"), ("load('m')", "onnxruntime", "serve"),
     ("bench('m', 'digits')", "httpx", "bench")],
)  # fmt: skip
def test_a_missing_extra_is_a_labelcurve_error(
    call: str, package: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"MISSING = {{{package!r}}}\n{MISSING}")
    code = f"import labelcurve\ntry: labelcurve.{call}\n"
    code += "except labelcurve.LabelcurveError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{MissingExtra(package, extra)}\n"


def test_an_image_object_is_prepared_as_its_file_is() -> None:
    data = digit_png(5)
    image = Image.open(BytesIO(data))
    np.testing.assert_array_equal(preprocess.prepare_image(image, 16), preprocess.prepare(data, 16))
