"""The offline job: data, fractions, fine-tuning, evaluation, export."""

import time

STARTED = time.monotonic()
"""Start of the process, approximately: the imports below take a second and more."""

# Before ONNX Runtime is imported: it switches its telemetry off.
from labelcurve import bundle as bundle  # noqa: E402
