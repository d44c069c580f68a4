"""Third-party weights, trained with labels, as an extractor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.text import shown
from labelcurve.training.models.extractor import Card, Extractor, check_finite, differing


def check_file(wanted: str, file: str) -> None:
    """Refuses a file that is not there.

    Args:
        wanted: value of `--extractor`, `KIND:NAME=FILE`.
        file: the part after the equals sign.

    Raises:
        LabelcurveError: names what is allowed.
    """
    if Path(file).is_file():
        return
    name = wanted.partition("=")[0]
    what = "no such file" if not Path(file).exists() else "a folder, not a file"
    raise LabelcurveError(
        f"--extractor {wanted}: {what if file else 'no file is named'}. Allowed: {name}=FILE with "
        f"a state dict, and {name} alone, which downloads one"
    )


def sized(name: str, make: Callable[[], nn.Module], size: int) -> tuple[nn.Module, int]:
    """Make a network without its classifier; also return the width of its embedding.

    Args:
        name: `KIND:NAME`.
        size: side of the images in pixels.

    Raises:
        LabelcurveError: the network cannot take images of this size.
    """
    try:
        network = make().eval()
        with torch.inference_mode():
            dim: int = network(torch.zeros(2, 3, size, size)).shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise LabelcurveError(
            f"--extractor {name}: this network cannot take images of {size} px "
            f"({str(error).splitlines()[0]}): use another --image-size, for example 224"
        ) from error
    return network.train(), dim


def state_dict(wanted: str, path: Path) -> Mapping[str, Tensor]:
    """A state dict from a `.safetensors` file or from one that `torch.save` wrote.

    Raises:
        LabelcurveError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            found: object = load_file(path)
        else:
            # Tensors alone are read: a pickle that would run code is refused.
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise LabelcurveError(f"--extractor {wanted}: {error.strerror or error}") from error
    except Exception as error:  # arbitrary bytes make torch's unpickler raise almost anything
        raise LabelcurveError(
            f"--extractor {wanted}: {path} holds no plain state dict ({type(error).__name__}): "
            "save `network.state_dict()` with torch.save, or as .safetensors"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise LabelcurveError(
            f"--extractor {wanted}: {path} holds something other than a state dict: save "
            "`network.state_dict()` with torch.save, or as .safetensors"
        )
    return found


def extractor(
    wanted: str,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    card: Card,
    normalisation: tuple[Sequence[float], Sequence[float]],
    *,
    whose: str,
) -> Extractor:
    """Weights as an extractor, with the normalisation of their images.

    Args:
        wanted: value of `--extractor`.
        own: state dict of the network that they are for.
        weights: without the classifier's.
        normalisation: mean and standard deviation of the channels, on images from 0 to 1.
        whose: of which library, for messages.

    Raises:
        LabelcurveError: they are another network's, or not finite.
    """
    if wrong := differing(own, weights):
        raise LabelcurveError(
            f"--extractor {wanted}: not the state dict of {whose}: {len(wrong)} "
            f"entries are missing, unknown or of another shape (first: {wrong[0]})"
        )
    floats = {key: v.float() if v.is_floating_point() else v for key, v in weights.items()}
    check_finite(floats, f"--extractor {wanted}")
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in normalisation)
    digest = hashlib.sha256()
    for key in sorted(floats):
        digest.update(key.encode() + floats[key].contiguous().numpy().tobytes())
    file = wanted.partition("=")[2]
    return Extractor(
        card=card,
        weights={**{f"backbone.{k}": v for k, v in floats.items()}, "mean": mean, "std": std},
        path=Path(file or wanted.partition(":")[2]),
        version=digest.hexdigest()[:12],
    )


def card(backbone: str, size: int, dataset: str, n_images: int, **facts: str | None) -> Card:
    """The card of third-party weights, trained with labels.

    Args:
        backbone: `KIND:NAME`.
        size: side of the images in pixels.
        dataset: on which they were trained, or the name of the file if unknown.
        n_images: of it; 0 if unknown.
        facts: `license` and `source`.
    """
    return Card(
        dataset=shown(dataset),
        pixels_hash="",
        n_images=n_images,
        image_size=size,
        backbone=backbone,
        objective="supervised",
        flip=True,
        runs=(),
        n_held_out=0,
        knn=None,
        probe=None,
        **facts,
    )
