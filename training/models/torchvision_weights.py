"""torchvision's networks and their ImageNet weights as extractors: `--extractor torchvision:NAME`.

`torchvision:NAME` takes the weights that torchvision names as its best for that network, and
downloads them once; `torchvision:NAME=FILE` reads its state dict from a file, for machines without
a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

from torch import Tensor, nn
from torchvision import models

from labelcurve.bundle.errors import LabelcurveError, near
from labelcurve.training.models import weights_file
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.recipes import TORCHVISION

DATASET = "ImageNet-1k"
N_IMAGES = 1_281_167

REFUSED = ("googlenet", "inception", "squeezenet")
"""Networks with several outputs while they train, or without a linear classifier."""


def names() -> list[str]:
    """Networks that training can start from."""
    return [n for n in models.list_models(module=models) if not n.startswith(REFUSED)]


def backbone(name: str, size: int) -> tuple[nn.Module, int]:
    """A network of torchvision without its classifier, and the width of its embedding.

    Args:
        name: `torchvision:NAME`.
        size: side of the images in pixels.

    Raises:
        LabelcurveError: no such network, or it cannot take images of this size.
    """
    network, _ = _headless(name.removeprefix(TORCHVISION))
    return weights_file.sized(name, lambda: network, size)


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
    if named:
        weights_file.check_file(wanted, file)


def read(wanted: str, size: int) -> Extractor:
    """The weights that `torchvision:NAME` or `torchvision:NAME=FILE` means.

    Args:
        wanted: value of `--extractor`.
        size: side of the images in pixels.

    Raises:
        LabelcurveError: no such network, the weights are unavailable, or are another network's.
    """
    name, _, file = wanted.removeprefix(TORCHVISION).partition("=")
    network, head = _headless(name)
    given = weights_file.state_dict(wanted, Path(file)) if file else _download(name)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    return weights_file.extractor(
        wanted,
        network.state_dict(),
        {key: value for key, value in given.items() if not key.startswith(f"{head}.")},
        weights_file.card(
            TORCHVISION + name,
            size,
            Path(file).name if file else DATASET,
            0 if file else N_IMAGES,
            source=None if file else f"torchvision's default weights of {name}",
        ),
        (preset.mean, preset.std),
        whose=f"torchvision's {name}",
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
