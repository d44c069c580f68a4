"""The offline job: data, fractions, fine-tuning, evaluation, export."""

import time

STARTED = time.monotonic()
"""Of the process, near enough: what is imported below takes a second and more."""

import bundle as bundle  # noqa: E402  before ONNX Runtime is imported: it switches its telemetry off
