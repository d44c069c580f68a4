"""timm's networks and their pretrained weights as extractors: `--extractor timm:NAME[=FILE]`.

NAME is an architecture, with or without the tag of its weights (`tf_efficientnet_lite0.in1k`).
`timm:NAME` reads the weights from the Hugging Face Hub's cache, and downloads them once where they
are not in it; `timm:NAME=FILE` reads a state dict from a file. The extra `photos` brings timm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelcurve.bundle.errors import LabelcurveError, near
from labelcurve.training.models import weights_file
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.recipes import TIMM

WEIGHTS = "model.safetensors"
"""File name of the weights in timm's repositories on the Hub."""

DEEPER = 3
"""Maps before the last layer that are part of the embedding."""


class Backbone(nn.Module):
    """A network of timm whose embedding is that of its last layer, and pooled maps before it.

    The means of the maps of the last stages keep colour and texture, which the last layer has
    traded for the classes it was trained on: a linear head with few labels needs both
    (docs/log.md).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        n = len(model.feature_info) if hasattr(model, "forward_intermediates") else 0
        # Of a network of equal blocks (ViT), at the half, three quarters and the end of its depth.
        few = range(n - min(DEEPER, n), n) if n <= 6 else (n // 2 - 1, 3 * n // 4 - 1, n - 1)
        self.maps = list(few)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, D]."""
        if not self.maps:
            last: Tensor = self.model(x)
            return last
        final, maps = self.model.forward_intermediates(x, indices=self.maps, output_fmt="NCHW")
        last = self.model.forward_head(final, pre_logits=True)
        return torch.cat([last, *(part.mean((2, 3)) for part in maps)], 1)


def check(wanted: str) -> None:
    """Refuses a network, a tag or a file that is not there.

    Raises:
        LabelcurveError: names what there is.
    """
    name, named, file = wanted.removeprefix(TIMM).partition("=")
    tags = _tags(name)
    if named:
        weights_file.check_file(wanted, file)
    elif not tags:
        raise LabelcurveError(
            f"--extractor {TIMM}{name}: timm has no weights of it: give {TIMM}{name}=FILE"
        )
    elif not (facts := _timm(wanted).get_pretrained_cfg(name)).hf_hub_id:
        raise LabelcurveError(
            f"--extractor {TIMM}{name}: its weights are not on the Hub, but at {facts.url}: fetch "
            f"them and give {TIMM}{name}=FILE"
        )


def backbone(name: str, size: int) -> tuple[nn.Module, int]:
    """A network of timm without its classifier, and the width of its embedding.

    Args:
        name: `timm:NAME`.
        size: side of the images in pixels.

    Raises:
        LabelcurveError: no such network, or it cannot take images of this size.
    """
    _tags(name.removeprefix(TIMM))
    return weights_file.sized(name, lambda: Backbone(_create(name.removeprefix(TIMM), size)), size)


def read(wanted: str, size: int, say: Callable[[str], None] = print) -> Extractor:
    """The weights that `timm:NAME` or `timm:NAME=FILE` means.

    Args:
        wanted: value of `--extractor`.
        size: side of the images in pixels.
        say: receives a message on a download, and on differences from the preprocessing with which
            the weights were trained.

    Raises:
        LabelcurveError: no such network, the weights are unavailable, or are another network's.
    """
    check(wanted)
    name, _, file = wanted.removeprefix(TIMM).partition("=")
    model = _create(name, size)
    facts = model.pretrained_cfg
    given = weights_file.state_dict(wanted, Path(file) if file else fetch(wanted, say))
    own = Backbone(model).state_dict()
    weights = {f"model.{k}": v for k, v in _fitting(given, model).items()}
    card = weights_file.card(
        TIMM + name,
        size,
        Path(file).name if file else facts["hf_hub_id"],
        0,
        license=None if file else facts.get("license"),
        source=None if file else f"https://huggingface.co/{facts['hf_hub_id']}",
    )
    if not facts["num_classes"]:
        card = card.model_copy(update={"objective": "self-supervised"})
    side, share = facts["input_size"][-1], facts["crop_pct"]
    if side != size or share != 1 or facts["interpolation"] != "bilinear":
        say(
            f"{TIMM}{name}: its weights were trained for a test-time view of {side} px, the "
            f"middle {share:.1%} by {facts['interpolation']} interpolation; here images are "
            f"{size} px, the whole centre square by bilinear interpolation"
        )
    return weights_file.extractor(
        wanted, own, weights, card, (facts["mean"], facts["std"]), whose=f"timm's {name}"
    )


def fetch(wanted: str, say: Callable[[str], None]) -> Path:
    """The file with the weights of `timm:NAME`, from the Hub's cache, else from the Hub.

    Raises:
        LabelcurveError: neither has it; the message has the command that fetches it.
    """
    check(wanted)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    facts = _timm(wanted).get_pretrained_cfg(wanted.removeprefix(TIMM))
    hub = facts.hf_hub_id
    try:
        return Path(hf_hub_download(hub, WEIGHTS, local_files_only=True))
    except LocalEntryNotFoundError:
        say(f"downloading {WEIGHTS} of {hub} (license {facts.license or 'not stated'})")
    try:
        return Path(hf_hub_download(hub, WEIGHTS))
    except Exception as error:  # the client passes on what its HTTP library raises
        raise LabelcurveError(
            f"--extractor {wanted}: the weights {hub} are not in the Hub's cache and could not be "
            f"downloaded ({str(error).splitlines()[0].rstrip('.')}). On a machine with a network, "
            f"`hf download {hub} {WEIGHTS} --local-dir DIR`; here, --extractor "
            f"{wanted}=DIR/{WEIGHTS}"
        ) from error


def _timm(wanted: str) -> Any:
    try:
        import timm
        import timm.models
    except ImportError as error:
        raise LabelcurveError(
            f"--extractor {wanted}: timm is not installed: pip install 'labelcurve[photos]'"
        ) from error
    return timm.models


def _tags(name: str) -> list[str]:
    """The tags of a network's weights.

    Raises:
        LabelcurveError: no such network, or no weights of the tag in its name.
    """
    timm = _timm(TIMM + name)
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise LabelcurveError(
            f"--extractor {TIMM}{name}: no such network{near(architecture, known)}; "
            "`python -c 'import timm; print(*timm.list_models())'` names them all"
        )
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise LabelcurveError(
            f"--extractor {TIMM}{name}: no such weights; {architecture} has "
            f"{', '.join(tags) or 'none, so a file is needed'}"
        )
    return tags


def _create(name: str, size: int) -> Any:
    """The network without classifier, with random weights."""
    models = _timm(TIMM + name)
    fixed = models.get_pretrained_cfg(name).fixed_input_size
    return models.create_model(name, num_classes=0, **({"img_size": size} if fixed else {}))


def _fitting(given: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Weights under timm's names and for the model's image size, without the classifier's."""
    own = model.state_dict()
    named = _from_efficientnet_pytorch(given, own) if "_conv_stem.weight" in given else dict(given)
    heads = model.pretrained_cfg["classifier"] or ()
    heads = (heads,) if isinstance(heads, str) else heads
    weights = {k: v for k, v in named.items() if k.rpartition(".")[0] not in heads}
    place = weights.get("pos_embed")
    if place is not None and "pos_embed" in own and place.shape != own["pos_embed"].shape:
        from timm.layers import resample_abs_pos_embed

        before = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
        grid = list(model.patch_embed.grid_size)
        weights["pos_embed"] = resample_abs_pos_embed(place, grid, num_prefix_tokens=before)
    return weights


_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _from_efficientnet_pytorch(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """EfficientNet-Lite by the names of the package EfficientNet-PyTorch, by timm's names.

    What it does not know keeps its name.
    """
    blocks = list(dict.fromkeys(k.rsplit(".", 2)[0] for k in own if k.startswith("blocks.")))
    found = {}
    for key, value in given.items():
        head, _, rest = key.partition(".")
        if head == "_blocks":
            number, layer, entry = rest.split(".", 2)
            block = blocks[int(number)] if int(number) < len(blocks) else number
            names = _EXPANDING if f"{block}.conv_pwl.weight" in own else _PLAIN
            key = f"{block}.{names.get(layer, layer)}.{entry}"
        elif head != "_fc":
            key = f"{_TOP.get(head, head)}.{rest}"
        else:
            continue
        found[key] = value
    return found
