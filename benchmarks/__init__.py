"""Accuracy and latency of the models side by side, load tests, the report."""

import bundle as bundle  # before ONNX Runtime is imported: it switches its telemetry off
