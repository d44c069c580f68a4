"""FastAPI as tutorials write it: an upload, Pillow and the model in the handler."""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile
from model import PORT, Model

app = FastAPI()
model = Model()


@app.post("/classify")
async def classify(image: UploadFile) -> list[dict[str, Any]]:
    """A form with the file."""
    pixels = model.decode(await image.read())
    return model.answer(model.run(pixels[None])[0])


if __name__ == "__main__":
    uvicorn.run(app, port=PORT)
