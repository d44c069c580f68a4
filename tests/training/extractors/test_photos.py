"""`train` on photos: the default backbone from the Hub's cache, its linear head, its bundle."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labelcurve.bundle import store
from labelcurve.training.extractors import photos as job
from labelcurve.training.jobs import train
from labelcurve.training.options import Options
from labelcurve.training.recipes import PHOTO_BACKBONE
from tests.photos import LITE0_FILE, hub_cache, photos


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_cache(tmp_path_factory.mktemp("hub"))


def offline(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(hub), raising=False)


def test_photos_get_the_default_backbone_from_the_hubs_cache_and_a_linear_head(
    data: Path,
    cache: Path,
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    offline(monkeypatch, hub)
    options = Options(
        data=str(data), fraction=(0.5,), out=tmp_path / "models", cache=cache, device="cpu"
    )
    (made,) = train.run(options)["bundles"]
    said = capsys.readouterr().out
    assert "image size: 224 px (the short sides of 40 images have a median of 240 px)" in said
    assert f"extractor: {PHOTO_BACKBONE} " in said
    assert "linear head on 1,752 frozen features of 14 images: penalty " in said
    assert "fine-tuning: left out" in said
    bundle = store.read(tmp_path / "models", "pictures-50")
    manifest = bundle.manifest
    assert made["test"]["accuracy"] == 1.0
    assert (manifest.backbone, manifest.preprocessing.size) == (PHOTO_BACKBONE, 224)
    assert manifest.parity.top1_agreement == 1.0
    assert (manifest.epochs, manifest.n_unlabelled) == (0, 16)
    assert manifest.recipe["linear_head"]["balanced"] is False
    assert manifest.extractor is not None
    assert manifest.extractor.license == "apache-2.0"
    card = " ".join((bundle.path / "README.md").read_text().split())
    assert "License of the weights: apache-2.0; source: https://huggingface.co/timm/tf_eff" in card
    assert "a linear head on frozen features, L2 penalty " in card


def test_fine_tuning_follows_where_time_is_given_and_the_better_is_published(
    data: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(
        data=str(data),
        image_size=64,
        fraction=(0.5,),
        epochs=1,
        extractor=f"timm:tf_efficientnet_lite0={LITE0_FILE}",
        no_unlabelled=True,
        out=tmp_path / "models",
        cache=cache,
        device="cpu",
    )
    train.run(options)
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "the linear head has" in line)
    # Two validation images hardly tell them apart: of equals the linear head.
    found = re.search(r"has ([\d.]+) .*fine-tuning ([\d.]+) .* must exceed ([\d.]+), ", line)
    assert found is not None
    linear, tuned, margin = map(float, found.groups())
    manifest = store.read(tmp_path / "models", "pictures-tf_efficientnet_lite0-50").manifest
    kept = tuned - linear <= margin
    assert ("linear_head" in manifest.recipe) == kept
    assert line.endswith(f"{'the linear head' if kept else 'fine-tuning'} is published")


def test_without_the_weights_it_warns_and_says_what_that_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch, tmp_path)
    said: list[str] = []
    settled = job.Settled("auto", said.append)
    size, why = settled.choose_size(224, "because")
    assert (settled.extractor, size) == ("auto", 64)
    assert why == "because; 64 px is the most for a network without pretrained weights"
    (warning,) = (line for line in said if line.startswith("WARNING"))
    assert "`hf download timm/tf_efficientnet_lite0.in1k model.safetensors" in warning
    assert "TrashNet" in warning


@pytest.mark.parametrize(
    ("extractor", "side", "expected"),
    [
        ("auto", 32, ("auto", 32)),
        ("auto", 64, ("auto", 64)),
        ("auto", 128, (PHOTO_BACKBONE, 128)),
        ("none", 128, ("none", 64)),
        ("timm:resnet18", 224, ("timm:resnet18", 224)),
    ],
)
def test_the_size_and_the_extractor_are_settled_together(
    extractor: str,
    side: int,
    expected: tuple[str, int],
    hub: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offline(monkeypatch, hub)
    settled = job.Settled(extractor, lambda _: None)
    size, _ = settled.choose_size(side, "because")
    assert (settled.extractor, size) == expected
