"""BentoML's typed API, as in its examples, with its defaults."""

from typing import Any

import bentoml
from model import Model
from PIL import Image


@bentoml.service
class Classifier:
    """Takes a PIL image."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api
    def classify(self, image: Image.Image) -> list[dict[str, Any]]:
        """A form with the file."""
        return self.model.answer(self.model.run(self.model.pixels(image)[None])[0])
