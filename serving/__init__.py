"""The service, on BentoML: decoding, batching, inference with ONNX Runtime, responses."""

import os

# Before ONNX Runtime is imported: it switches its telemetry off.
from labelcurve import bundle as bundle

# Read by BentoML when it first thinks of reporting, in every process that imports this package
# and in those that they start.
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
