"""Accuracy and latency of models side by side, load tests, reports."""

# Before ONNX Runtime is imported: it switches its telemetry off.
from labelcurve import bundle as bundle
