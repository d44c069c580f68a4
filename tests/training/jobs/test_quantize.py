from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle import store
from labelcurve.bundle.errors import DataError, ExportError
from labelcurve.training.data.dataset import Data
from labelcurve.training.jobs import quantize as quantize_job
from labelcurve.training.jobs import train
from labelcurve.training.models import quantize
from labelcurve.training.options import QuantizeOptions, parse
from tests.permissions import forbidden, public_copy
from tests.training.conftest import LABELCURVE, QUICK, narrowed
from tests.training.sets import digit_rows, write_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """digits-scratch-10 and digits-scratch-100; do not change them."""
    out = tmp_path_factory.mktemp("made")
    places = ("--out", str(out), "--cache", str(cache))
    with narrowed():
        train.run(parse([*QUICK, *places, "--fraction", "0.1", "--fraction", "1.0"]))
    return out


@pytest.fixture
def models(made: Path, tmp_path: Path) -> Path:
    """Bundles to change."""
    return Path(shutil.copytree(made, tmp_path / "models", symlinks=True))


def test_a_bundle_gets_both_variants_and_keeps_its_name(
    models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not a test of speed, nor of accuracy after two epochs.
    monkeypatch.setattr(quantize, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(quantize, "LOST_POINTS", 100.0)
    monkeypatch.setattr(quantize, "LEAST_AGREEMENT", 0.0)
    before = store.read(models, "digits-scratch-100")
    judged, real = [], quantize.check

    def check(*given: Any) -> None:
        judged.append(given)
        real(*given)

    monkeypatch.setattr(quantize, "check", check)
    for precision in ("int8", "fp16"):
        document = quantize_job.run(
            QuantizeOptions(
                models=models,
                data="digits",
                precision=precision,
                only=("digits-scratch-100",),
                cache=cache,
            )
        )
    after = store.read(models, "digits-scratch-100")
    assert document["bundles"][0]["version"] == after.version != before.version
    assert after.manifest.variants[-1].held_out is not None
    assert len(json.dumps(document)) < 3000  # a line for people, without an entry for each image
    assert after.graph == before.graph
    assert sorted(after.variants) == ["fp16", "int8"]
    assert store.read(models, "digits-scratch-10").variants == {}
    assert store.read(models, "digits-scratch-100", before.version).manifest == before.manifest
    fp16, int8 = after.manifest.variants
    assert (fp16.n_calibration, int8.n_calibration) == (0, 256)
    assert int8.val.n == before.manifest.n_labels_val
    assert int8.test is not None
    assert int8.test.n == before.manifest.dataset.n_test
    assert 0.5 < int8.agreement <= 1.0
    for variant, (name, own, fp32, error, agreement) in zip((int8, fp16), judged, strict=True):
        assert (name, own, agreement) == (variant.precision, variant.val, variant.agreement)
        assert fp32.model_dump() == pytest.approx(before.manifest.val.model_dump())
        assert 0 <= error < 0.1
    gains = store.read_run(after.path).gains
    assert gains["fp16"] is None
    assert gains["int8"] is not None
    assert gains["int8"].ratio > 0
    card = (after.path / "README.md").read_text()
    assert "`model.int8.onnx` is the same model in int8" in card
    assert "`model.fp16.onnx` is the same model in fp16" in card


def test_what_a_gate_refuses_is_not_published(
    models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "LEAST_GAIN", 1000.0)
    before = store.read(models, "digits-scratch-10").version
    options = QuantizeOptions(
        models=models, data="digits", only=("digits-scratch-10",), cache=cache
    )
    with pytest.raises(
        ExportError, match=r"1 of 1 bundle got no int8 graph: digits-scratch-10 \(int8"
    ):
        quantize_job.run(options)
    assert store.read(models, "digits-scratch-10").version == before


def test_what_was_trained_again_meanwhile_stays_the_current_one(
    models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "LEAST_AGREEMENT", 0.0)
    old = store.read(models, "digits-scratch-10")
    options = QuantizeOptions(
        models=models, data="digits", only=(old.name,), precision="fp16", cache=cache
    )

    def trained_again(*_: object) -> None:
        run = store.read_run(old.path)
        store.publish(models, old.manifest.model_copy(update={"epochs": 7}), old.graph, "", run)

    monkeypatch.setattr(quantize, "check", trained_again)
    with pytest.raises(ExportError, match=rf"\w+ took the place of {old.version} meanwhile: run"):
        quantize_job.run(options)
    assert store.read(models, old.name).manifest.epochs == 7

    monkeypatch.setattr(quantize, "check", lambda *_: shutil.rmtree(models / old.name))
    with pytest.raises(ExportError, match=r"\w+ was removed meanwhile"):
        quantize_job.run(options)
    assert not (models / old.name).exists()


def test_a_folder_that_cannot_be_written_is_said_before_the_work(made: Path) -> None:
    without: dict[str, str] = {}
    with public_copy(made) as models, forbidden(models / "digits-scratch-10", 0o555):
        assert quantize_job._read(models, ["digits-scratch-10"], without) == []
    assert "cannot be written, and the graph is added there" in without["digits-scratch-10"]


def test_other_images_than_the_models_own_are_refused(
    models: Path, cache: Path, tmp_path: Path
) -> None:
    write_folder(tmp_path / "other", digit_rows())
    options = QuantizeOptions(models=models, data=str(tmp_path / "other"), cache=cache)
    with pytest.raises(ExportError, match="digits-scratch-10 was trained on other images"):
        quantize_job.run(options)


def test_a_bundle_that_cannot_be_used_is_skipped_and_the_others_are_not(
    models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantize, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(quantize, "LOST_POINTS", 100.0)
    monkeypatch.setattr(quantize, "LEAST_AGREEMENT", 0.0)
    damaged = store.read(models, "digits-scratch-10").path
    (damaged / store.GRAPH).write_bytes(b"half")
    options = QuantizeOptions(models=models, data="digits", cache=cache)
    with pytest.raises(
        ExportError, match=r"^1 of 2 bundles got no int8 graph: digits-scratch-10 \(the bundle .*"
    ):
        quantize_job.run(options)
    assert "digits-scratch-10: skipped: the bundle" in capsys.readouterr().out
    assert list(store.read(models, "digits-scratch-100").variants) == ["int8"]


def test_a_bundle_of_other_images_is_skipped_and_the_others_are_not(
    models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(quantize, "LOST_POINTS", 100.0)
    monkeypatch.setattr(quantize, "LEAST_AGREEMENT", 0.0)
    old = store.read(models, "digits-scratch-10")
    dataset = old.manifest.dataset.model_copy(update={"hash": "0" * 64})
    stale = old.manifest.model_copy(update={"dataset": dataset})
    store.publish(models, stale, old.graph, "", store.read_run(old.path))
    options = QuantizeOptions(models=models, data="digits", cache=cache)
    with pytest.raises(ExportError, match=r"1 of 2 bundles .*trained on other images"):
        quantize_job.run(options)
    assert list(store.read(models, "digits-scratch-100").variants) == ["int8"]


def test_a_model_of_corrected_labels_needs_the_tables_of_its_training(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(quantize, "LOST_POINTS", 100.0)
    monkeypatch.setattr(quantize, "LEAST_AGREEMENT", 0.0)
    data = write_folder(tmp_path / "digits", digit_rows(10))
    names = sorted(str(path.relative_to(data)) for path in data.rglob("*.png"))
    drop, relabel = tmp_path / "drop.csv", tmp_path / "relabel.csv"
    drop.write_text("path,suggested\n" + "".join(f"{name},\n" for name in names[::10]))
    relabel.write_text("path,suggested\n" + "".join(f"{name},0\n" for name in names[31:36]))
    given = ("--data", str(data), "--drop", str(drop), "--relabel", str(relabel))
    out = tmp_path / "models"
    more = ("--fraction", "1", "--epochs", "1", "--out", str(out), "--cache", str(cache))
    with narrowed():
        before = train.run(parse([*QUICK, *given, *more]))["bundles"][0]
    options = QuantizeOptions(models=out, data=str(data), cache=cache)
    with pytest.raises(
        ExportError, match=r"was trained with \d images dropped and \d relabelled.*--drop"
    ):
        quantize_job.run(options)
    quantize_job.run(replace(options, drop=drop, relabel=relabel))
    after = store.read(out, before["name"])
    assert after.version != before["version"]
    assert [variant.val.n for variant in after.manifest.variants] == [before["n_labels_val"]]


def test_an_unknown_model_is_named_in_the_error_of_the_command(models: Path) -> None:
    command = [LABELCURVE, "quantize", "--models", str(models)]
    done = subprocess.run(
        [*command, "--only", "digits-11"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        "--only digits-11: no such model; there are digits-scratch-10, digits-scratch-100"
        in done.stderr
    )


def test_a_model_of_another_image_size_is_named(made: Path, digits: Data) -> None:
    bundle = store.read(made, "digits-scratch-10")
    _, subset = quantize_job._learned(bundle, digits, "digits")
    assert subset.hash == bundle.manifest.indices_hash
    with pytest.raises(DataError, match=r"takes images of 8 px, another model of 16 px: .*--only"):
        quantize_job._learned(bundle, replace(digits, size=16), "digits")
    other = bundle.manifest.model_copy(update={"seed": 1})
    with pytest.raises(
        DataError, match=r"those that this release draws at 0\.1 with seed 1: train"
    ):
        quantize_job._learned(replace(bundle, manifest=other), digits, "digits")


@pytest.mark.parametrize(
    ("flags", "said"),
    [({"avx512_vnni"}, ", VNNI"), ({"avx_vnni"}, ", VNNI"), ({"avx2"}, ", no VNNI")],
)
def test_the_hardware_of_a_gain_says_whether_it_has_products_of_8_bits(
    flags: set[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_job, "cpu_flags", lambda: flags)
    monkeypatch.setattr(quantize_job, "cpu_name", lambda: "a processor")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert quantize_job.hardware() == f"a processor{said}"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert quantize_job.hardware() == "a processor"
