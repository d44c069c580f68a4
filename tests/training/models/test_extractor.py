from __future__ import annotations

import io
import json
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.models import extractor
from labelcurve.training.models.backbones import ConvNet, Network, ReferenceNet
from labelcurve.training.models.extractor import Card, Pretraining

RUN = Pretraining(
    command="pretrain --data digits",
    started="2026-01-01T00:00:00+00:00",
    epochs=2.5,
    views_seen=12_345,
    seconds=90.0,
    hardware="CPU",
    precision="fp32",
    seed=0,
    recipe={"lr": 0.1, "objective": "contrastive"},
    packages={"torch": "test"},
    git_commit=None,
    loss=3.25,
)
CARD = Card(
    dataset="digits",
    pixels_hash="ab" * 32,
    n_images=1_000,
    image_size=8,
    backbone="convnet",
    objective="contrastive",
    flip=False,
    runs=(RUN,),
    n_held_out=100,
    knn=0.8125,
    probe=0.9375,
)


def network(seed: int = 0, backbone: str = "convnet", size: int = 8) -> Network:
    torch.manual_seed(seed)
    net = ConvNet((16, 32, 64)) if backbone == "convnet" else ReferenceNet(size)
    return Network(net, net.dim, 10, torch.rand(3), torch.rand(3))


def card(**changes: Any) -> Card:
    return CARD.model_copy(update=changes)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    net = network()
    path = tmp_path / "made" / "digits.safetensors"
    extractor.write(path, net, CARD)
    found = extractor.read(path)
    assert found.card == CARD
    assert found.path == path
    assert len(found.version) == 12
    own = {k: v for k, v in net.state_dict().items() if not k.startswith("classifier.")}
    assert found.weights.keys() == own.keys()
    for name, value in own.items():
        assert found.weights[name].shape == value.shape
        assert found.weights[name].dtype == value.dtype
        assert torch.allclose(found.weights[name], value, atol=1e-3, rtol=1e-3), name
        if value.ndim <= 1:
            assert torch.equal(found.weights[name], value), "vectors are kept as they are"
    assert names(path.parent) == ["digits.md", "digits.safetensors"]


def test_matrices_are_half_as_large_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    extractor.write(path, network(), CARD)
    stored = load(path.read_bytes())
    assert stored["backbone.groups.0.conv1.weight"].dtype == torch.float16
    assert stored["backbone.groups.0.norm1.running_var"].dtype == torch.float32
    assert not any(name.startswith("classifier") for name in stored)


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    extractor.write(tmp_path / "a.safetensors", network(), CARD)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_writing_again_what_was_read_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    extractor.write(first, network(), CARD)
    net = network(seed=1)
    extractor.read(first).load_into(net)
    extractor.write(second, net, CARD)
    assert first.read_bytes() == second.read_bytes()


def test_the_version_is_of_the_weights_alone(tmp_path: Path) -> None:
    versions = []
    for number, (net, written) in enumerate(
        [(network(), CARD), (network(), card(dataset="other", knn=None)), (network(1), CARD)]
    ):
        path = tmp_path / f"{number}.safetensors"
        extractor.write(path, net, written)
        versions.append(extractor.read(path).version)
    assert versions[0] == versions[1] != versions[2]


def test_another_classifier_is_the_same_extractor(tmp_path: Path) -> None:
    versions = []
    for n_classes in (2, 7):
        torch.manual_seed(0)
        backbone = ConvNet((16, 32, 64))
        net = Network(backbone, backbone.dim, n_classes, torch.zeros(3), torch.ones(3))
        extractor.write(tmp_path / "a.safetensors", net, CARD)
        versions.append(extractor.read(tmp_path / "a.safetensors").version)
    assert versions[0] == versions[1]


def test_the_readable_card_has_the_training_data_and_the_quality(tmp_path: Path) -> None:
    extractor.write(tmp_path / "a.safetensors", network(), CARD)
    text = (tmp_path / "a.md").read_text()
    assert text.startswith("# Feature extractor for digits\n")
    assert "convnet at 8 px" in text
    assert "1,000 training\nimages" in text
    assert "images never mirrored" in text
    assert "0.8125" in text
    assert "0.9375" in text
    assert "`pretrain --data digits`: 2.5 epochs, 12,345 views" in text


def test_a_card_without_labels_says_that_it_was_not_evaluated(tmp_path: Path) -> None:
    extractor.write(tmp_path / "a.safetensors", network(), card(knn=None, probe=None, flip=True))
    text = (tmp_path / "a.md").read_text()
    assert "It was not evaluated, for lack of labels or of time" in text
    assert "mirrored" not in text
    assert "None" not in text


def test_every_run_is_on_the_card_and_their_seconds_add_up(tmp_path: Path) -> None:
    second = RUN.model_copy(update={"command": "pretrain --start a.safetensors", "seconds": 30.0})
    both = card(runs=(RUN, second))
    assert both.seconds == 120
    extractor.write(tmp_path / "a.safetensors", network(), both)
    text = (tmp_path / "a.md").read_text()
    assert text.index(RUN.command) < text.index(second.command)


def test_loading_replaces_all_weights_but_the_classifiers(tmp_path: Path) -> None:
    extractor.write(tmp_path / "a.safetensors", network(), CARD)
    found, net = extractor.read(tmp_path / "a.safetensors"), network(seed=1)
    classifier = net.classifier.weight.detach().clone()
    found.load_into(net)
    for name, value in net.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(value, found.weights[name]), name
    assert torch.equal(net.classifier.weight, classifier)
    frozen = {name for name, value in net.named_parameters() if not value.requires_grad}
    assert frozen == {n for n, v in network().named_parameters() if not v.requires_grad}


def test_a_loaded_network_can_be_trained_without_changing_the_extractor(tmp_path: Path) -> None:
    extractor.write(tmp_path / "a.safetensors", network(), CARD)
    found, net = extractor.read(tmp_path / "a.safetensors"), network(seed=1)
    before = {name: value.clone() for name, value in found.weights.items()}
    found.load_into(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in found.weights.items())


@pytest.mark.parametrize(
    ("made", "wanted", "first"),
    [
        (("convnet", 8), ("reference", 8), "backbone.backbone.0.bias"),
        (("reference", 8), ("convnet", 8), "backbone.backbone.0.bias"),
        (("reference", 8), ("reference", 16), "backbone.head.1.weight"),
    ],
    ids=["convnet for reference", "reference for convnet", "another size"],
)
def test_an_extractor_for_another_network_is_refused_with_what_to_do(
    tmp_path: Path, made: tuple[str, int], wanted: tuple[str, int], first: str
) -> None:
    path = tmp_path / "a.safetensors"
    extractor.write(path, network(0, *made), CARD)
    net = network(1, *wanted)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(LabelcurveError) as error:
        extractor.read(path).load_into(net)
    assert str(error.value).startswith(f"{path} holds a convnet for 8 px that does not fit")
    assert "made by `labelcurve pretrain --objective relative-position` at the same" in str(
        error.value
    )
    assert f"(first difference: {first})" in str(error.value)
    assert "--extractor none" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def damaged(kind: str, path: Path) -> None:
    extractor.write(path, network(), CARD)
    whole = path.read_bytes()
    path.with_suffix(".md").unlink()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    buffer = io.BytesIO()
    torch.save(network().state_dict(), buffer)
    length = int.from_bytes(whole[:8], "little")
    contents = {
        "empty": b"",
        "short": whole[:5],
        "truncated": whole[:-100],
        "header alone": whole[: 8 + length],
        "longer": whole + b"more",
        "header": whole[:20] + b"\0\xff" + whole[22:],
        "length": (1 << 40).to_bytes(8, "little") + whole[8:],
        "text": b"# not weights\n" * 100,
        "without card": save({"backbone.x": torch.ones(3)}),
        "other metadata": save({"backbone.x": torch.ones(3)}, {"format": "pt"}),
        "card of another kind": save({"x": torch.ones(3)}, {"card": '{"dataset": "digits"}'}),
        "card that is no JSON": save({"x": torch.ones(3)}, {"card": metadata["card"][:-9]}),
        "card with more": save(
            {"x": torch.ones(3)}, {"card": json.dumps(json.loads(metadata["card"]) | {"new": 1})}
        ),
        "pickle": pickle.dumps({"card": metadata["card"]}),
        "torch": buffer.getvalue(),
    }
    path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    "kind",
    [
        *("empty", "short", "truncated", "header alone", "longer", "header", "length", "text"),
        *("without card", "other metadata", "card of another kind", "card that is no JSON"),
        *("card with more", "pickle", "torch"),
    ],
)
def test_a_file_that_pretrain_did_not_write_is_refused_by_its_path(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "a.safetensors"
    damaged(kind, path)
    with pytest.raises(LabelcurveError) as error:
        extractor.read(path)
    assert str(error.value).startswith(f"--extractor {path}: ")
    assert "\n" not in str(error.value)


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (self.folder,))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
    with pytest.raises(LabelcurveError):
        extractor.read(path)
    assert names(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("kind", ["missing", "folder", "in a file"])
def test_what_is_no_file_is_refused_by_its_path(tmp_path: Path, kind: str) -> None:
    path = {
        "missing": tmp_path / "nowhere.safetensors",
        "folder": tmp_path,
        "in a file": tmp_path / "file" / "a.safetensors",
    }[kind]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LabelcurveError) as error:
        extractor.read(path)
    assert str(error.value).startswith(f"--extractor {path}: ")


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    extractor.write(path, network(), CARD)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(
        LabelcurveError, match=r"cannot write .*No space left on device\. Make room"
    ):
        extractor.write(path, network(1), card(dataset="other"))
    monkeypatch.undo()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert extractor.read(path).card == CARD


def test_a_folder_that_cannot_be_made_is_an_explained_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LabelcurveError, match=r"cannot write .*file.*--out"):
        extractor.write(tmp_path / "file" / "a.safetensors", network(), CARD)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of what ships with the package."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(extractor, "SHIPPED", folder)
    return folder


def find(cache: Path, **changes: Any) -> extractor.Extractor | None:
    wanted: dict[str, Any] = {
        "pixels_hash": CARD.pixels_hash,
        "backbone": "convnet",
        "size": 8,
        "flip": False,
    }
    return extractor.find(**(wanted | changes), cache=cache)


def in_cache(cache: Path) -> Path:
    return extractor.cached(CARD.pixels_hash, "convnet", 8, False, cache)


def test_where_there_is_none_none_is_found(tmp_path: Path, shipped: Path) -> None:
    assert find(tmp_path / "cache") is None
    shipped.rmdir()
    assert find(tmp_path / "cache") is None


@pytest.mark.parametrize(
    ("knn", "place"), [(None, "shipped"), (0.1, "shipped"), (0.5, "shipped"), (0.6, "cache")]
)
def test_of_the_shipped_and_the_cached_one_the_better_is_found(
    tmp_path: Path, shipped: Path, knn: float | None, place: str
) -> None:
    cache = tmp_path / "cache"
    extractor.write(in_cache(cache), network(1), card(knn=knn))
    found = find(cache)
    assert found is not None
    assert found.path == in_cache(cache)
    extractor.write(shipped / "digits.safetensors", network(), card(knn=0.5))
    found = find(cache)
    assert found is not None
    assert found.path.is_relative_to(tmp_path / place)


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        next(net.backbone.parameters()).view(-1)[3] = torch.nan
    path = tmp_path / "a.safetensors"
    extractor.write(path, net, CARD)
    with pytest.raises(
        LabelcurveError, match=r"--extractor .*a.safetensors: 1 of \d+ entries hold"
    ):
        extractor.read(path)


@pytest.mark.parametrize(
    ("epochs", "planned", "cut"),
    [(0.9, 20, True), (20.0, 20, False), (0.9, 10_000, False), (3.0, 3, False)],
)
def test_what_a_limit_of_time_cut_short_says_so(epochs: float, planned: float, cut: bool) -> None:
    run = CARD.runs[-1].model_copy(update={"epochs": epochs, "recipe": {"epochs": planned}})
    assert card(runs=(run,)).cut_short == cut


OTHERS = pytest.mark.parametrize(
    "other",
    [{"pixels_hash": "cd" * 32}, {"backbone": "reference"}, {"size": 16}, {"flip": True}],
    ids=lambda other: next(iter(other)),
)


@OTHERS
def test_a_shipped_one_for_something_else_is_not_taken(
    tmp_path: Path, shipped: Path, other: dict[str, Any]
) -> None:
    extractor.write(shipped / "digits.safetensors", network(), CARD)
    assert find(tmp_path) is not None
    assert find(tmp_path, **other) is None


@OTHERS
def test_a_cached_one_for_something_else_is_not_taken(
    tmp_path: Path, shipped: Path, other: dict[str, Any]
) -> None:
    extractor.write(in_cache(tmp_path), network(), CARD)
    assert find(tmp_path) is not None
    assert find(tmp_path, **other) is None


@OTHERS
def test_what_is_made_for_something_else_has_a_place_of_its_own(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    wanted: dict[str, Any] = {
        "pixels_hash": CARD.pixels_hash,
        "backbone": "convnet",
        "size": 8,
        "flip": False,
    }
    assert extractor.cached(**(wanted | other), cache=tmp_path) != in_cache(tmp_path)
    assert in_cache(tmp_path).is_relative_to(tmp_path)
