"""MLServer: a custom runtime in the server's process, with adaptive batching."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from model import MAX_BATCH, PORT, Model


class Classifier(MLModel):
    """V2 protocol: BYTES as base64 in, probabilities out."""

    async def load(self) -> bool:
        """Once."""
        self.model = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A batch."""
        files = Base64Codec.decode_input(payload.inputs[0])
        rows = self.model.run(np.stack([self.model.decode(file) for file in files]))
        output = ResponseOutput(
            name="probabilities",
            datatype="FP32",
            shape=list(rows.shape),
            data=rows.ravel().tolist(),
        )
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = {
        "host": "127.0.0.1",
        "http_port": PORT,
        "grpc_port": PORT + 1,
        "metrics_port": PORT + 2,
        "parallel_workers": 0,
        "debug": False,
    }
    model = {
        "name": "classify",
        "implementation": "mlserver_app.Classifier",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": 0.002,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    sys.path.insert(0, str(Path(__file__).parent))
    from mlserver.cli import main

    sys.argv = ["mlserver", "start", str(folder)]
    main()
