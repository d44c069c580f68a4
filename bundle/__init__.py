"""The interface between training and serving: manifest, preprocessing and store."""

import os

# ONNX Runtime would send telemetry, and keep a device id in the user's cache folder. Every part of
# this project imports this package before it imports ONNX Runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
