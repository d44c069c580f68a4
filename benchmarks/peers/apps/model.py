"""Decoding, inference and response that all peers share."""

from __future__ import annotations

import json
import os
from io import BytesIO
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

PORT = int(os.environ.get("PEER_PORT", "8000"))
MAX_BATCH = 16


class Model:
    """An ONNX file: uint8 [N, size, size, 3] to probabilities [N, K]."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.size = self.session.get_inputs()[0].shape[1]
        k = self.session.get_outputs()[0].shape[1]
        names = self.session.get_modelmeta().custom_metadata_map.get("class_names")
        self.names = json.loads(names) if names else [str(i) for i in range(k)]
        for n in range(1, MAX_BATCH + 1):
            self.run(np.zeros((n, self.size, self.size, 3), np.uint8))

    def decode(self, data: bytes) -> Any:
        """File bytes to uint8 [size, size, 3]."""
        return self.pixels(Image.open(BytesIO(data)))

    def pixels(self, image: Image.Image) -> Any:
        """An opened image to uint8 [size, size, 3]."""
        image = image.convert("RGB")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size))
        return np.asarray(image)

    def run(self, images: Any) -> Any:
        """Probabilities, float32 [N, K]."""
        return self.session.run(["probabilities"], {"images": images})[0]

    def answer(self, probabilities: Any, top_k: int = 5) -> list[dict[str, Any]]:
        """The most probable classes, best first."""
        order = np.argsort(-probabilities)[:top_k]
        return [{"label": self.names[i], "score": float(probabilities[i])} for i in order]
