from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from labelcurve.bundle import store
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.jobs import train
from labelcurve.training.models import torchvision_weights
from labelcurve.training.models.backbones import build
from labelcurve.training.options import Options

NAME = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of torchvision's own network, with random weights for its 1,000 classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(models.get_model(NAME).state_dict(), path)
    return path


def test_the_weights_of_a_file_reach_the_network_and_its_embedding(weights: Path) -> None:
    found = torchvision_weights.read(f"torchvision:{NAME}={weights}", 32)
    network = build(f"torchvision:{NAME}", np.zeros((20, 32, 32, 3), np.uint8), 10)
    found.load_into(network)
    network.eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    # Torchvision's own network up to its last layer, on inputs as its own transforms make them.
    theirs = models.get_model(NAME)
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    theirs.classifier[-1] = torch.nn.Identity()
    theirs.eval()
    preset = models.get_model_weights(NAME).DEFAULT.transforms()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preset.mean, preset.std))
    with torch.inference_mode():
        expected = theirs((images / 255 - mean) / std)
        assert torch.allclose(network.embed(network.normalise(images)), expected, atol=1e-5)
        assert network(network.normalise(images)).shape == (2, 10)


def test_the_card_says_whose_weights_they_are_and_from_how_many_images(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / os.fsdecode(b"\xff.pth")
    odd.symlink_to(weights)
    assert torchvision_weights.read(f"torchvision:{NAME}={odd}", 32).card.dataset == r"\xff.pth"
    card = torchvision_weights.read(f"torchvision:{NAME}={weights}", 32).card
    assert (card.dataset, card.n_images, card.source) == ("mobilenet.pth", 0, None)
    assert (card.backbone, card.image_size) == (f"torchvision:{NAME}", 32)
    monkeypatch.setattr(
        torchvision_weights, "_download", lambda _: torch.load(weights, weights_only=True)
    )
    card = torchvision_weights.read(f"torchvision:{NAME}", 32).card
    assert (card.dataset, card.n_images) == ("ImageNet-1k", 1_281_167)
    assert card.source == f"torchvision's default weights of {NAME}"


def test_safetensors_are_read_too(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "mobilenet.safetensors"
    save_file(torch.load(weights, weights_only=True), path)
    one, two = (
        torchvision_weights.read(f"torchvision:{NAME}={file}", 32) for file in (weights, path)
    )
    assert one.version == two.version


def test_train_begins_with_them_and_the_export_is_the_same_function(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(
        fraction=(0.2,),
        data="digits",
        image_size=32,
        epochs=1,
        extractor=f"torchvision:{NAME}={weights}",
        no_unlabelled=True,
        out=tmp_path / "models",
        cache=tmp_path / "cache",
    )
    train.run(options)
    bundle = store.read(tmp_path / "models", f"digits-{NAME}-20")
    manifest = bundle.manifest
    assert manifest.backbone == f"torchvision:{NAME}"
    assert manifest.extractor is not None
    assert manifest.extractor.objective == "supervised"
    assert manifest.extractor.dataset == "mobilenet.pth"
    assert manifest.parity.top1_agreement == 1.0
    assert manifest.parity.max_abs_diff < 1e-4
    said = "trained with labels on images that mobilenet.pth does not name"
    assert said in capsys.readouterr().out
    card = (bundle.path / "README.md").read_text()
    assert "third-party weights" in card
    assert "trained with labels on images that the file `mobilenet.pth` does not name." in card


def test_every_network_that_is_allowed_has_a_linear_classifier_to_replace() -> None:
    with torch.device("meta"):
        for name in ("resnet18", "densenet121", "vgg11", "convnext_tiny", "swin_t", "vit_b_16"):
            _, head = torchvision_weights._headless(name)
            assert head.split(".")[0] in ("fc", "classifier", "head", "heads")
    assert "googlenet" not in torchvision_weights.names()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "resnet_18",
            32,
            r"no such network \(perhaps you meant resnet18 .*\); allowed are alexnet, ",
        ),
        ("googlenet", 32, "no such network"),
        ("alexnet", 32, "cannot take images of 32 px"),
        ("vit_b_32", 64, "cannot take images of 64 px"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(name: str, size: int, message: str) -> None:
    with pytest.raises(LabelcurveError, match=message):
        torchvision_weights.backbone(f"torchvision:{name}", size)


def test_what_is_not_there_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    for wanted, message in (
        ("torchvision:resnet_18", "no such network"),
        ("torchvision:resnet18=missing.pth", "resnet18=missing.pth: no such file. Allowed: "),
        ("torchvision:resnet18=", "resnet18=: no file is named. Allowed: "),
        (f"torchvision:resnet18={tmp_path}", "a folder, not a file"),
        (str(tmp_path), "a folder, not a file"),
        ("", "--extractor '': no such file"),
        ("nope", r"no such file \(perhaps you meant none\)"),
    ):
        options = Options(data="none-there", extractor=wanted, out=tmp_path, dry_run=True)
        with pytest.raises(LabelcurveError, match=message):
            train.run(options)
    with pytest.raises(LabelcurveError, match="--data none-there"):
        train.run(Options(data="none-there", extractor="none", out=tmp_path, dry_run=True))


class Runs:
    """The effect of a hostile pickle when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("ran-code",))


def test_a_file_without_its_weights_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Runs()}, "hostile.pth")
    torch.save([1, 2], "list.pth")
    Path("text.pth").write_text("no weights")
    Path("hello.pth").write_text("hello\n")
    Path("bytes.pth").write_bytes(b"\x80\x02u.")
    Path("text.safetensors").write_text("no weights")
    for file, message in (
        ("hostile.pth", "holds no plain state dict"),
        ("list.pth", "something other than a state dict"),
        ("text.pth", "holds no plain state dict"),
        ("hello.pth", r"holds no plain state dict \(KeyError\)"),
        ("bytes.pth", r"holds no plain state dict \(IndexError\)"),
        ("text.safetensors", "holds no plain state dict"),
        ("missing.pth", "No such file"),
    ):
        with pytest.raises(LabelcurveError, match=message):
            torchvision_weights.read(f"torchvision:{NAME}={file}", 32)
    assert not Path("ran-code").exists()
    with pytest.raises(LabelcurveError, match=r"not the state dict of torchvision's resnet18"):
        torchvision_weights.read(f"torchvision:resnet18={weights}", 32)


def test_without_a_network_it_says_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # urllib reads the proxies once a process and would keep these for every later test.
    monkeypatch.setattr(urllib.request, "_opener", None)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LabelcurveError, match=rf"could not be fetched .*torchvision:{NAME}=FILE"):
        torchvision_weights.read(f"torchvision:{NAME}", 32)


@pytest.mark.parametrize("wanted", ["torchvision:", "torchvision:../up", "torchvision:a b=c"])
def test_a_name_that_is_no_name_is_refused_at_once(wanted: str) -> None:
    with pytest.raises(LabelcurveError, match="allowed are torchvision:NAME and"):
        Options(extractor=wanted)
    with pytest.raises(LabelcurveError, match="--preset reference has its own network"):
        Options(extractor="torchvision:resnet18", preset="reference")
