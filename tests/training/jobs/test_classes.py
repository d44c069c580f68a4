"""Data sets other than ten classes of one size: few and many classes, rare ones, grey images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labelcurve.bundle import store
from labelcurve.bundle.store import Bundle
from labelcurve.training.data.source import png
from labelcurve.training.jobs import train
from labelcurve.training.options import Options
from tests.training.sets import write_parquet

pytestmark = pytest.mark.usefixtures("narrow")


def trained(folder: Path, **more: Any) -> Bundle:
    out = folder / "out"
    options = Options(
        data=str(folder / "images"),
        image_size=8,
        fraction=(1.0,),
        device="cpu",
        extractor="none",
        no_final=True,
        out=out,
        cache=folder / "cache",
        **more,
    )
    (made,) = train.run(options)["bundles"]
    return store.read(out, made["name"])


def test_a_thousand_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for label in range(1000):
        colour = np.array([label % 10, label // 10 % 10, label // 100]) * 25
        for _ in range(5):
            noise = random.integers(0, 12, (8, 8, 3))
            rows.append((label, png((colour + noise).astype(np.uint8))))
    names = [f"species {i}" for i in range(1000)]
    write_parquet(tmp_path / "images" / "all.parquet", rows, names)
    bundle = trained(tmp_path, epochs=1)
    manifest = bundle.manifest
    assert manifest.class_names == tuple(names)
    assert (manifest.n_labels_train, manifest.n_labels_val) == (3000, 1000)
    assert manifest.test is not None
    assert manifest.test.n == 1000
    card = (bundle.path / "README.md").read_text()
    assert "1000 classes: species 0, species 1, " in card
    assert "species 49 and 950 more." in card


def test_two_grey_classes_of_which_one_is_rare(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, n, dark in (("common", 190, 0), ("rare", 10, 120)):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(n):
            pixels = (dark + random.integers(0, 130, (9, 12))).astype(np.uint8)
            image = Image.fromarray(pixels)
            assert image.mode == "L"
            image.save(folder / f"{i}.png")
    bundle = trained(tmp_path, epochs=3)
    test = bundle.manifest.test
    assert test is not None
    assert test.n == 38 + 2
    report = store.read_run(bundle.path).report
    recalls = [report[name]["recall"] for name in ("common", "rare")]
    assert test.balanced_accuracy == pytest.approx(sum(recalls) / 2)
    assert test.accuracy == pytest.approx((38 * recalls[0] + 2 * recalls[1]) / 40)
    assert (
        f"| {test.accuracy:.4f} | {test.balanced_accuracy:.4f} |"
        in (bundle.path / "README.md").read_text()
    )
