"""The interface between training and serving: manifest, preprocessing and store."""

import os

# ONNX Runtime would report to its makers, and keep a device id in the user's cache folder. Every
# room imports this one before it imports ONNX Runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
