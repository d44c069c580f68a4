"""Triton with its dynamic batcher, around a Python callable (pytriton)."""

from __future__ import annotations

from typing import Any

import numpy as np
from model import MAX_BATCH, PORT, Model
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

model = Model()


@batch
def classify(image: Any) -> dict[str, Any]:
    """BYTES [N, 1] to probabilities [N, K]."""
    return {"probabilities": model.run(np.stack([model.decode(file) for file in image[:, 0]]))}


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=PORT,
        grpc_address="127.0.0.1",
        grpc_port=PORT + 1,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classify",
            infer_func=classify,
            inputs=[Tensor(name="image", shape=(1,), dtype=np.bytes_)],
            outputs=[Tensor(name="probabilities", shape=(-1,), dtype=np.float32)],
            config=ModelConfig(
                max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
        )
        triton.serve()
