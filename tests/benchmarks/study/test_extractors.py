from __future__ import annotations

from pathlib import Path

import pytest

from labelcurve.benchmarks.study import extractors, rows
from labelcurve.benchmarks.study.extractors import Extractors
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.models import extractor
from labelcurve.training.models.extractor import Card
from tests.training.models.test_extractor import CARD, RUN, network


def written(folder: Path, name: str, card: Card, seed: int = 0) -> str:
    path = folder / f"{name}.safetensors"
    extractor.write(path, network(seed), card)
    return str(path)


def test_rows_are_added_by_the_images_seen(tmp_path: Path) -> None:
    out = tmp_path / "extractors.json"
    later = RUN.model_copy(update={"hardware": "another CPU", "views_seen": 55, "seconds": 3510.0})
    long = CARD.model_copy(update={"runs": (RUN, later), "knn": 0.9})
    extractors.main([written(tmp_path, "long", long, seed=1), "--out", str(out)])
    short = written(tmp_path, "short", CARD)
    for _ in range(2):  # each counts once
        extractors.main([short, "--out", str(out)])
    first, second = rows.read_as(out, Extractors).rows
    assert (first.views_seen, first.hours) == (12_345, 0.025)
    assert (first.knn, first.probe) == (0.8125, 0.9375)
    assert (second.views_seen, second.hours, second.knn) == (12_400, 1.0, 0.9)
    assert (first.hardware, second.hardware) == ("CPU", "another CPU")
    assert first.version == extractor.read(Path(short)).version


def test_an_extractor_that_was_not_evaluated_has_no_row(tmp_path: Path) -> None:
    path = written(tmp_path, "blind", CARD.model_copy(update={"knn": None, "probe": None}))
    with pytest.raises(LabelcurveError, match=r"blind\.safetensors has no k-NN accuracy"):
        extractors.main([path, "--out", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


def test_a_file_of_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text('{"rows": [{}]}')
    with pytest.raises(LabelcurveError, match="does not follow this release's schema"):
        extractors.main([written(tmp_path, "one", CARD), "--out", str(out)])
    assert out.read_text() == '{"rows": [{}]}'
    with pytest.raises(LabelcurveError, match=r"cannot read .*none\.json"):
        rows.read_as(tmp_path / "none.json", Extractors)
    with pytest.raises(LabelcurveError, match="FILE: name one extractor or more"):
        extractors.main(["--out", str(out)])
