"""Feature extractors as files: weights in safetensors, with the card inside and next to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError

SHIPPED = Path(__file__).resolve().parents[1] / "extractors"
"""Made by `pretrain` and part of the package."""


class Pretraining(BaseModel):
    """One run of `pretrain`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str
    started: str
    """ISO 8601, UTC."""
    epochs: float
    views_seen: int
    """Images that passed through the backbone, forward and backward."""
    seconds: float
    hardware: str
    precision: str
    seed: int
    recipe: dict[str, object]
    packages: dict[str, str]
    git_commit: str | None
    loss: float
    """Mean over the last tenth of the run."""


class Card(BaseModel):
    """Provenance and quality of an extractor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    pixels_hash: str
    """SHA-256 over the training images, whatever their order or file format; no label."""
    n_images: int
    """Number of images it learned from, without the held-out ones."""
    image_size: int
    backbone: str
    objective: str
    flip: bool
    runs: tuple[Pretraining, ...]
    """The last one is the newest; each started from the weights of its predecessor."""
    n_held_out: int
    knn: float | None
    """Accuracy of 20 nearest neighbours (cosine) on held-out training images; None without
    labels."""
    probe: float | None
    """Accuracy of ridge regression on the frozen embedding, same images."""
    license: str | None = None
    """SPDX identifier of third-party weights, where it is known."""
    source: str | None = None

    @property
    def seconds(self) -> float:
        """Training time of all runs."""
        return sum(run.seconds for run in self.runs)

    @property
    def cut_short(self) -> bool:
        """The last run had fewer epochs than its recipe, since the time of `train` ended it."""
        last = self.runs[-1]
        planned = last.recipe.get("epochs")
        return isinstance(planned, float | int) and last.epochs < 0.99 * planned < 1_000


@dataclass(frozen=True)
class Extractor:
    """Weights of a `training.models.backbones.Network`, all but the classifier."""

    card: Card
    weights: dict[str, Tensor]
    """float32, on the CPU, by the names in its `state_dict()`."""
    path: Path
    version: str
    """First 12 digits of a SHA-256 over the weights."""

    def load_into(self, network: nn.Module) -> None:
        """Replaces all weights of `network` but the classifier's.

        Raises:
            LabelcurveError: made for another backbone.
        """
        own = {k: v for k, v in network.state_dict().items() if not k.startswith("classifier.")}
        if wrong := differing(own, self.weights):
            raise LabelcurveError(
                f"{self.path} holds a {self.card.backbone} for {self.card.image_size} px that does "
                f"not fit this network (first difference: {wrong[0]}). For --preset reference it "
                "is made by `labelcurve pretrain --objective relative-position` at the same "
                "--image-size, else by `pretrain`; --extractor none needs none"
            )
        network.load_state_dict(self.weights, strict=False)


def differing(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that one of two state dicts lacks, or has in another shape."""
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (own, given)]
    names = sorted(own.keys() | given.keys())
    return [name for name in names if shapes[0].get(name) != shapes[1].get(name)]


def write(path: Path, network: nn.Module, card: Card) -> None:
    """Writes `path` and a readable card next to it (`.md`), each renamed atomically.

    Matrices and convolutions are kept in float16, half the size; vectors in float32.

    Raises:
        LabelcurveError: the folder cannot be written.
    """
    weights = {
        name: (value.half() if value.ndim > 1 and value.is_floating_point() else value)
        .detach()
        .cpu()
        .contiguous()
        for name, value in network.state_dict().items()
        if not name.startswith("classifier.")
    }
    data = save(weights, {"card": card.model_dump_json()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, content in ((path, data), (path.with_suffix(".md"), _text(card).encode())):
            files.replace(target, content)
    except OSError as error:
        raise LabelcurveError(
            f"cannot write {error.filename or path}: {error.strerror}. Make room, or name another "
            "file with --out"
        ) from error


def read(path: Path, option: str = "--extractor") -> Extractor:
    """Reads an extractor.

    Args:
        option: of the command, for the messages.

    Raises:
        LabelcurveError: no such file, or not one that `pretrain` wrote.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise LabelcurveError(f"{option} {path}: {what}; what `pretrain` writes is a .safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        card = Card.model_validate_json(metadata["card"])
    except OSError as error:
        raise LabelcurveError(f"{option} {path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValidationError) as error:
        raise LabelcurveError(
            f"{option} {path}: not a file that `pretrain` wrote ({type(error).__name__})"
        ) from error
    floats = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    check_finite(floats, f"{option} {path}")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return Extractor(card, floats, path, digest.hexdigest()[:12])


def check_finite(weights: Mapping[str, Tensor], wanted: str) -> None:
    """Refuses weights with NaN or infinity.

    Raises:
        LabelcurveError: names the first.
    """
    bad = [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise LabelcurveError(
            f"{wanted}: {len(bad)} of {len(weights)} entries hold NaN or infinity (first: "
            f"{bad[0]}); take another file, or --extractor none"
        )


def find(pixels_hash: str, backbone: str, size: int, flip: bool, cache: Path) -> Extractor | None:
    """Finds the extractor of these images, shipped or cached, with the higher k-NN accuracy.

    Both were evaluated on the same held-out images. Of equals, the shipped one.
    """
    own = cached(pixels_hash, backbone, size, flip, cache)
    best: Extractor | None = None
    for path in [*sorted(SHIPPED.glob("*.safetensors")), own]:
        if not path.exists():
            continue
        try:
            found = read(path)
        except LabelcurveError:
            if path == own:  # a damaged one in the cache is made again
                continue
            raise
        card = found.card
        made_for = (card.pixels_hash, card.backbone, card.image_size, card.flip)
        if made_for != (pixels_hash, backbone, size, flip):
            continue
        if best is None or (card.knn or 0) > (best.card.knn or 0):
            best = found
    return best


def shipped(backbone: str, size: int, flip: bool) -> Extractor | None:
    """Finds a shipped extractor that fits the network, whatever images it was made from."""
    for path in sorted(SHIPPED.glob("*.safetensors")):
        found = read(path)
        card = found.card
        if (card.backbone, card.image_size, card.flip) == (backbone, size, flip):
            return found
    return None


def cached(pixels_hash: str, backbone: str, size: int, flip: bool, cache: Path) -> Path:
    """Default path of the extractor that `pretrain` writes."""
    turned = "" if flip else "-no-flip"
    return cache / "extractors" / f"{pixels_hash[:20]}-{backbone}-{size}{turned}.safetensors"


def lasted(seconds: float) -> str:
    """`42 s` or `70 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _text(card: Card) -> str:
    runs = "\n".join(
        f"- `{run.command}`: {run.epochs:.6g} epochs, {run.views_seen:,} views, "
        f"{lasted(run.seconds)} on {run.hardware} ({run.precision}), started {run.started}, "
        f"loss {run.loss:.4f} at the end, commit {run.git_commit or 'unknown'}, "
        + ", ".join(f"{name} {version}" for name, version in run.packages.items())
        for run in card.runs
    )
    judged = "It was not evaluated, for lack of labels or of time (--max-minutes)."
    if card.knn is not None and card.probe is not None:
        judged = (
            f"On {card.n_held_out:,} training images that it did not see: k-NN accuracy "
            f"{card.knn:.4f} (20 neighbours, cosine), linear probe {card.probe:.4f} (ridge "
            "regression on the frozen embedding). The labels were used for these two figures "
            "alone; the test images not at all."
        )
    return f"""# Feature extractor for {card.dataset}

{card.backbone} at {card.image_size} px, trained without labels on {card.n_images:,} training
images; objective {card.objective}{"" if card.flip else ", images never mirrored"}.

{judged}

## Made by

{runs}

Pixels hash `{card.pixels_hash[:16]}`.
"""
