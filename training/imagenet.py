"""torchvision's networks and their ImageNet weights as extractors: `--extractor torchvision:NAME`.

`torchvision:NAME` takes the weights that torchvision names as its best for that network, and
downloads them once; `torchvision:NAME=FILE` reads its state dict from a file, for machines without
a network.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from bundle.errors import LabelcurveError, near
from training.extractor import Card, Extractor, check_finite
from training.recipes import TORCHVISION

DATASET = "ImageNet-1k"
N_IMAGES = 1_281_167

REFUSED = ("googlenet", "inception", "squeezenet")
"""Networks with several outputs while they train, or without a linear classifier."""


def names() -> list[str]:
    """Networks that can be begun with."""
    return [n for n in models.list_models(module=models) if not n.startswith(REFUSED)]


def backbone(name: str, size: int) -> tuple[nn.Module, int]:
    """A network of torchvision without its classifier, and the width of its embedding.

    Args:
        name: `torchvision:NAME`.
        size: side of the images in pixels.

    Raises:
        LabelcurveError: no such network, or it cannot see images of this size.
    """
    network, _ = _headless(name.removeprefix(TORCHVISION))
    network.eval()
    try:
        with torch.inference_mode():
            dim = network(torch.zeros(2, 3, size, size)).shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise LabelcurveError(
            f"--extractor {name}: this network cannot see images of {size} px "
            f"({str(error).splitlines()[0]}): give it more with --image-size, for example 224"
        ) from error
    return network.train(), dim


def check(wanted: str) -> None:
    """Refuses a network or a file that is not there.

    Raises:
        LabelcurveError: names what there is.
    """
    name, named, file = wanted.removeprefix(TORCHVISION).partition("=")
    if name not in names():
        raise LabelcurveError(
            f"--extractor {TORCHVISION}{name}: no such network{near(name, names())}; allowed are "
            f"{', '.join(names())}"
        )
    if named and not Path(file).is_file():
        what = "no such file" if not Path(file).exists() else "a folder, not a file"
        raise LabelcurveError(
            f"--extractor {wanted}: {what if file else 'no file is named'}. Allowed: "
            f"{TORCHVISION}{name}=FILE with a state dict, and {TORCHVISION}{name} alone, which "
            "downloads one"
        )


def read(wanted: str, size: int) -> Extractor:
    """The weights that `torchvision:NAME` or `torchvision:NAME=FILE` means.

    Args:
        wanted: value of `--extractor`.
        size: side of the images in pixels.

    Raises:
        LabelcurveError: no such network, the weights cannot be had, or are another network's.
    """
    name, _, file = wanted.removeprefix(TORCHVISION).partition("=")
    network, head = _headless(name)
    given = _from_file(wanted, Path(file)) if file else _download(name)
    weights = {key: value for key, value in given.items() if not key.startswith(f"{head}.")}
    own = network.state_dict()
    wrong = [
        key
        for key in sorted(own.keys() | weights.keys())
        if key not in own or key not in weights or own[key].shape != weights[key].shape
    ]
    if wrong:
        raise LabelcurveError(
            f"--extractor {wanted}: not the state dict of torchvision's {name}: {len(wrong)} "
            f"entries are missing, unknown or of another shape (first: {wrong[0]})"
        )
    floats = {key: v.float() if v.is_floating_point() else v for key, v in weights.items()}
    check_finite(floats, f"--extractor {wanted}")
    preset = models.get_model_weights(name).DEFAULT.transforms()
    digest = hashlib.sha256()
    for key in sorted(floats):
        digest.update(key.encode() + floats[key].contiguous().numpy().tobytes())
    return Extractor(
        card=Card(
            dataset=Path(file).name if file else DATASET,
            pixels_hash="",
            n_images=0 if file else N_IMAGES,
            image_size=size,
            backbone=TORCHVISION + name,
            objective="supervised",
            flip=True,
            runs=(),
            n_held_out=0,
            knn=None,
            probe=None,
        ),
        weights={
            **{f"backbone.{key}": value for key, value in floats.items()},
            "mean": torch.tensor(preset.mean).view(1, 3, 1, 1),
            "std": torch.tensor(preset.std).view(1, 3, 1, 1),
        },
        path=Path(file or name),
        version=digest.hexdigest()[:12],
    )


def _headless(name: str) -> tuple[nn.Module, str]:
    """The network without its last linear layer, and the name of that layer."""
    check(f"{TORCHVISION}{name}")
    network: nn.Module = models.get_model(name, weights=None)
    head = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    network.set_submodule(head, nn.Identity())
    return network, head


def _download(name: str) -> Mapping[str, Tensor]:
    weights = models.get_model_weights(name).DEFAULT
    try:
        found: Mapping[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        raise LabelcurveError(
            f"--extractor {TORCHVISION}{name}: {weights.url} could not be fetched ({error}). Fetch "
            f"it on another machine and give --extractor {TORCHVISION}{name}=FILE, or take "
            "--extractor auto or none, which need no download"
        ) from error
    return found


def _from_file(wanted: str, path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            found: object = load_file(path)
        else:
            # Tensors alone are read: a pickle that would run code is refused.
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise LabelcurveError(f"--extractor {wanted}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise LabelcurveError(
            f"--extractor {wanted}: {path} holds no plain state dict ({type(error).__name__}): "
            "save `network.state_dict()` with torch.save, or as .safetensors"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise LabelcurveError(
            f"--extractor {wanted}: {path} holds something else than a state dict: save "
            "`network.state_dict()` with torch.save, or as .safetensors"
        )
    return found
