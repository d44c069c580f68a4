"""Training, inference and benchmarks from Python."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import labelcurve
from labelcurve import library
from labelcurve.benchmarks.options import Bench
from labelcurve.bundle import preprocess
from labelcurve.bundle.command import PerCore
from labelcurve.bundle.errors import BundleError, ImageError, MissingExtra
from labelcurve.bundle.machine import cores
from labelcurve.training.options import Options
from tests.labelcurve.test_extras import MISSING
from tests.models import digit_png


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(digits_models: Path) -> labelcurve.Model:
    found: labelcurve.Model = labelcurve.load(digits_models, device="cpu", threads=1)
    return found


@pytest.fixture
def no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained or measured where a test finds that an option was not refused."""

    def run(options: Any, *_: Any) -> None:
        raise AssertionError(f"not refused: {options}")

    monkeypatch.setattr("labelcurve.training.jobs.train.run", run)
    monkeypatch.setattr("labelcurve.benchmarks.job.run", run)


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
    assert [len(best) for best in found.top(99)] == [10] * 40
    assert model.predict([]).labels == ()
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k is {k}: allowed are 1 and more"):
            found.top(k)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", "^image 1: not an image that can be read"),
        (
            np.zeros((4, 4, 3), np.float32),
            r"^image 1: an array float32 \[4, 4, 3\]: allowed are uint8",
        ),
        (np.zeros((4, 4, 4), np.uint8), r"^image 1: an array uint8 \[4, 4, 4\]"),
        (np.zeros((0, 10, 3), np.uint8), "^image 1: 10 x 0 pixels: allowed are 1 x 1 and more"),
        (np.zeros((5, 0), np.uint8), "^image 1: 0 x 5 pixels: allowed are 1 x 1 and more"),
        (Image.new("RGB", (0, 5)), "^image 1: 0 x 5 pixels: allowed are 1 x 1 and more"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(
    model: labelcurve.Model, image: labelcurve.library.ImageLike, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        model.predict([digit_png(0), image])


class Column:
    """As a table's: iterates in order, and `[i]` is the row of that label."""

    def __init__(self, values: list[bytes]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._values)

    def __getitem__(self, label: int) -> bytes:
        return self._values[-1 - label]


def test_images_are_answered_in_the_order_in_which_they_come(model: labelcurve.Model) -> None:
    files = [digit_png(i) for i in range(4)]
    expected = model.predict(files).probabilities
    for images in (iter(files), tuple(files), Column(files), (file for file in files)):
        assert np.array_equal(model.predict(images).probabilities, expected)


@pytest.mark.parametrize(
    "images", [None, 3, {b"a": b"b"}, {b"a"}, BytesIO(digit_png(0)), bytearray(digit_png(0))]
)
def test_what_does_not_hold_images_in_an_order_is_refused(
    model: labelcurve.Model, images: Any
) -> None:
    with pytest.raises(TypeError, match=f"images of type {type(images).__name__}: allowed are"):
        model.predict(images)


def test_a_file_that_cannot_be_read_is_named(model: labelcurve.Model, tmp_path: Path) -> None:
    with pytest.raises(labelcurve.LabelcurveError, match=r"nowhere\.png: No such file"):
        model.predict(tmp_path / "nowhere.png")
    with pytest.raises(labelcurve.LabelcurveError, match=r"^a\\x00\.png: no file's name"):
        model.predict("a\0.png")
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(labelcurve.LabelcurveError, match=r"fifo\.png: it is a pipe"):
        model.predict(tmp_path / "fifo.png")
    with pytest.raises(TypeError, match="image 1 is of type int: allowed are paths, file bytes"):
        model.predict([digit_png(0), 3])  # type: ignore[list-item]


def test_another_model_that_is_damaged_does_no_harm(digits_models: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    version = (models / "digits-10/current").readlink().name
    with (models / "digits-50/current/model.onnx").open("ab") as graph:
        graph.write(b"\0")
    for wanted in ("digits-10", f"digits-10@{version}"):
        assert labelcurve.load(models, wanted, device="cpu").version == version
    assert labelcurve.load(models, device="cpu").name == "digits-100"


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


@pytest.mark.usefixtures("no_jobs")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device='gpu': allowed are 'auto', 'cuda', 'cpu'"),
        (
            {"layout": "classes"},
            "layout='classes': allowed are 'auto', 'class', 'split/class', 'class/split'",
        ),
        ({"skip_unreadable": "no"}, "skip_unreadable='no': allowed are True and False"),
        ({"verbose": "no"}, "verbose='no': allowed are True and False"),
        ({"fraction": "0.5"}, "fraction='0.5': allowed are numbers and sequences of numbers"),
        ({"fraction": None}, "fraction=None: allowed are numbers and sequences of numbers"),
        ({"fraction": True}, "fraction=True: allowed are numbers and sequences of numbers"),
        (
            {"fraction": [0.1, "0.5"]},
            "fraction=[0.1, '0.5']: allowed are numbers and sequences of numbers",
        ),
        ({"epochs": "3"}, "epochs='3': allowed are whole numbers and None"),
        ({"epochs": True}, "epochs=True: allowed are whole numbers and None"),
        ({"max_minutes": "1"}, "max_minutes='1': allowed are numbers and None"),
        ({"seed": 1.5}, "seed=1.5: allowed are whole numbers"),
        ({"out": None}, "out=None: allowed are paths"),
        ({"out": ""}, "out is empty: allowed are paths"),
        ({"cache": ""}, "cache is empty: allowed are paths and None"),
        ({"cache": 3}, "cache=3: allowed are paths and None"),
        ({"data": None}, "data=None: allowed are strings and paths"),
    ],
)
def test_an_option_of_train_that_is_of_another_kind_is_named(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(labelcurve.LabelcurveError) as caught:
        labelcurve.train(**{"data": "digits", **options})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "path=None: allowed are paths"),
        ({"path": ""}, "path is empty: allowed are paths"),
        ({"model": 3}, "model=3: allowed are strings and None"),
        ({"device": "gpu"}, "device='gpu': allowed are 'auto', 'cuda', 'cpu'"),
        ({"threads": "2"}, "threads='2': allowed are whole numbers and None"),
        ({"threads": -3}, f"--threads -3: allowed are {PerCore()}"),
        ({"threads": 0}, f"--threads 0: allowed are {PerCore()}"),
    ],
)
def test_an_argument_of_load_that_is_of_another_kind_is_named(
    digits_models: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(labelcurve.LabelcurveError) as caught:
        labelcurve.load(**{"path": digits_models, **options})
    assert str(caught.value) == message


@pytest.mark.usefixtures("no_jobs")
@pytest.mark.parametrize(("call", "kind"), [("train", Options), ("bench", Bench)])
def test_no_option_takes_just_anything(call: str, kind: Any) -> None:
    for field in fields(kind):
        if field.name in ("dry_run", "self_test"):  # of the command alone
            continue
        message = rf"^{field.name}=<object .*>: allowed are [\w']"
        with pytest.raises(labelcurve.LabelcurveError, match=message):
            getattr(labelcurve, call)(**{field.name: object()})


def test_what_stands_for_an_option_arrives_as_the_command_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Any] = []

    def run(options: Any, *_: Any) -> Any:
        found.append(options)
        return {"bundles": []} if isinstance(options, Options) else (None, None)

    monkeypatch.setattr("labelcurve.training.jobs.train.run", run)
    monkeypatch.setattr("labelcurve.benchmarks.job.run", run)
    fractions: list[Any] = [np.float32(1), 1, [0.1, 1], np.array([0.1, 1]), ()]
    for fraction in fractions:
        labelcurve.train(Path("digits"), fraction=fraction)
    assert [options.fraction for options in found] == [(1.0,), (1.0,), (0.1, 1.0), (0.1, 1.0), ()]
    labelcurve.train(
        "digits", out="m", cache="c", drop=None, seed=np.int64(3), max_minutes=1, no_test=np.True_
    )
    assert found[-1] == Options(
        out=Path("m"), cache=Path("c"), data="digits", seed=3, max_minutes=1.0, no_test=True
    )
    # Equal numbers need not be of one type, which JSON and names would show.
    assert [type(found[-1].seed), type(found[-1].max_minutes)] == [int, float]
    labelcurve.bench("m", Path("digits"), out="r", cache="c", only=["a"], clients=range(1, 3))
    assert found[-1] == Bench(
        models=Path("m"), data="digits", out=Path("r"), cache=Path("c"), only=("a",), clients=(1, 2)
    )


def test_what_train_published_is_returned_final_models_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = {
        "name": "a", "version": "1", "path": "models/a/1", "fraction": 0.5, "seed": 7,
        "n_labels_train": 90, "n_labels_val": 10, "val": {"accuracy": 0.75},
        "test": {"accuracy": 0.5},
    }  # fmt: skip
    final = {**entry, "name": "b", "test": None, "measured": {"name": "a"}}
    document = {"bundles": [entry], "final": [final]}
    monkeypatch.setattr("labelcurve.training.jobs.train.run", lambda options: document)
    found = labelcurve.train("digits")
    assert found == [
        labelcurve.TrainedModel(
            name="a", version="1", path=Path("models/a/1"), fraction=0.5, seed=7, n_labels=100,
            validation_accuracy=0.75, test_accuracy=0.5, measured=None,
        ),
        labelcurve.TrainedModel(
            name="b", version="1", path=Path("models/a/1"), fraction=0.5, seed=7, n_labels=100,
            validation_accuracy=0.75, test_accuracy=None, measured="a",
        ),
    ]  # fmt: skip


def test_a_model_is_loaded_with_the_threads_it_is_given(digits_models: Path) -> None:
    for threads, expected in ((cores() + 1, cores() + 1), (None, cores())):
        model = labelcurve.load(digits_models, "digits-10", device="cpu", threads=threads)
        options = model._engine._session.get_session_options()
        assert options.intra_op_num_threads == expected


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


def test_what_is_not_printed_need_not_be_utf_8(capsys: pytest.CaptureFixture[str]) -> None:
    with library._said(verbose=False):
        print(os.fsdecode(b"models/\xff"))
    assert capsys.readouterr().out == ""


def test_importing_it_is_quick_and_changes_nothing() -> None:
    code = """
import signal, sys
before = [signal.getsignal(number) for number in signal.valid_signals()]
import labelcurve
assert dir(labelcurve) == sorted(labelcurve.__all__)
assert not {"numpy", "torch", "onnxruntime", "pydantic", "tyro", "rich"} & set(sys.modules)
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
