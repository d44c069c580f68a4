"""LitServe with its own batching."""

from typing import Any

import litserve
from fastapi import Request
from model import MAX_BATCH, PORT, Model


class Classifier(litserve.LitAPI):
    """A form with the file."""

    def setup(self, device: str) -> None:
        """Once in each worker."""
        self.model = Model()

    def decode_request(self, request: Request) -> Any:
        """The upload to pixels."""
        return self.model.decode(request["image"].file.read())

    def predict(self, batch: Any) -> Any:
        """[N, size, size, 3] to [N, K]."""
        return self.model.run(batch)

    def encode_response(self, output: Any) -> list[dict[str, Any]]:
        """Probabilities to labels."""
        return self.model.answer(output)


if __name__ == "__main__":
    api = Classifier(max_batch_size=MAX_BATCH, batch_timeout=0.002, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", devices=1)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
