"""The BentoML service: bytes, pixels, batches, ONNX Runtime, answers."""
